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
        "prototypes": sum(each.number > 0 for each in content.gallery.prototypes),
        "images": len(content.cases),
        "unreadable": [{"path": skip.path, "reason": skip.reason} for skip in content.unreadable],
        "left_out": list(written.page.left_out),
    }
