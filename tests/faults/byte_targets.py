"""What reads bytes that others wrote: pictures, model files, archives, tables and lists. Each gives an answer or a refusal."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
from file_mutants import Content

import packed
from protonmf_cli.errors import ProtonmfError
from protonmf_cli.files.atomic import digest_of_tensors
from protonmf_cli.files.images import datasets, reader
from protonmf_cli.files.store import KEY, load_model
from protonmf_cli.models.backbone import ClassName
from toys import LABELS, Toy

Target = Callable[[bytes], None]
CLASSES = tuple(ClassName(label=label) for label in LABELS)
DATA = {"zip": packed.zipped, "tar": packed.tar, "webdataset": packed.webdataset, "parquet": packed.parquet}
"""How the images of a split are packed into one file."""
ENDS = {"zip": ".zip", "tar": ".tar", "webdataset": ".tar", "parquet": ".parquet", "list": ".txt"}
MOST = 4
"""Images of a file that are read."""


def seeds(toy: Toy, folder: Path) -> dict[str, bytes]:
    """Content without fault for each target."""
    files = {path.relative_to(toy.data / "train").as_posix(): path.read_bytes() for path in toy.data.glob("train/*/*")}
    few = dict(sorted(files.items())[::5])
    made = {name: _content(pack(folder / name, few)) for name, pack in DATA.items()}
    lines = [f"{toy.data / 'train' / name}\t{name.partition('/')[0]}" for name in few]
    return made | {"list": "\n".join(lines).encode(), "picture": next(iter(few.values()))}


def _content(path: Path | str) -> bytes:
    found = Path(path)
    return (next(each for each in sorted(found.rglob("*")) if each.is_file()) if found.is_dir() else found).read_bytes()


def targets(folder: Path, model: Path) -> Mapping[str, Target]:
    """What reads each; `folder` takes what must lie in a file, and the header of a model file gets tensors of `model`."""
    tensors = Content.of(model).tensors

    def of_data(kind: str) -> Target:
        def read(content: bytes) -> None:
            path = folder / f"data{ENDS[kind]}"
            path.write_bytes(content)
            found = datasets.find_images(path, "train", CLASSES, datasets.ClassMapping())
            found.fingerprint()
            for file in found.of(found.files)[:MOST]:
                reader.decode(reader.read(file.path))

        return read

    def whole(content: bytes) -> None:
        path = folder / "whole.safetensors"
        path.write_bytes(content)
        load_model(path)

    def header(content: bytes) -> None:
        """The header's text as it is, under a right checksum."""
        path, text = folder / "header.safetensors", content.decode(errors="replace")
        digest = digest_of_tensors(tensors, text)
        safetensors.torch.save_file(tensors, path, metadata={KEY: f'{{"payload_sha256":"{digest}",{text[1:]}'})
        load_model(path)

    return {name: of_data(name) for name in ENDS} | {
        "picture": lambda content: reader.decode(content) and None,
        "model": whole,
        "header": header,
    }


def more_seeds(model: Path) -> dict[str, bytes]:
    """Of what reads model files."""
    text = json.dumps(Content.of(model).header, sort_keys=True, separators=(",", ":"))
    return {"model": model.read_bytes(), "header": text.encode()}


def tried(target: Target, content: bytes) -> bool:
    """Whether there was an answer; a refusal is none, and everything else leaves."""
    try:
        target(content)
    except ProtonmfError as failure:
        refusal = str(failure).strip()
    else:
        return True
    assert refusal and "Traceback" not in refusal, refusal
    return False


def changed(content: bytes, rng: random.Random) -> bytes:
    """A few bytes replaced, removed, doubled or moved; mostly near the ends, where archives and tables say what they hold."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        if not found:
            break
        at = rng.choice(
            (rng.randrange(len(found)), rng.randrange(min(len(found), 600)), -1 - rng.randrange(min(len(found), 600)))
        )
        at %= len(found)
        length = rng.choice((1, 1, 2, 4, 8, 60))
        match rng.choice(("bit", "byte", "byte", "number", "cut", "end", "double", "move")):
            case "bit":
                found[at] ^= 1 << rng.randrange(8)
            case "byte":
                found[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, ord("/"), ord("."), ord('"'), rng.randrange(256)))
            case "number":
                size = rng.choice((2, 4, 8))
                value = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
                found[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
            case "cut":
                del found[at : at + length]
            case "end":
                del found[at:]
            case "double":
                found[at:at] = found[at : at + length]
            case "move":
                to = rng.randrange(len(found))
                found[to : to + length] = found[at : at + length]
    return bytes(found)
