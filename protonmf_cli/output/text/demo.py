"""What the demonstration says of its network."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protonmf_cli.jobs.demo import PreparedDemo


def demo_lines(prepared: "PreparedDemo") -> list[str]:
    """The network in a line."""
    return [
        f"a network of {prepared.weights:,} weights, trained on {prepared.train} handwritten digits: "
        f"{prepared.accuracy:.1%} right on {prepared.val} others"
    ]
