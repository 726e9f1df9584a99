"""Written pages as JSON."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protonmf_cli.jobs.page import WrittenReport


def report_json(written: "WrittenReport") -> dict[str, Any]:
    """`protonmf.report/1`."""
    content = written.content
    return {
        "schema": "protonmf.report/1",
        "output": str(written.path),
        "model": content.file,
        "bytes": written.page.size,
        "classes": len(content.gallery.classes),
        "prototypes": len(content.gallery.prototypes),
        "suspicious": [
            {
                "label": content.model.card.classes[p.owner_index].label,
                "prototype": p.number,
                "prototype_id": p.prototype_id,
                "signs": [{"kind": sign.kind, "words": sign.words} for sign in p.signs],
            }
            for p in content.gallery.prototypes
            if p.signs
        ],
        "images": len(content.cases),
        "unreadable": [{"path": skip.path, "reason": skip.reason} for skip in content.unreadable],
        "left_out": list(written.page.left_out),
    }
