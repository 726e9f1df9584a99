"""A model file that is damaged, or made to do harm, is refused in one sentence, whatever it says."""

import json
import math
import re
import socket
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from file_mutants import ADDRESS, DEEP, Content
from file_seeds import KINDS as ALL
from file_seeds import made
from file_trials import Trial, trials, tried

from protonmf_cli.files.store import KEY, load_model
from toys import run, slow

FEW, MANY = 6, 40
"""Mutants of each file in the fast and in the slow run; `file_trials.py` tries any number of one."""


@pytest.fixture(scope="module")
def files(toy, tmp_path_factory):
    """Makes and keeps a model file of each kind, without fault."""
    folder = tmp_path_factory.mktemp("files")
    return lambda kind: made(kind, toy, folder)


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


QUICK = ("amounts", "protopnet", "fewshot")
KINDS = (*QUICK, *map(slow, sorted(set(ALL) - {*QUICK})))


def said_of(found: list[Trial]) -> str:
    return "\n".join(f"seed {each.seed}: {each.failure} after {each.changes}" for each in found)


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_refused_or_answered(files, toy, kind):
    path = files(kind)
    assert not load_fault(path, toy.image()), "without a change there is no fault"
    found = trials(path, toy, list(range(FEW)))
    assert len(found) == FEW
    assert not any(each.failure for each in found), said_of([each for each in found if each.failure])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_many_mutants_are_refused_or_answered(files, toy, kind):
    found = trials(files(kind), toy, list(range(FEW, FEW + MANY)))
    failures = [each for each in found if each.failure]
    assert not failures, said_of(failures)
    assert {each.code for each in found} >= {0, 3}, "some are still models, and others are none"


def load_fault(path: Path, image: Path) -> str:
    return tried(["explain", image, "--model", path, "--offline", "--json"], [])[0]


def changed(path: Path, target: Path, change) -> Path:
    """The file after a change of its parts, under a right checksum."""
    content = Content.of(path)
    change(content)
    content.write(target)
    return target


def card_with(*way, value):
    """A change of one value on the card; KeyError as a value takes it away."""

    def change(content):
        inside = content.header["card"]
        for key in way[:-1]:
            inside = inside[key]
        if value is KeyError:
            del inside[way[-1]]
        else:
            inside[way[-1]] = value

    return change


def tensor_with(name, change):
    return lambda content: content.tensors.update({name: change(content.tensors[name].clone())})


def first_is(number):
    def change(tensor):
        tensor.view(-1)[0] = number
        return tensor

    return change


def of_size(height, width):
    """The first picture says that it is as large."""

    def change(content):
        jpeg = content.tensors["example_jpeg"].clone()
        at = bytes(jpeg.numpy()).index(b"\xff\xc0") + 5
        jpeg[at : at + 4] = torch.frombuffer(bytearray(struct.pack(">HH", height, width)), dtype=torch.uint8)
        content.tensors["example_jpeg"] = jpeg

    return change


def planned(**more):
    """A change of how the network is read."""

    def change(content):
        plan = json.loads(bytes(content.tensors["readout.plan"].numpy()))
        plan["readout"]["with"] |= more
        content.tensors["readout.plan"] = torch.frombuffer(bytearray(json.dumps(plan).encode()), dtype=torch.uint8)

    return change


WEIGHT, LAST = "backbone.conv1.0.weight", "backbone.layer4.0.bn2.weight"
FAULTS = {
    "no number on the card": ("amounts", card_with("measured", "agreement", value=math.nan), "NaN, which is no finite"),
    "no finite number": ("amounts", card_with("preprocessing", "crop_pct", value=math.inf), "Infinity, which is no"),
    "a number beyond all": ("amounts", card_with("data", "images", value=10**30), "a number of 31 digits"),
    "deep nesting": ("amounts", card_with("mood", value=DEEP), "nested too deeply"),
    "half a letter": ("amounts", card_with("classes", 0, "label", value="\ud800"), "half a letter"),
    "no similarity": ("amounts", card_with("similarity", value=KeyError), "similarity"),
    "no seed": ("amounts", card_with("seed", value=KeyError), "seed"),
    "a seed of nothing": ("fewshot", card_with("seed", value=-1), "its seed is -1"),
    "a number as a label": ("amounts", card_with("classes", 0, "label", value=3), "classes.label is '3'|classes is '3'|label is '3'"),
    "words as arguments": ("amounts", card_with("source", "model_args", value="x"), "model_args is 'x'"),
    "weights that are no numbers": ("fewshot", tensor_with(WEIGHT, first_is(math.nan)), "holds NaN or infinite"),
    "patches that are no numbers": ("protopnet", tensor_with("addon.0.weight", first_is(math.inf)), "holds NaN or infinite"),
    "weights in half precision that are none": (
        "fewshot", tensor_with(WEIGHT, lambda old: first_is(math.nan)(old.bfloat16())), "holds NaN or infinite",
    ),
    "weights that overflow": ("fewshot", tensor_with(LAST, lambda old: old.fill_(1e38)), "no finite numbers"),
    "prototypes that overflow": ("protopnet", tensor_with("prototypes", first_is(1e38)), "beyond 1e"),
    "hardly any crop": ("amounts", card_with("preprocessing", "crop_pct", value=1e-3), "crop_pct 0.001"),
    "many channels": ("amounts", card_with("preprocessing", "input_size", value=[65536, 64, 64]), "65536"),
    "other channels": ("amounts", card_with("preprocessing", "mean", value=[0.5] * 2), "mean"),
    "a huge input": ("amounts", card_with("preprocessing", "input_size", value=[3, 60000, 1000]), "60000"),
    "another input": ("amounts", card_with("preprocessing", "input_size", value=[3, 96, 96]), "the network reads 96 x 96"),
    "a huge picture": ("amounts", of_size(65000, 65000), "is a picture of 65000 x 65000 pixels"),
    "no picture": ("fewshot", tensor_with("example_jpeg", lambda old: old.zero_()), "is no JPEG file"),
    "boxes outside": ("amounts", tensor_with("example_box", first_is(-1)), "example_box is outside"),
    "a huge network": ("vit", card_with("source", "model_args", "embed_dim", value=10**6), "larger than its weights"),
    "a deep network": ("vit", card_with("source", "model_args", "depth", value=10**6), "more layers than its weights"),
    "an endless network": ("vit", card_with("source", "model_args", "depth", value=10**12), "no network has the argument"),
    "endless layers": ("protopnet", card_with("readout", "channels", value=0), "maps of 0 channels"),
    "a network of the hub": ("amounts", card_with("source", "architecture", value="hf-hub:me/net"), "no name of timm"),
    "a network of a folder": ("fewshot", card_with("source", "architecture", value="local-dir:/tmp"), "no name of timm"),
    "an unknown network": ("protopnet", card_with("source", "architecture", value="resnet"), "which this timm does not have"),
    "an argument of loaders": ("amounts", card_with("source", "model_args", "pretrained", value=True), "wants 'pretrained'"),
    "an address": ("amounts", card_with("source", "model_args", "act_layer", value=ADDRESS), "names a place"),
    "an unknown argument": ("amounts", card_with("source", "model_args", "wings", value=2), "wings"),
    "another library": ("amounts", card_with("source", "library", value="torchvision"), "torchvision"),
    "another part": ("amounts", planned(order="x"), "does not say how its network is read"),
    "another layout": ("amounts", planned(layout=None), "does not say how its network is read"),
    "figures of others": ("amounts", card_with("measured", "stability", value=[0.5]), "1 figures of stability"),
    "a class beyond all": ("amounts", card_with("data", "images_per_class", value={"9": 1}), "no class of number '9'"),
    "an edit of nothing": (
        "amounts", card_with("edits", value=[{"class_index": 9, "prototype_id": 0}]), "no class and prototype of the edit",
    ),
    "a share of no residual": ("fewshot", tensor_with("weight_residual_share", first_is(1e-40)), "no residual that its prototypes share"),
    "networks that do not add up": ("combined", card_with("readout", "rows_per_image", value=16), "do not add up"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("amounts", ("evaluate", "--data", "DATA", "--json")),
        ("protopnet", ("protopnet", "evaluate", "--data", "DATA")),
        ("fewshot", ("fewshot", "predict", "IMAGE")),
    ],
)
def test_answers_that_are_no_numbers_are_not_counted(files, toy, tmp_path, kind, words):
    file = changed(
        files(kind), tmp_path / "bad.safetensors", tensor_with("backbone.bn1.weight", lambda old: old.fill_(-1e38))
    )
    meant = {"DATA": toy.data, "IMAGE": toy.image()}
    code, out, err = run(*(meant.get(word, word) for word in words), "--model", file)
    assert (code, out) == (3, "") and f"error: {file} gives rows or logits that are no finite numbers" in err


@pytest.mark.parametrize(
    ("kind", "words"), [("protopnet", ("protopnet", "local", "IMAGE")), ("fewshot", ("protopnet", "evaluate"))]
)
def test_a_method_of_tomorrow_is_none_of_todays(files, toy, tmp_path, kind, words):
    file = changed(files(kind), tmp_path / "new.safetensors", card_with("method", value="tomorrow"))
    more = (toy.image(),) if "IMAGE" in words else ("--data", toy.data)
    code, _, err = run(*words[:2], *more, "--model", file)
    assert code == 3 and f"error: {file} holds a tomorrow model, not a ProtoPNet" in err


@pytest.mark.parametrize(
    ("kind", "name", "value", "why"),
    [
        ("amounts", "output_stride", KeyError, "index 4 is out of bounds"),
        ("fewshot", "drop_rate", 5, "dropout probability"),
    ],
)
def test_what_is_exported_reads_images_as_its_file_says(files, toy, tmp_path, kind, name, value, why):
    file = changed(files(kind), tmp_path / "bad.safetensors", card_with("source", "model_args", name, value=value))
    code, _, err = run("export", file, "-o", tmp_path / "it")
    assert code == 3 and err.startswith(f"error: the network in {file} reads no images: {why}")
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize("name", [slow(name) if FAULTS[name][0] in ("vit", "combined") else name for name in FAULTS])
def test_a_fault_is_named(files, toy, tmp_path, name):
    kind, change, words = FAULTS[name]
    file = changed(files(kind), tmp_path / "bad.safetensors", change)
    code, out, err = run("explain", toy.image(), "--model", file, "--json")
    assert (code, out) == (3, ""), err
    (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert str(file) in said and said.endswith(".")
    assert re.search(words, said), said


@pytest.mark.parametrize("command", ["explain", "report"])
def test_a_picture_that_cannot_be_decoded_is_named_and_nothing_is_written(files, toy, tmp_path, command):
    def cut(content):
        crops = content.tensors["example_crop"].clone()
        crops[:, 1] -= (crops[:, 1] - crops[:, 0]) // 2
        content.tensors["example_crop"] = crops

    file = changed(files("amounts"), tmp_path / "cut.safetensors", cut)
    target = tmp_path / ("why.png" if command == "explain" else "page.html")
    words = (toy.image(), "--png") if command == "explain" else ("--images", toy.image(), "-o")
    code, _, err = run(command, *words, target, "--model", file)
    assert code == 3 and f"{file} is not a valid prototype model: a training patch in it is no JPEG image" in err
    assert not target.exists()


NETWORKS = {
    "timm of the hub": ("timm", "hf-hub:timm/resnet18.a1_in1k", {}),
    "timm from an address": ("timm", "test_resnet", {"pretrained": True, "pretrained_cfg": {"url": ADDRESS}}),
    "transformers of the hub": ("transformers", "ViTForImageClassification", {
        "config": {"model_type": "vit", "_name_or_path": "google/vit-base-patch16-224", "hidden_size": 32},
    }),
    "timm within transformers": ("transformers", "TimmWrapperForImageClassification", {
        "config": {"model_type": "timm_wrapper", "architecture": "hf-hub:timm/resnet18.a1_in1k"},
    }),
    "kernels of the hub": ("transformers", "ViTForImageClassification", {
        "config": {"model_type": "vit", "_attn_implementation": "kernels-community/flash-attn"},
    }),
    "torchvision with weights": ("torchvision", "resnet18", {"weights": "DEFAULT"}),
    "torchvision of old": ("torchvision", "resnet18", {"pretrained": True}),
    "open_clip of the hub": ("open_clip", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", {"width": 8, "num_classes": 4}),
    "open_clip with a text tower of the hub": ("open_clip", "roberta-ViT-B-32", {"width": 8, "num_classes": 4}),
}  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """Whatever asks for an address or a connection, which fails."""
    found = []

    def refused(*words, **_):
        found.append(words)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("offline", [True, False])
def test_a_file_with_weights_asks_nobody_for_a_network(files, toy, tmp_path, calls, name, offline):
    library, architecture, arguments = NETWORKS[name]

    def change(content):
        content.header["card"]["source"] |= {"library": library, "architecture": architecture, "model_args": arguments}

    file = changed(files("amounts"), tmp_path / "bad.safetensors", change)
    code, _, err = run("explain", toy.image(), "--model", file, *(["--offline"] if offline else []))
    assert code == 3 and str(file) in err, err
    assert calls == []


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet18.a1_in1k", "hf:google/vit-base-patch16-224", "torchvision:resnet18",
        "vit_huge_patch16_gap_448.in1k_ijepa", "resnet18",
    ],
)  # fmt: skip
def test_offline_a_file_without_weights_asks_nobody(files, toy, tmp_path, calls, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def change(content):
        content.header["card"]["source"] |= {"name": name, "model_args": {}}
        content.tensors = {n: t for n, t in content.tensors.items() if not n.startswith(("backbone.", "readout."))}

    file = changed(files("amounts"), tmp_path / "bad.safetensors", change)
    code, _, err = run("explain", toy.image(), "--model", file, "--offline")
    assert code == 3, err
    assert calls == []


@pytest.mark.parametrize("kind", ["amounts", "fewshot"])
def test_a_file_without_weights_runs_no_function(files, toy, tmp_path, kind):
    target = tmp_path / "made"

    def change(content):
        content.header["card"]["source"] |= {"name": "python:os:mkdir", "model_args": {"path": str(target)}}
        content.tensors = {n: t for n, t in content.tensors.items() if not n.startswith(("backbone.", "readout."))}

    file = changed(files(kind), tmp_path / "bad.safetensors", change)
    code, _, err = run("explain", toy.image(), "--model", file)
    assert code == 3 and "If you trust that code, give --network os:mkdir" in err
    assert not target.exists()


def test_other_values_of_a_later_version_stay(files, tmp_path):
    def change(content):
        for group in ("source", "preprocessing"):
            content.header["card"][group]["zebra"] = [1, {"a": None}]

    file = changed(files("amounts"), tmp_path / "later.safetensors", change)
    model, _ = load_model(file)
    assert model.card == load_model(files("amounts"))[0].card
    assert all(model.card.as_json()[group]["zebra"] == [1, {"a": None}] for group in ("source", "preprocessing"))


def test_a_header_of_lists_alone_is_refused(tmp_path):
    target = tmp_path / "deep.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, target, {KEY: "[" * 100_000})
    code, _, err = run("inspect", target)
    assert code == 3 and str(target) in err
