"""Epochs that the seed decides, augmented copies, images held out, and images cut to their boxes."""

import hashlib
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.bounding_boxes import cut_to_boxes, read_boxes
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.images.image_augmentation import augmented
from protonmf_cli.files.images.reader import ImageFile, ImageReader
from protonmf_cli.files.images.training_images import TrainingData, TrainingImages, folds, read_all, split_held_out
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.options import AugmentationOptions

STILL = AugmentationOptions(rotation=0.0, skew=0.0, shear=0.0, flip=0.0)


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for the rounding of a transform by nothing."""
    return int((one.int() - other.int()).abs().max()) <= 1


def reader(workers: int = 2, batch_size: int = 4) -> ImageReader:
    return ImageReader(crop=as_tensor, channels=3, exif_transpose=False, batch_size=batch_size, workers=workers)


def noise(seed: int, size: tuple[int, int] = (24, 18)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[ImageFile]:
    """Seven pictures, each a class of its own, so that a label says which picture a crop was made of."""
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for n in range(7):
        noise(n).save(folder / f"{n}.png")
        found.append(ImageFile(path=folder / f"{n}.png", name=f"{n}.png", class_index=n))
    return found


def images(files, batch_size: int = 3, seed: int = 5, workers: int = 2, **augmentation) -> TrainingImages:
    options = AugmentationOptions(**augmentation)
    return TrainingImages(files=files, reader=reader(workers), augmentation=options, batch_size=batch_size, seed=seed)


def listed(found: TrainingImages, epoch: int, **share) -> tuple[list[int], torch.Tensor]:
    """Labels and crops of an epoch, in order."""
    batches = list(found.batches(epoch, **share))
    return torch.cat([b.labels for b in batches]).tolist(), torch.cat([b.crops for b in batches])


def contents(found: TrainingImages, epoch: int) -> Counter:
    """Which picture was seen how, and how often, in whatever order."""
    return Counter((label, crop.numpy().tobytes()) for label, crop in zip(*listed(found, epoch), strict=True))


# -- epochs --------------------------------------------------------------------------------------------------------


def test_seed_and_epoch_decide_every_batch(files):
    for epoch in (0, 3):
        first = list(images(files, copies=2, workers=1).batches(epoch))
        second = list(images(files, copies=2, workers=4).batches(epoch))
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one.crops, other.crops)
            assert torch.equal(one.labels, other.labels)
    assert listed(images(files), 0)[0] != listed(images(files, seed=6), 0)[0]
    assert not contents(images(files), 0) & contents(images(files, seed=6), 0)


def test_a_batch_holds_what_its_labels_say(files):
    still = replace(STILL, copies=2)
    found = TrainingImages(files=files, reader=reader(), augmentation=still, batch_size=4, seed=1)
    batches = list(found.batches(2))
    assert [len(b.labels) for b in batches] == [b.total for b in batches] == [4, 4, 4, 2]
    for one in batches:
        assert one.crops.dtype == torch.uint8
        for label, crop in zip(one.labels.tolist(), one.crops, strict=True):
            assert near(crop, as_tensor(noise(label)))


def test_no_step_has_a_single_image(files):
    assert [b.total for b in images(files, batch_size=3).batches(0)] == [3, 4]  # batch norms that learn need two
    assert [b.total for b in images(files, batch_size=7).batches(0)] == [7]
    assert sorted(listed(images(files, batch_size=3), 0)[0]) == list(range(7))


@pytest.mark.parametrize("fresh", [True, False])
def test_another_epoch_has_another_order_and_perhaps_new_copies(files, fresh):
    found = images(files, copies=2, fresh=fresh)
    assert listed(found, 0)[0] != listed(found, 1)[0]
    first, second = contents(found, 0), contents(found, 1)
    if fresh:
        assert not first & second
    else:
        assert first == second
    assert max(first.values()) == 1, "two copies of a picture differ"


def test_copies_lengthen_the_epoch(files):
    found = images(files, copies=3)
    labels, crops = listed(found, 0)
    assert len(found) == len(crops) == 21
    assert Counter(labels) == dict.fromkeys(range(7), 3)


@pytest.mark.parametrize("world", [2, 5])
def test_shares_of_the_processes_are_the_batches_of_one(files, world):
    found = images(files, copies=2)
    whole = list(found.batches(1))
    shares = [list(found.batches(1, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert {part.total for part in parts} == {batch.total}
        sizes = [len(part.labels) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        together = Counter((int(y), x.numpy().tobytes()) for part in parts for y, x in zip(part.labels, part.crops, strict=True))  # fmt: skip
        assert together == Counter(
            (int(y), x.numpy().tobytes()) for y, x in zip(batch.labels, batch.crops, strict=True)
        )
    assert {len(share) for share in shares} == {len(whole)}, "every process takes every step"


def test_a_file_that_is_gone_stops_the_epoch_by_name(files, tmp_path):
    gone = ImageFile(path=tmp_path / "gone.png", name="gone.png", class_index=0)
    with pytest.raises(InputError, match=r"gone\.png cannot be read.*but could be read when training began"):
        list(images([*files, gone]).batches(0))


def test_pushes_see_the_pictures_as_they_are(files):
    data = TrainingData(images=images(files[:5]), apart=files[5:])
    assert (len(data), data.counts()) == (5, (5, 2))
    for found, expected in ((data.push(), range(5)), (data.held_out(), range(5, 7))):
        batches = list(found)
        assert [b.class_index for b in batches] == list(expected)
        assert all(torch.equal(b.crops[0], as_tensor(noise(b.class_index))) for b in batches)
    assert torch.equal(next(data.epoch(0, 0, 1)).crops, next(data.images.batches(0)).crops)
    assert TrainingData(images=images(files)).held_out() is None


def test_reading_all_names_damaged_files(files, tmp_path):
    broken = ImageFile(path=tmp_path / "broken.png", name="broken.png", class_index=0)
    broken.path.write_bytes(files[0].path.read_bytes()[:100])
    digests, skipped = read_all(reader(), [files[0], broken, files[1]])
    assert digests == {file: hashlib.sha256(file.path.read_bytes()).hexdigest() for file in files[:2]}
    assert [s.path for s in skipped] == ["broken.png"]


# -- augmentation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_augmentation_keeps_size_and_mode_and_is_drawn_from_the_seed(mode):
    picture = noise(0, (37, 50)).convert(mode)
    found = [augmented(picture, AugmentationOptions(), (1, 0, n, 0)) for n in range(12)]
    again = [augmented(picture, AugmentationOptions(), (1, 0, n, 0)) for n in range(12)]
    assert {(one.size, one.mode) for one in found} == {((37, 50), mode)}
    assert [one.tobytes() for one in found] == [one.tobytes() for one in again]
    assert len({one.tobytes() for one in found}) == 12
    others = {
        augmented(picture, AugmentationOptions(), seed).tobytes() for seed in ((2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 0, 1))
    }
    assert len(others | {found[0].tobytes()}) == 4


@pytest.mark.parametrize("size", [(60, 60), (90, 60), (60, 110), (7, 5), (2, 2)])
def test_augmentation_leaves_no_empty_corner(size):
    white = Image.new("RGB", size, "white")
    for n in range(60):
        assert augmented(white, AugmentationOptions(), (0, n)).getextrema() == ((255, 255),) * 3


def test_augmentation_does_what_the_options_say():
    picture = noise(3, (30, 20))
    plain, mirrored = as_tensor(picture), as_tensor(picture).flip(2)
    for n in range(9):
        assert near(as_tensor(augmented(picture, STILL, (0, n))), plain)
        assert near(as_tensor(augmented(picture, replace(STILL, flip=1.0), (0, n))), mirrored)
    flipped = [near(as_tensor(augmented(picture, replace(STILL, flip=0.5), (0, n))), mirrored) for n in range(60)]
    assert 15 < sum(flipped) < 45


@pytest.mark.parametrize("kind", ["rotation", "skew", "shear"])
def test_augmentation_moves_no_further_than_the_options_say(kind):
    """A dot half-way to the edge moves, by more with larger options, and stays within what they allow."""
    pixels = np.zeros((101, 101, 3), dtype=np.uint8)
    pixels[48:53, 73:78] = 255
    picture, start = Image.fromarray(pixels), np.array([50.0, 75.0])

    def moves(options: AugmentationOptions) -> list[float]:
        found = []
        for n in range(40):
            grey = np.asarray(augmented(picture, options, (0, n)).convert("L"), dtype=np.float64)
            centre = np.array([(grey.sum(axis=1 - axis) * np.arange(101)).sum() / grey.sum() for axis in (0, 1)])
            found.append(float(np.linalg.norm(centre - start)))
        return found

    usual = getattr(AugmentationOptions(), kind)
    some = moves(replace(STILL, **{kind: usual}))
    most = {"rotation": 25 * 15 * np.pi / 180, "shear": 25 * np.tan(10 * np.pi / 180) * 1.5, "skew": 0.1 * 101 * 2**0.5}
    assert 1.5 < max(some) < most[kind] + 1
    assert max(moves(replace(STILL, **{kind: usual / 4}))) < max(some) / 2
    assert sum(move < 0.5 for move in some) > 10, "one of three kinds per copy"


ORIGINAL = AugmentationOptions(copies=30, fresh=False, equal_kinds=True)
"""What the original code made its training set of."""


def seen_places(copy: torch.Tensor, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 2) inside a copy of `places_as_colours`, and which places of the picture are shown there."""
    height, width = copy.shape[1:]
    rows, columns = np.meshgrid(np.arange(6, height - 6, 4), np.arange(6, width - 6, 4), indexing="ij")
    at = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(float)
    colours = copy[:2, rows.ravel(), columns.ravel()].numpy().T.astype(float)
    return at, colours / 255 * (np.array(size) - 1)


def places_as_colours(size: tuple[int, int]) -> Image.Image:
    """A picture whose red says how far right a pixel is, and whose green how far down."""
    width, height = size
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=2).round().astype(np.uint8))


def kind_of(at: np.ndarray, seen: np.ndarray) -> str:
    """Rotation, shear, skew or none, by the affine map nearest to what a copy shows."""
    known = np.c_[at, np.ones(len(at))]
    matrix, *_ = np.linalg.lstsq(known, seen, rcond=None)
    if np.abs(known @ matrix - seen).max() > 1.2:
        return "skew"
    if np.abs(seen - at).max() <= 1.2:
        return "none"
    return "shear" if np.abs([matrix[0, 1], matrix[1, 0]]).min() < 0.003 else "rotation"


@pytest.mark.parametrize("kind", ["rotation", "skew", "shear"])
def test_the_original_s_training_set_is_ten_copies_of_each_kind(files, tmp_path, kind):
    options = replace(STILL, copies=30, fresh=False, equal_kinds=True, **{kind: getattr(ORIGINAL, kind)})
    found = TrainingImages(files=files, reader=reader(), augmentation=options, batch_size=20, seed=0)
    labels, crops = listed(found, 0)
    moved = [n for n, crop in zip(labels, crops, strict=True) if not near(crop, as_tensor(noise(n)))]
    assert Counter(labels) == dict.fromkeys(range(7), 30)
    assert Counter(moved) == dict.fromkeys(range(7), 10), "the others are of kinds that this test leaves still"
    assert contents(found, 0) == contents(found, 7), "made once"
    picture, unflipped = places_as_colours((160, 120)), replace(options, flip=0.0)
    kinds = Counter(
        kind_of(*seen_places(as_tensor(augmented(picture, unflipped, (0, n))), (160, 120))) for n in range(90)
    )
    assert 60 <= kinds["none"] <= 63 and kinds[kind] >= 25, kinds  # the least skews are nearly affine


def test_copies_of_each_kind_have_no_empty_corner_and_no_mirrored_edge():
    white = Image.new("RGB", (90, 60), "white")
    for n in range(60):
        copy = np.asarray(augmented(white, ORIGINAL, (0, n)))
        assert copy.shape == (60, 90, 3)
        assert (copy[1:-1, 1:-1] == 255).all()  # the outermost pixels are half outside
    picture = places_as_colours((160, 120))
    for n in range(30):
        at, seen = seen_places(as_tensor(augmented(picture, replace(ORIGINAL, flip=0.0), (0, n))), (160, 120))
        for axis in (0, 1):  # reflection would turn round; enlargement never does
            order = seen[at[:, 1 - axis] == at[0, 1 - axis]][:, axis]
            assert (np.diff(order) > 0).all()


# -- held-out images -----------------------------------------------------------------------------------------------


def labelled(*counts: int) -> LabelledImages:
    found = {
        c: tuple(ImageFile(path=Path(f"/data/{c}/{n}.png"), name=f"{c}/{n}.png", class_index=c) for n in range(count))
        for c, count in enumerate(counts)
    }
    return LabelledImages(where=str(Path("/data")), split="train", files=found, notes=(), left_out={})


@pytest.mark.parametrize(("share", "expected"), [(0.25, [5, 2, 1, 0]), (0.1, [2, 1, 0, 0]), (0.99, [19, 7, 2, 0]), (0.0, [0] * 4)])  # fmt: skip
def test_held_out_images_are_a_share_of_every_class(share, expected):
    data = labelled(20, 8, 3, 1)
    fit, apart = split_held_out(data, share, 0)
    assert [sum(f.class_index == c for f in apart) for c in range(4)] == expected
    assert {f.class_index for f in fit} == {0, 1, 2, 3}
    assert not set(fit) & set(apart)
    assert set(fit) | set(apart) == set(data.of(range(4)))
    for part in (fit, apart):
        assert part == [f for f in data.of(range(4)) if f in part], "class after class, in their order"


def test_held_out_images_are_drawn_with_the_seed():
    data = labelled(20, 20)
    assert split_held_out(data, 0.3, 4) == split_held_out(data, 0.3, 4)
    assert split_held_out(data, 0.3, 4)[1] != split_held_out(data, 0.3, 5)[1]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_hold_every_file_out_once(count):
    everything = labelled(10, 7, 3).of(range(3))
    found = list(folds(everything, count, 0))
    assert Counter(f for _, apart in found for f in apart) == dict.fromkeys(everything, 1)
    for fit, apart in found:
        assert sorted([*fit, *apart], key=everything.index) == everything
    for c in range(3):
        sizes = [sum(f.class_index == c for f in apart) for _, apart in found]
        assert max(sizes) - min(sizes) <= 1
    assert found == list(folds(everything, count, 0))
    assert found != list(folds(everything, count, 1))


# -- boxes ---------------------------------------------------------------------------------------------------------

LINES = {
    "images.txt": "1 001.Red/a.png\n2 001.Red/b.png\n\n3 002.Blue/a.png\n",
    "bounding_boxes.txt": "1 4.0 3.0 10.0 8.0\n3 -5.0 10.0 20.0 50.5\n2 100.0 2.0 5.0 5.0\n",
}
BOXES = {"001.Red/a.png": (4, 3, 14, 11), "001.Red/b.png": (100, 2, 105, 7), "002.Blue/a.png": (-5, 10, 15, 60.5)}


@pytest.fixture
def cub(tmp_path) -> LabelledImages:
    """Three pictures of 24 x 18 in class folders, with the text files of the data set beside the folders."""
    files = {}
    for c, (folder, names) in enumerate({"001.Red": ["a.png", "b.png"], "002.Blue": ["a.png"]}.items()):
        (tmp_path / folder).mkdir()
        for n, name in enumerate(names):
            noise(10 * c + n).save(tmp_path / folder / name)
        paths = [tmp_path / folder / name for name in names]
        files[c] = tuple(ImageFile(path=p, name=f"{folder}/{p.name}", class_index=c) for p in paths)
    for name, text in LINES.items():
        (tmp_path / name).write_text(text)
    return LabelledImages(where=str(tmp_path), split="train", files=files, notes=(), left_out={})


def test_boxes_are_read_from_a_folder_a_zip_archive_and_beside_a_file(cub, tmp_path):
    with zipfile.ZipFile(tmp_path / "cub.zip", "w") as archive:
        for name, text in LINES.items():
            archive.writestr(f"CUB_200_2011/{name}", text)
        archive.writestr("CUB_200_2011/attributes/images.txt", "nothing of use")
    for source in (tmp_path, tmp_path / "cub.zip", tmp_path / "images.txt", tmp_path / "bounding_boxes.txt"):
        assert read_boxes(source) == BOXES


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 4.0 three 10.0 8.0", "line 1 of bounding_boxes.txt in .* is not `image x y width height`"),
        ("1 4.0 3.0 10.0", "line 1 of .*bounding_boxes.txt is not as CUB-200-2011 writes it"),
        ("7 4.0 3.0 10.0 8.0", "line 1 of bounding_boxes.txt in .* names image 7, which images.txt has not"),
    ],
)
def test_wrong_lines_of_boxes_are_named(cub, tmp_path, line, words):
    (tmp_path / "bounding_boxes.txt").write_text(line)
    with pytest.raises(InputError, match=words):
        read_boxes(tmp_path)


def test_missing_boxes_are_named(cub, tmp_path):
    (tmp_path / "bounding_boxes.txt").unlink()
    with pytest.raises(InputError, match=r"images\.txt and bounding_boxes\.txt of CUB-200-2011"):
        read_boxes(tmp_path)
    with pytest.raises(InputError, match=r"001\.Red/b\.png has no bounding box"):
        cut_to_boxes(cub, {name: box for name, box in BOXES.items() if name != "001.Red/b.png"})


def test_images_are_cut_to_the_part_of_their_box_inside_the_picture(cub, tmp_path):
    found = cut_to_boxes(cub, read_boxes(tmp_path))
    assert found.counts == cub.counts
    assert [replace(f, box=None) for f in found.of((0, 1))] == cub.of((0, 1))
    (inside, outside), (partly,) = found.files[0], found.files[1]
    assert torch.equal(reader().read(inside)[0], as_tensor(noise(0))[:, 3:11, 4:14])
    assert torch.equal(reader().read(partly)[0], as_tensor(noise(10))[:, 10:, :15])
    refused = reader().read(outside)
    assert isinstance(refused, Skipped)
    assert refused.reason.startswith("has no pixels inside its box (100.0, 2.0, 105.0, 7.0) (24 x 18 pixels)")


def test_images_are_cut_before_they_are_augmented(cub, tmp_path):
    """Augmentation of the cut picture; what is outside the box is never seen."""
    (file, _) = cut_to_boxes(cub, read_boxes(tmp_path)).files[0]
    whole = Image.new("RGB", (24, 18), "black")
    whole.paste("white", (4, 3, 14, 11))
    whole.save(file.path)
    found = TrainingImages(
        files=[file], reader=reader(), augmentation=AugmentationOptions(copies=20), batch_size=20, seed=0
    )
    ((_, crops),) = [(b.labels, b.crops) for b in found.batches(0)]
    assert crops.shape == (20, 3, 8, 10)
    assert (crops == 255).all()


@pytest.mark.parametrize("size", [(150, 60), (60, 180), (300, 60), (1, 9)])
def test_long_pictures_have_no_empty_corner(size):
    white = Image.new("RGB", size, "white")
    for n in range(60):
        copy = augmented(white, AugmentationOptions(), (0, 0, n, 0))
        assert copy.size == size and copy.getextrema() == ((255, 255),) * 3


def test_a_box_that_is_no_number_is_refused(tmp_path):
    (tmp_path / "images.txt").write_text("1 a/b.jpg\n")
    (tmp_path / "bounding_boxes.txt").write_text("1 nan 0 5 5\n")
    with pytest.raises(InputError, match="line 1 of .* holds a number that is not finite"):
        read_boxes(tmp_path)
