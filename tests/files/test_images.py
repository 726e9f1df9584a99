"""Decoding: what timm does for good images, a named refusal for the others."""

import errno
import io
import os

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import toys
from protonmf_cli.errors import InputError
from protonmf_cli.files.images import reader as images
from protonmf_cli.files.images.sources.local import LocalFile
from protonmf_cli.files.images.sources.source import SourceError
from protonmf_cli.files.networks.preprocessing import crop_of
from protonmf_cli.models.image_batches import Skipped


def bytes_of(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str, size=(40, 30)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("CMYK", "JPEG"),
        ("L", "JPEG"),
        ("L", "PNG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("1", "TIFF"),
        ("LA", "PNG"),
    ],
)
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode, kind):
    picture = noise("L").convert(mode) if mode in {"P", "1", "LA"} else noise(mode)
    content = bytes_of(picture, kind)
    found = images.decode(content)
    assert (found.mode, found.size) == ("RGB", (40, 30))
    assert np.array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    values = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    found = np.asarray(images.decode(bytes_of(Image.fromarray(values), kind)))
    assert np.abs(found[:, :, 0] - values / 257).max() <= 0.5
    assert (found[:, :, 0] == found[:, :, 2]).all()


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (20, 20), name) for name in ("red", "blue")]
    content = bytes_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert images.decode(content).getpixel((3, 3)) == (255, 0, 0)


def test_turned_only_on_request():
    picture = Image.new("RGB", (40, 30), "green")
    exif = picture.getexif()
    exif[0x0112] = 6
    content = bytes_of(picture, "JPEG", exif=exif)
    assert images.decode(content).size == (40, 30)
    assert images.decode(content, exif_transpose=True).size == (30, 40)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is text", "is not an image"),
        (bytes_of(noise("RGB", (300, 300)), "JPEG")[:2000], "is damaged"),
        (bytes_of(noise("RGB", (300, 300)), "PNG")[:2000], "is damaged"),
        (bytes_of(noise("RGB"), "PPM"), "is not an image in one of the formats"),
        (bytes_of(Image.new("1", (9000, 8000)), "PNG"), "9000 x 8000 pixels, at most 64,000,000"),
        (bytes_of(Image.new("1", (20000, 20000)), "PNG"), "pixels"),
        (bytes_of(Image.new("1", (10000, 1)), "PNG"), "at most 500 times as long as wide"),
        (bytes_of(Image.fromarray(np.full((5, 5), np.nan, dtype=np.float32)), "TIFF"), "is damaged: it holds NaN"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "foreign format", "too large", "bomb", "narrow", "nan"],
)
def test_refusals(content, words):
    with pytest.raises(InputError, match=words):
        images.decode(content)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(100, 50), (33, 90), (1, 1)])
def test_crop_and_normalisation_are_timms_own_transform(mode, size, toy):
    from dataclasses import replace

    from protonmf_cli.files.networks.backbones import load_backbone
    from protonmf_cli.files.networks.request import BackboneRequest

    preprocessing = replace(toys.PREPROCESSING, crop_mode=mode)
    picture = noise("RGB", size)
    expected = timm.data.create_transform(
        input_size=preprocessing.input_size,
        interpolation="bicubic",
        crop_pct=0.9,
        crop_mode=mode,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )(picture)
    backbone, _ = load_backbone(BackboneRequest(name=toy.name))
    crop = crop_of(preprocessing)(picture)
    assert crop.dtype == torch.uint8
    assert torch.equal(replace(backbone, preprocessing=preprocessing).normalise(crop[None])[0], expected)


def test_batches_stay_within_a_class_and_name_what_was_skipped(tmp_path, toy):
    files = []
    for c, count in enumerate((5, 1, 3)):
        for n in range(count):
            path = tmp_path / f"{c}-{n}.png"
            path.write_bytes(b"no image" if (c, n) in {(0, 1), (1, 0)} else bytes_of(noise("RGB"), "PNG"))
            files.append(images.ImageFile(path=path, name=path.name, class_index=c))
    files.append(images.ImageFile(path=tmp_path / "gone.png", name="gone.png", class_index=2))
    reader = images.ImageReader(
        crop=crop_of(toys.PREPROCESSING), channels=3, exif_transpose=False, batch_size=4, workers=2
    )
    batches = list(reader.batches(files))
    assert [b.class_index for b in batches] == [0, 0, 1, 2]
    assert [len(b.crops) for b in batches] == [3, 1, 0, 3]
    assert [s.path for b in batches for s in b.sources] == [
        "0-0.png",
        "0-2.png",
        "0-3.png",
        "0-4.png",
        "2-0.png",
        "2-1.png",
        "2-2.png",
    ]
    assert [s.path for b in batches for s in b.skipped] == ["0-1.png", "1-0.png", "gone.png"]
    assert "cannot be read: No such file" in batches[-1].skipped[0].reason


class Failing(LocalFile):
    number = errno.EIO

    def read_bytes(self):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOENT, errno.EACCES])
def test_a_disk_that_fails_is_not_the_image_s_fault(tmp_path, monkeypatch, number):
    monkeypatch.setattr(Failing, "number", number)
    reader = images.ImageReader(crop=None, channels=3, exif_transpose=False, batch_size=1, workers=1)
    (tmp_path / "ant").mkdir()
    file = images.ImageFile(path=Failing(tmp_path, "ant/1.png"), name="ant/1.png", class_index=0)
    if number in (errno.ENOENT, errno.EACCES):
        assert reader.read(file) == Skipped(path="ant/1.png", reason=f"cannot be read: {os.strerror(number)}")
    else:
        with pytest.raises(SourceError, match=rf"1\.png could not be read: {os.strerror(number)}"):
            reader.read(file)


def test_images_of_a_folder_that_is_gone_are_not_skipped(tmp_path):
    (tmp_path / "ant").mkdir()
    file = images.ImageFile(path=LocalFile(tmp_path, "bee/1.png"), name="bee/1.png", class_index=0)
    reader = images.ImageReader(crop=None, channels=3, exif_transpose=False, batch_size=1, workers=1)
    with pytest.raises(SourceError, match="bee is not there any more"):
        reader.read(file)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_batch_sizes_add_up(count):
    sizes = images._sizes(count, 32)
    assert sum(sizes) == count
    assert set(sizes) <= {1, 2, 4, 8, 16, 32}


def test_a_pipe_or_folder_called_like_an_image_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(InputError, match="it is not a file|it is a folder; name the images in it"):
            images.read_crop(tmp_path / name, crop_of(toys.PREPROCESSING), channels=3, exif_transpose=False)
