"""timm's evaluation transform of a checkpoint: resolved, checked, and applied to pictures."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.reader import MOST_PIXELS, Crop
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.models.backbone import Preprocessing
from protonmf_cli.models.card import Card
from protonmf_cli.models.readouts.readout import Network

_WHERE = "It stands in the pretrained_cfg of its config.json."


def preprocessing_of(config: Mapping[str, Any], request: BackboneRequest, network: Network) -> Preprocessing:
    """The transform of a network's configuration, as timm's `pretrained_cfg`, at the size that was asked for.

    Raises:
        InputError: a value that it cannot have, such as a std of zero.
    """
    side = request.side
    sizes: dict[str, Any] = {}
    if isinstance(side, int):
        sizes["img_size"] = side
    elif side:
        sizes["input_size"] = (config.get("input_size", (3,))[0], *side)
    try:
        resolved = import_timm().data.resolve_data_config(sizes, pretrained_cfg=dict(config), model=network)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as failure:
        raise InputError(f"the preprocessing of {request.name} cannot be used: {failure!r}. {_WHERE}") from failure
    if wrong := _wrong_in(resolved):
        where = _WHERE if side is None else "Give another --img-size."
        raise InputError(f"the preprocessing of {request.name} cannot be used: {', '.join(wrong)}. {where}")
    channels, height, width = resolved["input_size"]
    channels = request.model_args.get("in_chans", channels)
    if channels not in (1, 3):
        raise InputError(
            f"{request.name} reads images of {channels} channels; those of 1 (grey) and 3 (colour) can be read."
        )
    return Preprocessing(
        input_size=(channels, height, width),
        interpolation=resolved["interpolation"],
        crop_pct=resolved["crop_pct"],
        crop_mode=resolved["crop_mode"],
        mean=_per_channel(resolved["mean"], channels),
        std=_per_channel(resolved["std"], channels),
        exif_transpose=request.exif_transpose,
    )


def check_preprocessing(card: Card) -> None:
    """Refuse a transform of a model file that cannot be done.

    Raises:
        ValueError: in words that name its values.
    """
    seen, count = card.preprocessing, len(card.members) or 1
    values = {name: getattr(seen, name) for name in _RIGHT} | {"mean": seen.mean[:3], "std": seen.std[:3]}
    wrong = _wrong_in(values if not card.members else values | {"mean": (0.0,), "std": (1.0,)})
    channels, height, width = seen.input_size
    if (channels not in (1, 3) and not card.members) or channels > 3 * count or height * width > MOST_STORED_PIXELS:
        wrong.append(f"input_size {seen.input_size}")
    if not len(seen.mean) == len(seen.std) == channels:
        wrong.append(f"mean and std of {len(seen.mean)} and {len(seen.std)} channels")
    if wrong:
        raise ValueError(f"its preprocessing cannot be used: {', '.join(wrong)}")


MOST_STORED_PIXELS = 2**24
"""Of images that the network of a model file reads."""


def _wrong_in(transform: Mapping[str, Any]) -> list[str]:
    """Values of a transform that it cannot have, with their names."""
    return [f"{key} {transform.get(key)!r}" for key, is_right in _RIGHT.items() if not is_right(transform.get(key))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_statistics(values: Any, lowest: float) -> bool:
    """Whether these are numbers above the lowest, of one channel or three."""
    is_list = isinstance(values, list | tuple) and len(values) in (1, 3)
    return is_list and all(_is_number(value) and value > lowest for value in values)


def _is_size(values: Any) -> bool:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return False
    return all(type(value) is int and value > 0 for value in values) and values[1] * values[2] <= MOST_PIXELS


_RIGHT: dict[str, Callable[[Any], bool]] = {
    "input_size": _is_size,
    "mean": lambda values: _are_statistics(values, -math.inf),
    "std": lambda values: _are_statistics(values, 0),
    "crop_pct": lambda value: _is_number(value) and 0.05 <= value <= 10,
    "crop_mode": lambda value: value in ("center", "squash", "border"),
    "interpolation": lambda value: value in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
}
"""What each value of a transform must be."""


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics of colours, or their mean for a network that is asked to read grey."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def crop_of(preprocessing: Preprocessing) -> Crop:
    """timm's evaluation transform up to the normalisation: PIL image -> uint8 (channels, height, width)."""
    timm = import_timm()
    try:
        transform: Crop = timm.data.create_transform(
            input_size=preprocessing.input_size,
            interpolation=preprocessing.interpolation,
            crop_pct=preprocessing.crop_pct,
            crop_mode=preprocessing.crop_mode,
            mean=preprocessing.mean,
            std=preprocessing.std,
            normalize=False,
        )
        return transform
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as failure:
        raise InputError(f"the checkpoint's preprocessing cannot be used: {preprocessing} ({failure!r}).") from failure


def crop_for(card: Card) -> Crop:
    """What the network, or every network of a combined model, sees of a picture."""
    if not card.members:
        return crop_of(card.preprocessing)
    crops = [crop_of(member.preprocessing) for member in card.members]
    _, height, width = card.preprocessing.input_size

    def stacked(picture: Any) -> Tensor:
        parts = [crop(picture) for crop in crops]
        padded = [nn.functional.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in parts]
        return torch.cat(padded)

    return stacked
