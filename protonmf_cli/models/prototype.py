"""The one noun that every producer makes and every consumer takes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from protonmf_cli.maths.amounts import dual, in_batches, mixing_of
from protonmf_cli.models.aligned import aligned
from protonmf_cli.models.card import Card
from protonmf_cli.models.card.stored import Facts
from protonmf_cli.models.class_names import find_class
from protonmf_cli.models.evidence import Amounts, Compared, Evidence, NearestPatch
from protonmf_cli.models.image_batches import ImageSource


@dataclass(frozen=True, kw_only=True)
class SparseWeights:
    """The prototype-to-class layer, one entry per connection."""

    class_index: Tensor
    """(E,) int64"""
    prototype: Tensor
    """(E,) int64, row of `prototypes`."""
    value: Tensor
    """(E,) float32"""
    residual_share: Tensor
    """(E,) float32, sums to 1 per class that has weights; zeros when not augmented."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The strongest training patches of the prototypes, M in all."""

    prototype: Tensor
    """(M,) int64, row of `prototypes`; each prototype's examples in falling order of score."""
    score: Tensor
    """(M,) float32"""
    box: Tensor
    """(M, 4) int64 left, top, right, bottom in pixels of the crop."""
    map: Tensor
    """(M, h, w) float32 presence of the prototype over the grid; h = w = 0 when rows have no place."""
    crop: Tensor
    """(M, 2) int64 start and end of the crop's JPEG file in `jpeg`; equal images share their bytes."""
    jpeg: Tensor
    """(bytes,) uint8"""
    sources: tuple[ImageSource, ...]
    """One per example."""

    def of(self, prototype: int) -> list[int]:
        """Numbers of the examples of one prototype."""
        order, sorted_by = self._by_prototype
        start, stop = torch.searchsorted(sorted_by, torch.tensor([prototype, prototype + 1])).tolist()
        return order[start:stop].tolist()

    @cached_property
    def _by_prototype(self) -> tuple[Tensor, Tensor]:
        """(M,) examples prototype after prototype, and (M,) whose they are."""
        sorted_by, order = self.prototype.sort(stable=True)
        return order, sorted_by

    def picture(self, example: int) -> bytes:
        """The JPEG file of one example's crop."""
        start, end = self.crop[example].tolist()
        return bytes(self.jpeg[start:end].numpy())


@dataclass(frozen=True, kw_only=True)
class RowSpace:
    """The rows of one network, which its prototypes are compared with."""

    start: int
    stop: int
    """Rows start..stop - 1 of an image."""
    width: int
    """Numbers of a row that are its own; wider rows are filled up with zeros."""
    grid: tuple[int, int] | None
    similarity: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassHead:
    """The row of the head of one class in parts, in float64 on the CPU: V = sum_j w_j d_j + R, of s connections."""

    entries: list[int]
    """Connections, see `PrototypeModel.entries`."""
    prototypes: list[int]
    """Rows of `prototypes` that they stand on."""
    weights: Tensor
    """(s,) w"""
    shares: Tensor
    """(s,) of the residual."""
    readers: Tensor
    """(s, D) d, or b where evidence is a projection."""
    residual: Tensor
    """(D,) R"""
    bias: float
    intercept: float
    uncarried: float
    """Share of the residual that no augmented prototype carries."""

    @property
    def made(self) -> Tensor:
        """(D,) the part that the prototypes make."""
        return self.weights @ self.readers

    @property
    def vector(self) -> Tensor:
        """(D,) V"""
        return self.made + self.residual

    @property
    def augmented(self) -> Tensor:
        """(s, D) readers with their share of the residual, see `PrototypeModel.augmented`."""
        return augmented_basis(self.readers, self.weights, self.shares, self.residual)


@dataclass(frozen=True, kw_only=True, eq=False)
class PrototypeModel:
    """logit_c = sum_j w_cj s_j + rho_c + o_c + bias_c.

    Amounts: s_j = sum_n r_n . d_j over the rows with a place, d the dual of the prototypes that class c is connected
    to (every class has its own few, see `readers`); rho_c = sum_n r_n . R_c; o_c ("no place") what the rows without a
    place add beyond their mean over the training images, which counts with the bias.
    Projections (ProtoNMF as published): s_j = sum_n r_n . b_j over all rows, rho_c = sum_n r_n . R_c - delta_c and
    o_c = 0. Others have neither residual nor bias.
    ProtoPNet: s_j = max_n similarity(r_n, b_j) over the rows of the prototype's network. Few-shot: s_j is the soft
    match of the mean row, see `SoftMatch`.
    Flat, so that the number of prototypes may differ from class to class. P prototypes, C classes, D row width.
    """

    prototypes: Tensor
    """(P, D) float32; as long as its usual amount where there are amounts, of unit norm in other additive models."""
    owner: Tensor
    """(P,) int64, the class each prototype was found in, or (few-shot) speaks for most; in rising order."""
    weights: SparseWeights
    residual: Tensor
    """(C, D) float32"""
    bias: Tensor
    """(C,) float32"""
    intercept: Tensor
    """(C,) float32, delta of files of format 1; else zero."""
    examples: Examples
    card: Card
    evidence: Evidence
    """How it is made; of the kind that the card speaks of."""
    file_format: int = 3
    """Of the file it was read from; what is written is always the newest."""

    def measured_as(self, figures: Facts) -> "PrototypeModel":
        """The same model with other figures in its card."""
        return replace(self, card=replace(self.card, measured=figures))

    @property
    def is_outdated(self) -> bool:
        """Whether it was converted by what format 1 did by default: projections that may cancel."""
        return self.card.stored_options.get("reconstruction") == "functional"

    @property
    def adds_up(self) -> bool:
        """Whether evidence is a sum over rows, so that logits are linear in them."""
        return self.evidence.kind.adds_up

    @property
    def amounts(self) -> Amounts | None:
        """Where evidence is an amount; None where it is anything else."""
        return self.evidence if isinstance(self.evidence, Amounts) else None

    @cached_property
    def spaces(self) -> tuple[RowSpace, ...]:
        """The rows of each network, in the order of `card.members`."""
        found, start = [], 0
        for card in self.card.members or (self.card,):
            readout = card.readout
            stop = start + readout.rows_per_image
            found.append(
                RowSpace(start=start, stop=stop, width=readout.width, grid=readout.grid, similarity=card.similarity)
            )
            start = stop
        return tuple(found)

    def usual_of(self, prototype: int) -> tuple[float, float] | None:
        """The usual amounts of a prototype; None where evidence is no amount."""
        return None if self.amounts is None else self.amounts.range_of(prototype)

    def peak_of(self, prototype: int) -> float | None:
        """The usual largest amount at one place; None where evidence is no amount, or it was not measured."""
        return None if self.amounts is None else self.amounts.peak_of(prototype)

    def of_member(self, number: int) -> Tensor:
        """Rows of `prototypes` that belong to one network."""
        if not isinstance(self.evidence, NearestPatch):
            return torch.arange(len(self.prototypes))
        return self.evidence.of_member(number, len(self.prototypes))

    def network_of(self, prototype: int) -> int:
        """Number of the network that a prototype belongs to: 0 but in combined models."""
        return self.evidence.network_of(prototype) if isinstance(self.evidence, NearestPatch) else 0

    def caption(self, prototype: int) -> str:
        """What a prototype was named, e.g. “curved neck” 0.31; empty where it was not."""
        return "" if self.card.names is None else self.card.names.caption(prototype)

    @property
    def named_by(self) -> str:
        """Where the captions are from; empty where there are none."""
        return "" if self.card.names is None else self.card.names.source

    def own(self, class_index: int) -> list[int]:
        """Rows of the prototypes found in a class, in their order."""
        order, owners = self._by_owner
        start, stop = torch.searchsorted(owners, torch.tensor([class_index, class_index + 1])).tolist()
        found = order[start:stop]
        return found[~self.wholes[found]].tolist()

    @cached_property
    def wholes(self) -> Tensor:
        """(P,) bool, on the CPU: a class as a whole, which explanations of other classes weigh and those of its own
        do not, for its parts make it up. Only where evidence is an amount."""
        found = torch.full((len(self.owner),), self.amounts is not None)
        prototype = self.weights.prototype.cpu()
        found[prototype[self.owner.cpu()[prototype] == self.weights.class_index.cpu()]] = False
        return found

    @cached_property
    def parts(self) -> list[int]:
        """Rows of the prototypes that are no class as a whole."""
        return (~self.wholes).nonzero()[:, 0].tolist()

    def whole(self, class_index: int) -> int | None:
        """Row of a class as a whole; None where the model has none."""
        found = (self.wholes & (self.owner.cpu() == class_index)).nonzero()[:, 0].tolist()
        return found[0] if found else None

    def number(self, prototype: int) -> int:
        """Number of a prototype within its owner, as people see it: from 1; 0 of a class as a whole."""
        return 0 if self.wholes[prototype] else self.own(int(self.owner[prototype])).index(prototype) + 1

    @cached_property
    def _by_owner(self) -> tuple[Tensor, Tensor]:
        """(P,) prototypes class after class, and (P,) whose they are; a file may hold them in any order."""
        owners, order = self.owner.cpu().sort(stable=True)
        return order, owners

    def stability(self, prototype: int) -> float | None:
        """Cosine of a prototype between two halves of its class's images; None where it was not measured."""
        known = () if self.card.conversion is None else self.card.conversion.stability
        return known[prototype] if prototype < len(known) else None

    @cached_property
    def ledger(self) -> tuple[Tensor, Tensor]:
        """(E,) connections class by class, own prototypes first, then borrowed ones; (C + 1,) where classes begin."""
        prototype, class_index = self.weights.prototype.cpu(), self.weights.class_index.cpu()
        borrowed = (self.owner.cpu()[prototype] != class_index).long()
        order = ((2 * class_index + borrowed) * len(self.prototypes) + prototype).argsort(stable=True)
        counts = torch.bincount(class_index, minlength=len(self.bias))
        return order, torch.nn.functional.pad(counts.cumsum(dim=0), (1, 0))

    def entries(self, class_index: int) -> list[int]:
        """Connections of a class: own prototypes first, in their order, then borrowed ones."""
        order, start = self.ledger
        return order[start[class_index] : start[class_index + 1]].tolist()

    def own_against(self, class_index: int) -> tuple[int, ...]:
        """Numbers, from 1, of a class's own prototypes with a negative weight for it: its images hold what they show,
        and its logit falls with it."""
        number = {prototype: n for n, prototype in enumerate(self.own(class_index), start=1)}
        entries = self.entries(class_index)
        prototypes, values = self.weights.prototype[entries].tolist(), self.weights.value[entries].tolist()
        return tuple(number[j] for j, value in zip(prototypes, values, strict=True) if j in number and value < 0)

    @cached_property
    def connected(self) -> Tensor:
        """(C,) whether a class uses any prototype."""
        return self.ledger[1].diff() > 0

    @cached_property
    def carried_share(self) -> Tensor:
        """(E,) share of the residual that each augmented prototype carries: none where its weight is zero."""
        return torch.where(self.weights.value != 0, self.weights.residual_share, 0.0)

    @cached_property
    def uncarried(self) -> Tensor:
        """(C,) share of the residual that no augmented prototype carries, e.g. after its weight was set to zero."""
        carried = torch.zeros_like(self.bias).index_add(0, self.weights.class_index, self.carried_share.to(self.bias))
        left = 1 - carried
        return torch.where(left.abs() < ROUNDING, 0.0, left)

    def basis(self, class_index: int) -> Tensor:
        """(s, D) b_j for the connections of a class, in the order of `entries`."""
        return self.prototypes[self.weights.prototype[self.entries(class_index)]]

    def readers(self, class_index: int) -> Tensor:
        """(s, D) what evidence is read with, for the connections of a class: d_j of amounts, else b_j."""
        basis = self.basis(class_index)
        return basis if self.amounts is None else self.mixing(class_index).to(basis) @ basis

    def mixing(self, class_index: int) -> Tensor:
        """(s, s) float64, on the CPU: amounts of a class from the projections on its prototypes, see `Dual`."""
        return self._mixing_of(self.basis(class_index).cpu().double())  # not every device has float64

    def _mixing_of(self, basis: Tensor) -> Tensor:
        """(..., s, s) of prototypes (..., s, D) in float64."""
        assert self.amounts is not None
        return mixing_of(basis @ basis.mT, self.amounts.ridge)[0]

    def class_head(self, class_index: int) -> ClassHead:
        """What one class's logit is made of; costs no more where there are many classes."""
        entries, weights = self.entries(class_index), self.weights
        basis = self.basis(class_index).cpu().double()
        return ClassHead(
            entries=entries,
            prototypes=weights.prototype[entries].tolist(),
            weights=weights.value[entries].cpu().double(),
            shares=weights.residual_share[entries].cpu().double(),
            readers=basis if self.amounts is None else dual(basis, self.amounts.ridge).readers,
            residual=self.residual[class_index].cpu().double(),
            bias=float(self.bias[class_index]),
            intercept=float(self.intercept[class_index]),
            uncarried=float(self.uncarried[class_index]),
        )

    @cached_property
    def is_augmented(self) -> bool:
        """Whether the residual is shared out among prototypes."""
        return bool((self.weights.residual_share != 0).any())

    def augmented(self, class_index: int) -> Tensor:
        """(s, D) readers with their share of the residual, b_j + (beta_j / a_j) R, in the order of `entries`.

        A connection of weight zero keeps its reader. Reference: ProtoNMF, eq. 8.
        """
        entries = self.entries(class_index)
        share = self.weights.residual_share[entries]
        readers, residual = self.readers(class_index), self.residual[class_index]
        return augmented_basis(readers, self.weights.value[entries], share, residual)

    def stored_readers(self, class_index: int) -> Tensor:
        """(s, D) readers of a class's connections in the form of the file: augmented where it holds shares."""
        return self.augmented(class_index) if self.is_augmented else self.readers(class_index)

    @cached_property
    def prototype_vectors(self) -> Tensor:
        """(C, D) the part of every head row that the prototypes make, sum_j w_cj d_j."""
        found = torch.zeros_like(self.residual)
        for classes, chosen in self._batches():
            found[classes] = (self.weights.value[chosen][:, None] @ self._readers_of(chosen))[:, 0]
        return found

    def _batches(self) -> Iterator[tuple[list[int], Tensor]]:
        """Numbers of n classes with as many connections each, and (n, s) their connections."""
        yield from in_batches([self.entries(c) for c in range(len(self.bias))], self.prototypes.shape[1])

    def _readers_of(self, entries: Tensor) -> Tensor:
        """(n, s, D) readers of the connections (n, s) of n classes."""
        basis = self.prototypes[self.weights.prototype[entries]]
        return basis if self.amounts is None else self._mixing_of(basis.cpu().double()).to(basis) @ basis

    @cached_property
    def placed(self) -> int | None:
        """Rows of an image that amounts are read from, before those without a place; None where all rows are."""
        (space,) = self.spaces if self.amounts is not None else (None,)
        return space.grid[0] * space.grid[1] if space is not None and space.grid else None

    def head_vector(self, class_index: int) -> Tensor:
        """(D,) V_c of one class, edits included."""
        weights = self.weights.value[self.entries(class_index)]
        return weights @ self.readers(class_index) + self.residual[class_index]

    @cached_property
    def _head(self) -> Tensor:
        found = self.residual.to("cpu", torch.float64, copy=True)
        for classes, chosen in self._batches():
            basis = self.prototypes[self.weights.prototype[chosen]].cpu().double()
            weights = self.weights.value[chosen].cpu().double()[:, None]
            if self.amounts is not None:
                weights = weights @ self._mixing_of(basis)
            found[classes] += (weights @ basis)[:, 0]
        return found

    def head_vectors(self) -> Tensor:
        """(C, D) float64 head rows V_c = sum_j w_cj d_j + R_c on the CPU, edits included."""
        return self._head

    def augmented_vectors(self) -> Tensor:
        """(C, D) head rows as sums of augmented prototypes; what nobody carries of a residual is added to them."""
        vectors = self.uncarried[:, None] * self.residual
        for classes, chosen in self._batches():
            residual, weights = self.residual[classes][:, None], self.weights.value[chosen]
            augmented = augmented_basis(
                self._readers_of(chosen), weights, self.weights.residual_share[chosen], residual
            )
            vectors[classes] += (weights[:, None] @ augmented)[:, 0]
        return vectors

    @property
    def edited_classes(self) -> list[int] | None:
        """Classes whose row of the head was edited, rising; None where any may have been."""
        found = {int(edit.get("class_index", -1)) for edit in self.card.edits}
        return None if self.card.refits or min(found, default=0) < 0 else sorted(found)

    @cached_property
    def mean_residual(self) -> Tensor:
        """(D,) float64 mean of the residuals of the active classes."""
        total = torch.zeros(self.residual.shape[1], dtype=torch.float64)
        for some in self.active_classes.split(CLASSES_AT_ONCE):
            total += self.residual[some].sum(dim=0, dtype=torch.float64).cpu()
        return total / max(1, len(self.active_classes))

    @cached_property
    def active_classes(self) -> Tensor:
        """Classes that have prototypes of their own, rising."""
        found: Tensor = self.owner[self.owner >= 0].unique()
        return found

    @cached_property
    def dense_weights(self) -> Tensor:
        """(P, C) the prototype-to-class layer, for products."""
        dense = self.prototypes.new_zeros(len(self.prototypes), len(self.bias))
        dense[self.weights.prototype, self.weights.class_index] = self.weights.value
        return dense

    @cached_property
    def exact(self) -> "PrototypeModel":
        """The same model as explanations and edits compute with it: in float64, on the CPU."""
        return self.to(torch.device("cpu"), torch.float64)

    @property
    def multi_label(self) -> bool:
        """Whether an image may be of several classes."""
        return self.card.source.multi_label

    def to(self, device: torch.device, dtype: torch.dtype) -> "PrototypeModel":
        """The same model with the tensors of its decision moved; examples stay where they are."""

        def moved(tensor: Tensor) -> Tensor:
            return aligned(tensor.to(device, dtype))

        weights = replace(
            self.weights,
            class_index=self.weights.class_index.to(device),
            prototype=self.weights.prototype.to(device),
            value=moved(self.weights.value),
            residual_share=moved(self.weights.residual_share),
        )
        return replace(
            self,
            prototypes=moved(self.prototypes),
            weights=weights,
            residual=moved(self.residual),
            bias=moved(self.bias),
            intercept=moved(self.intercept),
            evidence=self.evidence.to(device, dtype) if isinstance(self.evidence, Amounts) else self.evidence,
        )

    def find_class(self, words: str | int) -> int:
        """The class that a user means: label, description, one of its synonyms, folder-like label, or index.

        Raises:
            InputError: no class or several are called so.
        """
        return find_class(self.card.classes, str(words))


def model_of_head(
    prototypes: Tensor,
    owner: Tensor,
    head: Tensor,
    kept: Tensor,
    *,
    examples: Examples,
    card: Card,
    evidence: Compared,
) -> PrototypeModel:
    """A model without residual and bias from its last layer.

    Args:
        prototypes: (P, D)
        owner: (P,) in rising order.
        head: (C, P) weights.
        kept: (C, P) which of them are connections.
        examples, card, evidence: as in `PrototypeModel`.
    """
    class_index, prototype = kept.nonzero().unbind(dim=1)
    value = head[class_index, prototype].float()
    return PrototypeModel(
        prototypes=prototypes.float(),
        owner=owner,
        weights=SparseWeights(
            class_index=class_index, prototype=prototype, value=value, residual_share=torch.zeros_like(value)
        ),
        residual=torch.zeros(len(head), prototypes.shape[1]),
        bias=torch.zeros(len(head)),
        intercept=torch.zeros(len(head)),
        examples=examples,
        card=card,
        evidence=evidence,
    )


def augmented_basis(basis: Tensor, weights: Tensor, shares: Tensor, residual: Tensor) -> Tensor:
    """(..., s, D) b_j + (beta_j / a_j) R; a prototype of weight zero stays as it is (ProtoNMF, eq. 8)."""
    ratio = torch.where(weights != 0, shares.to(basis) / torch.where(weights != 0, weights, 1.0), 0.0)
    return basis + ratio[..., None] * residual


CLASSES_AT_ONCE = 1024
"""Rows of a head that are added up at once."""
ROUNDING = 1e-5
"""Shares of a residual add up to 1 in float32."""
