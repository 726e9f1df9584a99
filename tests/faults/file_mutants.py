"""Damaged and hostile model files: seeded changes of their parts, under a checksum that is right again."""

import copy
import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from protonmf_cli.files.atomic import digest_of_tensors
from protonmf_cli.files.store import KEY
from protonmf_cli.models.readouts.stored import PLAN

DEEP = "a value that is replaced by a deeply nested one"
ADDRESS = "http://127.0.0.1:9/model.safetensors"
NUMBERS = (0, -1, 1, 2, 3, 5, 64, 1000, 65536, 10**6, 10**9, 2**31, 2**63, 10**30, 0.0, -0.0, 0.5, 1e-3, 1e-300, 1e38,
           1e300, math.nan, math.inf, -math.inf)  # fmt: skip
OTHERS = (None, True, False, "", "x", "no", "0", "../../x", "hf-hub:timm/resnet18.a1_in1k", ADDRESS, "\ud800", "\0", DEEP,
          [], {}, [[]], [None], {"": 1}, ["a", "b"], [1, 2, 3], [64, 64], [[[[]]]], {"0": [1]})  # fmt: skip
ARCHITECTURES = ("hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "resnet18", "test_vit", "test_resnet", "test_convnext",
                 "resnet18.a1_in1k", "vit_huge_patch14_224", "no_such_network", "a/b", "RN50", ADDRESS)  # fmt: skip
ARGUMENTS = ("pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir", "num_classes", "in_chans", "img_size",
             "depth", "embed_dim", "global_pool", "output_stride", "drop_rate", "layers", "channels", "block", "act_layer",
             "norm_layer", "patch_size", "num_heads", "weights", "progress", "url", "stem_width", "features_only",
             "kernel_size", "mlp_ratio", "class_token", "reg_tokens", "pretrained_strict", "scriptable")  # fmt: skip
LIBRARIES = ("timm", "transformers", "torchvision", "open_clip", "python", "other", "")


@dataclass
class Content:
    """A model file in parts that can be changed."""

    tensors: dict[str, torch.Tensor]
    header: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> "Content":
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = json.loads(file.metadata()[KEY])
        header.pop("payload_sha256")
        return cls(tensors, header)

    def copied(self) -> "Content":
        return Content(dict(self.tensors), copy.deepcopy(self.header))

    def write(self, path: Path) -> None:
        """A file with a right checksum, whatever it says."""
        text = json.dumps(self.header, sort_keys=True, separators=(",", ":"))
        text = text.replace(json.dumps(DEEP), "[" * 50_000 + "]" * 50_000)
        digest = digest_of_tensors(self.tensors, text)
        text = f'{{"payload_sha256":"{digest}",{text[1:]}'
        safetensors.torch.save_file({k: v.contiguous() for k, v in self.tensors.items()}, path, metadata={KEY: text})


def mutant(source: Content, seed: int, path: Path) -> list[str]:
    """Write a changed file; what was changed, in words."""
    rng, content = random.Random(seed), source.copied()
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choices([each for each, _ in CHANGES], [weight for _, weight in CHANGES])[0]
        said.append(f"{change.__name__.strip('_')}: {change(content, rng)}")
    content.write(path)
    return said


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, OTHERS))))


def _place(value: Any, rng: random.Random, stop: float) -> tuple[Any, Any, str]:
    """A container inside a value, one of its keys, and the way there."""
    way: list[Any] = []
    while True:
        key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
        way.append(key)
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < stop:
            return value, key, ".".join(map(str, way))
        value = inner


def changed_value(value: Any, rng: random.Random) -> str:
    """Change one place in a value of JSON."""
    inside, key, way = _place(value, rng, 0.15)
    how = rng.choice(("replace", "replace", "replace", "remove", "near", "swap", "more", "wrap"))
    old = inside[key]
    if how == "remove":
        del inside[key]
    elif how == "near" and isinstance(old, int | float) and not isinstance(old, bool):
        inside[key] = old * rng.choice((-1, 2, 10, 1000, 0.5)) + rng.choice((0, 1, -1))
    elif how == "swap":
        other, foreign, _ = _place(value, rng, 0.15)
        inside[key], other[foreign] = copy.deepcopy(other[foreign]), copy.deepcopy(old)
    elif how == "more" and isinstance(old, list):
        inside[key] = [*old, copy.deepcopy(old[0]) if old and rng.random() < 0.5 else _value(rng)]
    elif how == "more" and isinstance(old, dict):
        old[rng.choice(("0", "x", "999", ""))] = _value(rng)
    elif how == "wrap":
        inside[key] = [old]
    else:
        inside[key] = _value(rng)
    return f"{how} {way} -> {str(inside[key])[:80] if how not in ('remove', 'swap') else ''}"


def _card(content: Content, rng: random.Random) -> str:
    if not isinstance(content.header.get("card"), dict) or not content.header["card"]:
        return "nothing left"
    return changed_value(content.header["card"], rng)


def _group(content: Content, rng: random.Random) -> str:
    """One of the small groups that decide most."""
    card = content.header.get("card")
    if isinstance(card, dict) and isinstance(card.get("members"), list) and card["members"] and rng.random() < 0.5:
        card = card["members"][0]
    group = card.get(rng.choice(("readout", "preprocessing", "source", "measured"))) if isinstance(card, dict) else None
    return changed_value(group, rng) if isinstance(group, dict) and group else "nothing left"


def _header(content: Content, rng: random.Random) -> str:
    return changed_value(content.header, rng) if content.header else "nothing left"


def _source(content: Content, rng: random.Random) -> str:
    """Another network than the one that is in the file."""
    try:
        card = content.header["card"]
        source = rng.choice(card["members"] or [card])["source"]
        if rng.random() < 0.2:
            source["library"] = rng.choice(LIBRARIES)
            source["features"] = rng.choice(("", "layer4", "x", "encoder"))
        elif rng.random() < 0.3:
            source["architecture"] = rng.choice(ARCHITECTURES)
        else:
            source["model_args"][rng.choice(ARGUMENTS)] = _value(rng)
        return f"{source['library']} {source['architecture']} {str(source['model_args'])[:200]}"
    except (KeyError, TypeError):
        return "nothing left"


def _tensor(content: Content, rng: random.Random) -> str:
    """One tensor with other numbers, of another type or shape, or none."""
    if not content.tensors:
        return "nothing left"
    own = [name for name in sorted(content.tensors) if not name.startswith(("backbone.", "addon."))]
    name = rng.choice(own if own and rng.random() < 0.7 else sorted(content.tensors))
    old = content.tensors[name]
    how = rng.choice(
        ("one", "one", "all", "type", "shape", "shorter", "longer", "remove", "rename", "shuffle", "scale")
    )
    floating, changed = old.is_floating_point(), old.clone(memory_format=torch.contiguous_format)
    number = rng.choice(
        (math.nan, math.inf, 1e38, -1e38, 0.0, -1.0, 1e-40, 1e10) if floating else (-1, 0, 1, 7, 10**9, 2**62)
    )
    number = number % 256 if old.dtype == torch.uint8 else number
    if how == "one" and old.numel():
        changed.view(-1)[rng.randrange(old.numel())] = number
    elif how == "all":
        changed.fill_(number)
    elif how == "type":
        changed = changed.to(
            rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.bool))
        )
    elif how == "shape":
        changed = rng.choice(
            (
                changed.reshape(-1),
                changed[None],
                changed[..., None],
                changed[:0] if old.ndim else changed,
                changed.mT if old.ndim > 1 else changed,
            )
        )
    elif how == "shorter":
        changed = changed[: rng.randrange(max(1, len(changed)))] if old.ndim else changed
    elif how == "longer" and old.ndim:
        changed = torch.cat([changed, changed[:1]])
    elif how == "shuffle":
        changed = changed.reshape(-1)[
            torch.randperm(old.numel(), generator=torch.Generator().manual_seed(rng.randrange(99)))
        ].reshape(old.shape)
    elif how == "scale" and floating:
        changed = changed * rng.choice((-1, 1e3, 1e-3, 1e20, 0))
    if how in ("remove", "rename"):
        del content.tensors[name]
    if how != "remove":
        content.tensors[name + "x" if how == "rename" else name] = changed
    return f"{how} {name} {number if how in ('one', 'all') else ''}"


def _plan(content: Content, rng: random.Random) -> str:
    """How the network is read, where the file keeps it."""
    if PLAN not in content.tensors:
        return _group(content, rng)
    try:
        plan = json.loads(bytes(content.tensors[PLAN].numpy().tobytes()))
        said = changed_value(plan["readout"], rng) if rng.random() < 0.9 else changed_value(plan, rng)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "nothing left"
    text = json.dumps(plan).replace(json.dumps(DEEP), "[" * 5000 + "]" * 5000).encode()
    content.tensors[PLAN] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return said


def _picture(content: Content, rng: random.Random) -> str:
    """A training patch that is damaged, or claims to be huge."""
    jpeg = content.tensors.get("example_jpeg")
    crops = content.tensors.get("example_crop")
    if jpeg is None or crops is None or not crops.numel() or jpeg.dtype != torch.uint8 or crops.dtype != torch.int64:
        return "nothing left"
    content.tensors["example_jpeg"] = jpeg = jpeg.reshape(-1).clone()
    start, end = crops.reshape(-1)[:2].tolist()
    how = rng.choice(("huge", "bytes", "ends", "other", "empty", "all"))
    picture = bytes(jpeg[start:end].numpy().tobytes())
    if how == "huge":
        at = picture.find(b"\xff\xc0")
        if at >= 0:
            size = struct.pack(">HH", *rng.choice(((65000, 65000), (9000, 9000), (64, 65), (1, 1), (0, 64))))
            jpeg[start + at + 5 : start + at + 9] = torch.frombuffer(bytearray(size), dtype=torch.uint8)
    elif how == "bytes" and end > start:
        for _ in range(rng.choice((1, 20, 500))):
            jpeg[rng.randrange(max(start, 0), end)] = rng.randrange(256)
    elif how == "ends":
        content.tensors["example_crop"] = crops = crops.clone()
        crops.view(-1)[rng.randrange(crops.numel())] = rng.choice((0, start, end - 9, len(jpeg), (start + end) // 2))
    elif how == "other":
        words = rng.choice((b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"<svg/>", b"%!PS", b"\0\0\0\0"))
        jpeg[start : start + len(words)] = torch.frombuffer(bytearray(words), dtype=torch.uint8)[
            : len(jpeg[start : start + len(words)])
        ]
    elif how == "empty":
        content.tensors["example_jpeg"] = jpeg[:0]
        content.tensors["example_crop"] = torch.zeros_like(crops)
    else:
        for _ in range(min(200, len(jpeg))):
            jpeg[rng.randrange(len(jpeg))] = rng.randrange(256)
    return how


Change = Callable[[Content, random.Random], str]
CHANGES: tuple[tuple[Change, int], ...] = (
    (_card, 4), (_group, 5), (_header, 1), (_source, 3), (_tensor, 6), (_plan, 3), (_picture, 2),
)  # fmt: skip
