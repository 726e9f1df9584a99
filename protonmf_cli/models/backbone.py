"""A trained classifier as protonmf uses it: network, readout, preprocessing, class names."""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from protonmf_cli.errors import InputError, ModelFileError, NotExactError, ProtonmfError, first_line
from protonmf_cli.models.readouts.attention_pool import attention_pool
from protonmf_cli.models.readouts.branches import branches_head
from protonmf_cli.models.readouts.class_token import token_writes
from protonmf_cli.models.readouts.frozen_head import frozen_head
from protonmf_cli.models.readouts.image_row import image_row
from protonmf_cli.models.readouts.normed_vector import normed_vector
from protonmf_cli.models.readouts.pooled_heads import affine_head, normalised_head
from protonmf_cli.models.readouts.readout import (
    FORMULA_LIMIT,
    FORMULA_NOISE,
    Network,
    Probe,
    Reading,
    Readout,
    in_float64,
    relative_difference,
)
from protonmf_cli.models.readouts.selecting_heads import selecting_head
from protonmf_cli.models.readouts.stored import stored_readout

Candidate = Callable[[Network, Probe], Readout | None]

CANDIDATES: dict[str, tuple[Candidate, ...]] = {
    "auto": (
        token_writes,
        affine_head,
        branches_head,
        normalised_head,
        selecting_head,
        attention_pool,
        frozen_head,
        partial(normed_vector, ways=(token_writes, affine_head, attention_pool)),
        image_row,
    ),
    "all-layers": (token_writes,),
    "last-block": (partial(token_writes, first_layer=-1),),
    "cls": (affine_head,),
    "image": (image_row,),
}
"""Readouts to try for each value of --rows, best first; the first one that is exact is taken."""


MISFITS = (RuntimeError, AssertionError, IndexError, ValueError)
"""What networks raise on images of a size that they cannot read."""

NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory", re.IGNORECASE)
"""In what torch says where there is none: on a CPU it is no error of its own kind."""

BACKBONE, ADDON = "backbone.", "addon."
"""Prefixes of the weights of the network, and of trained layers between its features and the rows."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """timm's evaluation transform of one checkpoint, resolved."""

    input_size: tuple[int, int, int]
    """Channels, height, width."""
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif_transpose: bool = False
    """Turn images as their camera says; timm's own transform does not."""


@dataclass(frozen=True, kw_only=True)
class ClassName:
    """One class of the classifier."""

    label: str
    description: str = ""

    @property
    def shown(self) -> str:
        """The shortest name that people recognise: the first synonym of the description, else the label."""
        return self.description.split(",")[0].strip() or self.label


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the network came from."""

    name: str
    """As the user gave it, completed."""
    architecture: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    """sha256 over names and bytes of all weights."""
    library: str = "timm"
    """That builds it: timm, transformers, torchvision, open_clip, or python for a function of the user's own."""
    features: str = ""
    """Module that the features come out of, in networks that are not timm's."""
    prefix: int = 0
    """Tokens before the patches, in such networks."""
    left_out: str = ""
    """Module at the end of such a network that makes probabilities of its logits, and is left out."""
    multi_label: bool = False
    """Whether an image may be of several classes: each has a probability of its own, by a sigmoid."""

    @property
    def short_name(self) -> str:
        """The name without its folder.

        >>> Source(name="local-dir:../models/resnet18.caltech24", architecture="resnet18").short_name
        'resnet18.caltech24'
        """
        return self.name.removeprefix("local-dir:").removeprefix("hf:").rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """Network in evaluation mode, and how its head is read."""

    network: Network
    readout: Readout
    rows_option: str
    preprocessing: Preprocessing
    classes: tuple[ClassName, ...]
    source: Source
    formula_difference: float = 0.0
    """Relative difference of the readout's logits in float64 on the probing images; nothing differs without a head."""
    file: str = ""
    """The model file that the network was read from, for messages; empty where it comes from nowhere else than here."""

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.network.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = next(self.network.parameters()).dtype
        return found

    def weights(self) -> dict[str, Tensor]:
        """Everything that a model file needs to read images again, by prefixed name."""
        network = {BACKBONE + name: tensor for name, tensor in self.network.state_dict().items()}
        difference = max(self.formula_difference, FORMULA_NOISE)  # so that equal models are equal bytes
        readout = stored_readout(self.readout, self.network, difference)
        return network | {ADDON + name: tensor for name, tensor in self.readout.layers().items()} | readout

    def read(self, crops: Tensor) -> Reading:
        """Rows and logits of uint8 crops (B, channels, height, width); a CPU takes `at_once` of them at a time.

        Raises:
            ModelFileError: the network comes from a file, and reads no images in the way that the file says, or gives
                what is no finite number.
        """
        with torch.inference_mode():
            parts = [self._read(some) for some in crops.split(self.at_once)]
            rows, logits = ([getattr(part, name) for part in parts] for name in ("rows", "logits"))
            return parts[0] if len(parts) == 1 else Reading(rows=torch.cat(rows), logits=torch.cat(logits))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within it whatever a network raises that a damaged file describes is the file's fault.

        Raises:
            ModelFileError: in one sentence; a network from elsewhere raises what it raises.
        """
        try:
            yield
        except (torch.OutOfMemoryError, ProtonmfError):
            raise
        except Exception as failure:
            if not self.file or NO_MEMORY.search(str(failure)):
                raise
            raise ModelFileError(
                f"the network in {self.file} reads no images: {first_line(failure).rstrip('.')}."
            ) from failure

    def _read(self, crops: Tensor) -> Reading:
        with self.reading():
            found = self.readout.read(self.network, self.normalise(crops))
        if not self.file:
            return found
        rows = (len(crops), self.readout.count, self.readout.width)
        logits = (len(crops), len(self.classes) if self.readout.has_head else 0)
        if (found.rows.shape, found.logits.shape) != (rows, logits):
            raise ModelFileError(f"the network in {self.file} gives other rows and logits than its card speaks of.")
        if not (found.rows.isfinite().all() and found.logits.isfinite().all()):
            raise self.no_numbers("rows or logits")
        return found

    @property
    def at_once(self) -> int:
        """Images that the network takes at a time: on a CPU few enough for its layers to stay in memory at hand."""
        if self.device.type != "cpu":
            return MANY
        pixels = math.prod(self.preprocessing.input_size[1:])
        return max(round(PIXELS_AT_ONCE / pixels), torch.get_num_threads())

    def no_numbers(self, what: str) -> InputError:
        """The refusal of a network, or of a model on it, whose answer is no finite number."""
        if self.file:
            return ModelFileError(f"{self.file} gives {what} that are no finite numbers: its numbers overflow.")
        return InputError(f"{self.source.name} gives {what} that are no finite numbers: its numbers overflow.")

    def pictures(self, crop: Tensor) -> tuple[Tensor, ...]:
        """What each network sees of one uint8 crop: itself, or the parts of a combined model's crop."""
        return self.readout.pictures(crop)

    def normalise(self, crops: Tensor) -> Tensor:
        """What timm's evaluation transform hands to the network: (crop / 255 - mean) / std."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.preprocessing.mean, self.preprocessing.std))
        if self.device.type == "cuda":  # copied while the network still runs over the batch before
            crops, mean, std = (part.pin_memory().to(self.device, non_blocking=True) for part in (crops, mean, std))
        pixels = crops.to(self.device, memory_format=self.memory_format).float().div(255)
        return pixels.sub_(mean.to(self.device)).div_(std.to(self.device)).to(self.dtype)

    @property
    def memory_format(self) -> torch.memory_format:
        """How pixels lie in memory: channel by channel, or all channels of a pixel together."""
        layers = [p for p in self.network.parameters() if p.ndim == 4 and p.shape[1] > 1]
        last = any(not layer.is_contiguous() for layer in layers)
        return torch.channels_last if last else torch.contiguous_format

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same backbone on another device, computing in another dtype.

        On a CPU convolutions are up to a third faster on pixels whose channels lie together, which a network without
        them does not notice. On CUDA cuDNN then takes seconds for each number of images that it has not met before.
        """
        self.network.to(device=device, dtype=dtype)
        together = device.type == "cpu" and convolutional(self.network)
        self.network.to(memory_format=torch.channels_last if together else torch.contiguous_format)
        return replace(self, readout=self.readout.to(device=device, dtype=dtype))

    def copy_as(self, dtype: torch.dtype) -> Self:
        """A second one, with its own network, that computes in another dtype."""
        return copy.deepcopy(self).to(self.device, dtype)


PIXELS_AT_ONCE = 6 * 224 * 224
"""Of images that a CPU takes at a time. The layers of more make tensors beyond the size up to which memory is used
again: every page of them is asked of the system anew, which takes longer than to compute what they hold."""
MANY = 2**31
"""Images that an accelerator takes at a time: as many as there are."""

CONVOLUTIONAL = 0.05
"""Share of a network's weights in kernels over places, from which it counts as convolutional."""


def convolutional(network: Network) -> bool:
    """Whether convolutions make up a good part of a network."""
    weights = list(network.parameters())
    return bool(sum(p.numel() for p in weights if p.ndim == 4) >= CONVOLUTIONAL * sum(p.numel() for p in weights))


def probe_readout(
    network: Network, input_size: tuple[int, int, int], rows: str, name: str, *, kind: str | None = None
) -> tuple[Readout, float]:
    """Find how the head is read and prove it in float64 on two seeded images.

    Args:
        network: in evaluation mode, on the CPU, with `forward_features` and `forward_head`.
        input_size: channels, height, width of an image.
        rows: a key of `CANDIDATES`.
        name: of the model, for messages.
        kind: take no readout of another kind.

    Returns:
        The readout with float32 tensors, and its relative difference in float64.

    Raises:
        InputError: the network reads no images of this size, its logits are no numbers, or the same for every image.
        NotExactError: no candidate reproduces the logits to `FORMULA_LIMIT`.
    """
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(2, *input_size, generator=generator, dtype=torch.float64)
    tried = []
    dtype = next(network.parameters()).dtype
    try:
        with torch.no_grad():
            plain = network(pixels.to(dtype))
    except MISFITS as failure:
        raise unreadable(name, input_size, failure) from failure
    if not plain.isfinite().all():
        raise InputError(f"{name} gives logits that are no finite numbers: its weights are too large or broken.")
    with in_float64(network), torch.no_grad():
        features = network.forward_features(pixels)
        logits = network.forward_head(_copied(features))
        if torch.equal(logits[0], logits[1]):
            raise InputError(f"{name} gives the same logits to every image: its classifier is not trained.")
        for candidate in CANDIDATES[rows]:
            try:
                readout = candidate(network, Probe(pixels=pixels, features=_copied(features)))
                if readout is None or kind not in (None, readout.kind) or (rows == "cls" and readout.spatial):
                    continue
                reading = readout.read(network, pixels)
                difference = relative_difference(readout.logits(reading.rows), reading.logits)
                if reading.rows.shape[1] != readout.count:
                    difference = math.inf
            except (*MISFITS, TypeError, AttributeError, KeyError) as failure:  # a head unlike any that is known
                tried.append(f"{type(failure).__name__} while probing: {failure}")
                continue
            if difference <= FORMULA_LIMIT:
                return readout.to(dtype=dtype), difference
            tried.append(f"{readout.kind} rows differ by {difference:.1e}")
    found = "; ".join(tried) or "no readout of this kind fits its head"
    advice = "Try --rows auto" if rows != "auto" else "Try --rows image, or report this model"
    raise NotExactError(
        f"the classifier of {name} could not be written as a sum over rows with --rows {rows} "
        f"(float64, at most {FORMULA_LIMIT:.0e} relative to the spread of the logits is allowed): {found}. {advice}."
    )


def unreadable(name: str, input_size: tuple[int, int, int], failure: Exception) -> InputError:
    """The refusal of a network that failed on images of a size."""
    why = first_line(failure).rstrip(".")
    return InputError(
        f"{name} cannot read images of {input_size} (channels, height, width): {why}. If it was trained "
        "for another size, give that with --img-size."
    )


def _copied(features: object) -> object:
    """Features that a head may overwrite."""
    if isinstance(features, Tensor):
        return features.clone()
    if isinstance(features, list | tuple):
        return type(features)(_copied(part) for part in features)
    return features
