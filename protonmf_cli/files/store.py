"""PrototypeModel <-> one .safetensors file; the only file that knows the format."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any, assert_never

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from protonmf_cli.errors import InputError, ModelFileError, UsageError
from protonmf_cli.files.atomic import FLOATS, digest_of_file, digest_of_tensors, write_atomically
from protonmf_cli.files.networks.preprocessing import check_preprocessing
from protonmf_cli.files.stored_pictures import check_pictures
from protonmf_cli.models.amounts import LEVELS, UsualImages
from protonmf_cli.models.backbone import ADDON, BACKBONE
from protonmf_cli.models.card import Card, ReadoutFacts
from protonmf_cli.models.card.checks import check_card
from protonmf_cli.models.evidence import Amounts, Evidence, NearestPatch, Projections, SoftMatch
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import Examples, PrototypeModel, SparseWeights
from protonmf_cli.models.readouts.stored import READOUT
from protonmf_cli.models.soft_matching import Samples
from protonmf_cli.models.strict_json import strict_json

FORMAT = 3
KEY = "protonmf"
WEIGHTS = (BACKBONE, ADDON, READOUT)
"""Prefixes of tensors that are no part of the decision itself."""
OF_WEIGHTS = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
"""Types of numbers that these tensors may have."""

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
    "image_mean": (torch.float32, ("A", "D")),
    "image_covariance": (torch.float32, ("F",)),
    "image_rest": (torch.float32, ("A",)),
    "image_distance": (torch.float32, ("A", str(LEVELS))),
}
"""Tensors: dtype and named sizes; equal names are equal sizes."""
ONNX = ".onnx"
OF_MATCHING = frozenset({"scale", "normalisation.mean", "sample_features", "sample_labels"})
"""Of few-shot models only."""
OF_AMOUNTS = frozenset({"ridge", "usual", "unplaced_mean", "edit_readers"})
"""Of conversions that read amounts, which format 1 did not know."""
OF_IMAGES = frozenset({"image_mean", "image_covariance", "image_rest", "image_distance"})
"""Which images are usual, which older conversions did not keep."""
MOST = 1e15
"""Size of a number: the squares of larger ones overflow float32 where they add up."""
OPTIONAL = OF_MATCHING | OF_AMOUNTS | OF_IMAGES | {"member", "intercept"}
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
    if isinstance(model.evidence, SoftMatch):
        header["samples"] = [asdict(s) for s in model.evidence.samples.sources]
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
    """The same tensors with copies of those that are another one (tied weights), which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result


def load_model(path: Path) -> tuple[PrototypeModel, dict[str, Tensor] | None]:
    """Read and check a model file: format, names, dtypes, shapes, ranges, finite values, digest.

    Numbers of the tensors are in memory only once they are used.

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
            text = metadata[KEY]
            header = strict_json(text)
            _check_format(path, header)
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        claimed = header.pop("payload_sha256", None)
        with path.open("rb") as raw:  # a length and as many bytes of names and places come first
            start = 8 + int.from_bytes(raw.read(8), "little")
        digest, largest = digest_of_file(path, tensors, start, _without_digest(text, claimed))
    except (safetensors.SafetensorError, ValueError, OSError) as failure:
        if path.suffix == ONNX:
            raise ModelFileError(
                f"{path} is a graph, as `protonmf export` writes them for other programs; commands take the model file "
                "that it was made from."
            ) from failure
        raise ModelFileError(f"{path} is damaged or not a safetensors file: {failure}.") from failure
    if claimed != digest:
        raise ModelFileError(
            f"{path} is damaged: its content does not match its checksum. Convert again or restore it."
        )
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)} or None
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(WEIGHTS)}
    try:
        _check_layout(own, largest)
        _check_weights(weights or {}, largest)
        model = _model(own, header)
        _check_ranges(model)
        check_card(model)
        for card in (model.card, *model.card.members):
            check_preprocessing(card)
        check_pictures(model)
    except KeyError as failure:
        raise ModelFileError(f"{path} is not a valid prototype model: it lacks {failure.args[0]!r}.") from failure
    except (ValueError, TypeError, UsageError) as failure:
        raise ModelFileError(f"{path} is not a valid prototype model: {str(failure).rstrip('.')}.") from failure
    return model, weights


def _without_digest(text: str, digest: object) -> str:
    """The header of a file as it was when its digest was taken: the same text without that."""
    return text.replace(f'"payload_sha256":{json.dumps(digest)},', "", 1)


def _tensors(model: PrototypeModel) -> dict[str, Tensor]:
    own = _tensors_of(model.evidence)
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


def _tensors_of(evidence: Evidence) -> dict[str, Tensor]:
    match evidence:
        case Projections():
            return {}
        case Amounts():
            return {
                "ridge": torch.tensor([evidence.ridge], dtype=torch.float64),
                "usual": evidence.usual,
                "unplaced_mean": evidence.unplaced_mean,
                "edit_readers": evidence.edit_readers,
                **_tensors_of_images(evidence.images),
            }
        case NearestPatch():
            return {} if evidence.member is None else {"member": evidence.member}
        case SoftMatch():
            return {
                "scale": torch.tensor([evidence.scale], dtype=torch.float64),
                "normalisation.mean": evidence.normaliser.mean.float(),
                "sample_features": evidence.samples.features,
                "sample_labels": evidence.samples.labels,
            }
        case _:
            assert_never(evidence)


def _tensors_of_images(images: UsualImages | None) -> dict[str, Tensor]:
    if images is None:
        return {}
    return {
        "image_mean": images.mean,
        "image_covariance": images.covariance,
        "image_rest": images.rest,
        "image_distance": images.distances,
    }


def _model(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> PrototypeModel:
    card = Card.from_json(header["card"])
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
            sources=_sources(header, "sources"),
        ),
        card=card,
        evidence=_evidence(tensors, header, card),
        file_format=header["format"],
    )


def _sources(header: Mapping[str, Any], name: str) -> tuple[ImageSource, ...]:
    """Images that a header lists; raises ValueError where it does not."""
    try:
        found = tuple(ImageSource(path=each["path"], sha256=each["sha256"]) for each in header[name])
    except (TypeError, KeyError) as failure:
        raise ValueError(f"{name} is no list of images with their path and sha256") from failure
    if not all(type(each.path) is str and type(each.sha256) is str for each in found):
        raise ValueError(f"{name} is no list of images with their path and sha256")
    return found


def _evidence(tensors: Mapping[str, Tensor], header: Mapping[str, Any], card: Card) -> Evidence:
    """As the card speaks of it; raises ValueError where the tensors do not."""
    kind = EvidenceKind.of_card(card.pooling, card.similarity)
    for tensor, expected, what in (
        ("member", bool(card.members), "the number of networks"),
        ("ridge", kind is EvidenceKind.AMOUNTS, "how evidence is read"),
        ("scale", kind is EvidenceKind.MATCHES, "how images are matched"),
    ):
        if (tensor in tensors) != expected:
            raise ValueError(f"the card and the tensors do not agree on {what}")
    match kind:
        case EvidenceKind.PROJECTIONS:
            return Projections()
        case EvidenceKind.AMOUNTS:
            return Amounts(
                ridge=float(tensors["ridge"]),
                usual=tensors["usual"],
                unplaced_mean=tensors["unplaced_mean"],
                edit_readers=tensors["edit_readers"],
                images=_images(tensors),
            )
        case EvidenceKind.SIMILARITIES:
            return NearestPatch(member=tensors.get("member"))
        case EvidenceKind.MATCHES:
            return _matching(tensors, header, card.readout)
        case _:
            assert_never(kind)


def _images(tensors: Mapping[str, Tensor]) -> UsualImages | None:
    if "image_mean" not in tensors:
        return None
    return UsualImages(
        mean=tensors["image_mean"],
        covariance=tensors["image_covariance"],
        rest=tensors["image_rest"],
        distances=tensors["image_distance"],
    )


def _matching(tensors: Mapping[str, Tensor], header: Mapping[str, Any], readout: ReadoutFacts) -> SoftMatch:
    samples = Samples(
        features=tensors["sample_features"],
        labels=tensors["sample_labels"],
        sources=_sources(header, "samples"),
    )
    return SoftMatch.restored(
        scale=float(tensors["scale"]),
        kind=readout.normalisation,
        mean=tensors["normalisation.mean"],
        blocks=readout.blocks,
        samples=samples,
    )


def _check_format(path: Path, header: Any) -> None:
    number = header.get("format") if isinstance(header, dict) else None
    if type(number) is not int:
        raise ModelFileError(f"{path} has no format number and is not a prototype model of protonmf.")
    if number > FORMAT:
        raise ModelFileError(f"{path} has format {number}, this protonmf reads up to {FORMAT}: upgrade protonmf.")


def _check_layout(tensors: Mapping[str, Tensor], largest: Mapping[str, float]) -> None:
    missing, unknown = LAYOUT.keys() - OPTIONAL - tensors.keys(), tensors.keys() - LAYOUT.keys()
    if missing or unknown:
        raise ValueError(f"tensors missing: {sorted(missing)}, unknown: {sorted(unknown)}")
    for group in (OF_MATCHING, OF_AMOUNTS, OF_IMAGES):
        some = group & tensors.keys()
        if some and some != group:
            raise ValueError(f"tensors missing: {sorted(group - some)}")
    sizes: dict[str, int] = {"4": 4, "2": 2, "1": 1, str(LEVELS): LEVELS}
    for name, (dtype, shape) in LAYOUT.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.ndim != len(shape):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
        for size, axis in zip(tensor.shape, shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has size {size} along {axis}, expected {sizes[axis]}")
        if largest.get(name, 0.0) == inf:
            raise ValueError(f"{name} holds NaN or infinite numbers")
        if largest.get(name, 0.0) > MOST:
            raise ValueError(f"{name} holds numbers beyond {MOST:.0e}")


def _check_weights(weights: Mapping[str, Tensor], largest: Mapping[str, float]) -> None:
    for name, tensor in weights.items():
        if tensor.dtype not in OF_WEIGHTS:
            raise ValueError(f"{name} is {tensor.dtype}, which no weights are")
        if largest.get(name, 0.0) == inf:
            raise ValueError(f"{name} holds NaN or infinite numbers")


def _check_ranges(model: PrototypeModel) -> None:
    if not model.file_format >= 1:
        raise ValueError(f"its format is {model.file_format}")
    count, classes = len(model.prototypes), len(model.bias)
    bounds = {
        "owner": (model.owner, -1, classes),
        "weight_class": (model.weights.class_index, 0, classes),
        "weight_prototype": (model.weights.prototype, 0, count),
        "example_prototype": (model.examples.prototype, 0, count),
        "example_crop": (model.examples.crop, 0, len(model.examples.jpeg) + 1),
    }
    match model.evidence:
        case NearestPatch(member=Tensor() as member):
            bounds["member"] = (member, 0, len(model.card.members))
        case Amounts(ridge=ridge) if ridge < 0:
            raise ValueError("the ridge is negative")
        case SoftMatch(samples=samples):
            bounds["sample_labels"] = (samples.labels, 0, classes)
    for name, (tensor, low, high) in bounds.items():
        if tensor.numel() and not (low <= int(tensor.min()) and int(tensor.max()) < high):
            raise ValueError(f"{name} is outside {low}..{high - 1}")
    _check_boxes(model)
    if len(model.card.classes) != classes or len(model.examples.sources) != len(model.examples.prototype):
        raise ValueError("the numbers of classes or sources do not match the tensors")
    if model.amounts is not None and model.amounts.images is not None:
        _check_images(model, model.amounts.images)


def _check_boxes(model: PrototypeModel) -> None:
    """Boxes lie inside the largest crop; where rows have places, there is something in them."""
    left, top, right, bottom = model.examples.box.unbind(dim=1)
    _, height, width = model.card.preprocessing.input_size
    least = int(model.card.readout.spatial)
    inside = (left >= 0) & (top >= 0) & (right <= width) & (bottom <= height)
    if not bool((inside & (right - left >= least) & (bottom - top >= least)).all()):
        raise ValueError(f"example_box is outside {width} x {height} pixels, or empty")


def _check_images(model: PrototypeModel, images: UsualImages) -> None:
    sizes = model.ledger[1].diff()[model.active_classes]
    if len(images.mean) != len(sizes) or len(images.covariance) != int(sizes.square().sum()):
        raise ValueError("image_mean or image_covariance do not fit the classes and their connections")
    if bool((images.distances.diff(dim=1) < 0).any()) or not bool((images.distances[:, -1] > 0).any()):
        raise ValueError("image_distance does not rise")


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
