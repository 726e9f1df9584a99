"""The same picture counts once among the training patches that are shown for a prototype."""

import json
import shutil

import pytest
import torch
from PIL import Image

from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.pipelines.protopnet.activations import Activations
from protonmf_cli.pipelines.protopnet.model import _ranking
from protonmf_cli.pipelines.training_examples import ALIKE, AT_ONCE, SAME, centred_rows, first_different
from toys import LABELS, Toy, convert, run


def sources(*digests):
    return [ImageSource(path=f"{n}.png", sha256=digest) for n, digest in enumerate(digests)]


def test_equal_bytes_count_once_and_the_first_stays():
    images = sources("a", "b", "a", "c", "b")
    assert first_different(torch.tensor([2, 0, 4, 1, 3]), images, 5) == [2, 4, 3]
    assert first_different(torch.tensor([2, 0, 4, 1, 3]), images, 2) == [2, 4]
    assert first_different(torch.tensor([0, 1]), sources("", ""), 5) == [0, 1]  # bytes that nobody knows


@pytest.mark.parametrize(
    ("cosine", "found"),
    [(SAME + 1e-4, [0, 2]), (SAME - 1e-4, [0, 2, 1]), (ALIKE + 1e-4, [0, 2, 1]), (ALIKE - 1e-4, [0, 1, 2])],
)
def test_rows_count_once_above_a_cosine_about_the_mean_whatever_their_lengths(cosine, found):
    one, other = torch.tensor([3.0, 0.0]), torch.tensor([7 * cosine, 7 * (1 - cosine**2) ** 0.5])
    centred = torch.stack([one, other, -one - other])
    halves = torch.stack([centred + 500, torch.full((3, 2), 20.0)], dim=1)  # rows with and without a place
    assert first_different(torch.arange(3), sources("a", "b", "c"), 5, centred_rows(halves)) == found
    assert first_different(torch.arange(3), sources("a", "b", "c"), 5) == [0, 1, 2]


def test_further_candidates_are_looked_at_where_the_first_are_all_the_same():
    images = sources(*["a"] * (2 * AT_ONCE), "b")
    assert first_different(torch.arange(len(images)), images, 2) == [0, 2 * AT_ONCE]


@pytest.fixture(scope="module")
def twice(toy, tmp_path_factory):
    """The toy's training images, each three times: as it is, with equal bytes, and with equal pixels in another file."""
    folder = tmp_path_factory.mktemp("twice")
    for label in LABELS[:2]:
        target = folder / "data" / label
        target.mkdir(parents=True)
        for path in sorted((toy.data / "train" / label).iterdir()):
            shutil.copy(path, target / path.name)
            shutil.copy(path, target / f"copy of {path.name}")
            Image.open(path).save(target / f"{path.stem}.bmp")
    return convert(Toy(folder=folder, network=toy.network, data=folder / "data"), folder / "m.safetensors")


def test_a_conversion_shows_each_picture_once(twice):
    for listed in json.loads(run("inspect", twice, "--json")[1])["per_class"]:
        for prototype in listed["prototypes"]:
            names = [example["source"] for example in prototype["examples"]]
            stems = {name.rpartition("/")[2].removeprefix("copy of ").rpartition(".")[0] for name in names}
            assert len(names) == len(stems) >= 2


def test_processes_and_memory_change_no_byte(twice, toy, tmp_path):
    again = tmp_path / "again.safetensors"
    words = ["convert", toy.name, "--data", twice.parent / "data", "-o", again, "-p", 2, "--near", 1, "-q"]
    assert run(*words, "--memory", 0.001)[0] == 0
    assert again.read_bytes() == twice.read_bytes()


def test_a_protopnets_own_patch_comes_first_and_its_copies_do_not_come_again():
    images = tuple(sources("a", "b", "a", "c"))
    found = Activations(
        distance=torch.tensor([[0.0], [2.0], [1.0], [3.0]]), row=torch.zeros(4, 1), labels=torch.zeros(4), images=images,
        skipped=(),
    )  # fmt: skip
    assert _ranking(found, 0, None, 3) == [images[0], images[1], images[3]]
    own = {"image": {"path": "2.png", "sha256": "a"}, "row": 0}
    assert _ranking(found, 0, own, 3) == [images[2], images[1], images[3]]
