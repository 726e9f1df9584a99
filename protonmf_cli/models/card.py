"""What a model says of itself: everything that is not a tensor."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import Backbone, ClassName, Preprocessing, Source


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything about a model that is not a tensor; JSON-able."""

    method: str
    similarity: str
    pooling: str
    readout: Mapping[str, Any]
    """kind, rows (the option), rows_per_image, width, grid, unplaced, spatial, and the exactness measured:
    max_abs_logit_difference, relative_difference, formula_difference, images_checked, dtype, device,
    negative_share, clipped_share."""
    source: Source
    preprocessing: Preprocessing
    classes: tuple[ClassName, ...]
    options: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    data: Mapping[str, Any]
    """images, digest, images_per_class, skipped."""
    measured: Mapping[str, Any]
    """agreement, accuracy_black_box, accuracy_prototype_model, feature_relative_error, head_relative_error,
    residual_share; per_class (class -> accuracy, residual_share); stability (one number or None per prototype);
    curves (class -> numbers of prototypes tried) and augmentation where there is one."""
    edits: tuple[Mapping[str, Any], ...] = ()
    members: tuple["Card", ...] = ()
    """Cards of the models that were combined, in the order of `PrototypeModel.member`; none in any other model."""

    def as_json(self) -> dict[str, Any]:
        """Nested plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Card":
        """The inverse of `as_json`; raises TypeError or KeyError for another structure."""
        nested = dict(value)
        nested["source"] = Source(**nested["source"])
        fields = dict(nested["preprocessing"])
        for name in ("input_size", "mean", "std"):
            fields[name] = tuple(fields[name])
        nested["preprocessing"] = Preprocessing(**fields)
        nested["classes"] = tuple(ClassName(**name) for name in nested["classes"])
        nested["edits"] = tuple(nested.get("edits", ()))
        nested["members"] = tuple(cls.from_json(member) for member in nested.get("members", ()))
        return cls(**nested)


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
    if readout["kind"] != backbone.readout.kind or readout["width"] != backbone.readout.width:
        raise InputError(
            f"the model was converted with readout {readout['kind']} of width {readout['width']}, but this backbone "
            f"is read through {backbone.readout.kind} of width {backbone.readout.width}."
        )
