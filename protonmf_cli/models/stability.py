"""When a prototype counts as unstable."""

UNSTABLE = 0.7
"""Cosine between two halves of the images below which a prototype is flagged: other images would give another one."""


def is_unstable(stability: float | None) -> bool:
    """Whether a measured stability is below `UNSTABLE`."""
    return stability is not None and stability < UNSTABLE
