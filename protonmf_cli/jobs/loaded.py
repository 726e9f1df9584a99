"""The main job from Python: load a model file, explain an image, edit, save."""

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Self

from torch import Tensor

from protonmf_cli.errors import InputError, ModelFileError
from protonmf_cli.files.images.reader import ImageReader, read_crop
from protonmf_cli.files.networks.backbones import restore_backbone
from protonmf_cli.files.networks.preprocessing import crop_for, crop_of
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.jobs.machine import device_of, dtype_of, workers_of
from protonmf_cli.models.backbone import Backbone, Preprocessing
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Contrast, Explanation, Outcome
from protonmf_cli.options import EditWords, ExplainOptions, Form, Machine, MapKind
from protonmf_cli.pipelines.explaining.contrast import contrast_of
from protonmf_cli.pipelines.explaining.explanation import answers_of, chosen_form, explain_image
from protonmf_cli.pipelines.explaining.intervention import apply_edits, find_edit, find_edit_everywhere, outcome
from protonmf_cli.pipelines.progress import LOGGED, Progress


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A prototype model, its network, and how to read images for it."""

    path: Path
    model: PrototypeModel
    backbone: Backbone
    reader: ImageReader
    embedded: bool
    """Whether the file holds the network's weights."""

    def crop(self, image: str | PathLike[str]) -> Tensor:
        """What the network sees of an image file: uint8 (channels, height, width).

        Raises:
            InputError: the file cannot be read.
        """
        path = Path(image)
        try:
            return read_crop(
                path, self.reader.crop, channels=self.reader.channels, exif_transpose=self.reader.exif_transpose
            )[0]
        except InputError as failure:
            raise InputError(f"{path} {failure}.") from failure

    def crop_or_why(self, image: str, *, alone: bool) -> Tensor | Skipped:
        """As `crop`; why not, where the file cannot be read and is not alone."""
        try:
            return self.crop(image)
        except InputError as failure:
            if alone:
                raise
            return Skipped(path=image, reason=str(failure).removeprefix(image).strip())

    def explain(
        self,
        image: str | PathLike[str],
        class_name: str | int | None = None,
        *,
        map_kind: MapKind = "presence",
        form: Form | None = None,
    ) -> Explanation:
        """Why the predicted class, or another one: see `Explanation`.

        Args:
            image: path of a file.
            class_name: label, description or index; the predicted class if None.
            map_kind: which map the boxes are drawn around.
            form: "plain" or "augmented"; as the file is stored if None.
        """
        words = ExplainOptions(map_kind=map_kind, form=form)
        return explain_image(
            self.backbone,
            self.model,
            self.crop(image),
            image=str(image),
            model_name=str(self.path),
            class_index=None if class_name is None else self.model.find_class(class_name),
            map_kind=words.map_kind,
            form=words.form,
        )

    def contrast(self, image: str | PathLike[str], first: str | int, second: str | int) -> Contrast:
        """Why one class and not another, on the same amounts: see `Contrast`.

        Args:
            image: path of a file.
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

    def predict(self, image: str | PathLike[str], class_name: str | int) -> Outcome:
        """Logit of one class and the best classes of an image."""
        return outcome(self.backbone, self.model, self.crop(image), self.model.find_class(class_name))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model, edits included, to a new file."""
        save_model(Path(path), self.model, self.backbone.weights() if self.embedded else None)


def load(path: str | PathLike[str], *, machine: Machine | None = None, progress: Progress = LOGGED) -> Loaded:
    """Open a prototype model file with its network.

    Args:
        path: of the .safetensors file.
        machine: where and how the network computes; batch size and workers are of readers over whole data sets.
        progress: is told if the file is older than amounts.

    Raises:
        ModelFileError: the file is missing, damaged or foreign.
        InputError: the network's weights are neither in the file nor to be had.
        UsageError: there is no such device.
    """
    path, machine = Path(path), machine or Machine()
    check_there(path)
    model, weights = load_model(path)
    backbone = restore_backbone(model, weights, machine.offline).to(device_of(machine), dtype_of(machine))
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


def check_there(path: Path) -> None:
    """Refuse a model file that does not exist.

    Raises:
        ModelFileError: with the commands that make one.
    """
    if not path.is_file():
        raise ModelFileError(
            f"there is no prototype model at {path}. Make one with `protonmf convert MODEL --data DIR` (or `protopnet "
            "train`, `fewshot fit`), or name one with --model or PROTONMF_MODEL."
        )


def image_reader(preprocessing: Preprocessing, *, batch_size: int, workers: int) -> ImageReader:
    """A reader that gives a network the crops it was trained for."""
    return ImageReader(
        crop=crop_of(preprocessing),
        channels=preprocessing.input_size[0],
        exif_transpose=preprocessing.exif_transpose,
        batch_size=batch_size,
        workers=workers,
    )
