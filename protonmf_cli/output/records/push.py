"""What was pushed, as JSON."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protonmf_cli.jobs.push import Push


def push_json(push: "Push") -> dict[str, Any]:
    """`protonmf.push/1`: what was sent where, and the card; commit is null where nothing was sent."""
    return {
        "schema": "protonmf.push/1",
        "model": str(push.model),
        "repository": push.repository,
        "url": push.url,
        "commit": push.commit,
        "private": push.private,
        "bytes": push.bytes,
        "card": push.card,
    }
