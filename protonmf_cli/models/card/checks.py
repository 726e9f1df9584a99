"""Whether a card and the tensors beside it speak of the same model, and of sizes that a model has."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protonmf_cli.errors import is_whole
from protonmf_cli.models.card import Card, ConversionFigures, FewShotFigures, ProtoPNetFigures, ReadoutFacts
from protonmf_cli.models.card.stored import read_value
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.options import SEEDS

if TYPE_CHECKING:
    from protonmf_cli.models.prototype import PrototypeModel

MOST_ROWS = 2**20
"""Of an image."""
POOLINGS = {"protonmf": "sum", "protopnet": "max", "fewshot": "soft"}
"""Method -> how it makes evidence."""
KINDS = {"latent-patches": "max", "combined": "max", "pooled-features": "soft"}
"""Kind of a readout -> pooling that it is of; all others are of sums."""
SIMILARITIES = {"sum": ("dual", "dot"), "max": ("log", "linear", "cosine"), "soft": ("soft",)}
"""Pooling -> similarities."""


@dataclass(frozen=True, kw_only=True)
class _Edit:
    class_index: int = -1
    prototype_id: int = 0
    factor: float = 0.0
    form: str = ""


@dataclass(frozen=True, kw_only=True)
class _Cancellation:
    median: float
    high: float


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """A number of prototypes that was tried."""

    prototypes: int
    feature_relative_error: float
    residual_share: float | None
    stability: float | None


@dataclass(frozen=True, kw_only=True)
class _Push:
    images: int
    duplicates: int


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    scale: float
    alpha: float
    anchor: float
    refit: float | None = None


@dataclass(frozen=True, kw_only=True)
class _HeldOut:
    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class _Tuning:
    stages: str
    mode: str


@dataclass(frozen=True, kw_only=True)
class _Tuned:
    options: _Tuning
    epochs: tuple[Any, ...]


def check_card(model: "PrototypeModel") -> None:
    """Refuse a card that does not fit the tensors of its model, or itself.

    Raises:
        ValueError, TypeError: in words that go on after "is not a valid prototype model: ".
    """
    card = model.card
    if EvidenceKind.of_card(card.pooling, card.similarity).pooling != POOLINGS.get(card.method, card.pooling):
        raise ValueError(f"a {card.method} model has no evidence of pooling {card.pooling!r}")
    for each in card.members or (card,):
        _check_reading(each)
    _check_members(card)
    if card.readout.width != model.prototypes.shape[1]:
        raise ValueError(f"its rows are {card.readout.width} wide and its prototypes {model.prototypes.shape[1]}")
    _check_maps(model)
    for edit in card.edits:
        found = read_value(_Edit, edit, "edit")
        if not (-1 <= found.class_index < len(model.bias) and 0 <= found.prototype_id < len(model.prototypes)):
            raise ValueError(f"there is no class and prototype of the edit {str(dict(edit))[:80]}")
    for refit in card.refits:
        _check_among(refit.removed, len(model.prototypes), "removed prototypes")
    _check_names(card, len(model.prototypes))
    if model.is_augmented and card.pooling != "sum":
        raise ValueError(f"a {card.method} model has no residual that its prototypes share")
    _check_classes(model)
    _check_figures(model)


def _check_names(card: Card, count: int) -> None:
    """Names are of prototypes that there are, and can be shown."""
    for number, name in () if card.names is None else card.names.prototypes.items():
        if not (is_whole(number) and int(number) < count):
            raise ValueError(f"there is no prototype {number[:40]!r}, which it names")
        if not (name.word.isprintable() and name.second.isprintable()):
            raise ValueError(f"the name of prototype {number} cannot be shown")


def _check_reading(card: Card) -> None:
    """Of one network: sizes of its readout, and what it is of."""
    readout = card.readout
    places = _places(readout)
    if not 1 <= readout.rows_per_image <= MOST_ROWS or places > readout.rows_per_image:
        raise ValueError(f"{readout.rows_per_image} rows of an image do not fit the grid {readout.grid}")
    if readout.grid is not None and min(readout.grid) < 1:
        raise ValueError(f"the grid is {readout.grid}")
    if KINDS.get(readout.kind, "sum") != card.pooling:
        raise ValueError(f"rows of kind {readout.kind!r} do not fit pooling {card.pooling!r}")
    if readout.kind != "combined" and card.similarity not in SIMILARITIES[card.pooling]:
        raise ValueError(f"similarity is {card.similarity!r}")
    if readout.kind == "latent-patches" and min(readout.features, readout.channels, *readout.patch) < 1:
        raise ValueError(
            f"latent maps of {readout.channels} channels from {readout.features}, read in patches of {readout.patch}, "
            "are none"
        )
    if not card.classes:
        raise ValueError("there are no classes")
    if not SEEDS[0] <= card.seed <= SEEDS[1]:
        raise ValueError(f"its seed is {card.seed}")


def _places(readout: ReadoutFacts) -> int:
    return 0 if readout.grid is None else readout.grid[0] * readout.grid[1]


def _check_members(card: Card) -> None:
    """Of a combined model: networks that are none themselves, and add up to it."""
    if bool(card.members) != (card.readout.kind == "combined"):
        raise ValueError("its readout and its number of networks do not agree")
    if not card.members:
        return
    sizes = [member.preprocessing.input_size for member in card.members]
    size = (sum(s[0] for s in sizes), max(s[1] for s in sizes), max(s[2] for s in sizes))
    rows = sum(member.readout.rows_per_image for member in card.members)
    whole = card.preprocessing
    fits = (
        all(member.readout.kind == "latent-patches" and not member.members for member in card.members)
        and all(len(member.classes) == len(card.classes) for member in card.members)
        and (whole.input_size, card.readout.rows_per_image) == (size, rows)
        and card.readout.width == max(member.readout.width for member in card.members)
        and whole.mean == tuple(value for member in card.members for value in member.preprocessing.mean)
        and whole.std == tuple(value for member in card.members for value in member.preprocessing.std)
    )
    if not fits:
        raise ValueError("the cards of its networks do not add up to its own")


def _check_maps(model: "PrototypeModel") -> None:
    """Maps of training patches are as large as the grid of the rows."""
    grids = [member.readout.grid for member in model.card.members or (model.card,)]
    height, width = (max((0 if grid is None else grid[axis]) for grid in grids) for axis in (0, 1))
    found = tuple(model.examples.map.shape[1:])
    if len(model.examples.map) and found != (height, width):
        raise ValueError(f"maps of training patches are {found}, and rows have a grid of {(height, width)}")


def _check_classes(model: "PrototypeModel") -> None:
    """Facts by class are of classes that there are."""
    card, count = model.card, len(model.bias)
    groups: list[Iterable[str]] = [card.data.images_per_class, card.data.left_out or {}]
    if card.conversion is not None:
        groups += [card.conversion.per_class, card.conversion.curves]
    for name in (name for group in groups for name in group):
        if not (name.isascii() and is_whole(name) and int(name) < count):
            raise ValueError(f"there is no class of number {name[:20]!r}")


def _check_figures(model: "PrototypeModel") -> None:
    """What was measured has the structure that texts and pictures go through."""
    match model.card.measured:
        case ConversionFigures() as found:
            if found.stability and len(found.stability) != len(model.prototypes):
                raise ValueError(f"there are {len(found.stability)} figures of stability")
            for first, second, _ in found.alike or ():
                _check_among((first, second), len(model.prototypes), "prototypes that are alike")
            if found.cancellation:
                read_value(_Cancellation, found.cancellation, "cancellation")
            for name, curve in found.curves.items():
                read_value(tuple[_Tried, ...], curve, f"curves.{name}")
        case ProtoPNetFigures(push=Mapping() as push):
            read_value(_Push, push, "push")
        case FewShotFigures() as fitted:
            if fitted.chosen:
                read_value(_Chosen, fitted.chosen, "chosen")
            if fitted.held_out:
                read_value(_HeldOut, fitted.held_out, "held_out")
            if fitted.finetuning:
                read_value(_Tuned, fitted.finetuning, "finetuning")


def _check_among(numbers: Iterable[int], count: int, what: str) -> None:
    if not all(0 <= number < count for number in numbers):
        raise ValueError(f"{what} are outside 0..{count - 1}")
