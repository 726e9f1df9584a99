"""Networks of other libraries and of one's own: read exactly, by places, and back from a file alone."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from torchvision import models as torchvision_models

import toys
from protonmf_cli import ConversionOptions, NetworkWords, convert, load
from protonmf_cli.errors import InputError, NotExactError, UsageError
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.preprocessing import crop_of
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.files.networks.transformers_networks import preprocessing_as_timm
from protonmf_cli.models.readouts.readout import relative_difference
from protonmf_cli.options import Machine
from small_networks import TYPES, clip, transformers_folder


@pytest.mark.parametrize("asked", [None, False])
@pytest.mark.parametrize("task", ["multi_label_classification", "single_label_classification", None])
def test_transformers_say_whether_labels_exclude_each_other(tmp_path, task, asked):
    network = transformers_folder(tmp_path / "network", "resnet")
    network.config.problem_type = task
    network.config.save_pretrained(tmp_path / "network")
    backbone, _ = load_backbone(BackboneRequest(name=str(tmp_path / "network"), multi_label=asked))
    assert backbone.source.multi_label is (task == "multi_label_classification" and asked is None)


@pytest.mark.parametrize("kind", [kind if kind in ("vit", "dinov2", "convnext") else toys.slow(kind) for kind in TYPES])
def test_transformers_are_read_exactly_by_places(tmp_path, kind):
    network = transformers_folder(tmp_path / "network", kind)
    backbone, notes = load_backbone(BackboneRequest(name=str(tmp_path / "network")))
    assert backbone.formula_difference < 1e-12
    assert backbone.readout.kind == TYPES[kind][1]
    assert backbone.readout.spatial
    assert [name.label for name in backbone.classes] == list(toys.LABELS)
    assert backbone.source.library == "transformers"
    assert not notes
    crops = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    reading = backbone.read(crops)
    with torch.no_grad():
        expected = network(backbone.normalise(crops)).logits
    assert torch.equal(reading.logits, expected)
    assert relative_difference(backbone.readout.logits(reading.rows), expected) < 1e-5


OWN = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, found):
        return found + torch.relu(self.body(found))

class Own(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.ReLU())
        self.block = Block(width)
        self.head = nn.Linear(width, classes)
        self.pretrained_cfg = {"input_size": (3, 64, 64), "crop_pct": 1.0, "label_names": LABELS}

    def forward(self, pixels):
        return self.head(self.block(self.stem(pixels)).mean(dim=(2, 3)))

def build(width=12, classes=4):
    torch.manual_seed(1)
    return Own(width, classes)

def no_network():
    return 1

def fails():
    raise ValueError("no weights today")

class Noisy(Own):
    def forward(self, pixels):
        return super().forward(pixels) + torch.rand(1)

def noisy():
    return Noisy(12, 4)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Name of a module of one's own in the current folder."""
    (tmp_path / "mynetworks.py").write_text(OWN.replace("LABELS", repr(list(toys.LABELS))))
    monkeypatch.chdir(tmp_path)
    yield "mynetworks"
    sys.modules.pop("mynetworks", None)


def test_a_network_of_ones_own_with_a_lightning_checkpoint(own, tmp_path):
    backbone, _ = load_backbone(BackboneRequest(name=f"python:{own}:build", model_args={"width": 8}))
    trained = {
        f"model.{name.removeprefix('network.')}": 2 * each for name, each in backbone.network.state_dict().items()
    }
    torch.save({"epoch": 3, "state_dict": trained | {"loss.weight": torch.ones(4)}}, tmp_path / "last.ckpt")
    request = BackboneRequest(name=f"python:{own}:build", model_args={"width": 8}, weights=tmp_path / "last.ckpt")
    found, notes = load_backbone(request)
    assert notes == [
        f"of {tmp_path}/last.ckpt the prefix 'model.' is left out of the names, and 1 other tensors (first loss.weight)"
    ]
    assert torch.equal(found.network.state_dict()["network.head.weight"], trained["model.head.weight"])
    assert found.source.features == "block"
    assert found.readout.kind == "average"


@pytest.mark.parametrize(
    ("words", "kind", "sentence"),
    [
        ("nowhere:build", UsageError, "there is no module 'nowhere', neither installed nor in"),
        ("{own}", UsageError, "is not of the form package.module:function"),
        ("{own}:nothing", UsageError, "has no function 'nothing'. It has: Block, Own, build"),
        ("{own}:no_network", InputError, "gives int, not a torch.nn.Module"),
        ("{own}:fails", InputError, "mynetworks:fails failed: ValueError: no weights today"),
        ("{own}:noisy", InputError, "gives other logits to the same images in a second pass"),
    ],
)
def test_what_is_no_network_of_ones_own(own, words, kind, sentence):
    with pytest.raises(kind, match=sentence.replace("(", r"\(")):
        load_backbone(BackboneRequest(name="python:" + words.format(own=own)))


def test_a_checkpoint_of_another_network_is_refused_by_what_does_not_fit(own, tmp_path):
    torch.save({"state_dict": {"model.stem.0.weight": torch.ones(3)}}, tmp_path / "other.ckpt")
    with pytest.raises(
        InputError,
        match=r"other.ckpt \(without the prefix 'model.' of its names\) does not fit mynetworks:build: Missing key.*and 1 more",
    ):
        load_backbone(BackboneRequest(name=f"python:{own}:build", weights=tmp_path / "other.ckpt"))


def test_features_are_those_of_the_module_that_is_named(own):
    request = BackboneRequest(name=f"python:{own}:build", features="block.body")
    with pytest.raises(NotExactError, match="the rest of .* cannot be run from the output of 'block.body' alone"):
        load_backbone(request)
    with pytest.raises(InputError, match="has no module 'stage.block', which features names. There is block"):
        load_backbone(replace(request, features="stage.block"))
    with pytest.raises(NotExactError, match="could not be written as a sum over rows with rows cls"):
        load_backbone(replace(request, features="stem", rows="cls"))
    assert load_backbone(replace(request, features="block"))[0].source.features == "block"


def test_the_head_alone_runs_again(own):
    backbone, _ = load_backbone(BackboneRequest(name=f"python:{own}:build"))
    network, ran = backbone.network, []
    features = network.forward_features(torch.rand(3, 3, 64, 64))
    network.network.stem[0].register_forward_hook(lambda *_: ran.append("stem"))
    network.network.head.register_forward_hook(lambda *_: ran.append("head"))
    some = torch.rand(5, *features.shape[1:])
    with torch.no_grad():
        assert torch.allclose(network.forward_head(some), network.network.head(some.mean(dim=(2, 3))))
    assert ran == ["head", "head"]
    assert torch.equal(network(torch.ones(1, 3, 64, 64)), network.network(torch.ones(1, 3, 64, 64)))
    assert ran[2:] == ["stem", "head"] * 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mobilenet_v3_small", "gated"),
        *(
            toys.slow(*each)
            for each in (
                ("resnet18", "average"),
                ("vit_b_32", "token-writes"),
                ("swin_t", "average"),
                ("densenet121", "gated"),
            )
        ),
    ],
)
def test_torchvision_is_read_exactly_by_places(name, kind):
    backbone, _ = load_backbone(BackboneRequest(name=f"torchvision:{name}", pretrained=False))
    assert backbone.formula_difference < 1e-12
    assert (backbone.readout.kind, backbone.readout.spatial) == (kind, True)
    assert backbone.classes[130].label == "n02007558"
    assert backbone.preprocessing.mean == (0.485, 0.456, 0.406)
    with torch.no_grad():
        pixels = torch.rand(2, *backbone.preprocessing.input_size)
        assert torch.equal(backbone.network(pixels), backbone.network.network(pixels))


@pytest.fixture
def tiny_clip(tmp_path):
    """Name of a CLIP small enough for a test, known to open_clip."""
    return clip(tmp_path)


def test_clip_is_a_classifier_of_the_classes_in_a_list(tiny_clip, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(toys.LABELS))
    torch.manual_seed(3)
    model = open_clip.create_model("tiny-clip").eval()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    request = BackboneRequest(name=tiny_clip, weights=tmp_path / "clip.pt", labels=tmp_path / "labels.txt",
                              model_args={"sentence": "a photo of {}."})  # fmt: skip
    backbone, notes = load_backbone(request)
    assert notes == ["the classes are named in 1 sentences (a photo of red things. ...)"]
    assert (backbone.readout.kind, backbone.readout.grid) == ("token-writes, normed", (4, 4))
    assert backbone.formula_difference < 1e-12
    crops = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    texts = open_clip.get_tokenizer("tiny-clip")([f"a photo of {label}." for label in toys.LABELS])
    with torch.no_grad():
        expected, _ = model.get_logits(backbone.normalise(crops), texts)
    reading = backbone.read(crops)
    assert relative_difference(reading.logits, expected) < 1e-5
    assert relative_difference(backbone.readout.logits(reading.rows), expected) < 1e-5


def test_a_list_of_classes_is_needed_for_clip(tiny_clip):
    with pytest.raises(UsageError, match="has no classes of its own: give labels FILE"):
        load_backbone(BackboneRequest(name=tiny_clip, pretrained=False))


@pytest.mark.parametrize("library", ["transformers", "torchvision", "python", "open_clip"])
def test_from_conversion_to_explanation_without_what_it_was_made_from(library, toy, tmp_path, own, tiny_clip):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(toys.LABELS))
    if library == "transformers":
        transformers_folder(tmp_path / "network", "vit")
        words = NetworkWords(name=str(tmp_path / "network"))
    elif library == "torchvision":
        torch.manual_seed(0)
        network = toys.randomised(torchvision_models.squeezenet1_1(num_classes=4))
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        words = NetworkWords(name="torchvision:squeezenet1_1", weights=tmp_path / "weights.pth", num_classes=4,
                             labels=labels, img_size=64)  # fmt: skip
    elif library == "python":
        words = NetworkWords(name=f"python:{own}:build")
    else:
        words = NetworkWords(name=tiny_clip, pretrained=False, labels=labels)
    options = ConversionOptions(prototypes=2, near=1, stability=False)
    made = convert(words, toy.data, options, output=tmp_path / "model.safetensors")
    assert made.figures.agreement == 1.0
    shutil.rmtree(tmp_path / "network", ignore_errors=True)
    machine = Machine(network=f"{own}:build") if library == "python" else Machine()
    again = load(tmp_path / "model.safetensors", machine=machine).explain(toy.image(1))
    first = made.loaded.explain(toy.image(1))
    assert again.logit == pytest.approx(first.logit, rel=1e-5)
    assert abs(again.ledger_error) < 1e-4
    if library == "python":
        with pytest.raises(InputError, match=f"If you trust that code, give network {own}:build"):
            load(tmp_path / "model.safetensors")


def test_a_folder_of_timm_is_named_by_its_own_prefix(toy):
    with pytest.raises(InputError, match=rf"is a network of timm, in its format: name it local-dir:{toy.network}\.$"):
        load_backbone(BackboneRequest(name=f"hf:{toy.network}"))


def test_what_transformers_has_that_is_no_classifier_of_images(tmp_path):
    config = transformers.AutoConfig.for_model("bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(tmp_path / "bert")
    with pytest.raises(NotExactError, match="is of type bert, which does not classify images"):
        load_backbone(BackboneRequest(name=f"hf:{tmp_path}/bert"))
    network = transformers_folder(tmp_path / "segments", "vit")
    config = json.loads((tmp_path / "segments" / "config.json").read_text())
    config["architectures"] = ["ViTForMaskedImageModeling"]
    (tmp_path / "segments" / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotExactError, match="is ViTForMaskedImageModeling, a model of another task"):
        load_backbone(BackboneRequest(name=f"hf:{tmp_path}/segments"))
    network.vit.config.architectures = ["ViTModel"]
    network.vit.save_pretrained(tmp_path / "headless")
    with pytest.raises(
        NotExactError, match="has no weights for classifier.bias and 1 more, so its classifier would be"
    ):
        load_backbone(BackboneRequest(name=f"hf:{tmp_path}/headless"))
    remote = {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.M"},
    }
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "config.json").write_text(json.dumps(remote))
    (tmp_path / "remote" / "code.py").write_text("raise SystemExit('owned')")
    with pytest.raises(InputError, match="runs code of its author, which is never done"):
        load_backbone(BackboneRequest(name=f"hf:{tmp_path}/remote"))
    with pytest.raises(InputError, match="not on this machine and cannot be downloaded"):
        load_backbone(BackboneRequest(name="hf:nobody/nothing", offline=True))


@pytest.mark.parametrize(
    "processor",
    [
        transformers.ViTImageProcessor(size={"height": 64, "width": 48}, image_mean=[0.4, 0.5, 0.6]),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
        transformers.MobileNetV2ImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}),
        transformers.DeiTImageProcessor(size={"height": 80, "width": 80}, crop_size={"height": 64, "width": 64}),
        transformers.EfficientNetImageProcessor(size={"height": 64, "width": 64}, do_rescale=True),
        transformers.MobileViTImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}),
    ],
    ids=lambda each: type(each).__name__,
)
def test_images_are_seen_as_by_the_image_processor(processor):
    from protonmf_cli.models.backbone import Backbone, Preprocessing

    config = preprocessing_as_timm(processor.to_dict(), 3, "it")
    seen = Preprocessing(**{key: config[key] for key in Preprocessing.__dataclass_fields__ if key in config})
    smooth = np.linspace(0, 255, 100 * 140 * 3).reshape(100, 140, 3)
    smooth[30:60, 40:90] = (250, 20, 90)
    picture = Image.fromarray(smooth.astype(np.uint8))
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    crop = crop_of(seen)(picture)
    backbone = Backbone(
        network=nn.Linear(1, 1), readout=None, rows_option="auto", preprocessing=seen, classes=(), source=None
    )
    found = backbone.normalise(crop[None])
    found = found.flip(1) if config["reversed_channels"] else found
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.02 * expected.std()


def test_torchvision_names_what_is_close():
    with pytest.raises(UsageError, match="torchvision has no classifier called 'resnet51'. Did you mean resnet"):
        load_backbone(BackboneRequest(name="torchvision:resnet51"))
    with pytest.raises(UsageError, match="torchvision has no weights 'V9' for resnet18. It has: IMAGENET1K_V1"):
        load_backbone(BackboneRequest(name="torchvision:resnet18:V9"))


@pytest.mark.slow
def test_the_same_weights_give_the_same_rows_as_in_timm_torchvision(shared, tmp_path):
    folder = shared / "models" / "resnet18.caltech24"
    of_timm, _ = load_backbone(BackboneRequest(name=f"local-dir:{folder}"))
    request = BackboneRequest(
        name="torchvision:resnet18", weights=folder / "model.safetensors", model_args={"num_classes": 24}
    )
    found, _ = load_backbone(request)
    _same_rows(of_timm, found)


@pytest.mark.slow
def test_the_same_weights_give_the_same_rows_as_in_timm_transformers(shared, tmp_path):
    folder = shared / "models" / "deit_tiny_patch16_224.imagenet"
    of_timm, _ = load_backbone(BackboneRequest(name=f"local-dir:{folder}"))
    weights = of_timm.network.state_dict()
    config = transformers.AutoConfig.for_model(
        "vit", hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000, layer_norm_eps=1e-6
    )
    config.architectures = []
    network = transformers.AutoModelForImageClassification.from_config(config)
    network.load_state_dict(_in_words_of_transformers(weights))
    network.save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    found, _ = load_backbone(BackboneRequest(name=str(tmp_path)))
    assert found.readout.unplaced == of_timm.readout.unplaced
    _same_rows(of_timm, found)


def _same_rows(of_timm, found):
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = (each.readout.read(each.network, pixels) for each in (of_timm, found))
    assert relative_difference(second.logits, first.logits) < 1e-5
    assert relative_difference(second.rows, first.rows) < 1e-4
    assert torch.allclose(found.readout.vectors, of_timm.readout.vectors, atol=1e-6)
    assert (
        found.readout.grid
        == of_timm.readout.grid
        == (
            round(found.readout.places**0.5),
            round(found.readout.places**0.5),
        )
    )


def _in_words_of_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ViT's weights by timm's names, by those of transformers."""
    names = {
        "cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm", "head": "classifier",
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    found = {}
    for name, each in weights.items():
        block = name.split(".")[1] if name.startswith("blocks.") else None
        rest = name.split(".", 2)[2] if block else name
        stem, dot, end = rest.rpartition(".") if rest.endswith(("weight", "bias")) else (rest, "", "")
        front = f"vit.layers.{block}." if block else ""
        if stem == "attn.qkv":
            parts = zip(("q_proj", "k_proj", "v_proj"), each.chunk(3), strict=True)
            found |= {f"{front}attention.{key}.{end}": part for key, part in parts}
        else:
            found[front + names[stem] + dot + end] = each
    return found


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [("transformers", "hf:a/b", "transformers"), ("open_clip", "open_clip:RN50:openai", "open_clip")],
)
def test_a_library_that_is_not_installed_is_named(monkeypatch, module, name, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'protonmf\[{extra}\]'"):
        load_backbone(BackboneRequest(name=name))


def test_an_edited_head_goes_back_to_its_library(toy, tmp_path):
    transformers_folder(tmp_path / "network", "vit")
    options = ConversionOptions(prototypes=2, near=1, stability=False)
    made = convert(str(tmp_path / "network"), toy.data, options, output=tmp_path / "model.safetensors")
    edited = made.loaded.scale(toys.LABELS[0], {1: 0.0})
    edited.save(tmp_path / "edited.safetensors")
    code, out, err = toys.run("export", tmp_path / "edited.safetensors", "-o", tmp_path / "out")
    assert code == 0, err
    assert f"transformers.AutoModelForImageClassification.from_pretrained('{tmp_path}/out') gives these logits" in out
    network = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    crop = made.loaded.crop(toy.image(0))[None]
    with torch.no_grad():
        found = network(made.loaded.backbone.normalise(crop)).logits[0]
    for c, label in enumerate(toys.LABELS):
        assert float(found[c]) == pytest.approx(edited.explain(toy.image(0), label).logit, abs=1e-4)
    assert abs(float(found[0]) - made.loaded.explain(toy.image(0), toys.LABELS[0]).logit) > 1e-3
