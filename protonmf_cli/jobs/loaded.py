"""The main job from Python: load a model file, explain an image, edit, save."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from protonmf_cli.errors import InputError, UsageError, printable
from protonmf_cli.files.checks import HUB, check_model_there
from protonmf_cli.files.images.ahead import ahead
from protonmf_cli.files.images.in_memory import Named, crop_of_picture, is_one, named_pictures
from protonmf_cli.files.images.reader import ImageReader, pixels_of
from protonmf_cli.files.networks.backbones import restore_backbone
from protonmf_cli.files.networks.failures import refusals_of
from protonmf_cli.files.networks.preprocessing import crop_for, crop_of
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.jobs.machine import device_of, dtype_of, workers_of
from protonmf_cli.models import results
from protonmf_cli.models.backbone import Backbone, Preprocessing
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Contrast, Outcome
from protonmf_cli.options import Among, EditWords, ExplainOptions, Form, Machine, MapKind
from protonmf_cli.output.records.explanation import explanation_json
from protonmf_cli.pipelines.explaining.contrast import contrast_of
from protonmf_cli.pipelines.explaining.explanation import Answer, Kept, answers_of, chosen_form, explain_answer
from protonmf_cli.pipelines.explaining.intervention import (
    apply_edits,
    find_edit,
    find_edit_everywhere,
    outcome_of,
)
from protonmf_cli.pipelines.progress import LOGGED, Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation(results.Explanation):
    """The whole ledger of one class's logit for one image, which shows itself."""

    def figure(self, top: int = 5) -> "Figure":
        """The figure that `protonmf explain --figure` writes; it needs no display, and notebooks show it.

        Args:
            top: prototypes that are drawn, the largest contributions first.
        """
        from protonmf_cli.output.figures.figure import explanation_figure  # a second for matplotlib

        return explanation_figure(self, top)

    def to_dict(self) -> dict[str, Any]:
        """What `protonmf explain --json` says of an image: `protonmf.explanation/1`, of plain values."""
        return explanation_json(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from protonmf_cli.output.figures.card import explanation_card  # a second for matplotlib

        return explanation_card(self)


def shown(explanation: results.Explanation) -> Explanation:
    """The same explanation, which shows itself."""
    return Explanation(**{each.name: getattr(explanation, each.name) for each in fields(results.Explanation)})


One = str | PathLike[str] | Image.Image
"""One image, whatever its shape."""
Several = list[Any] | tuple[Any, ...] | Iterator[Any] | DataLoader[Any] | Dataset[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A prototype model, its network, and how to read images for it."""

    path: Path
    model: PrototypeModel
    backbone: Backbone
    reader: ImageReader
    embedded: bool
    """Whether the file holds the network's weights."""

    @property
    def named(self) -> str:
        """The path as texts, pages and records hold it."""
        return printable(str(self.path))

    @cached_property
    def kept(self) -> Kept:
        """What explanations of several images share."""
        return Kept(self.model)

    def crop(self, image: One | np.ndarray[Any, Any] | Tensor) -> Tensor:
        """What the network sees of one image: uint8 (channels, height, width).

        Raises:
            InputError: the file cannot be read.
            UsageError: it is no image, or several.
        """
        found = list(islice(named_pictures(image), 2))
        if len(found) != 1:
            raise UsageError("one image is wanted, and this is a batch of them.")
        return self._crop_of(found[0])

    def _named_crop(self, named: Named) -> tuple[str, Tensor]:
        return named[0], self._crop_of(named)

    def _crop_of(self, named: Named) -> Tensor:
        size, reader = self.backbone.preprocessing.input_size, self.reader
        return crop_of_picture(named, reader.crop, size, channels=reader.channels, exif_transpose=reader.exif_transpose)

    def _answered(self, images: object) -> Iterator[tuple[str, Answer]]:
        """What the model answers to one image or several, and their names; read ahead, and by the network in batches."""
        named, most = named_pictures(images), self.reader.batch_size
        pairs = (
            map(self._named_crop, named)
            if is_one(images)
            else ahead(self._named_crop, named, workers=self.reader.workers, window=3 * most)
        )
        while batch := list(islice(pairs, most)):
            answers = answers_of(self.backbone, self.model, torch.stack([crop for _, crop in batch]))
            yield from zip((name for name, _ in batch), answers, strict=True)

    def crop_or_why(self, image: Named, *, alone: bool) -> Tensor | Skipped:
        """As `crop`; why not, where the file cannot be read and is not alone."""
        try:
            return self._crop_of(image)
        except InputError as failure:
            if alone:
                raise
            name = printable(image[0])
            return Skipped(path=name, reason=str(failure).removeprefix(name).strip())

    @overload
    def explain(
        self,
        image: One,
        class_name: str | int | None = ...,
        *,
        among: Among | None = ...,
        map_kind: MapKind = ...,
        form: Form | None = ...,
    ) -> Explanation: ...

    @overload
    def explain(
        self,
        image: Several,
        class_name: str | int | None = ...,
        *,
        among: Among | None = ...,
        map_kind: MapKind = ...,
        form: Form | None = ...,
    ) -> list[Explanation]: ...

    @overload
    def explain(
        self,
        image: np.ndarray[Any, Any] | Tensor,
        class_name: str | int | None = ...,
        *,
        among: Among | None = ...,
        map_kind: MapKind = ...,
        form: Form | None = ...,
    ) -> Any: ...

    def explain(
        self,
        image: object,
        class_name: str | int | None = None,
        *,
        among: Among | None = None,
        map_kind: MapKind = "presence",
        form: Form | None = None,
    ) -> Explanation | list[Explanation]:
        """Why the predicted class, or another one: see `Explanation`.

        Args:
            image: a path; a PIL image; an array (height, width, 3) or (height, width) of uint8; a tensor (3, height,
                width) of uint8 or of floats from 0 to 1. Or several: a list, a batch (B, ...), or a DataLoader. A tensor
                of exactly the network's size is taken as what it sees; all others are resized and cut as files are.
            class_name: label, description or index; the best class if None.
            among: of which classes it is the best, as of `ExplainOptions`.
            map_kind: which map the boxes are drawn around.
            form: "plain" or "augmented"; as the file is stored if None.

        Returns:
            One explanation of one image; of several a list, in their order.

        Raises:
            InputError: an image cannot be read.
            UsageError: something is no image.
        """
        words = ExplainOptions(among=among, map_kind=map_kind, form=form)
        chosen = None if class_name is None else self.model.find_class(class_name)
        found = [
            shown(
                explain_answer(
                    self.backbone, self.model, answer, image=name, model_name=self.named, class_index=chosen,
                    among=words.among, map_kind=words.map_kind, form=words.form, kept=self.kept,
                )
            )
            for name, answer in self._answered(image)
        ]  # fmt: skip
        return found[0] if is_one(image) else found

    def contrast(self, image: One | np.ndarray[Any, Any] | Tensor, first: str | int, second: str | int) -> Contrast:
        """Why one class and not another, on the same amounts: see `Contrast`.

        Args:
            image: one, as of `explain`.
            first, second: label, description or index.
        """
        (answer,) = answers_of(self.backbone, self.model, self.crop(image)[None])
        return contrast_of(self.model, answer, self.model.find_class(first), self.model.find_class(second))

    def scale(
        self, class_name: str | int, factors: dict[int | tuple[str, int], float], *, form: Form | None = None
    ) -> Self:
        """The same with contributions to a class's logit scaled; nothing is written to disk.

        Args:
            class_name: label, description or index.
            factors: number of an own prototype (from 1), or (owner, number) of another class's -> factor; 0 removes it.
            form: in "augmented" form a prototype takes its share of the residual with it; as the file if None.
        """
        c = self.model.find_class(class_name)
        edits = []
        for key, factor in factors.items():
            owner, number = (c, key) if isinstance(key, int) else (self.model.find_class(key[0]), key[1])
            word = EditWords(number=number, factor=factor)
            edits.append(find_edit(self.model, c, owner, word.number, word.factor))
        return replace(self, model=apply_edits(self.model, edits, form=chosen_form(self.model, form)))

    def scale_everywhere(self, factors: dict[tuple[str, int], float]) -> Self:
        """The same with prototypes scaled in the logit of every class; nothing is written to disk.

        Args:
            factors: (owner, number) of a prototype -> factor; 0 takes it out of every class.
        """
        edits = [
            find_edit_everywhere(self.model, self.model.find_class(owner), word.number, word.factor)
            for owner, word in ((owner, EditWords(number=n, factor=factor)) for (owner, n), factor in factors.items())
        ]
        return replace(self, model=apply_edits(self.model, edits))

    @overload
    def predict(self, image: One, class_name: str | int | None = None) -> Outcome: ...

    @overload
    def predict(self, image: Several, class_name: str | int | None = None) -> list[Outcome]: ...

    @overload
    def predict(self, image: np.ndarray[Any, Any] | Tensor, class_name: str | int | None = None) -> Any: ...

    def predict(self, image: object, class_name: str | int | None = None) -> Outcome | list[Outcome]:
        """The best classes of an image and the logit of one class, edits included.

        Args:
            image: one or several, as of `explain`.
            class_name: label, description or index of the class whose logit is wanted; the predicted one if None.

        Returns:
            One outcome of one image; of several a list, in their order.
        """
        chosen = None if class_name is None else self.model.find_class(class_name)
        found = [
            outcome_of(self.model, answer.logits, int(answer.logits.argmax()) if chosen is None else chosen)
            for _, answer in self._answered(image)
        ]
        return found[0] if is_one(image) else found

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model, edits included, to a file; one that is there is replaced, in one step."""
        save_model(Path(path), self.model, self.backbone.weights() if self.embedded else None)


def load(
    path: str | PathLike[str],
    *,
    network: nn.Module | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> Loaded:
    """Open a prototype model file with its network.

    Args:
        path: of the .safetensors file, or hub:ORG/NAME[@REVISION].
        network: of a file that was converted from a module: one of the same kind, of which a copy takes the file's
            weights.
        machine: where and how the network computes; batch size and workers are of readers over whole data sets.
        progress: is told if the file is older than amounts.

    Raises:
        ModelFileError: the file is missing, damaged or foreign.
        InputError: the network's weights are neither in the file nor to be had.
        UsageError: there is no such device.
    """
    path, machine = Path(path), machine or Machine()
    check_model_there(path)
    path = local_file(path, offline=machine.offline)
    model, weights = load_model(path)
    with refusals_of(path):
        backbone = restore_backbone(model, weights, machine.offline, trusted=machine.network, given=network)
    backbone = replace(backbone.to(device_of(machine), dtype_of(machine)), file=str(path))
    reader = image_reader(backbone.preprocessing, batch_size=machine.batch_size, workers=workers_of(machine))
    if model.is_outdated:
        progress.note(
            f"{path} was converted by an older protonmf: its rows are projections, which may cancel. It is explained as "
            "it was written; convert again for amounts of parts."
        )
    if model.card.members:
        channels = model.card.members[0].preprocessing.input_size[0]
        reader = replace(reader, crop=crop_for(model.card), channels=channels)
    return Loaded(path=path, model=model, backbone=backbone, reader=reader, embedded=weights is not None)


def loaded_from(model: Loaded | str | PathLike[str], machine: Machine | None, progress: Progress) -> Loaded:
    """A model that is loaded, or the one of a file, see `load`."""
    return model if isinstance(model, Loaded) else load(model, machine=machine, progress=progress)


def local_file(path: Path, *, offline: bool = False) -> Path:
    """A model file on this machine: as it is named, or downloaded where the name is hub:ORG/NAME[@REVISION].

    Raises:
        UsageError, InputError: it is not to be had from the hub.
    """
    name = path.as_posix()
    if not name.startswith(HUB):
        return path
    from protonmf_cli.files.hub import fetch_model  # a tenth of a second, which few names need

    return fetch_model(name, offline=offline)


def image_reader(preprocessing: Preprocessing, *, batch_size: int, workers: int, cropped: bool = False) -> ImageReader:
    """A reader that gives a network the crops it was trained for; of images that are such crops, these."""
    return ImageReader(
        crop=pixels_of if cropped else crop_of(preprocessing),
        channels=preprocessing.input_size[0],
        exif_transpose=preprocessing.exif_transpose,
        batch_size=batch_size,
        workers=workers,
    )
