"""The same labelled images in every form that is read."""

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

Files = Mapping[str, bytes]
"""CLASS/file -> content"""


def shuffled(files: Files) -> list[tuple[str, bytes]]:
    found = sorted(files.items())
    random.Random(0).shuffle(found)
    return found


def folder(path: Path, files: Files) -> Path:
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return path


def zipped(path: Path, files: Files) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in shuffled(files):
            archive.writestr(name, content)
    return path


def tarred(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def tar(path: Path, files: Files) -> Path:
    return tarred(path.with_suffix(".tar"), [(f"./all/{name}", content) for name, content in shuffled(files)])


def samples(images: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """As WebDataset has them: `key.cls` before or after `key.jpg`."""
    found = []
    for n, (name, content) in enumerate(images):
        label, _, file = name.partition("/")
        found += [(f"{n:03d}/{file}", content), (f"{n:03d}/{file.rpartition('.')[0]}.cls", label.encode())]
    return found


def webdataset(path: Path, files: Files) -> Path:
    """Three shards in a folder."""
    path.mkdir(parents=True)
    images = shuffled(files)
    for n in range(3):
        tarred(path / f"shard-{n:03d}.tar", samples(images[n::3]))
    return path


def table(images: list[tuple[str, bytes]], names: list[str] | None = None) -> pa.Table:
    """With the features that Hugging Face's library writes: numbers of classes, and their names beside."""
    names = names or sorted({name.partition("/")[0] for name, _ in images})
    labels = [names.index(name.partition("/")[0]) for name, _ in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": content, "path": name.partition("/")[2]} for name, content in images], kind)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table({"image": pictures, "label": pa.array(labels)}).replace_schema_metadata(about)


def parquet(path: Path, files: Files) -> Path:
    """Two files in a folder, in groups of few rows."""
    path.mkdir(parents=True)
    images, names = shuffled(files), sorted({name.partition("/")[0] for name in files})
    for n in range(2):
        pq.write_table(table(images[n::2], names), path / f"part-{n:05d}-of-00002.parquet", row_group_size=3)
    return path


def memory(path: Path, files: Files) -> str:
    """Behind a URL."""
    store = fsspec.filesystem("memory")
    for name, content in files.items():
        store.pipe_file(f"{path}/{name}", content)
    return f"memory:/{path}"


def behind_url(path: Path) -> str:
    """A file of this machine behind a URL."""
    fsspec.filesystem("memory").pipe_file(str(path), path.read_bytes())
    return f"memory:/{path}"


FORMS: dict[str, Callable[[Path, Files], Path | str]] = {
    "folder": folder,
    "zip": zipped,
    "tar": tar,
    "webdataset": webdataset,
    "parquet": parquet,
    "memory": memory,
    "memory-zip": lambda path, files: behind_url(zipped(path, files)),
    "memory-tar": lambda path, files: behind_url(tar(path, files)),
}
"""Form -> the data made of files; its name is the last part of the path."""
