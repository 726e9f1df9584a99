"""Stored training patches beside their images, in words."""

from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING

from protonmf_cli.models.wording import owned_name

if TYPE_CHECKING:
    from protonmf_cli.jobs.patches import PatchInspection
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.pipelines.stored_patches import CheckedPrototype, Patch

LISTED = 20
"""Prototypes that are named one by one."""


def patch_lines(found: "PatchInspection") -> dict[str, str]:
    """What is as the file says, of how many, by topic."""
    counts = {name: f"{count} of {of}" for name, (count, of) in found.counts.items() if of}
    pictures = [p.picture for each in found.prototypes for p in each.patches if p.picture is not None]
    maps = [(each.map, each.least_map) for each in found.prototypes if each.map is not None and each.least_map]
    lines = {"sources": f"{counts['sources']} patches name an image that is there, with the same content"}
    if "classes" in counts:
        lines["classes"] = f"{counts['classes']} patches are of the class that their prototype was found in"
    if "pictures" in counts:
        lines["pictures"] = f"{counts['pictures']} show their image" + (f" ({_figures(pictures)})" if pictures else "")
    if "maps" in counts:
        limit = min(least for _, least in maps if least)
        lines["maps"] = (
            f"{counts['maps']} prototypes have the maps that the network gives "
            f"({_figures([value for value, _ in maps if value is not None])}; wanted: {limit:.2f})"
        )
    if "nonnegative" in counts:
        lines["entries"] = f"{counts['nonnegative']} prototypes have none below zero"
    if "wholes" in counts:
        lines["wholes"] = f"{counts['wholes']} classes as wholes are sums of their parts"
    if found.notes:
        lines["left out"] = " ".join(found.notes)
    return lines


def _figures(values: list[float]) -> str:
    return f"correlation {median(values):.2f} in the middle, {min(values):.2f} at least"


def fault_lines(found: "PatchInspection") -> list[str]:
    """The prototypes that are not as the file says, each in a line."""
    failed = found.failed
    lines = [f"  {_named(found.model, each)}: {'; '.join(_faults(found.model, each))}" for each in failed[:LISTED]]
    more = len(failed) - LISTED
    return [*lines, f"  and {more} more (--json lists them)"] if more > 0 else lines


def _named(model: "PrototypeModel", checked: "CheckedPrototype") -> str:
    return owned_name(model.card.classes[checked.owner].shown, checked.number)


def _faults(model: "PrototypeModel", checked: "CheckedPrototype") -> Iterator[str]:
    patches = checked.patches
    for word in ("missing", "changed"):
        if lost := [patch for patch in patches if patch.image.said == word]:
            yield f"{_some(lost, len(patches))} {word}"
    if wrong := [patch for patch in patches if patch.own_class is False]:
        listed = ", ".join(model.card.classes[c].shown for c in wrong[0].image.classes)
        yield f"{_some(wrong, len(patches))} listed under {listed}"
    if wrong := [patch for patch in patches if patch.same_picture is False]:
        worst = min(patch.picture or 0.0 for patch in wrong)
        yield f"picture of {_some(wrong, len(patches))} is another one (correlation {worst:.2f})"
    if "map" in checked.faults:
        yield f"maps correlate {checked.map:.2f} with the network's"
    if checked.negative:
        yield f"{checked.negative:.0%} of the entries below zero"
    if "whole" in checked.faults:
        yield f"its parts leave {checked.left:.0%} of it"


def _some(patches: "list[Patch]", of: int) -> str:
    more = f" (and {len(patches) - 1} more of {of})" if len(patches) > 1 else ""
    return f"{patches[0].image.source.path}{more}"
