"""Several networks as one prototype model: logits add up, every network sees its own crop.

Reference: Chen et al. 2019, section 3.1 (combining networks).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import ADDON, BACKBONE, Backbone, Preprocessing, Source
from protonmf_cli.models.card import Card, ProtoPNetFigures
from protonmf_cli.models.evidence import NearestPatch
from protonmf_cli.models.prototype import Examples, PrototypeModel, SparseWeights
from protonmf_cli.models.readouts.readout import Network, Reading, Readout

COMBINED = "combined"
"""Kind of the readout of several networks."""


@dataclass(frozen=True, kw_only=True)
class CombinedReadout(Readout):
    """Rows of all networks, one after the other, filled up with zeros to the same width.

    A crop holds what each network sees: three channels after three channels, smaller pictures filled up at the
    right and at the bottom.
    """

    members: tuple[Readout, ...]
    sizes: tuple[tuple[int, int, int], ...]
    """Channels, height, width of each network's input."""

    @property
    def count(self) -> int:
        return sum(member.count for member in self.members)

    def layers(self) -> dict[str, Tensor]:
        return {f"{n}.{k}": t for n, member in enumerate(self.members) for k, t in member.layers().items()}

    def pictures(self, crop: Tensor) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self._parts(crop[None]))

    def _parts(self, crops: Tensor) -> list[Tensor]:
        found, start = [], 0
        for channels, height, width in self.sizes:
            found.append(crops[:, start : start + channels, :height, :width])
            start += channels
        return found

    def read(self, network: Network, pixels: Tensor) -> Reading:
        parts = self._parts(pixels)
        rows = [
            functional.pad(found := member.read(network[n], parts[n]).rows, (0, self.width - found.shape[2]))
            for n, member in enumerate(self.members)
        ]
        joined = torch.cat(rows, dim=1)
        return Reading(rows=joined, logits=joined.new_empty(len(joined), 0))


def combined_backbone(backbones: Sequence[Backbone], card: Card) -> Backbone:
    """The networks of a combined model as one Backbone."""
    readouts = tuple(backbone.readout for backbone in backbones)
    width = max(readout.width for readout in readouts)
    first = readouts[0]
    return Backbone(
        network=torch.nn.ModuleList([backbone.network for backbone in backbones]),
        readout=CombinedReadout(
            kind=COMBINED,
            vectors=torch.empty(0, width),
            bias=torch.empty(0),
            grid=first.grid,
            unplaced=(),
            members=readouts,
            sizes=tuple(backbone.preprocessing.input_size for backbone in backbones),
        ),
        rows_option="latent",
        preprocessing=card.preprocessing,
        classes=card.classes,
        source=card.source,
    )


def combined_model(models: Sequence[PrototypeModel], names: Sequence[str]) -> PrototypeModel:
    """One model whose logits are the sum of the logits of several.

    Args:
        models: ProtoPNets with the same classes; a combined one brings its members.
        names: what to call them in messages.

    Raises:
        InputError: the classes differ.
    """
    parts = [part for model in models for part in _members(model)]
    _check_classes(models, names)
    width = max(part.prototypes.shape[1] for part in parts)
    owner = torch.cat([part.owner for part in parts])
    order = owner.argsort(stable=True)
    place = order.argsort()
    starts = torch.tensor([0, *(len(part.prototypes) for part in parts)]).cumsum(dim=0).tolist()
    joined = [(place[start : start + len(part.prototypes)], part) for start, part in zip(starts, parts, strict=False)]
    prototypes = torch.cat([functional.pad(p.prototypes, (0, width - p.prototypes.shape[1])) for p in parts])
    weights = [part.weights for part in parts]
    return PrototypeModel(
        prototypes=prototypes[order],
        owner=owner[order],
        weights=SparseWeights(
            class_index=torch.cat([w.class_index for w in weights]),
            prototype=torch.cat([to[part.weights.prototype] for to, part in joined]),
            value=torch.cat([w.value for w in weights]),
            residual_share=torch.cat([w.residual_share for w in weights]),
        ),
        residual=torch.zeros(len(parts[0].bias), width),
        bias=torch.stack([part.bias for part in parts]).sum(dim=0),
        intercept=torch.stack([part.intercept for part in parts]).sum(dim=0),
        examples=_joined_examples(joined),
        card=_card([replace(part.card, names=None) for part in parts], width),
        evidence=NearestPatch(
            member=torch.cat([torch.full((len(p.prototypes),), n) for n, p in enumerate(parts)])[order]
        ),
    )


def _members(model: PrototypeModel) -> list[PrototypeModel]:
    """A model's parts, each as a model of its own."""
    if not model.card.members:
        return [model]
    return [_member(model, number) for number in range(len(model.card.members))]


def _member(model: PrototypeModel, number: int) -> PrototypeModel:
    chosen = model.of_member(number)
    place = torch.full((len(model.prototypes),), -1)
    place[chosen] = torch.arange(len(chosen))
    hit = place[model.weights.prototype] >= 0
    seen = place[model.examples.prototype] >= 0
    card = model.card.members[number]
    share = len(model.card.members)
    examples = _pictures_of(model.examples, seen)
    assert card.readout.grid is not None
    height, width = card.readout.grid
    return PrototypeModel(
        prototypes=model.prototypes[chosen, : card.readout.width],
        owner=model.owner[chosen],
        weights=SparseWeights(
            class_index=model.weights.class_index[hit],
            prototype=place[model.weights.prototype[hit]],
            value=model.weights.value[hit],
            residual_share=model.weights.residual_share[hit],
        ),
        residual=torch.zeros(len(model.bias), card.readout.width),
        bias=model.bias / share,
        intercept=model.intercept / share,
        examples=replace(
            examples,
            prototype=place[examples.prototype[seen]],
            score=examples.score[seen],
            box=examples.box[seen],
            map=examples.map[seen][:, :height, :width],
            crop=examples.crop[seen],
            sources=tuple(s for s, kept in zip(examples.sources, seen.tolist(), strict=True) if kept),
        ),
        card=card,
        evidence=NearestPatch(),
    )


def _pictures_of(examples: Examples, seen: Tensor) -> Examples:
    """The same examples, but only the pictures of some of them; equal images still share their bytes."""
    spans = {span: examples.jpeg[span[0] : span[1]] for span in map(tuple, examples.crop[seen].tolist())}
    starts = torch.tensor([0, *(len(part) for part in spans.values())]).cumsum(dim=0).tolist()
    moved = {span: start - span[0] for span, start in zip(spans, starts, strict=False)}
    shift = torch.tensor([moved.get((start, end), 0) for start, end in examples.crop.tolist()], dtype=torch.int64)
    jpeg = torch.cat(list(spans.values())) if spans else examples.jpeg[:0]
    return replace(examples, crop=examples.crop + shift[:, None], jpeg=jpeg)


def _check_classes(models: Sequence[PrototypeModel], names: Sequence[str]) -> None:
    first = [c.label for c in models[0].card.classes]
    for model, name in zip(models[1:], names[1:], strict=True):
        labels = [c.label for c in model.card.classes]
        if labels != first:
            only = sorted(set(labels) ^ set(first))[:3]
            what = f"e.g. {', '.join(only)} in one of them only" if only else "the same ones in another order"
            raise InputError(
                f"{name} and {names[0]} have different classes ({len(labels)} and {len(first)}; {what}), so their "
                "logits cannot be added. Train them on the same class folders."
            )


def _joined_examples(joined: Sequence[tuple[Tensor, PrototypeModel]]) -> Examples:
    """Examples of all parts in the order of the prototypes; smaller maps are filled up with zeros."""
    height = max(part.examples.map.shape[1] for _, part in joined)
    width = max(part.examples.map.shape[2] for _, part in joined)
    prototype = torch.cat([to[part.examples.prototype] for to, part in joined])
    order = prototype.argsort(stable=True)
    starts = torch.tensor([0, *(len(part.examples.jpeg) for _, part in joined)]).cumsum(dim=0).tolist()
    maps = [
        functional.pad(p.examples.map, (0, width - p.examples.map.shape[2], 0, height - p.examples.map.shape[1]))
        for _, p in joined
    ]
    crops = [part.examples.crop + start for start, (_, part) in zip(starts, joined, strict=False)]
    sources = [source for _, part in joined for source in part.examples.sources]
    return Examples(
        prototype=prototype[order],
        score=torch.cat([part.examples.score for _, part in joined])[order],
        box=torch.cat([part.examples.box for _, part in joined])[order],
        map=torch.cat(maps)[order],
        crop=torch.cat(crops)[order],
        jpeg=torch.cat([part.examples.jpeg for _, part in joined]),
        sources=tuple(sources[n] for n in order.tolist()),
    )


def _card(cards: Sequence[Card], width: int) -> Card:
    sizes = [card.preprocessing.input_size for card in cards]
    first = cards[0]
    rows = sum(card.readout.rows_per_image for card in cards)
    return replace(
        first,
        similarity=first.similarity if len({card.similarity for card in cards}) == 1 else "mixed",
        readout=replace(first.readout, kind=COMBINED, rows_per_image=rows, width=width),
        source=Source(
            name=" + ".join(card.source.name for card in cards),
            architecture=" + ".join(card.source.architecture for card in cards),
            digest="+".join(card.source.digest[:16] for card in cards),
        ),
        preprocessing=Preprocessing(
            input_size=(sum(s[0] for s in sizes), max(s[1] for s in sizes), max(s[2] for s in sizes)),
            interpolation=first.preprocessing.interpolation,
            crop_pct=first.preprocessing.crop_pct,
            crop_mode=first.preprocessing.crop_mode,
            mean=tuple(value for card in cards for value in card.preprocessing.mean),
            std=tuple(value for card in cards for value in card.preprocessing.std),
            exif_transpose=first.preprocessing.exif_transpose,
        ),
        measured=ProtoPNetFigures.read({}),
        edits=(),
        members=tuple(cards),
    )


def combined_weights(members: Sequence[tuple[PrototypeModel, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Weights of all networks of models, numbered: "backbone.0.conv.weight"."""
    found: dict[str, Tensor] = {}
    count = 0
    for model, weights in members:
        for number in range(max(1, len(model.card.members))):
            one = weights_of_member(weights, number) if model.card.members else weights
            for name, tensor in one.items():
                prefix = BACKBONE if name.startswith(BACKBONE) else ADDON
                found[f"{prefix}{count}.{name.removeprefix(prefix)}"] = tensor
            count += 1
    return found


def weights_of_member(weights: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Weights of one network of a combined model, under their names in a file of its own."""
    found: dict[str, Tensor] = {}
    for prefix in (BACKBONE, ADDON):
        start = f"{prefix}{number}."
        found |= {prefix + n.removeprefix(start): t for n, t in weights.items() if n.startswith(start)}
    return found
