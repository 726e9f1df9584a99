"""What a model says of itself: everything that is not a tensor."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import nan
from typing import Any

from protonmf_cli.errors import InputError, ModelFileError
from protonmf_cli.models.backbone import Backbone, ClassName, Preprocessing, Source
from protonmf_cli.models.card.names import NameFacts
from protonmf_cli.models.card.stored import Facts, read_options, read_value
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.options import ConversionOptions, FewShotOptions, ProtoPNetOptions


@dataclass(frozen=True, kw_only=True)
class ReadoutFacts(Facts):
    """How a network is read, and how exactly a conversion follows it."""

    kind: str
    rows: str
    """The option."""
    rows_per_image: int
    width: int
    grid: tuple[int, int] | None
    """None where rows have no place."""
    unplaced: tuple[str, ...]
    """Names of the rows without a place."""
    spatial: bool
    dtype: str
    device: str
    # of conversions, once they are measured
    max_abs_logit_difference: float = nan
    """At most so much do logits differ from the network's own, on any image and for any class."""
    relative_difference: float = nan
    """The same, of the spread of the logits."""
    formula_difference: float = nan
    images_checked: int = 0
    negative_share: float = nan
    clipped_share: float = nan
    # of ProtoPNets
    addon: str = ""
    features: int = 0
    """Channels of the network's last feature map."""
    channels: int = 0
    """Of the latent map; a row holds them for each place of a patch."""
    patch: tuple[int, int] = (0, 0)
    # of few-shot models
    layers: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    """Widths of the layers."""
    normalisation: str = ""


@dataclass(frozen=True, kw_only=True)
class DataFacts(Facts):
    """What the training images were."""

    images: int = 0
    digest: str = ""
    images_per_class: Mapping[str, int] = field(default_factory=dict)
    """By the class's number."""
    split: str | None = None
    left_out: Mapping[str, int] | None = None
    """The same of images that a conversion had no memory for."""
    boxes: bool | None = None
    """Whether a ProtoPNet's images were cut to bounding boxes."""
    skipped: tuple[Skipped, ...] | None = None
    """None where nobody noted them: ProtoPNets of a single cycle."""


@dataclass(frozen=True, kw_only=True)
class RefitFacts(Facts):
    """A step of the last layer after prototypes were taken out of every class."""

    images: int = 0
    digest: str = ""
    """Of the images, see `digest_of_images`."""
    classes: int = 0
    """That have images."""
    ridge: float = nan
    """Weight of the step, chosen by cross-validation."""
    removed: tuple[int, ...] = ()
    """Prototypes that no class gives anything for."""


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """A conversion's figures of one class."""

    accuracy: float | None = None
    residual_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionFigures(Facts):
    """What a conversion measured on its images."""

    agreement: float
    accuracy_black_box: float
    accuracy_prototype_model: float
    feature_relative_error: float
    head_relative_error: float
    residual_share: float | None
    cancellation: Mapping[str, float]
    """median and high, the 90 % quantile."""
    per_class: Mapping[str, ClassFigures]
    """By the class's number."""
    stability: tuple[float | None, ...]
    """One per prototype; None where it was not measured."""
    curves: Mapping[str, Any] = field(default_factory=dict)
    """Class -> what was measured for each number of prototypes tried."""
    condition: float = nan
    ridge: float | None = None
    """Of amounts; None of projections."""
    alike: tuple[tuple[int, int, float], ...] | None = None
    """The same: pairs of prototypes that are nearly equal, and their cosine."""
    augmentation: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ProtoPNetFigures(Facts):
    """What was measured when a ProtoPNet was trained or changed."""

    distance_from_own_patch: float | None
    """Largest squared distance of a prototype from the patch it was projected onto, where one is known."""
    accuracy: Mapping[str, float | None] = field(default_factory=dict)
    """By images: train, held_out, test."""
    push: Mapping[str, Any] | None = None
    pruned: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class FewShotFigures(Facts):
    """What was chosen and measured when a few-shot model was fitted."""

    chosen: Mapping[str, Any]
    folds: int
    held_out: Mapping[str, float] | None
    """accuracy and loss of what was chosen."""
    objective: float
    parts: tuple[int, ...]
    """Prototypes of each class."""
    accuracy: Mapping[str, float | None]
    """By images: train, test."""
    finetuning: Mapping[str, Any] | None = None


Options = ConversionOptions | ProtoPNetOptions | FewShotOptions
OPTIONS: dict[str, type[Options]] = {
    "protonmf": ConversionOptions,
    "protopnet": ProtoPNetOptions,
    "fewshot": FewShotOptions,
}
"""Method -> options that it stores."""
FIGURES: dict[str, type[Facts]] = {
    "protonmf": ConversionFigures,
    "protopnet": ProtoPNetFigures,
    "fewshot": FewShotFigures,
}
"""Method -> what it measures."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything about a model that is not a tensor; JSON-able."""

    method: str
    similarity: str
    pooling: str
    readout: ReadoutFacts
    source: Source
    preprocessing: Preprocessing
    classes: tuple[ClassName, ...]
    options: Options | None
    """As far as this version knows them, see `stored_options`; None of a method that it does not know."""
    seed: int
    versions: Mapping[str, str]
    data: DataFacts
    measured: Facts
    """See `conversion`, `protopnet` and `fewshot`; without names before anything is measured."""
    edits: tuple[Mapping[str, Any], ...] = ()
    refits: tuple[RefitFacts, ...] = ()
    """Of the last layer, after edits."""
    members: tuple["Card", ...] = ()
    """Cards of the models that were combined, in the order of `NearestPatch.member`; none in any other model."""
    names: NameFacts | None = None
    """Of prototypes, where they were given some."""
    stored: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The whole card as a file has it."""

    @property
    def stored_options(self) -> Mapping[str, Any]:
        """All options as a file has them, also those that this version does not know."""
        stored, kind = self.stored.get("options"), OPTIONS.get(self.method)
        if stored is not None and (kind is None or read_options(kind, stored).options == self.options):
            return dict(stored)
        return {} if self.options is None else asdict(self.options)

    @property
    def unknown_options(self) -> tuple[str, ...]:
        """Stored options that this version does not know, see `StoredOptions`; none of a method that it does not."""
        kind = OPTIONS.get(self.method)
        return () if kind is None else read_options(kind, self.stored_options).unknown

    @property
    def conversion(self) -> ConversionFigures | None:
        """What was measured, if the model is a conversion."""
        return self.measured if isinstance(self.measured, ConversionFigures) else None

    @property
    def protopnet(self) -> ProtoPNetFigures | None:
        """The same of a ProtoPNet."""
        return self.measured if isinstance(self.measured, ProtoPNetFigures) else None

    @property
    def fewshot(self) -> FewShotFigures | None:
        """The same of a few-shot model."""
        return self.measured if isinstance(self.measured, FewShotFigures) else None

    def as_json(self) -> dict[str, Any]:
        """Nested plain values, for a file."""
        names = [each.name for each in fields(self) if each.name != "stored"]
        return {name: getattr(self, name) for name in names if name != "names"} | {
            "readout": self.readout.as_json(),
            "source": {**self._unknown("source"), **asdict(self.source)},
            "preprocessing": {**self._unknown("preprocessing"), **asdict(self.preprocessing)},
            "classes": [asdict(name) for name in self.classes],
            "options": self.stored_options,
            "data": self.data.as_json(),
            "measured": self.measured.as_json(),
            "refits": [refit.as_json() for refit in self.refits],
            "members": [member.as_json() for member in self.members],
            **({} if self.names is None else {"names": self.names.as_json()}),
            **{name: value for name, value in self.stored.items() if name not in names},
        }

    def _unknown(self, group: str) -> dict[str, Any]:
        """What a file says in a group that this version does not know."""
        known = {each.name for each in fields(getattr(self, group))}
        return {name: value for name, value in self.stored.get(group, {}).items() if name not in known}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Card":
        """The inverse of `as_json`; raises TypeError, ValueError or KeyError for another structure."""
        if not isinstance(value, Mapping):
            raise TypeError(f"the card is {type(value).__name__}, not names with values")
        kind, figures = OPTIONS.get(str(value["method"])), FIGURES.get(str(value["method"]), Facts)
        readout = ReadoutFacts.read(value["readout"])
        if not readout.kind or readout.width < 1:
            raise ValueError("the card does not say how rows are read")
        return cls(
            **{name: read_value(hint, value[name], name) for name, hint in PLAIN.items() if name in value},
            readout=readout,
            options=None if kind is None else read_options(kind, value["options"]).options,
            data=DataFacts.read(value["data"]),
            measured=figures.read(value["measured"]),
            refits=tuple(RefitFacts.read(refit) for refit in value.get("refits", ())),
            members=tuple(cls.from_json(member) for member in value.get("members", ())),
            names=None if value.get("names") is None else NameFacts.read(value["names"]),
            stored=value,
        )


PLAIN: dict[str, Any] = {
    "method": str,
    "similarity": str,
    "pooling": str,
    "source": Source,
    "preprocessing": Preprocessing,
    "classes": tuple[ClassName, ...],
    "seed": int,
    "versions": Mapping[str, str],
    "edits": tuple[Mapping[str, Any], ...],
}
"""Parts of a card that hold the same in every version, and their types."""


def member_names(card: Card) -> list[str]:
    """Short names of the networks that were combined, numbered where several are called the same."""
    names = [member.source.short_name for member in card.members]
    return [f"{name} ({n})" if names.count(name) > 1 else name for n, name in enumerate(names, start=1)]


def check_backbone(card: Card, backbone: Backbone) -> None:
    """Refuse a backbone that is not the one the model was made from.

    Raises:
        InputError: other weights, or a head that is read differently.
    """
    if card.source.digest != backbone.source.digest:
        raise InputError(
            f"the model was converted from {card.source.name} (weights {card.source.digest[:12]}), "
            f"but these weights are {backbone.source.digest[:12]}. Give the checkpoint it was converted from."
        )
    readout = card.readout
    if readout.kind != backbone.readout.kind or readout.width != backbone.readout.width:
        raise InputError(
            f"the model was converted with readout {readout.kind} of width {readout.width}, but this backbone "
            f"is read through {backbone.readout.kind} of width {backbone.readout.width}."
        )
    check_reading(card, backbone)


def check_reading(card: Card, backbone: Backbone) -> None:
    """Refuse a backbone whose rows are not those that a card speaks of.

    Raises:
        ModelFileError: another number, width or grid of rows, or of classes.
    """
    readout, found = card.readout, backbone.readout
    said = (readout.grid, readout.rows_per_image, readout.width)
    if said != (read := (found.grid, found.count, found.width)):
        raise ModelFileError(f"its card speaks of rows {said} (grid, number, width), and its network gives {read}")
    if found.has_head and not len(found.vectors) == len(found.bias) == len(card.classes):
        raise ModelFileError(f"its network has {len(found.vectors)} classes, and its card {len(card.classes)}")
