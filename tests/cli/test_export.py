"""An edited head back in an ordinary timm checkpoint: timm alone gives the edited model's logits."""

import json
from dataclasses import replace

import pytest
import timm
import torch

import protonmf_cli
import toys
from protonmf_cli.errors import NotExactError
from protonmf_cli.models.backbone import Backbone, Source, probe_readout
from protonmf_cli.models.readouts.head_writing import write_head
from protonmf_cli.models.response import parts_of_rows
from toys import run, slow

MODELS = ["deit_tiny_patch16_224.imagenet", "resnet18.caltech24", "tf_mobilenetv3_large_minimal_100.imagenet"]


def timm_logits(folder, loaded, image):
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return network(loaded.backbone.normalise(loaded.crop(image)[None]))[0]


def edited_logits(loaded, image):
    rows = loaded.backbone.read(loaded.crop(image)[None]).rows.double()
    return parts_of_rows(loaded.model.exact, rows).logits[0].float()


def test_timm_alone_gives_the_edited_logits(toy, converted, tmp_path):
    edited = tmp_path / "edited.safetensors"
    words = ("--class", "red things", "--model", converted)
    code, _, err = run("intervene", toy.image(0), "--zero", "2", "--scale", "1=-3", *words, "-o", edited)
    assert code == 0, err
    code, out, err = run("export", edited, "-o", tmp_path / "net", "--json")
    assert code == 0, err
    assert json.loads(out)["edits"] == 2
    loaded = protonmf_cli.load(edited)
    for c in range(4):
        found, expected = timm_logits(tmp_path / "net", loaded, toy.image(c)), edited_logits(loaded, toy.image(c))
        assert torch.allclose(found, expected, atol=1e-4)
    original = protonmf_cli.load(converted)
    assert not torch.allclose(found, original.backbone.read(original.crop(toy.image(3))[None]).logits[0], atol=1e-2)
    code, out, err = run(
        "convert", f"local-dir:{tmp_path / 'net'}", "--data", toy.data, "-o", tmp_path / "again.st", "-p", 2
    )
    assert code == 0, err


@pytest.mark.parametrize("where", [(), ("--everywhere",)])
@pytest.mark.parametrize("kind", ["converted", "vit"])
def test_timm_alone_gives_the_edited_logits_with_the_bias_that_an_edit_leaves(request, toy, tmp_path, kind, where):
    """What rows without a place add on average stays, so an edit changes the bias too."""
    model, edited = request.getfixturevalue(kind), tmp_path / "edited.safetensors"
    words = ("--class", "red things", "--zero", 1, "--model", model, "-o", edited)
    code, _, err = run("intervene", toy.image(0), *words, *where)
    assert code == 0, err
    loaded, original = protonmf_cli.load(edited), protonmf_cli.load(model)
    moved = (loaded.model.bias - original.model.bias).abs()
    assert (float(moved.max()) > 1e-3) == (kind == "vit")
    assert (int((moved > 1e-3).sum()) > 1) == (kind == "vit" and bool(where))
    code, out, err = run("export", edited, "-o", tmp_path / "net", "--json")
    assert code == 0, err
    for c in range(4):
        found, expected = timm_logits(tmp_path / "net", loaded, toy.image(c)), edited_logits(loaded, toy.image(c))
        assert torch.allclose(found, expected, atol=1e-4)


def test_an_unedited_model_is_the_same_network(toy, converted, tmp_path):
    assert run("export", converted, "-o", tmp_path / "net")[0] == 0
    loaded = protonmf_cli.load(converted)
    logits = loaded.backbone.read(loaded.crop(toy.image(1))[None]).logits[0]
    assert torch.allclose(timm_logits(tmp_path / "net", loaded, toy.image(1)), logits, atol=1e-5)


def test_refusals(converted, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    code, out, err = run("export", converted, "-o", tmp_path / "full")
    assert (code, out) == (3, "")
    assert "is not empty. Give --force" in err
    assert (tmp_path / "full" / "config.json").read_text() == "mine"
    code, _, err = run("export", converted, "-o", converted)
    assert code == 2 and "which this command reads; give another name" in err


@pytest.mark.parametrize("name", [MODELS[0], *map(slow, MODELS[1:])])
def test_trained_heads_take_an_edit(shared, name):
    from protonmf_cli.files.networks.backbones import load_backbone
    from protonmf_cli.files.networks.request import BackboneRequest

    backbone, _ = load_backbone(BackboneRequest(name=f"local-dir:{shared / 'models' / name}"))
    vectors = backbone.readout.vectors.double()
    change = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change[3:] = 0
    if backbone.readout.kind == "token-writes":
        assert backbone.readout.stream.final.norm.centred
    assert write_head(backbone, vectors + 0.1 * change, backbone.readout.bias.double() + change[:, 0]) < 1e-7


def test_a_head_of_two_classifiers_cannot_be_written():
    network = toys.randomised(timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1))
    size = (3, 32, 32)
    readout, difference = probe_readout(network, size, "cls", "distilled")
    backbone = Backbone(
        network=network,
        readout=readout,
        rows_option="cls",
        preprocessing=replace(toys.PREPROCESSING, input_size=size),
        classes=(),
        source=Source(name="distilled", architecture="deit_tiny_distilled_patch16_224"),
        formula_difference=difference,
    )
    with pytest.raises(NotExactError, match="not one layer"):
        write_head(backbone, backbone.readout.vectors.double(), backbone.readout.bias.double())
