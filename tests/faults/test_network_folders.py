"""A network's folder whose configuration is damaged is read or refused in one sentence."""

import json
import random
import shutil

import pytest
from file_mutants import DEEP, changed_value

import small_networks
import toys
from protonmf_cli.errors import InputError, ProtonmfError
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.request import BackboneRequest
from toys import slow

FEW, MANY = 12, 120
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
DAMAGED = {
    "timm": ("network", CONFIG),
    "timm with images of one size": ("vit", CONFIG),
    "transformers": ("theirs", CONFIG),
    "transformers without tokens": ("convnext", CONFIG),
    "what images are made of": ("theirs", PROCESSOR),
}
"""Folder, and its file that is damaged."""


@pytest.fixture(scope="module")
def folders(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    shutil.copytree(toy.network, folder / "network")
    shutil.copytree(toys.make_vit(toy).network, folder / "vit")
    small_networks.transformers_folder(folder / "theirs", "vit")
    small_networks.transformers_folder(folder / "convnext", "convnext")
    return folder


def damaged(text: str, seed: int) -> str:
    rng, value = random.Random(seed), json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        changed_value(value, rng)
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 5000 + "]" * 5000)


@pytest.mark.parametrize(
    ("kind", "count"), [*((kind, FEW) for kind in DAMAGED), *(slow(kind, MANY) for kind in DAMAGED)]
)
def test_a_damaged_configuration_is_read_or_refused(folders, tmp_path, kind, count):
    name, file = DAMAGED[kind]
    folder = tmp_path / name
    shutil.copytree(folders / name, folder)
    request = BackboneRequest(name=f"local-dir:{folder}" if kind.startswith("timm") else str(folder), offline=True)
    load_backbone(request)
    text, refused = (folder / file).read_text(), 0
    for seed in range(count):
        (folder / file).write_text(damaged(text, seed))
        try:
            load_backbone(request)
        except ProtonmfError as refusal:
            refused += bool(str(refusal).strip())
        except Exception as failure:
            raise AssertionError(f"{kind}, seed {seed}") from failure
    assert 0 < refused < count


@pytest.mark.parametrize("kind", ["timm with images of one size", "transformers"])
@pytest.mark.parametrize(
    ("layers", "words"), [(2**62, "no network has the argument"), (900_000, "more than 20,000 modules")]
)
def test_a_network_of_endless_layers_is_not_built(folders, tmp_path, kind, layers, words):
    name, file = DAMAGED[kind]
    shutil.copytree(folders / name, tmp_path / name)
    config = json.loads((tmp_path / name / file).read_text())
    if kind == "transformers":
        config["num_hidden_layers"] = layers
    else:
        config["model_args"]["depth"] = layers
    (tmp_path / name / file).write_text(json.dumps(config))
    folder = f"{'' if kind == 'transformers' else 'local-dir:'}{tmp_path / name}"
    with pytest.raises(InputError, match=f"{words}.*"):
        load_backbone(BackboneRequest(name=folder, offline=True))
