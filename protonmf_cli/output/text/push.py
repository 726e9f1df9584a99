"""What was pushed, in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protonmf_cli.jobs.push import Push


def push_lines(push: "Push") -> list[str]:
    """Where the model is now, and how it is used from there; of what was not sent the card."""
    if push.commit is None:
        return push.card.rstrip("\n").split("\n")
    return [
        f"{push.model} ({push.bytes / 2**20:.1f} MiB) is at {push.url}, with a card",
        f"protonmf explain img.jpg --model hub:{push.repository}",
    ]
