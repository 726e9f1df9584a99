"""One order of all prototypes, with the reason in words."""

from protonmf_cli.models.audit import Need, Transplant
from protonmf_cli.models.wording import rounded

LOOKS_LIKE_ONE = 0.3
"""Score from which a prototype is said to look like a shortcut; chosen on planted marks and classes without any."""
MOST_LOST = 1 / 3
"""Accuracy that a class may lose without a prototype that is said so of: what it needs more is a part of it."""


def score_of(transplant: Transplant | None, need: Need | None) -> float:
    """Share of other images that follow the prototype, times what its class keeps without it.

    A part that the class is about does not flip what shows something else, and the class loses its images with it; a
    shortcut flips everything, and is not missed. Images that follow its patches also when it is taken out do not
    follow because of it. What colours do is laid to one prototype of the class.

    Returns:
        In [0, 1]; without images of the class what it keeps counts as all.
    """
    if transplant is None:
        return 0.0
    taken = transplant.recoloured.value if transplant.by_colours else transplant.caused
    return max(0.0, taken) * (1 - _lost(need))


def _lost(need: Need | None) -> float:
    return 0.0 if need is None else max(0.0, need.own[0] - need.own[1])


def looks_like_shortcut(score: float, transplant: Transplant | None, need: Need | None) -> bool:
    """Whether the score is high, its class does well without it, and not any piece of its pictures flips as many.

    Of a prototype that was not looked at closer, so that other pieces of its pictures were not tried, or whose class
    has no images, nobody knows.
    """
    if transplant is None or not transplant.elsewhere.trials or score < LOOKS_LIKE_ONE:
        return False
    if need is None or _lost(need) > MOST_LOST:
        return False
    return transplant.by_colours or transplant.flips.low > transplant.elsewhere.value


def reason_of(
    name: str,
    transplant: Transplant | None,
    need: Need | None,
    outside: tuple[float | None, float | None],
) -> str:
    """What was found of a prototype, the most telling first.

    Args:
        name: of its class.
        transplant, need: of the prototype.
        outside: share of its maps outside the objects, and that of an even map.
    """
    parts = ["nothing could be pasted" if transplant is None else _taken(transplant)]
    if need is not None:
        parts.append(_needed(name, need))
    beside, even = outside
    if beside is not None and even is not None and beside > even:
        parts.append(f"{rounded(beside)} of it lies outside the object (of an even map {rounded(even)})")
    return "; ".join(parts)


def _taken(transplant: Transplant) -> str:
    if transplant.by_colours:
        taken, left, beside = transplant.recoloured, transplant.recoloured_left, []
        words = f"the colours of its pictures alone flip {rounded(taken.value)} of other images"
    else:
        taken, left, baseline = transplant.flips, transplant.left, transplant.elsewhere
        words = f"pasted into other images it turns {rounded(taken.value)} of them into its class"
        beside = [f"other pieces of its pictures {rounded(baseline.value)}"] if baseline.trials else []
    still = [f"{rounded(left.value)} also when it is taken out"] if taken.hits else []
    return f"{words} ({', '.join([*still, *beside])})" if still or beside else words


def _needed(name: str, need: Need) -> str:
    before, after = need.own
    if after > before:
        return f"without it {name} gains {rounded(after - before)}"
    kept = rounded(after / before) if before else "none"
    return f"without it {name} keeps {kept} of what is right"
