"""Which prototypes look like shortcuts: every one is tried on some images, the telling ones on more."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.models.audit import Audit, Candidate, Pasted, Sign
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import read_of
from protonmf_cli.options import AuditOptions
from protonmf_cli.pipelines.auditing.need import Needs
from protonmf_cli.pipelines.auditing.objects import ObjectOf, Outside
from protonmf_cli.pipelines.auditing.plan import Plan
from protonmf_cli.pipelines.auditing.ranking import looks_like_shortcut, reason_of, score_of
from protonmf_cli.pipelines.auditing.removal import Removal, removal_of
from protonmf_cli.pipelines.auditing.signs import Decode, Signs
from protonmf_cli.pipelines.auditing.transplant import Hosts, Kind, Tried, Tries
from protonmf_cli.pipelines.explaining.explanation import example_views
from protonmf_cli.pipelines.explaining.pasting import TrainingPatches
from protonmf_cli.pipelines.progress import SILENT, Progress

PICTURES = 4
"""Flipped images that are kept of a prototype."""


@dataclass(frozen=True, kw_only=True)
class AuditImages:
    """Labelled images and what the user says of them."""

    batches: Iterable[ImageBatch]
    hosts: frozenset[str]
    """Names of the images that patches are pasted into."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Name of an image -> its group."""
    objects: ObjectOf | None = None


def audit_model(
    backbone: Backbone,
    model: PrototypeModel,
    images: AuditImages,
    *,
    decode: Decode,
    options: AuditOptions,
    batch_size: int = 32,
    progress: Progress = SILENT,
) -> Audit:
    """Rank all prototypes by how much they look like shortcuts.

    Args:
        backbone, model: the network and its prototypes; of one network.
        images: labelled; each is read once, and some are changed.
        decode: reads the pictures of the training patches.
        options: how many trials.
        batch_size: changed images in one pass of the network.
        progress: advanced by images, then by trials.

    Raises:
        InputError: no image could be read, or none to paste into: all are of one class, or no host is among them.
    """
    removal = removal_of(model.to(backbone.device, backbone.dtype))
    seen = _seen(backbone, removal, images, progress)
    patches = TrainingPatches(model, lambda example: decode(model.examples.picture(example)))
    tries = Tries(backbone, removal, seen.hosts, patches.of, batch_size)
    plan = Plan(model, tries, patches, options)
    plan.first(progress)
    plan.closer(progress)
    signs = Signs(model, decode)
    candidates = [_candidate(model, tries, seen, signs.of(k, example_views(model, k)), k) for k in model.parts]
    found = Audit(
        images=seen.needs.images,
        accuracy=seen.needs.accuracy,
        groups=seen.needs.by_group() or None,
        candidates=tuple(sorted(candidates, key=lambda one: (not one.is_shortcut, -one.score, one.prototype_id))),
        notes=tuple(_notes(model, seen, candidates)),
    )
    shown = {one.prototype_id: tuple(_pictures(tries, _flipped(tries, one))) for one in found.pictured}
    return replace(
        found, candidates=tuple(replace(one, pasted=shown.get(one.prototype_id, ())) for one in found.candidates)
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one pass over the images gave."""

    hosts: Hosts
    needs: Needs
    outside: Outside | None
    classes: frozenset[int]
    trained_on: int
    """Images that are among the model's training patches."""


def _seen(backbone: Backbone, removal: Removal, images: AuditImages, progress: Progress) -> _Seen:
    model = removal.model
    names = sorted(set(images.groups.values()))
    needs = Needs(removal, names)
    outside = None if images.objects is None else Outside(model, images.objects)
    known = {source.sha256 for source in model.examples.sources}
    crops: list[Tensor] = []
    kept: list[tuple[int, int, str]] = []
    trained_on, classes = 0, set()
    for batch in images.batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not batch.sources:
            continue
        rows, paths = backbone.read(batch.crops).rows, tuple(source.path for source in batch.sources)
        group = torch.tensor([names.index(images.groups[p]) if p in images.groups else -1 for p in paths])
        top = needs.add(read_of(model, rows), batch.class_index, group)
        if outside is not None:
            outside.add(rows, paths, batch.class_index)
        for n, path in enumerate(paths):
            if path in images.hosts:
                crops.append(batch.crops[n])
                kept.append((batch.class_index, int(top[n]), path))
        classes.add(batch.class_index)
        trained_on += sum(source.sha256 in known for source in batch.sources)
    if not classes:
        raise InputError("no image of the data could be read")
    if len(classes) == 1:
        (only,) = classes
        raise InputError(
            f"all images are of {model.card.classes[only].shown}: patches are pasted into images of other classes. "
            "Give images of two classes at least."
        )
    if not kept:
        raise InputError("none of the images that patches would be pasted into could be read. Give more images.")
    target, tops, paths = zip(*kept, strict=True)
    hosts = Hosts(crops=torch.stack(crops), target=torch.tensor(target), top=torch.tensor(tops), paths=paths)
    return _Seen(
        hosts=hosts, needs=needs, outside=outside, classes=frozenset(classes), trained_on=trained_on
    )  # fmt: skip


def _candidate(model: PrototypeModel, tries: Tries, seen: _Seen, signs: tuple[Sign, ...], prototype: int) -> Candidate:
    owner = int(model.owner[prototype])
    transplant = tries.transplant(prototype, model.own(owner))
    need = seen.needs.of(prototype)
    outside = None if seen.outside is None else seen.outside.of(prototype)
    score = score_of(transplant, need)
    even = None if seen.outside is None else seen.outside.of_even_map(owner)
    return Candidate(
        prototype_id=prototype,
        number=model.number(prototype),
        class_index=owner,
        transplant=transplant,
        need=need,
        outside=outside,
        signs=signs,
        score=score,
        is_shortcut=looks_like_shortcut(score, transplant, need),
        reason=reason_of(model.card.classes[owner].shown, transplant, need, (outside, even)),
    )


def _flipped(tries: Tries, candidate: Candidate) -> list[Tried]:
    """Flipped images of the stronger test, each host once."""
    kind: Kind = "recoloured" if candidate.transplant is not None and candidate.transplant.by_colours else "pasted"
    found = {each.trial.host: each for each in tries.of(candidate.prototype_id, kind) if each.flipped}
    return list(found.values())[:PICTURES]


def _pictures(tries: Tries, flipped: Sequence[Tried]) -> Iterator[Pasted]:
    hosts = tries.hosts
    for each in flipped:
        host = each.trial.host
        yield Pasted(
            path=hosts.paths[host],
            target=int(hosts.target[host]),
            before=int(hosts.top[host]),
            after=each.after,
            host=hosts.crops[host].permute(1, 2, 0).numpy(),
            changed=tries.picture(each.trial).permute(1, 2, 0).numpy(),
        )


def _notes(model: PrototypeModel, seen: _Seen, candidates: Sequence[Candidate]) -> Iterator[str]:
    """What the figures do not say."""
    mapless = sum(one.transplant is None for one in candidates)
    if mapless:
        yield f"{mapless} of {len(candidates)} prototypes have no maps, or no image to paste into: nothing was pasted."
    without = [c for c in model.active_classes.tolist() if c not in seen.classes]
    if without:
        names = ", ".join(model.card.classes[c].shown for c in without[:5]) + (", ..." if len(without) > 5 else "")
        yield f"{len(without)} classes with prototypes have no images here, so nobody knows what they need: {names}."
    if seen.trained_on:
        yield (
            f"{seen.trained_on} of these images are training patches of the model: a mark that all images of a class "
            "carry seems needed on them. Give images that were not trained on, some without the mark."
        )
