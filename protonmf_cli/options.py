"""Every hyper-parameter with its default: the only place where defaults live."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from math import inf, isnan
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from protonmf_cli.errors import UsageError, is_whole

Init = Literal["abs", "nndsvda", "paper"]
Solver = Literal["mu", "hals"]
RowsOption = Literal["auto", "all-layers", "last-block", "cls", "image"]
MapKind = Literal["contribution", "presence"]
Reconstruction = Literal["amounts", "paper"]
Augment = Literal["none", "min-norm", "paper"]
NearAs = Literal["wholes", "parts"]
Recipe = Literal["default", "paper"]
Form = Literal["plain", "augmented"]
Among = Literal["prototypes", "all"]
Similarity = Literal["log", "linear", "cosine"]
AddOn = Literal["regular", "bottleneck"]
WeightNorm = Literal["l1", "l2"]
Normalisation = Literal["none", "unit", "centred"]
ProtoPNetStart = Literal["data", "random"]
RateSchedule = Literal["cosine", "steps"]
LastLayer = Literal["exact", "passes"]
FineTuned = Literal["none", "last", "all"]
TrainingMode = Literal["batches", "episodes"]
Precision = Literal["float32", "bfloat16"]
ExportFormat = Literal["checkpoint", "onnx"]


class Checked:
    """Options whose numbers lie within limits, and whose words are among those there are.

    Raises:
        UsageError: naming the option, its value, and what is allowed.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Field -> least and largest value of a number, of each of several, or of one that is given."""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            if Path in (hint, *get_args(hint)) and isinstance(getattr(self, name), str | bytes):
                object.__setattr__(self, name, _path_of(name, getattr(self, name)))
        for name, words in _words_of(type(self)).items():
            if getattr(self, name) not in words:
                allowed = ", ".join(map(str, words))
                raise UsageError(f"{_option(name)} {getattr(self, name)!r} is not one of {allowed}.")
        for name, (least, most) in self.LIMITS.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and (isnan(number) or not least <= number <= most):
                    raise UsageError(f"{_option(name)} must be a number {_between(least, most)}, not {number}.")


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)
"""Fields and their types, looked up once for each class."""


def _path_of(name: str, words: str | bytes) -> Path:
    """
    Raises:
        UsageError: it names no file; "" would be the current folder.
    """
    if isinstance(words, bytes):
        raise UsageError(f"{_option(name)} {words!r} is bytes: give text, as of os.fsdecode, or a path.")
    if not words or "\0" in words:
        raise UsageError(f"{_option(name)} {words!r} names no file and no folder: give a path.")
    return Path(words)


def _words_of(kind: type[Checked]) -> dict[str, tuple[Any, ...]]:
    """Fields that hold one of a few words, and the words; None where it may be left out."""
    found = {}
    for name, hint in _hints(kind).items():
        each = [hint, *get_args(hint)] if get_origin(hint) in (Union, UnionType) else [hint]
        words = [word for part in each if get_origin(part) is Literal for word in get_args(part)]
        if words:
            found[name] = (*words, *([None] if NoneType in each else []))
    return found


def _between(least: float, most: float) -> str:
    if most == inf:
        return f"of at least {least:g}"
    return f"of at most {most:g}" if least == -inf else f"from {least:g} to {most:g}"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


MOST_THREADS = 1024
"""More would end the process where its memory ends."""
SEEDS = (0, 2**63 - 1)
"""That torch and numpy both take."""


@dataclass(frozen=True, kw_only=True)
class Machine(Checked):
    """Where and how a job computes."""

    LIMITS: ClassVar = {"threads": (1, MOST_THREADS), "batch_size": (1, inf), "workers": (1, MOST_THREADS)}

    device: str = "auto"
    """auto (CUDA, then MPS, then the CPU), cpu, cuda, cuda:N or mps."""
    dtype: str = "float32"
    """float32 or float64: how the network computes; bfloat16: how it reads the rows of a conversion."""
    threads: int | None = None
    """CPU threads while the job runs; as torch has them if None."""
    batch_size: int = 32
    """Images per pass of the network; a CPU takes a few of them at a time."""
    workers: int | None = None
    """Decoding threads; one per core, at most 32, if None."""
    offline: bool = False
    """Never download weights."""
    network: str | None = None
    """Function of your own, package.module:function, that may run to build the network of a model file."""


@dataclass(frozen=True, kw_only=True)
class Share(Checked):
    """Which part of a job's classes a process does, where a scheduler starts several."""

    LIMITS: ClassVar = {"number": (1, inf), "shares": (1, inf)}

    number: int = 1
    """Of the share, from 1."""
    shares: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.number > self.shares:
            raise UsageError(f"--share {self.number}/{self.shares}: there are only {self.shares} shares, from 1.")

    @classmethod
    def of(cls, words: str, environment: Mapping[str, str]) -> Self:
        """The share that `I/N` names, or that a scheduler's variables do for "auto".

        Raises:
            UsageError: neither; for "auto", no scheduler that is known started this process.

        >>> Share.of("2/8", {})
        Share(number=2, shares=8)
        >>> Share.of("auto", {"RANK": "0", "WORLD_SIZE": "4"})
        Share(number=1, shares=4)
        """
        number, slash, shares = words.partition("/")
        if slash and is_whole(number) and is_whole(shares):
            return cls(number=int(number), shares=int(shares))
        if words != "auto":
            raise UsageError(f"--share {words!r} is neither I/N (2/8 is the second of eight shares) nor auto.")
        for names in SCHEDULERS:
            if {names[0], names[-1]} <= environment.keys():
                return cls._of_variables(names, environment)
        raise UsageError(
            "--share auto finds no scheduler: neither torchrun's RANK and WORLD_SIZE nor Slurm's SLURM_ARRAY_TASK_ID "
            "and SLURM_ARRAY_TASK_COUNT are set. Give --share I/N."
        )

    @classmethod
    def _of_variables(cls, names: Sequence[str], environment: Mapping[str, str]) -> Self:
        values = [environment.get(name, default) for name, default in zip(names, "0011", strict=True)]
        said = ", ".join(f"{name}={environment[name]}" for name in names if name in environment)
        if not all(map(is_whole, values)) or "0" in values[2:]:
            raise UsageError(f"--share auto finds {said}, which are not all numbers. Give --share I/N.")
        own, first, step, many = map(int, values)
        number = (own - first) // step + 1
        if not 1 <= number <= many:
            raise UsageError(
                f"--share auto finds {said}, and share {number}/{many} is none: the tasks of an array are its shares, "
                "without gaps. Give --share I/N."
            )
        return cls(number=number, shares=many)

    def part(self, sizes: Sequence[int]) -> list[int]:
        """Which of some things are this share's: neighbours, as much of the whole as of any other share.

        Args:
            sizes: of the things, from 1.

        >>> Share(number=1, shares=2).part([9, 3, 3, 2, 1]), Share(number=2, shares=2).part([9, 3, 3, 2, 1])
        ([0], [1, 2, 3, 4])
        """
        whole = 2 * sum(sizes)
        middles = [2 * end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        return [n for n, middle in enumerate(middles) if middle * self.shares // whole == self.number - 1]


SCHEDULERS = (
    ("RANK", "", "", "WORLD_SIZE"),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT"),
    ("SLURM_PROCID", "", "", "SLURM_NTASKS"),
)
"""Variables of torchrun, of Slurm's arrays and of srun: own number, the first one's (0 if unset), what lies between two
(1 if unset), how many."""


@dataclass(frozen=True, kw_only=True)
class Distribution(Checked):
    """What works on a conversion besides this process."""

    LIMITS: ClassVar = {"processes": (1, inf), "ray_cpus": (1, inf)}

    processes: int | None = None
    """On this machine; if None, one for each GPU where there are several, else one."""
    ray: str | None = None
    """Address of a Ray cluster; "local" starts one here."""
    ray_cpus: int = 1
    """CPU cores of each of Ray's workers, where the cluster has no GPUs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ray is not None and self.processes is not None:
            raise UsageError("--ray and --processes exclude each other: Ray starts as many workers as it has room for.")
        if self.ray is None and self.ray_cpus != Distribution.ray_cpus:
            raise UsageError(f"--ray-cpus {self.ray_cpus} is for workers on Ray; give --ray ADDRESS, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class NetworkWords(Checked):
    """Which network, as `timm.create_model` or a folder has it."""

    LIMITS: ClassVar = {"num_classes": (1, inf), "img_size": (1, inf)}

    name: str
    """timm name (or one without its image size), hf-hub:org/name, local-dir:PATH; hf:ORG/NAME or a folder of
    transformers, torchvision:NAME[:WEIGHTS], python:PACKAGE.MODULE:FUNCTION."""
    weights: Path | None = None
    """Checkpoint to load instead of the pretrained weights (safetensors, or a pickle of tensors)."""
    num_classes: int | None = None
    """Of the checkpoint."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`, of torchvision's builder, or of the function of your own."""
    img_size: int | None = None
    """Image side in pixels, instead of the checkpoint's."""
    labels: Path | None = None
    """File with the name of one class on each line, instead of the checkpoint's."""
    features: str | None = None
    """Module that the features come out of, in a network that is not timm's; found if None."""
    multi_label: bool | None = None
    """Whether an image may be of several classes, each with a probability of its own; None: as the network says."""
    exif_transpose: bool = False
    """Turn images as their camera says."""
    pretrained: bool = True
    """False: weights drawn with the seed."""

    @classmethod
    def of(cls, words: str | Self) -> Self:
        """The same, or a name alone."""
        return cls(name=words) if isinstance(words, str) else words


USER = re.compile(r"(?<=://)[^/:@\s]*:(?!\d+/)[^@\s]*@|(?:(?<=https://)|(?<=http://))[^/@\s]*@")
"""User and password of a URL, or the token of a web address."""
QUERY = re.compile(r"(?<=://)([^\s?'\"]*)\?[^\s'\"]*")
"""Path of a URL and what follows it, as signatures and tokens do."""


def without_secrets(text: str) -> str:
    """A URL, or text with URLs, that may be stored and shared.

    >>> without_secrets("https://me:word@host/a.tar?token=1"), without_secrets("hf://datasets/a/b@main")
    ('https://host/a.tar', 'hf://datasets/a/b@main')
    """
    return QUERY.sub(r"\1", USER.sub("", text))


@dataclass(frozen=True, kw_only=True)
class ImageWords(Checked):
    """Which labelled images, and how their folders name the classes."""

    LIMITS: ClassVar = {"max_skipped": (0, 1)}

    data: Path | str
    """Class folders, train/ and val/ above them, a zip or tar of either, WebDataset shards (`data-{000..009}.tar`),
    parquet, or a list of `path label` lines: a path, or a URL (s3://, gs://, hf://, https://), which stays a string."""
    split: str | None = None
    """Which of train and val to read where both exist; None: what the job is usually done on."""
    class_map: Path | None = None
    """Lines `folder,class`, or a JSON object, for folders that are named otherwise than the classes."""
    class_order: bool = False
    """Sorted folders are the model's classes in order."""
    boxes: Path | None = None
    """Cut the images to their bounding boxes: folder or zip of CUB-200-2011's text files."""
    max_skipped: float = 0.01
    """Share of unreadable images above which the job gives up."""

    def __post_init__(self) -> None:
        words = self.data
        super().__post_init__()
        if isinstance(words, str) and "://" in words:  # a path has no two slashes together
            object.__setattr__(self, "data", words)

    @classmethod
    def of(cls, words: str | PathLike[str] | Self, split: str) -> Self:
        """The same, or data alone, with the split that the job is usually done on where none is said."""
        text = isinstance(words, str | bytes)
        found = words if isinstance(words, cls) else cls(data=words if text else Path(words))  # type: ignore[arg-type]
        return found if found.split is not None else replace(found, split=split)

    @property
    def named(self) -> tuple[str, ...]:
        """Words of a command that names the same images, without secrets; val is what most commands read."""
        found = ["--data", without_secrets(str(self.data))]
        found += ["--split", self.split] if self.split not in (None, "val") else []
        found += ["--class-map", str(self.class_map)] if self.class_map is not None else []
        return (*found, "--class-order") if self.class_order else tuple(found)


@dataclass(frozen=True, kw_only=True)
class Output(Checked):
    """Where a job writes."""

    path: Path
    force: bool = False
    """Whether something that exists is replaced."""
    option: str = "-o"
    """That names it, for messages."""

    @classmethod
    def of(cls, words: str | PathLike[str] | Self, option: str = "-o") -> Self:
        """The same, or a path alone, which an option of its own names."""
        text = isinstance(words, str | bytes)
        return words if isinstance(words, cls) else cls(path=words if text else Path(words), option=option)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class NmfOptions(Checked):
    """Non-negative matrix factorisation of one class's rows (ProtoNMF, eq. 1-3)."""

    LIMITS: ClassVar = {
        "inner_updates": (1, inf),
        "balance": (0, inf),
        "tolerance": (0, inf),
        "max_iterations": (1, inf),
    }

    init: Init = "nndsvda"
    """Start: |Gaussian|, NNDSVD with filled zeros, or the paper's clipped Gaussian."""
    solver: Solver = "hals"
    """Extrapolated hierarchical alternating least squares, or multiplicative updates."""
    inner_updates: int = 2
    """Updates of one factor per pass over the data (Gillis and Glineur 2012); 1 is the plain rule."""
    balance: float = 0.7
    """Each row's squared error is divided by its norm to twice this power; 0 is the plain objective."""
    tolerance: float = 3e-6
    """Stop when the squared error falls by less than this share of the error at the start."""
    max_iterations: int = 400
    """Stop after this many passes over the data in any case."""


PAPER_NMF = NmfOptions(init="paper", solver="mu", inner_updates=1, balance=0.0, tolerance=1e-4, max_iterations=200)
"""Start, update and stopping rule of ProtoNMF as printed."""


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(Checked):
    """Black box to prototype model."""

    LIMITS: ClassVar = {
        "prototypes": (1, inf), "max_prototypes": (1, inf), "near": (0, inf), "ridge": (0, inf), "examples": (0, inf),
        "batch_size": (1, inf), "group": (1, inf), "memory": (1e6, inf), "sample": (1, inf), "seed": SEEDS,
    }  # fmt: skip

    prototypes: int | None = 3
    """Prototypes per class; None chooses a number for each class, up to `max_prototypes`."""
    max_prototypes: int = 8
    """Largest number that is tried for a class."""
    nmf: NmfOptions = field(default_factory=NmfOptions)
    reconstruction: Reconstruction = "amounts"
    """Amounts by the dual of a class's and its nearest classes' prototypes, or a fit of the head by a class's own
    prototypes (ProtoNMF, eq. 4)."""
    near: int = 12
    """Amounts: classes with the most similar rows of the head that are weighed along."""
    near_as: NearAs = "wholes"
    """Amounts: whether each of those is weighed as a whole, as one row, or by every one of its prototypes."""
    ridge: float | None = None
    """Of the amounts; None takes the least of `RIDGES` at which the rows of an explanation hardly cancel."""
    augment: Augment = "none"
    """Whether and how prototypes take up the residual (ProtoNMF, eq. 8)."""
    stability: bool = True
    """Whether each prototype is compared between two halves of its class's images."""
    rows: RowsOption = "auto"
    """Which rows the head is read through."""
    examples: int = 5
    """Training patches kept with each prototype, each from another image."""
    batch_size: int = 32
    """Images per pass of the network; a batch never crosses a class."""
    group: int = 1
    """Classes factorised in one batch (1 on a CPU)."""
    memory: int = 4 * 2**30
    """Bytes that one class may take; the rows of a larger one are read from the disk, block by block."""
    sample: int | None = None
    """Most images of a class, drawn with the seed; None: all."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(Checked):
    """What is asked of an image."""

    LIMITS: ClassVar = {"top": (1, inf)}

    class_name: str | int | None = None
    """Class by label, description, WordNet id or index; the predicted one if None."""
    among: Among | None = None
    """Classes of which the best is explained where none is named: those with prototypes, or all; None: those with
    prototypes where most have none."""
    against: str | int | None = None
    """Class that it is compared with, on the same amounts; "next" is the best other one with prototypes."""
    map_kind: MapKind = "presence"
    """Map that is drawn and that boxes stand around: where a prototype is, or what each place adds to the logit."""
    form: Form | None = None
    """Whether prototypes carry the residual; as the file is stored if None."""
    top: int = 5
    """Prototypes that pictures show."""


@dataclass(frozen=True, kw_only=True)
class EditWords(Checked):
    """One prototype that is removed or scaled."""

    LIMITS: ClassVar = {"number": (0, inf), "factor": (-1e6, 1e6)}

    number: int
    """Of the prototype within its owner, from 1; 0 is its owner as a whole, in the logit of another class."""
    factor: float = 0.0
    """0 removes it."""
    owner: str | int | None = None
    """Class that the prototype belongs to; the one that is edited if None."""
    class_name: str | int | None = None
    """Class whose logit is edited; the one that the whole intervention is about if None."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions(Checked):
    """How hard an audit looks."""

    LIMITS: ClassVar = {"hosts": (1, inf), "seed": SEEDS, "max_shortcuts": (0, inf)}

    hosts: int = 5
    """Images of other classes that each patch of a telling prototype is pasted into."""
    masks: Path | None = None
    """Folder of masks, each named as its image: what is not black is the object."""
    boxes: Path | None = None
    """Bounding boxes of the objects: folder or zip of CUB-200-2011's text files."""
    groups: Path | None = None
    """Lines `path,group`: accuracy is also counted by group."""
    max_shortcuts: int | None = None
    """Most prototypes that may look like a shortcut."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PageOptions(Checked):
    """What a report shows, and how large it may be."""

    LIMITS: ClassVar = {"per_class": (1, inf), "seed": SEEDS}

    form: Form | None = None
    """Whether prototypes carry the residual; as the file is stored if None."""
    among: Among | None = None
    """Classes of which the best is explained first, as of `ExplainOptions`."""
    per_class: int = 10
    """Images of each class of labelled data, drawn with the seed."""
    evaluation: Path | None = None
    """What `protonmf evaluate --json` said of the model."""
    max_size: float = 20.0
    """Most megabytes of a single file; pictures get smaller and fewer to fit."""
    folder: bool = False
    """Write a folder with the pictures beside the page, in full size."""
    seed: int = 0


RIDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Tried in this order, on the training images."""
LEAST_SHARE = 0.9
"""Median share of the logit that the prototypes must carry for a larger ridge to be taken."""
MOST_CANCELLATION = 1.5
"""Median sum of sizes over size of the sum of an explanation's rows at which no larger ridge is tried."""

REFIT_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Weights of a step of the last layer after an edit, in mean squared lengths of images; cross-validation takes one."""
REFIT_FOLDS = 5

RECIPES: dict[str, ConversionOptions] = {
    "default": ConversionOptions(),
    "paper": ConversionOptions(nmf=PAPER_NMF, reconstruction="paper", near=0, augment="paper"),
}
"""Whole sets of options; "paper" is ProtoNMF as printed: start, stopping rule, own prototypes, parameter space,
equal distribution of the residual."""


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions(Checked):
    """Online augmentation: one of rotation, skew and shear per image, and a flip (Chen et al. 2019, supplement)."""

    LIMITS: ClassVar = {"rotation": (0, 360), "skew": (0, 1), "shear": (0, 90), "flip": (0, 1), "copies": (1, inf)}

    rotation: float = 15.0
    """Degrees, either way."""
    skew: float = 0.2
    """Share of the image's sides by which corners move."""
    shear: float = 10.0
    """Degrees, either way."""
    flip: float = 0.5
    """Probability of a mirror image."""
    copies: int = 1
    """Augmented copies of every image in one epoch."""
    fresh: bool = True
    """New copies in every epoch; the original code made its copies once."""
    equal_kinds: bool = False
    """As many rotated as skewed and sheared copies, each enlarged until no corner is empty, as the original made them
    with Augmentor; else every copy draws its kind, and the picture is continued by reflection."""


@dataclass(frozen=True, kw_only=True)
class ProtoPNetOptions(Checked):
    """Architecture, losses and the whole schedule of a ProtoPNet."""

    LIMITS: ClassVar = {
        "prototypes": (1, inf), "width": (1, inf), "widths": (1, inf), "patch": (1, inf), "epochs": (1, inf),
        "warm_epochs": (0, inf), "cycles": (1, inf), "push_every": (1, inf), "backbone_rate": (0, inf),
        "addon_rate": (0, inf), "prototype_rate": (0, inf), "backbone_decay": (0, inf), "addon_decay": (0, inf),
        "rate_step": (1, inf), "batch_size": (1, inf), "l1": (0, inf), "head_epochs": (0, inf),
        "prune_epochs": (0, inf), "head_rate": (0, inf), "per_image": (1, inf), "validation": (0, 0.9),
        "examples": (1, inf), "seed": SEEDS,
    }  # fmt: skip

    prototypes: int = 10
    """Per class, unless `per_class` says otherwise."""
    width: int | None = 128
    """Channels D of the latent map; None chooses among `widths` by cross-validation."""
    widths: tuple[int, ...] = (128, 256, 512)
    patch: tuple[int, int] = (1, 1)
    """Height and width of a prototype in places of the latent map."""
    similarity: Similarity = "log"
    addon: AddOn = "regular"
    addon_gain: float = 0.3
    """Scale of the add-on convolutions' start: closer patches give the log similarity a slope; the original has 1."""
    start: ProtoPNetStart = "data"
    """The add-on layers start from a linear classifier of the features and the prototypes at the k-means centres of
    their class's latent patches; or as the original: both drawn at random."""
    epochs: int = 30
    """Passes over the training images before the last push; the schedule spans them."""
    warm_epochs: int = 5
    """First epochs, with the backbone frozen."""
    cycles: int = 3
    """Pushes, evenly spread over the joint epochs; each is followed by the last layer."""
    push_every: int | None = None
    """Push after epochs 10, 20, ... instead (the original: 10)."""
    backbone_rate: float = 2e-5
    """Learning rates of Adam; the original has 1e-4 here and 3e-3 for add-on layers and prototypes."""
    addon_rate: float = 1e-3
    prototype_rate: float = 1e-3
    backbone_decay: float = 1e-3
    """Weight decay (the L2 form of Adam) of the network."""
    addon_decay: float = 1e-2
    """Weight decay of the add-on layers; the original has 1e-3."""
    schedule: RateSchedule = "cosine"
    """Joint rates over the joint epochs: half a cosine, or tenfold down every `rate_step` epochs."""
    rate_step: int = 5
    batch_size: int = 32
    cluster: float = 0.8
    separation: float = -0.08
    l1: float = 1e-4
    """Of the weights from prototypes of other classes."""
    cap_costs: bool = False
    """Distances above D h1 w1 count as this in cluster and separation, without gradient (original code)."""
    frozen_norms: bool = True
    """Batch norms keep the statistics of the pretrained network."""
    reset_head: bool = True
    """Joint epochs run with +1 and -0.5, also after a last layer was fitted."""
    last_layer: LastLayer = "exact"
    """Solve the convex problem, or train the head for `head_epochs` passes."""
    head_epochs: int = 20
    prune_epochs: int = 100
    """Passes over the head after pruning, where the last layer is trained."""
    head_rate: float = 1e-4
    tolerance: float = 1e-6
    """Largest KKT residual of an exact last layer."""
    distinct: bool = True
    """Prototypes of a class come from different patches, and from as many images as `per_image` allows."""
    per_image: int = 2
    """Most prototypes of a class that one image may give, unless the class has too few images."""
    boxes_before_push: bool = False
    """A prototype's own patch is kept with the map of the prototype before it became that patch, and boxed around all
    its strongest pixels, as the original code does; else with its map as it is now."""
    validation: float = 0.1
    """Share of the training images held out, by class, to choose the best cycle; 0 keeps the last one."""
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    precision: Precision = "float32"
    """Of the network; distances are never in half precision."""
    examples: int = 5
    """Nearest training patches kept with each prototype, each from another image."""
    seed: int = 0


PROTOPNET_RECIPES: dict[str, ProtoPNetOptions] = {
    "default": ProtoPNetOptions(),
    "paper": ProtoPNetOptions(
        addon_gain=1.0,
        backbone_rate=1e-4,
        addon_rate=3e-3,
        prototype_rate=3e-3,
        addon_decay=1e-3,
        start="random",
        epochs=1000,
        push_every=10,
        schedule="steps",
        batch_size=80,
        cap_costs=True,
        frozen_norms=False,
        reset_head=False,
        last_layer="passes",
        distinct=False,
        boxes_before_push=True,
        validation=0.0,
        augmentation=AugmentationOptions(copies=30, fresh=False, equal_kinds=True),
    ),
}
"""Whole sets of options; "paper" is the original code: its start, schedule, batch statistics and head passes."""

FROM_SCRATCH: dict[str, Any] = {
    "similarity": "cosine",
    "start": "random",
    "warm_epochs": 0,
    "backbone_rate": 1e-3,
    "addon_rate": 3e-3,
    "prototype_rate": 3e-3,
    "frozen_norms": False,
}
"""Changes to the default for a network without pretrained weights: its features say nothing yet that a start could be
taken from, and log similarities of far patches have no slope to learn by."""


@dataclass(frozen=True, kw_only=True)
class FewShotOptions(Checked):
    """Soft prototypes on features of a frozen network; where there are several values, cross-validation takes one."""

    LIMITS: ClassVar = {
        "scales": (0, inf), "alphas": (0, inf), "sparse_alphas": (0, inf), "refits": (0, inf), "anchors": (0, inf),
        "dense_anchors": (0, inf), "folds": (2, inf), "prototypes": (1, inf), "most": (1, inf), "rounds": (1, inf),
        "steps": (0, inf), "seed": SEEDS,
    }  # fmt: skip

    norm: WeightNorm = "l2"
    """Of the class weights."""
    normalisation: Normalisation = "unit"
    """Features as they are, of length one, or of length one after the training mean is taken off."""
    scales: tuple[float, ...] = (5.0, 10.0)
    """Of the squared distances, in units of the samples' mean squared distance from their mean."""
    alphas: tuple[float, ...] = (1e-2, 1e-3)
    """Weight of the norm."""
    sparse_alphas: tuple[float, ...] = (1e-1, 3e-2, 1e-2, 1e-3)
    """The same for L1; in the end the largest that adds no mistake, held out or among the samples. These and `refits`
    are divided by L / 100 for L > 100 classes."""
    refits: tuple[float, ...] = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
    """Weight of the L2 norm with which the class weights that L1 left are fitted again, because L1 also makes them too
    small for the classes' probabilities: the largest that adds no held-out mistake and costs no more than `negligible`.
    Empty: they stay as L1 made them."""
    anchors: tuple[float, ...] = (3e-5, 3e-6)
    """Weight of the prototypes' squared way from where they started, in the same units."""
    dense_anchors: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3)
    """The same where samples outnumber the dimensions that they span, so that clusters are well described; there the
    largest is taken that costs next to nothing, and prototypes stay within their clusters."""
    negligible: float = 2e-2
    """Held-out loss in nats per sample that is next to nothing."""
    folds: int = 5
    """Of the cross-validation; fewer where no class has as many images."""
    prototypes: int | None = None
    """Per class; None: as many as the clusters of the class ask for, without those that other classes have too."""
    most: int = 10
    """Prototypes of a class, where the data decides."""
    remote: float = 0.5
    """Share of the held-out squared distance that further prototypes of a class must save, beyond what parts of one
    cluster save."""
    rounds: int = 3
    """Most rounds of the alternating estimation; one before the refinement of prototypes and L2 weights together."""
    steps: int = 100
    """Most steps of the joint refinement; 0 leaves it out."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions(Checked):
    """Readjusting the network of a few-shot model."""

    LIMITS: ClassVar = {
        "epochs": (1, inf), "rate": (0, inf), "prototype_rate": (0, inf), "pull": (0, inf), "ways": (2, inf),
        "per_class": (2, inf), "batch_size": (1, inf), "seed": SEEDS,
    }  # fmt: skip

    stages: FineTuned = "none"
    """What is trained: nothing, the last stage, or the whole network."""
    mode: TrainingMode = "batches"
    """The model's own loss on batches, prototypes and weights trained along; or episodes: part of a batch gives the
    prototypes of its classes, the rest is told apart by them."""
    epochs: int = 20
    """Passes over the images."""
    rate: float = 1e-4
    """Learning rate of Adam for the network, with half a cosine."""
    prototype_rate: float = 1e-3
    """The same for prototypes and class weights."""
    pull: float = 0.1
    """Weight of the term that draws prototypes of one class together and pushes those of different classes apart."""
    ways: int = 5
    """Classes of an episode."""
    per_class: int = 4
    """Images of a class in an episode; half of them give its prototype."""
    batch_size: int = 32
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GateOptions(Checked):
    """What an evaluation must reach; None: anything."""

    LIMITS: ClassVar = {
        "min_accuracy": (0, 1), "min_agreement": (0, 1), "max_residual_share": (-inf, 1), "max_unlike": (-inf, inf),
    }  # fmt: skip

    min_accuracy: float | None = None
    """Of the prototype model."""
    min_agreement: float | None = None
    """Of the prototype model with the black box."""
    max_residual_share: float | None = None
    """Of the true class's logit."""
    max_unlike: float | None = None
    """That nineteen in twenty images are within: how unlike the training images of their predicted classes they are."""


@dataclass(frozen=True, kw_only=True)
class TableOptions(Checked):
    """What the further tables of an evaluation are made of."""

    LIMITS: ClassVar = {"counts": (1, inf), "limit": (1, inf), "seed": SEEDS}

    counts: tuple[int, ...] = (1, 3, 5, 10)
    """Numbers of prototypes per class of the table parts."""
    limit: int = 96
    """Images of tables that run the network many times for each, as many of each class."""
    protopnet: tuple[Path, ...] = ()
    """ProtoPNet files to compare with."""
    parts: Path | None = None
    """Part annotations: folder or zip of CUB-200-2011's text files."""
    cache: Path | None = None
    """Folder for what the network gave for the training images."""
    seed: int = 0
