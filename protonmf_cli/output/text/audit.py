"""Audits in words."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from protonmf_cli.output.text.blocks import Block

if TYPE_CHECKING:
    from protonmf_cli.jobs.audit import Audited
    from protonmf_cli.models.audit import Candidate


def audit_blocks(audited: "Audited", top: int) -> Iterator[Block]:
    """The head of the ranking, and the command that takes the first prototypes out.

    Args:
        audited: what was found.
        top: prototypes that are listed; those that look like a shortcut are listed in any case.
    """
    found, classes = audited.found, audited.loaded.model.card.classes
    count, named = len(found.shortcuts), [classes[one.class_index].shown for one in found.candidates]
    listed = found.candidates[: max(top, count)]
    width = max(len(f"{name} {one.number}") for name, one in zip(named, listed, strict=False))
    yield (
        (f"{count} of {len(found.candidates)} prototypes look like a shortcut", "bold"),
        f" ({found.images} images, {found.accuracy:.1%} right)",
    )
    for rank, (name, one) in enumerate(zip(named, listed, strict=False), start=1):
        verdict = (("  -> looks like a shortcut", "bold yellow"),) if one.is_shortcut else ()
        yield (f"{rank:>3}  ", (f"{name} {one.number}".ljust(width), "bold"), f"  {one.reason}{_signs(one)}", *verdict)
        if one.need is not None and one.need.worst_group is not None:
            before, after = one.need.worst_group
            yield (f"{'':5}{'':{width}}  worst group: {before:.1%} -> {after:.1%}",)
    if len(listed) < len(found.candidates):
        yield (f"and {len(found.candidates) - len(listed)} more (--top N, --json or -o PAGE list them)",)
    for note in found.notes:
        yield ((f"note: {note}", "dim"),)
    if found.shortcuts:
        yield ("take the first one out:",)
        yield removal_command(audited, found.shortcuts[0])


def _signs(candidate: "Candidate") -> str:
    kinds = ", ".join(sign.kind for sign in candidate.signs)
    return f"; signs: {kinds}" if kinds else ""


def removal_command(audited: "Audited", candidate: "Candidate") -> str:
    """The command that takes a prototype out, and measures what that changes."""
    model = audited.loaded.model
    words = ["protonmf", "intervene", "--model", str(audited.loaded.path)]
    if model.amounts is not None:
        words += ["--everywhere"]
    elif model.is_augmented:  # what the audit took out is the prototype alone
        words += ["--form", "plain"]
    words += ["--class", audited.class_words[candidate.class_index], "--zero", str(candidate.number)]
    return shlex.join([*words, *audited.data.named, "-o", "clean.safetensors"])
