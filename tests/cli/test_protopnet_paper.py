"""What `--recipe paper` does as the original code, also when its files are pushed and pruned."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn import functional

from protonmf_cli.files.atomic import digest_of_tensors
from protonmf_cli.files.images.training_images import TrainingImages
from protonmf_cli.files.store import KEY, load_model
from protonmf_cli.jobs import naming
from protonmf_cli.jobs.loaded import load
from protonmf_cli.jobs.protopnet.edits import open_protopnet
from protonmf_cli.options import PROTOPNET_RECIPES, ImageWords, Machine
from protonmf_cli.pipelines.progress import SILENT
from toys import run

HEAD, PRUNED = 3, 4


@pytest.fixture(scope="module")
def net(toy, tmp_path_factory) -> Path:
    """A toy trained as the original code, with fewer copies and passes; batch norms that move."""
    recipe = PROTOPNET_RECIPES["paper"]
    fewer = replace(
        recipe, head_epochs=HEAD, prune_epochs=PRUNED, head_rate=1e-2,
        augmentation=replace(recipe.augmentation, copies=3),
    )  # fmt: skip
    target = tmp_path_factory.mktemp("paper") / "net.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOPNET_RECIPES, "paper", fewer)
        words = ("--recipe", "paper", "--epochs", 3, "--warm-epochs", 1, "-p", 2, "--width", 16, "--device", "cpu")
        code, _, err = run("protopnet", "train", toy.name, "--data", toy.data, "-o", target, *words)
    assert code == 0, err
    return target


def opened(file: Path, toy):
    return open_protopnet(file, ImageWords.of(toy.data, split="train"), Machine(device="cpu"), SILENT)


def test_pictures_are_pressed_into_the_input_bilinearly(net, toy):
    loaded = load(net)
    found = loaded.model.card.preprocessing
    assert (found.interpolation, found.crop_mode, found.crop_pct) == ("bilinear", "squash", 1.0)
    with Image.open(toy.image(1)) as picture:
        resized = picture.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(loaded.crop(toy.image(1)).permute(1, 2, 0).numpy(), np.asarray(resized))


def box_by_hand(values: np.ndarray, side: int) -> tuple[int, ...]:
    """(left, top, right, bottom) of all pixels at or above the 95th percentile; cubic kernel a = -0.75, edges repeated."""
    large = cubic(cubic(values, side).T, side).T
    kept = large >= np.percentile(large, 95) - 1e-6
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cubic(values: np.ndarray, side: int) -> np.ndarray:
    """(h, w) -> (side, w), OpenCV's rule."""
    a, count = -0.75, len(values)
    at = (np.arange(side) + 0.5) * count / side - 0.5
    low = np.floor(at).astype(int)
    found = np.zeros((side, values.shape[1]))
    for step in (-1, 0, 1, 2):
        t = np.abs(at - (low + step))
        near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        found += np.where(t <= 1, near, far)[:, None] * values[np.clip(low + step, 0, count - 1)]
    return found


def test_a_prototype_s_patch_is_boxed_as_it_was_before_the_push(net, toy, tmp_path):
    """On the map of the old prototype, all strong pixels together; pruning keeps what the push left."""
    target = tmp_path / "pushed.safetensors"
    code, _, err = run("protopnet", "push", net, "--data", toy.data, "-o", target)
    assert code == 0, err
    before, pushed = opened(net, toy), load_model(target)[0]
    assert not torch.allclose(before.model.prototypes, pushed.prototypes, atol=1e-3)
    by_name = {file.name: file for file in before.images.of(before.images.files)}
    differ = 0
    for j, prototype in enumerate(before.model.prototypes):
        first = pushed.examples.of(j)[0]
        crop = before.loaded.reader.read(by_name[pushed.examples.sources[first].path])[0]
        rows = before.loaded.backbone.read(crop[None]).rows[0]
        distance = (rows - prototype).square().sum(dim=1)
        old = ((distance + 1) / (distance + 1e-4)).log().reshape(pushed.examples.map.shape[1:])
        assert torch.allclose(pushed.examples.map[first], old, atol=1e-3)
        assert tuple(pushed.examples.box[first].tolist()) == box_by_hand(
            pushed.examples.map[first].double().numpy(), 64
        )
        distance = (rows - pushed.prototypes[j]).square().sum(dim=1)
        differ += not torch.allclose(((distance + 1) / (distance + 1e-4)).log().reshape(old.shape), old, atol=0.05)
    assert differ, "otherwise this test says nothing"
    smaller = tmp_path / "pruned.safetensors"
    code, _, err = run("protopnet", "prune", target, "--data", toy.data, "-o", smaller, "--least", 1)
    assert code == 0, err
    pruned = load_model(smaller)[0]
    for new, old in enumerate(pruned.card.protopnet.pruned["kept"]):
        one, other = pruned.examples.of(new)[0], pushed.examples.of(old)[0]
        assert torch.equal(pruned.examples.map[one], pushed.examples.map[other])
        assert torch.equal(pruned.examples.box[one], pushed.examples.box[other])


def trained_by_hand(file: Path, toy, prototypes: torch.Tensor, kept: list[int], passes: int):
    """The head after passes of Adam from the file's own, and the network with its batch statistics."""
    start = opened(file, toy)
    net, options = start.net, start.options
    owner, head = start.model.owner[kept], net.head.detach()[:, kept].clone().requires_grad_()
    other = owner != torch.arange(len(head))[:, None]
    images = TrainingImages(
        files=start.images.of(start.images.files), reader=start.loaded.reader, augmentation=options.augmentation,
        batch_size=options.batch_size, seed=options.seed,
    )  # fmt: skip
    adam = torch.optim.Adam([head], lr=options.head_rate)
    net.network.train()
    for number in range(passes):
        for batch in images.batches(number):
            with torch.no_grad():
                rows = net.rows(start.loaded.backbone.normalise(batch.crops))
                distance = torch.cdist(rows, prototypes.expand(len(rows), -1, -1)).square().amin(dim=1)
            logits = ((distance + 1) / (distance + 1e-4)).log() @ head.T
            loss = functional.cross_entropy(logits, batch.labels) + options.l1 * head[other].abs().sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return head.detach(), net.network.state_dict()


def test_a_push_trains_the_head_for_the_original_s_passes(net, toy, tmp_path):
    target = tmp_path / "pushed.safetensors"
    code, out, err = run("protopnet", "push", net, "--data", toy.data, "-o", target, "--json")
    assert code == 0, err
    pushed, stored = load_model(target)[0], load(target).backbone.network.state_dict()
    assert json.loads(out)["push"]["last_layer"]["passes"] == HEAD
    everything = list(range(len(pushed.prototypes)))
    head, network = trained_by_hand(net, toy, pushed.prototypes, everything, HEAD)
    assert torch.allclose(pushed.dense_weights.mT, head, atol=1e-3)
    assert float((head - load_model(net)[0].dense_weights.mT).abs().max()) > 0.02, "the passes did something"
    moved = [name for name in network if "running" in name]
    assert moved
    for name in moved:
        assert torch.allclose(stored[name], network[name], atol=1e-4, rtol=1e-3)


def test_pruning_trains_the_head_for_its_own_number_of_passes(net, toy, tmp_path):
    code, out, err = run(
        "protopnet", "prune", net, "--data", toy.data, "-o", tmp_path / "p.safetensors", "--least", 1, "--json"
    )
    assert code == 0, err
    report, pruned = json.loads(out), load_model(tmp_path / "p.safetensors")[0]
    assert report["last_layer"]["passes"] == PRUNED
    head, _ = trained_by_hand(net, toy, pruned.prototypes, report["kept"], PRUNED)
    assert torch.allclose(pruned.dense_weights.mT, head, atol=1e-3)


@pytest.mark.parametrize("command", ["push", "prune"])
def test_the_last_layer_can_still_be_solved(net, toy, tmp_path, command):
    words = ("--last-layer", "exact", *(("--least", 1) if command == "prune" else ()))
    target = tmp_path / "x.safetensors"
    code, out, err = run("protopnet", command, net, "--data", toy.data, "-o", target, *words, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report.get("push") or report)["last_layer"]["kkt"] <= 1e-6
    assert load_model(target)[0].card.options.last_layer == "exact"


def test_what_the_recipe_is(net):
    paper = PROTOPNET_RECIPES["paper"]
    assert (paper.head_epochs, paper.prune_epochs, paper.last_layer) == (20, 100, "passes")
    assert paper.boxes_before_push
    assert asdict(paper.augmentation) == {
        "rotation": 15.0, "skew": 0.2, "shear": 10.0, "flip": 0.5, "copies": 30, "fresh": False, "equal_kinds": True
    }  # fmt: skip


def canonical(header: dict) -> str:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def test_a_file_of_before_these_options_is_read_as_it_was_trained(net, toy, tmp_path):
    older = tmp_path / "older.safetensors"
    with safetensors.safe_open(net, "pt") as file:
        header = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["payload_sha256"]
    options = header["card"]["options"]
    for name in ("boxes_before_push", "prune_epochs"):
        del options[name]
    del options["augmentation"]["equal_kinds"]
    header["payload_sha256"] = digest_of_tensors(tensors, canonical(header))
    safetensors.torch.save_file(tensors, older, {KEY: canonical(header)})
    found = load_model(older)[0].card
    assert found.unknown_options == ()
    assert not found.options.boxes_before_push and not found.options.augmentation.equal_kinds
    target = tmp_path / "x.safetensors"
    code, _, err = run("protopnet", "push", older, "--data", toy.data, "-o", target)
    assert code == 0, err
    pushed = load_model(target)[0]
    for j in range(len(pushed.prototypes)):
        first = pushed.examples.of(j)[0]
        assert float(pushed.examples.map[first].max()) == pytest.approx(float(pushed.examples.score[first]))


class TwoWords:
    """Towers to which every patch is the first word."""

    name, digest, scale = "open_clip:two", "2", 100.0

    def see(self, patches):
        return torch.tensor([[1.0, 0.0]]).expand(len(patches), 2)

    def read(self, sentences):
        return torch.eye(2)


def test_names_of_a_protopnet_stay_until_its_prototypes_are_made_anew(net, toy, tmp_path):
    named, pruned, combined = (tmp_path / f"{name}.safetensors" for name in ("named", "pruned", "combined"))
    found = naming.name(net, ["beak", "wing"], TwoWords(), output=named)
    assert {name.word for name in found.facts.prototypes.values()} == {"beak"}
    code, out, err = run("protopnet", "local", toy.image(0), "--model", named, "--json")
    assert code == 0, err
    assert json.loads(out)["most_similar"][0]["caption"] == "“beak” 1.00"
    code, _, err = run("protopnet", "prune", named, "--data", toy.data, "-o", pruned, "--least", 1)
    assert code == 0, err
    code, _, err = run("protopnet", "combine", named, net, "-o", combined)
    assert code == 0, err
    for file in (pruned, combined):
        card = load_model(file)[0].card
        assert card.names is None and all(member.names is None for member in card.members)
    again = naming.name(combined, ["beak", "wing"], TwoWords(), output=tmp_path / "again.safetensors")
    assert len(again.facts.prototypes) == 2 * len(found.fits)
