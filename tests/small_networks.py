"""Networks of other libraries that are small enough for a test."""

import json
from pathlib import Path

import torch

import toys

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 64}
TYPES = {
    "vit": (SMALL | {"patch_size": 16}, "token-writes"),
    "deit": (SMALL | {"patch_size": 16}, "token-writes"),
    "beit": (SMALL | {"patch_size": 16}, "scaled"),
    "dinov2": (SMALL | {"patch_size": 16, "mlp_ratio": 2}, "token-writes and mean"),
    "dinov2_with_registers": (SMALL | {"patch_size": 16, "mlp_ratio": 2}, "token-writes and mean"),
    "convnext": ({"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}, "scaled"),
    "resnet": (
        {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"},
        "average",
    ),
}
"""Arguments of small ones, and how their heads are read."""


def transformers_folder(folder: Path, kind: str, seed: int = 0) -> torch.nn.Module:
    """A small classifier with drawn weights and four named classes, as its library saves it."""
    import transformers

    arguments, _ = TYPES[kind]
    config = transformers.AutoConfig.for_model(
        kind, **arguments, id2label=dict(enumerate(toys.LABELS)), label2id={n: i for i, n in enumerate(toys.LABELS)}
    )
    config.architectures = []
    torch.manual_seed(seed)
    network = toys.randomised(transformers.AutoModelForImageClassification.from_config(config))
    network.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.4, 0.5, 0.6])
    processor.save_pretrained(folder)
    return network


def clip(folder: Path) -> str:
    """Name of a CLIP that open_clip knows from then on, in this process."""
    import open_clip

    tower = {"layers": 2, "width": 32, "patch_size": 16, "image_size": 64, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / "tiny-clip.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": tower, "text_cfg": text}))
    open_clip.add_model_config(folder / "tiny-clip.json")
    return "open_clip:tiny-clip"


def clip_folder(folder: Path) -> Path:
    """The same with drawn weights, in a folder as open_clip keeps models."""
    import open_clip

    folder.mkdir(exist_ok=True)
    clip(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(open_clip.create_model("tiny-clip").state_dict(), folder / "open_clip_pytorch_model.bin")
    seen = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"model_cfg": json.loads((folder / "tiny-clip.json").read_text()), "preprocess_cfg": seen}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
