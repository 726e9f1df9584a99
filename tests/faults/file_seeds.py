"""A model file without fault of each kind, small enough that thousands of mutants of it can be tried."""

from collections.abc import Callable
from pathlib import Path

import torch
from file_mutants import Content

import small_networks
import toys
from toys import LABELS, Toy, run

CONVERT = ("-p", 2, "--near", 1, "-q")
TRAIN = ("--epochs", 2, "--warm-epochs", 1, "--cycles", 1, "--batch-size", 8, "-p", 2, "--width", 16)


def _of(*words: object) -> Callable[[Toy, Path], tuple[object, ...]]:
    """A conversion of the toy network with these words."""
    return lambda toy, _: ("convert", toy.name, "--data", toy.data, *CONVERT, *words)


def _vit(toy: Toy, _: Path) -> tuple[object, ...]:
    toys.make_vit(toy)
    return "convert", f"local-dir:{toy.folder / 'vit'}", "--data", toy.data, *CONVERT


def _transformers(toy: Toy, folder: Path) -> tuple[object, ...]:
    small_networks.transformers_folder(folder / "transformers", "vit")
    return "convert", folder / "transformers", "--data", toy.data, *CONVERT


def _labels(folder: Path) -> Path:
    (folder / "labels.txt").write_text("\n".join(LABELS))
    return folder / "labels.txt"


def _torchvision(toy: Toy, folder: Path) -> tuple[object, ...]:
    from torchvision import models

    torch.manual_seed(0)
    torch.save(toys.randomised(models.squeezenet1_1(num_classes=4)).state_dict(), folder / "squeezenet.pth")
    own = ("--num-classes", 4, "--labels", _labels(folder), "--img-size", 64, "--weights", folder / "squeezenet.pth")
    return "convert", "torchvision:squeezenet1_1", *own, "--data", toy.data, *CONVERT


def _open_clip(toy: Toy, folder: Path) -> tuple[object, ...]:
    import open_clip

    name = small_networks.clip(folder)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), folder / "clip.pt")
    own = ("--labels", _labels(folder), "--weights", folder / "clip.pt")
    return "convert", name, *own, "--data", toy.data, *CONVERT


WORDS: dict[str, Callable[[Toy, Path], tuple[object, ...]]] = {
    "amounts": _of(),
    "paper": _of("--recipe", "paper", "--near", 0),
    "augmented": _of("--augment", "min-norm"),
    "vit": _vit,
    "transformers": _transformers,
    "torchvision": _torchvision,
    "open_clip": _open_clip,
    "protopnet": lambda toy, _: ("protopnet", "train", toy.name, "--data", toy.data, *TRAIN, "--device", "cpu"),
    "fewshot": lambda toy, _: ("fewshot", "fit", toy.name, "--data", toy.data, "--shots", 5, "--device", "cpu"),
    "edited": lambda toy, folder: (
        "intervene", toy.image(), "--class", 0, "--zero", 1, "--model", made("amounts", toy, folder)),
    "combined": lambda toy, folder: ("protopnet", "combine", *[made("protopnet", toy, folder)] * 2),
}  # fmt: skip
"""The command that makes each."""
KINDS = (*WORDS, "format2")


def made(kind: str, toy: Toy, folder: Path) -> Path:
    """The file of a kind, made where it is not there yet."""
    path = folder / f"{kind}.safetensors"
    if path.exists():
        return path
    if kind == "format2":
        content = Content.of(made("amounts", toy, folder))
        content.tensors = {n: each for n, each in content.tensors.items() if not n.startswith("readout.")}
        content.header["format"] = 2
        content.write(path)
        return path
    code, _, err = run(*WORDS[kind](toy, folder), "-o", path)
    assert code == 0, err
    return path
