"""PrototypeModel <-> one .safetensors file; the only file that knows the format."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from protonmf_cli.errors import InputError, ModelFileError
from protonmf_cli.files.atomic import digest_of_tensors, write_atomically
from protonmf_cli.models.amounts import Amounts
from protonmf_cli.models.backbone import ADDON, BACKBONE
from protonmf_cli.models.card import Card
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import Examples, PrototypeModel, SparseWeights
from protonmf_cli.models.soft_matching import Samples, SoftMatching

FORMAT = 2
KEY = "protonmf"
WEIGHTS = (BACKBONE, ADDON)
"""Prefixes of tensors that are no part of the decision itself."""

LAYOUT: dict[str, tuple[torch.dtype, tuple[str, ...]]] = {
    "prototypes": (torch.float32, ("P", "D")),
    "owner": (torch.int64, ("P",)),
    "weight_class": (torch.int64, ("E",)),
    "weight_prototype": (torch.int64, ("E",)),
    "weight_value": (torch.float32, ("E",)),
    "weight_residual_share": (torch.float32, ("E",)),
    "residual": (torch.float32, ("C", "D")),
    "bias": (torch.float32, ("C",)),
    "intercept": (torch.float32, ("C",)),
    "example_prototype": (torch.int64, ("M",)),
    "example_score": (torch.float32, ("M",)),
    "example_box": (torch.int64, ("M", "4")),
    "example_map": (torch.float32, ("M", "h", "w")),
    "example_crop": (torch.int64, ("M", "2")),
    "example_jpeg": (torch.uint8, ("bytes",)),
    "member": (torch.int64, ("P",)),
    "scale": (torch.float64, ("1",)),
    "normalisation.mean": (torch.float32, ("D",)),
    "sample_features": (torch.float32, ("N", "D")),
    "sample_labels": (torch.int64, ("N",)),
    "ridge": (torch.float64, ("1",)),
    "usual": (torch.float32, ("P", "4")),
    "unplaced_mean": (torch.float32, ("D",)),
    "edit_readers": (torch.float32, ("P", "D")),
}
"""Tensors: dtype and named sizes; equal names are equal sizes."""
OF_MATCHING = frozenset({"scale", "normalisation.mean", "sample_features", "sample_labels"})
"""Of few-shot models only."""
OF_AMOUNTS = frozenset({"ridge", "usual", "unplaced_mean", "edit_readers"})
"""Of conversions that read amounts, which format 1 did not know."""
OPTIONAL = OF_MATCHING | OF_AMOUNTS | {"member", "intercept"}
"""`member` is of combined models only, `intercept` of format 1."""


def save_model(path: Path, model: PrototypeModel, weights: Mapping[str, Tensor] | None) -> int:
    """Write a model file atomically; equal models give equal bytes.

    Args:
        path: to write to.
        model: with tensors on any device.
        weights: of the backbone, by prefixed name, to be embedded; None leaves them out.

    Returns:
        The file's size in bytes.

    Raises:
        InputError: the file cannot be written; nothing is left under its name.
    """
    tensors = dict(_tensors(model)) | dict(weights or {})
    tensors = _unshared({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    header = {"format": FORMAT, "card": model.card.as_json(), "sources": [asdict(s) for s in model.examples.sources]}
    if model.matching is not None:
        header["samples"] = [asdict(s) for s in model.matching.samples.sources]
    try:
        header["payload_sha256"] = digest_of_tensors(tensors, _canonical(header))
    except ValueError as failure:
        raise InputError(
            f"{path} was not written: a figure of it is no finite number, as the network's numbers overflow float32."
        ) from failure
    metadata = {KEY: _canonical(header)}

    def write(target: Path) -> None:
        try:
            safetensors.torch.save_file(tensors, target, metadata=metadata)
        except safetensors.SafetensorError as failure:  # how a full disk is reported
            raise OSError(str(failure)) from failure

    write_atomically(path, write)
    return path.stat().st_size


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with copies of those that share memory (tied weights), which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = (
            tensor.clone()
            if place in seen or tensor.numel() * tensor.itemsize != tensor.untyped_storage().nbytes()
            else tensor
        )
        seen.add(place)
    return result


def load_model(path: Path) -> tuple[PrototypeModel, dict[str, Tensor] | None]:
    """Read and check a model file: format, names, dtypes, shapes, ranges, finite values, digest.

    Returns:
        The model, and the embedded backbone's weights by prefixed name, or None.

    Raises:
        ModelFileError: the file is missing, damaged, of a newer format or not a prototype model.
    """
    if not path.is_file():
        raise ModelFileError(
            f"there is no prototype model at {path}. Make one with `protonmf convert MODEL --data DIR -o {path}` "
            "or `protonmf protopnet train`, or name one with --model."
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise ModelFileError(f"{path} is a safetensors file, but not a prototype model of protonmf.")
            header = json.loads(metadata[KEY])
            _check_format(path, header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, OSError) as failure:
        raise ModelFileError(f"{path} is damaged or not a safetensors file: {failure}.") from failure
    claimed = header.pop("payload_sha256", None)
    if claimed != digest_of_tensors(tensors, _canonical(header)):
        raise ModelFileError(
            f"{path} is damaged: its content does not match its checksum. Convert again or restore it."
        )
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)} or None
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(WEIGHTS)}
    try:
        _check_layout(own)
        model = _model(own, header)
        _check_ranges(model)
    except (ValueError, KeyError, TypeError) as failure:
        raise ModelFileError(f"{path} is not a valid prototype model: {failure}.") from failure
    return model, weights


def _tensors(model: PrototypeModel) -> dict[str, Tensor]:
    own = {} if model.member is None else {"member": model.member}
    if model.matching is not None:
        own |= {
            "scale": torch.tensor([model.matching.scale], dtype=torch.float64),
            "normalisation.mean": model.matching.normaliser.mean.float(),
            "sample_features": model.matching.samples.features,
            "sample_labels": model.matching.samples.labels,
        }
    if model.amounts is not None:
        own |= {
            "ridge": torch.tensor([model.amounts.ridge], dtype=torch.float64),
            "usual": model.amounts.usual,
            "unplaced_mean": model.amounts.unplaced_mean,
            "edit_readers": model.amounts.edit_readers,
        }
    if model.intercept.any():
        own["intercept"] = model.intercept
    return own | {
        "prototypes": model.prototypes,
        "owner": model.owner,
        "weight_class": model.weights.class_index,
        "weight_prototype": model.weights.prototype,
        "weight_value": model.weights.value,
        "weight_residual_share": model.weights.residual_share,
        "residual": model.residual,
        "bias": model.bias,
        "example_prototype": model.examples.prototype,
        "example_score": model.examples.score,
        "example_box": model.examples.box,
        "example_map": model.examples.map,
        "example_crop": model.examples.crop,
        "example_jpeg": model.examples.jpeg,
    }


def _model(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> PrototypeModel:
    return PrototypeModel(
        prototypes=tensors["prototypes"],
        owner=tensors["owner"],
        weights=SparseWeights(
            class_index=tensors["weight_class"],
            prototype=tensors["weight_prototype"],
            value=tensors["weight_value"],
            residual_share=tensors["weight_residual_share"],
        ),
        residual=tensors["residual"],
        bias=tensors["bias"],
        intercept=tensors.get("intercept", torch.zeros_like(tensors["bias"])),
        examples=Examples(
            prototype=tensors["example_prototype"],
            score=tensors["example_score"],
            box=tensors["example_box"],
            map=tensors["example_map"],
            crop=tensors["example_crop"],
            jpeg=tensors["example_jpeg"],
            sources=tuple(ImageSource(**source) for source in header["sources"]),
        ),
        card=Card.from_json(header["card"]),
        member=tensors.get("member"),
        matching=_matching(tensors, header) if "scale" in tensors else None,
        amounts=Amounts(
            ridge=float(tensors["ridge"]),
            usual=tensors["usual"],
            unplaced_mean=tensors["unplaced_mean"],
            edit_readers=tensors["edit_readers"],
        )
        if "ridge" in tensors
        else None,
        file_format=header["format"],
    )


def _matching(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> SoftMatching:
    readout = header["card"]["readout"]
    samples = Samples(
        features=tensors["sample_features"],
        labels=tensors["sample_labels"],
        sources=tuple(ImageSource(**source) for source in header["samples"]),
    )
    return SoftMatching.restored(
        scale=float(tensors["scale"]),
        kind=readout["normalisation"],
        mean=tensors["normalisation.mean"],
        blocks=tuple(readout["blocks"]),
        samples=samples,
    )


def _check_format(path: Path, header: Any) -> None:
    number = header.get("format") if isinstance(header, dict) else None
    if not isinstance(number, int):
        raise ModelFileError(f"{path} has no format number and is not a prototype model of protonmf.")
    if number > FORMAT:
        raise ModelFileError(f"{path} has format {number}, this protonmf reads up to {FORMAT}: upgrade protonmf.")


def _check_layout(tensors: Mapping[str, Tensor]) -> None:
    missing, unknown = LAYOUT.keys() - OPTIONAL - tensors.keys(), tensors.keys() - LAYOUT.keys()
    if missing or unknown:
        raise ValueError(f"tensors missing: {sorted(missing)}, unknown: {sorted(unknown)}")
    for group in (OF_MATCHING, OF_AMOUNTS):
        some = group & tensors.keys()
        if some and some != group:
            raise ValueError(f"tensors missing: {sorted(group - some)}")
    sizes: dict[str, int] = {"4": 4, "2": 2, "1": 1}
    for name, (dtype, shape) in LAYOUT.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.ndim != len(shape):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
        for size, axis in zip(tensor.shape, shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has size {size} along {axis}, expected {sizes[axis]}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite numbers")


def _check_ranges(model: PrototypeModel) -> None:
    count, classes = len(model.prototypes), len(model.bias)
    bounds = {
        "owner": (model.owner, -1, classes),
        "weight_class": (model.weights.class_index, 0, classes),
        "weight_prototype": (model.weights.prototype, 0, count),
        "example_prototype": (model.examples.prototype, 0, count),
        "example_crop": (model.examples.crop, 0, len(model.examples.jpeg) + 1),
    }
    if (model.member is None) != (not model.card.members):
        raise ValueError("the card and the tensors do not agree on the number of networks")
    if model.member is not None:
        bounds["member"] = (model.member, 0, len(model.card.members))
    if (model.amounts is None) != (model.card.similarity != "dual"):
        raise ValueError("the card and the tensors do not agree on how evidence is read")
    if model.amounts is not None and model.amounts.ridge < 0:
        raise ValueError("the ridge is negative")
    if (model.matching is None) != (model.card.pooling != "soft"):
        raise ValueError("the card and the tensors do not agree on how images are matched")
    if model.matching is not None:
        bounds["sample_labels"] = (model.matching.samples.labels, 0, classes)
    for name, (tensor, low, high) in bounds.items():
        if tensor.numel() and not (low <= int(tensor.min()) and int(tensor.max()) < high):
            raise ValueError(f"{name} is outside {low}..{high - 1}")
    if len(model.card.classes) != classes or len(model.examples.sources) != len(model.examples.prototype):
        raise ValueError("the numbers of classes or sources do not match the tensors")


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def decision_digest(model: PrototypeModel) -> str:
    """sha256 of what a model decides by: a page knows by it whether an evaluation is of the model it shows."""
    weights = model.weights
    tensors = {
        "prototypes": model.prototypes, "class": weights.class_index, "prototype": weights.prototype,
        "value": weights.value, "residual": model.residual, "bias": model.bias,
    }  # fmt: skip
    return digest_of_tensors(tensors, model.card.source.digest)
