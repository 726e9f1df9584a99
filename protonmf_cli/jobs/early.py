"""What a command knows before it loads anything: inputs that are missing, outputs that cannot be written."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.files.checks import check_data_there, check_images_there, check_model_there, check_writable
from protonmf_cli.files.leftovers import sweep
from protonmf_cli.files.work.locks import claim, claiming
from protonmf_cli.options import ImageWords, Output
from protonmf_cli.output.figures.formats import format_of, names_figure

__all__ = ["Targets", "check", "check_apart", "check_edited", "claiming", "files_of_network", "make_folder"]


def check(
    *,
    model: Path | None = None,
    images: Sequence[str] = (),
    data: Iterable[ImageWords | None] = (),
    outputs: Iterable[Output | None] = (),
    figures: Iterable[Output | None] = (),
    alone: bool = True,
) -> None:
    """Refuse what is not there, and outputs that exist or cannot be written.

    Args:
        model: file.
        images: files, some of which may be missing.
        data: labelled images.
        outputs: files to write.
        figures: the same of figures, whose names say which kind of file.
        alone: keep other commands from the outputs until this one ends.

    Raises:
        InputError, UsageError: naming it.
    """
    for output in figures:
        if output is not None:
            format_of(str(output.path), output.option)
    written = [output for output in (*outputs, *figures) if output is not None]
    labelled = [words for words in data if words is not None]
    of_data = [each for words in labelled for each in (words.data, words.class_map, words.boxes)]
    check_apart(written, [model, *images, *of_data])
    for output in written:
        check_writable(output.path, output.force, output.option, alone=alone)
    if model is not None:
        check_model_there(model)
    check_images_there(images)
    for words in labelled:
        check_data_there(words.data)


def check_apart(outputs: Iterable[Output], inputs: Iterable[Path | str | None]) -> None:
    """Refuse an output that is something the command reads, which it would replace.

    Raises:
        UsageError: naming it.
    """
    read = {Path(each).resolve() for each in inputs if each is not None and "://" not in str(each)}
    for output in outputs:
        if output.path.resolve() in read and output.path.exists():
            raise UsageError(f"{output.option} must not be {output.path}, which this command reads; give another name.")


NETWORK_FILES = (
    *("config.json", "model.safetensors", "pytorch_model.bin", "preprocessor_config.json"),
    *("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
"""Of a folder that holds a network."""


def files_of_network(name: str) -> list[Path]:
    """Files of a network's folder, be they there or not; `name` is the folder with or without a prefix, or no folder."""
    folder = Path(name.partition(":")[2] or name)
    return [folder / each for each in NETWORK_FILES]


def check_edited(model: Path, output: Output | None) -> None:
    """Refuse a file for an edited model that exists, cannot be written or is the model itself.

    Raises:
        UsageError, InputError: naming it.
    """
    if output is None:
        return
    if output.path.resolve() == model.resolve():
        raise UsageError(f"{output.option} must not be the model that is edited; give another name.")
    check(outputs=[output])


def make_folder(folder: Path, option: str = "--figures", *, alone: bool = True) -> None:
    """Make the folder that an option names before any work.

    Args:
        folder: to be made.
        option: that names it, for the message.
        alone: keep other commands from it until this one ends.

    Raises:
        InputError: it is a file, or cannot be made, or another command is writing into it.
    """
    claimed = alone and claim(folder, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise InputError(f"the folder {folder} of {option} cannot be made: {failure.strerror}.") from failure
    if claimed or (alone and claim(folder, option)):  # whose parents were not there, either
        sweep(folder, age=HOUR)


HOUR = 3600.0
"""Seconds for which nobody wrote, in a folder that other commands may write into at once."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Images, and where what is drawn of them goes."""

    images: Iterable[str]
    """Files; they may come one by one."""
    alone: bool
    """There is one image, without which there is nothing to do."""
    picture: Output | None
    """File for the picture of the only image; else a folder."""
    page: Output | None

    @classmethod
    def of(
        cls, images: Sequence[str], picture: Output | None, page: Output | None, model: Path | None = None
    ) -> "Targets":
        """Of images that are all known: refuse outputs that exist, cannot be written, are the same, or are an image or
        the model, before any work.

        Raises:
            InputError, UsageError: naming the output.
        """
        alone = len(images) == 1
        if picture is not None and not (alone and not picture.path.is_dir()):
            _make_picture_folder(picture, f"there are {len(images)} images")
        targets = cls(images=images, alone=alone, picture=picture, page=page)
        pictures = [target for _, target in targets.pairs() if target is not None]
        if page is not None and page.path.resolve() in {target.path.resolve() for target in pictures}:
            raise UsageError(f"{pictures[0].option} and {page.option} both name {page.path}; give two names.")
        check_apart([*pictures, *([] if page is None else [page])], [model, *images])
        check(outputs=[page])
        check(figures=pictures, alone=alone)  # into one folder several commands may put theirs
        return targets

    @classmethod
    def one_by_one(cls, images: Iterator[str], picture: Output | None, page: Output | None) -> "Targets":
        """Of images that nobody knows yet: their pictures go to a folder, and each is checked in its turn.

        Raises:
            InputError, UsageError: naming the output.
        """
        if picture is not None:
            _make_picture_folder(picture, "the images come one by one")
        check(outputs=[page])
        return cls(images=images, alone=False, picture=picture, page=page)

    def pairs(self) -> Iterator[tuple[str, Output | None]]:
        """Every image and where its picture goes; equal stems get a number."""
        used = set[str]()
        for image in self.images:
            yield image, self._of(image, used)

    def _of(self, image: str, used: set[str]) -> Output | None:
        if self.picture is None or (self.alone and not self.picture.path.is_dir()):
            return self.picture
        stem = Path(image).stem
        name, count = stem, 2
        while name in used:
            name, count = f"{stem}-{count}", count + 1
        used.add(name)
        return Output(path=self.picture.path / f"{name}.png", force=self.picture.force, option=self.picture.option)


def _make_picture_folder(picture: Output, why: str) -> None:
    path, option = picture.path, picture.option
    if path.exists() and not path.is_dir():
        raise UsageError(f"{option} {path} is a file, but {why}: give a folder.")
    if names_figure(path.name):
        raise UsageError(f"{option} {path} looks like a file, but {why}: give a folder.")
    make_folder(path, option, alone=False)
