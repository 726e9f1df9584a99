import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch

import toys
from protonmf_cli.errors import InputError, ModelFileError, UsageError
from protonmf_cli.files.networks import backbones
from protonmf_cli.files.networks.backbones import load_backbone, restore_backbone
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.files.networks.timm_networks import complete_name
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.models.readouts.stored import PLAN


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("vit_base_patch32", "vit_base_patch32_224"),
        ("resnet18", "resnet18"),
        ("resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf-hub:someone/something", "hf-hub:someone/something"),
    ],
)
def test_names(name, full):
    found, notes = complete_name(name)
    assert found == full
    assert notes == ([] if name == full else [f"{name} is taken as {full}"])


def test_a_folder_needs_no_prefix(toy):
    assert complete_name(str(toy.network))[0] == toy.name


def test_unknown_name_names_the_nearest():
    with pytest.raises(UsageError, match=r"no model called 'resnet51'. Did you mean .*resnet50"):
        complete_name("resnet51")


def test_labels_of_imagenet_where_the_checkpoint_has_none(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    backbone, _ = load_backbone(BackboneRequest(name="test_resnet", weights=tmp_path / "w.safetensors"))
    assert len(backbone.classes) == 1000
    assert backbone.classes[130].label == "n02007558"
    assert backbone.classes[130].shown == "flamingo"


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
def test_a_pickled_checkpoint_is_read_as_tensors_only(toy, tmp_path, wrap):
    state = safetensors.torch.load_file(toy.network / "model.safetensors")
    torch.save(wrap(state), tmp_path / "w.pth")
    request = BackboneRequest(
        name="test_resnet", weights=tmp_path / "w.pth", model_args={"num_classes": 4, "output_stride": 16}
    )
    backbone, _ = load_backbone(request)
    whole, _ = load_backbone(BackboneRequest(name=toy.name))
    assert backbone.source.digest == whole.source.digest


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(
        InputError, match="evil.pth is a pickle of more than tensors, which is not read. Save its state dict"
    ):
        load_backbone(BackboneRequest(name="test_resnet", weights=tmp_path / "evil.pth"))
    assert not (tmp_path / "owned").exists()


def test_image_size_and_arguments_come_back_from_the_file(toy, tmp_path):
    target = toys.convert(toy, tmp_path / "m.safetensors", "--img-size", 96)
    model, weights = load_model(target)
    backbone = restore_backbone(model, weights, True)
    assert backbone.preprocessing.input_size == (3, 96, 96)
    assert backbone.readout.grid == (6, 6)
    assert model.card.source.model_args["output_stride"] == 16


@pytest.fixture
def sized(tmp_path) -> str:
    """A transformer for 96 pixels whose folder, like many, says so nowhere but in the size of its images."""
    torch.manual_seed(0)
    network = toys.randomised(timm.create_model("test_vit", num_classes=4, img_size=96))
    folder = tmp_path / "sized"
    folder.mkdir()
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    config = {"architecture": "test_vit", "num_classes": 4, "label_names": list(toys.LABELS)}
    config["pretrained_cfg"] = {"input_size": [3, 96, 96], "num_classes": 4, "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


@pytest.mark.parametrize("more", [(), ("--img-size", "64"), ("--model-arg", "img_size=64")])
def test_a_file_opens_again_when_only_the_weights_tell_the_size_of_the_network(toy, sized, more, tmp_path):
    target = tmp_path / "m.safetensors"
    code, _, err = toys.run("convert", sized, "--data", toy.data, "-o", target, "-p", 2, "--near", 0, "-q", *more)
    assert code == 0, err
    model, weights = load_model(target)
    side = 64 if more else 96
    assert model.card.preprocessing.input_size == (3, side, side)
    code, out, err = toys.run("explain", toy.image(0), "--model", target, "--json")
    assert code == 0, err
    assert abs(json.loads(out)["ledger_error"]) < 1e-4


def test_a_network_that_cannot_be_built_again_is_refused_before_anything_is_written(monkeypatch):
    build = timm.create_model
    torch.manual_seed(0)
    network = build("test_vit", num_classes=4)
    request = BackboneRequest(name="test_vit", pretrained=False)
    networks = iter([network])
    monkeypatch.setattr(timm, "create_model", lambda name, **a: next(networks, None) or build(name, embed_dim=32, **a))
    with pytest.raises(InputError, match="test_vit cannot be built again: test_vit with .* has other weights"):
        load_backbone(request)


def test_a_file_cannot_make_timm_load_something_else(toy, tmp_path):
    model, weights = load_model(toys.convert(toy, tmp_path / "m.safetensors"))
    source = replace(model.card.source, model_args={**model.card.source.model_args, "checkpoint_path": "w.pth"})
    with pytest.raises(InputError, match="wants 'checkpoint_path', which says how to load one"):
        restore_backbone(replace(model, card=replace(model.card, source=source)), weights, True)


def test_weights_that_would_not_be_found_again_are_kept(toy, tmp_path):
    target, weights = tmp_path / "m.safetensors", toy.network / "model.safetensors"
    words = ["convert", "test_resnet", "--weights", weights, "--data", toy.data, "-o", target, "--no-embed-backbone"]
    code, _, err = toys.run(*words, "--num-classes", 4)
    assert code == 2
    assert "the file of --weights is not found again. Leave one of the two out" in err
    assert not target.exists()


def test_a_figure_that_is_no_number_is_not_written(converted, tmp_path):
    model, weights = load_model(converted)
    broken = replace(
        model, card=replace(model.card, measured=replace(model.card.measured, residual_share=float("nan")))
    )
    with pytest.raises(InputError, match="was not written: a figure of it is no finite number"):
        save_model(tmp_path / "m.safetensors", broken, weights)
    assert not list(tmp_path.iterdir())


def test_another_networks_weights_are_refused(toy, tmp_path):
    target = toys.convert(toy, tmp_path / "m.safetensors", "--no-embed-backbone")
    model, weights = load_model(target)
    assert weights is None
    assert restore_backbone(model, None, True).readout.kind == "average"
    moved = tmp_path / "network"
    state = safetensors.torch.load_file(toy.network / "model.safetensors")
    state["fc.bias"] += 1
    moved.mkdir()
    (moved / "config.json").write_bytes((toy.network / "config.json").read_bytes())
    safetensors.torch.save_file(state, moved / "model.safetensors")
    other = replace(model, card=replace(model.card, source=replace(model.card.source, name=f"local-dir:{moved}")))
    with pytest.raises(InputError, match="Give the checkpoint it was converted from"):
        restore_backbone(other, None, True)


def test_a_file_keeps_its_readout_when_a_better_one_is_known_now(toy, tmp_path):
    from protonmf_cli.jobs.loaded import load

    old = toys.convert(toy, tmp_path / "old.safetensors", "--rows", "image")
    model, weights = load_model(old)
    assert model.card.readout.kind == "image-row"
    automatic = replace(model.card, readout=replace(model.card.readout, rows="auto"))
    save_model(tmp_path / "auto.safetensors", replace(model, card=automatic), weights)
    explanation = load(tmp_path / "auto.safetensors").explain(toy.image(0))
    assert explanation.ledger_error < 1e-4 and explanation.residual_map is None


def with_plan(weights, change):
    """Weights of a file whose plan of the readout is changed."""
    plan = json.loads(bytes(weights[PLAN].numpy()))
    changed = json.dumps(change(plan) or plan).encode()
    return weights | {PLAN: torch.frombuffer(bytearray(changed), dtype=torch.uint8)}


@pytest.fixture
def unprobed(monkeypatch):
    """Nothing can be proved by running a network in float64."""

    def probed(*_, **__):
        raise AssertionError("the readout was probed")

    monkeypatch.setattr(backbones, "probe_readout", probed)


def test_a_readout_that_was_proved_at_writing_is_not_proved_again(converted, unprobed):
    model, weights = load_model(converted)
    backbone = restore_backbone(model, weights, True)
    assert backbone.formula_difference == model.card.readout.formula_difference
    again = backbone.weights()
    assert set(again) == set(weights) and all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    "older",
    [
        lambda weights: {name: tensor for name, tensor in weights.items() if not name.startswith("readout.")},
        lambda weights: with_plan(weights, lambda plan: plan["versions"].update(timm="1.0.20")),
    ],
)
def test_a_readout_is_proved_anew_where_the_file_has_none_or_another_version_proved_it(converted, older, request):
    model, weights = load_model(converted)
    kept = restore_backbone(model, weights, True).readout
    found = restore_backbone(model, older(weights), True).readout
    assert (found.kind, found.grid) == (kept.kind, kept.grid)
    assert torch.allclose(found.vectors, kept.vectors)
    request.getfixturevalue("unprobed")
    with pytest.raises(AssertionError, match="the readout was probed"):
        restore_backbone(model, older(weights), True)


@pytest.mark.parametrize(
    "broken",
    [
        lambda plan: plan.pop("versions") and None,
        lambda plan: plan["readout"].update(part="os.system"),
        lambda plan: plan["readout"]["with"].update(vectors={"weight": "fc.wait", "shape": [4, 256]}),
        lambda plan: plan.update(readout={"part": "Layout", "with": {"shape": [1], "channel_axis": 1}}),
    ],
)
def test_what_is_no_readout_is_refused(converted, broken):
    model, weights = load_model(converted)
    with pytest.raises(ModelFileError, match="does not say how its network is read"):
        restore_backbone(model, with_plan(weights, broken), True)


def test_parts_that_do_not_add_up_to_the_network_s_logit_are_not_shown(converted, toy, tmp_path):
    model, weights = load_model(converted)
    target = tmp_path / "m.safetensors"
    save_model(target, model, weights | {"backbone.fc.bias": weights["backbone.fc.bias"] + 1})
    code, out, err = toys.run("explain", toy.image(0), "--model", target)
    assert (code, out) == (4, "")
    assert "differ by 1.0e+00 from the logit, which no rounding explains" in " ".join(err.split())


@pytest.mark.parametrize("name", ["test_vit_relpos", "test_resnet"])
def test_a_network_is_built_from_the_weights_of_its_file_alone(name):
    """Also where it holds what no file does: indices of relative positions."""
    torch.manual_seed(0)
    backbone, _ = load_backbone(BackboneRequest(name=name, pretrained=False, model_args={"num_classes": 4}))
    weights = backbone.network.state_dict()
    unstored = set(dict(backbone.network.named_buffers())) - set(weights)
    assert bool(unstored) == (name == "test_vit_relpos")
    found = backbones._network_of(
        SimpleNamespace(source=backbone.source, classes=backbone.classes), weights, None, None
    )
    pixels = torch.randn(1, *backbone.preprocessing.input_size)
    with torch.no_grad():
        assert torch.equal(found(pixels), backbone.network(pixels))


@pytest.mark.parametrize(("size", "threads", "at_once"), [(224, 1, 6), (64, 1, 74), (448, 1, 2), (448, 3, 3)])
def test_a_cpu_takes_few_images_at_a_time_and_reads_the_same(toy, monkeypatch, size, threads, at_once):
    backbone, _ = load_backbone(BackboneRequest(name=toy.name))
    channels, height, width = backbone.preprocessing.input_size
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    sized = replace(backbone, preprocessing=replace(backbone.preprocessing, input_size=(channels, size, size)))
    assert sized.at_once == at_once
    crops = torch.randint(0, 256, (5, channels, height, width), dtype=torch.uint8)
    whole, normalise, passes = backbone.read(crops), type(backbone).normalise, []
    assert len(crops) < backbone.at_once  # in one pass

    def noted(self, some):
        passes.append(len(some))
        return normalise(self, some)

    monkeypatch.setattr(type(backbone), "at_once", 2)
    monkeypatch.setattr(type(backbone), "normalise", noted)
    parts = backbone.read(crops)
    assert passes == [2, 2, 1]
    assert torch.allclose(parts.rows, whole.rows, atol=1e-5) and torch.allclose(parts.logits, whole.logits, atol=1e-5)


def test_pixels_lie_together_on_cpus_only(toy):
    """cuDNN takes seconds for each new number of images whose channels lie together."""
    backbone, _ = load_backbone(BackboneRequest(name=toy.name))
    here = backbone.to(torch.device("cpu"), torch.float32)
    assert here.memory_format == torch.channels_last
    assert here.to(torch.device("meta"), torch.float32).memory_format == torch.contiguous_format
