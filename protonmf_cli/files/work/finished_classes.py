"""Finished classes of a conversion on disk: what makes it resumable."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from protonmf_cli.files.work.folder import WorkFolder
from protonmf_cli.files.work.per_class import ClassFiles
from protonmf_cli.models.class_part import ClassPart, PartExamples
from protonmf_cli.models.image_batches import ImageSource, Skipped


class Shards(WorkFolder, ClassFiles[ClassPart]):
    """class -> finished part, one file each, in the conversion's work folder."""

    job = "conversion"
    key = "part"

    def unpack(self, class_index: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> ClassPart:
        ends = tensors["ends"].tolist()
        jpeg = bytes(tensors["jpeg"].numpy())
        return ClassPart(
            class_index=class_index,
            prototypes=tensors["prototypes"],
            pooled=tensors["pooled"],
            predicted=tensors["predicted"],
            sample=tensors["sample"],
            stability=tensors["stability"],
            examples=PartExamples(
                score=tensors["score"],
                box=tensors["box"],
                map=tensors["map"],
                image=tensors["image"],
                crops=tuple(jpeg[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True) if ends),
                sources=tuple(ImageSource(**source) for source in facts["sources"]),
            ),
            images=tuple(ImageSource(**source) for source in facts["images"]),
            skipped=tuple(Skipped(**skip) for skip in facts["skipped"]),
            figures=facts["figures"],
        )

    def pack(self, item: ClassPart) -> tuple[dict[str, Tensor], dict[str, Any]]:
        examples = item.examples
        tensors = {
            "prototypes": item.prototypes,
            "pooled": item.pooled,
            "predicted": item.predicted,
            "sample": item.sample,
            "stability": item.stability,
            "score": examples.score,
            "box": examples.box,
            "map": examples.map,
            "image": examples.image,
            "jpeg": torch.frombuffer(bytearray(b"".join(examples.crops) or b"\0"), dtype=torch.uint8),
            "ends": torch.tensor([len(jpeg) for jpeg in examples.crops], dtype=torch.int64).cumsum(0),
        }
        facts = {
            "images": [asdict(source) for source in item.images],
            "sources": [asdict(source) for source in examples.sources],
            "skipped": [asdict(skip) for skip in item.skipped],
            "figures": item.figures,
        }
        return {name: tensor.clone() for name, tensor in tensors.items()}, facts
