"""`protonmf inspect FILE --data DIR`: honest files pass, and what was done to a file or to its images is named."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import packed
import protonmf_cli
import toys
from protonmf_cli.files.images.reader import encode_jpeg
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.maths.amounts import dual, weights_of
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.pipelines.stored_patches import LIKE_MAP, correlation
from toys import LABELS, run

SHORT = ("--epochs", 3, "--warm-epochs", 1, "--cycles", 2, "--batch-size", 8, "-p", 2, "--width", 16, "--device", "cpu")


@pytest.fixture(scope="module")
def net(toy, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("protopnet") / "net.safetensors"
    code, _, err = run("protopnet", "train", toy.name, "--data", toy.data, "-o", target, *SHORT, "-q")
    assert code == 0, err
    return target


@pytest.fixture(scope="module")
def both(net, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("combined") / "both.safetensors"
    code, _, err = run("protopnet", "combine", net, net, "-o", target, "-q")
    assert code == 0, err
    return target


@pytest.fixture(scope="module")
def few(toy, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("fewshot") / "few.safetensors"
    code, _, err = run("fewshot", "fit", toy.name, "--data", toy.data, "-o", target, "--device", "cpu", "--shots", 5)
    assert code == 0, err
    return target


@pytest.fixture(scope="module")
def edited(converted, toy, tmp_path_factory) -> Path:
    """With one prototype taken out of every class and another one scaled in one."""
    folder = tmp_path_factory.mktemp("edited")
    words = ("--everywhere", "--class", LABELS[0], "--zero", 1)
    code, _, err = run("intervene", toy.image(0), "-m", converted, *words, "-o", folder / "a.safetensors")
    assert code == 0, err
    words = ("--class", LABELS[1], "--scale", "2=0.5")
    code, _, err = run(
        "intervene", toy.image(1), "-m", folder / "a.safetensors", *words, "-o", folder / "b.safetensors"
    )
    assert code == 0, err
    return folder / "b.safetensors"


def looked(model: Path, data: object, *words: object) -> tuple[int, dict, str]:
    """Exit code, JSON and what was said on stderr."""
    code, out, err = run("inspect", model, "--data", data, "--json", *words)
    return code, json.loads(out) if out else {}, err


def faults_of(record: dict) -> dict[int, list[str]]:
    return {each["prototype_id"]: each["faults"] for each in record["prototypes"] if each["faults"]}


def tampered(source: Path, target: Path, change) -> Path:
    """The file with its model changed, its checksum made anew."""
    model, weights = load_model(source)
    save_model(target, change(model), weights)
    return target


@pytest.mark.parametrize("kind", ["converted", "vit", "paper", "edited", "net", "both", "few"])
def test_an_honest_file_is_as_it_says(kind, toy, request):
    path = request.getfixturevalue(kind)
    code, record, err = looked(path, toy.data)
    assert code == 0, err
    said = record["as_said"]
    patches = len(load_model(path)[0].examples.prototype)
    assert all(each["count"] == each["of"] for each in said.values()) and record["failed"] == 0
    assert said["sources"]["of"] == said["pictures"]["of"] == patches
    judged = kind != "paper"  # whose maps are no solution
    assert said["maps"]["of"] == judged * sum(each["prototype"] > 0 for each in record["prototypes"])
    assert len(record["notes"]) == (not judged)
    # no class is promised of few-shot patches, nor of a ProtoPNet's but the first; signed rows have signed prototypes
    owned = {"few": 0, "both": 0, "net": len(record["prototypes"])}.get(kind, patches)
    assert said["classes"]["of"] == owned
    assert (said["nonnegative"]["of"] > 0) == (kind in ("converted", "paper", "edited"))
    maps = [each["map"] for each in record["prototypes"] if each["map"] is not None]
    assert not judged or min(maps) > 0.999


def test_the_text_says_what_was_looked_at(converted, toy):
    code, out, err = run("inspect", converted, "--data", toy.data)
    assert code == 0, err
    assert "sources  60 of 60 patches name an image that is there" in out
    assert "maps  8 of 8 prototypes have the maps that the network gives" in out


def swapped(model: PrototypeModel) -> PrototypeModel:
    moved = (model.examples.prototype + len(model.own(0))) % len(model.prototypes)
    return replace(model, examples=replace(model.examples, prototype=moved))


def repainted(model: PrototypeModel) -> PrototypeModel:
    """Other pictures under the same sources."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    content = encode_jpeg(torch.from_numpy(pixels))
    span = torch.tensor([0, len(content)]).expand(len(model.examples.crop), 2).clone()
    jpeg = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return replace(model, examples=replace(model.examples, crop=span, jpeg=jpeg))


def fitted(model: PrototypeModel, prototypes: torch.Tensor) -> PrototypeModel:
    """Other prototypes of the same head: no logit changes."""
    heads, value, residual = model.head_vectors(), model.weights.value.clone(), model.residual.clone()
    for c in range(len(heads)):
        entries = model.entries(c)
        basis = prototypes[model.weights.prototype[entries]]
        found = dual(basis, model.amounts.ridge)
        weights = weights_of(heads[c], basis, found.carried)
        value[entries], residual[c] = weights.float(), (heads[c] - weights @ found.readers).float()
    weights = replace(model.weights, value=value)
    return replace(model, prototypes=prototypes.float(), weights=weights, residual=residual)


def permuted(model: PrototypeModel) -> PrototypeModel:
    order = list(range(len(model.prototypes)))
    for c in model.active_classes.tolist():
        own = model.own(c)
        for k, other in zip(own, [*own[1:], own[0]], strict=True):
            order[k] = other
    return fitted(model, model.prototypes[order].double())


def rotated(model: PrototypeModel) -> PrototypeModel:
    prototypes, turn = model.prototypes.double().clone(), torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()
    for c in model.active_classes.tolist():
        prototypes[model.own(c)] = turn @ prototypes[model.own(c)]
    return fitted(model, prototypes)


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (swapped, {"class", "map"}),
        (repainted, {"picture"}),
        (permuted, {"map"}),
        (rotated, {"map", "negative", "whole"}),
        (lambda m: replace(m, examples=replace(m.examples, map=torch.zeros_like(m.examples.map))), {"map"}),
    ],
    ids=["patches of others", "other pictures", "permuted", "rotated", "maps wiped out"],
)
def test_what_was_done_to_a_file_is_named(converted, toy, tmp_path, change, kinds):
    model = tampered(converted, tmp_path / "t.safetensors", change)
    code, record, err = looked(model, toy.data)
    assert code == 5 and "prototypes are not as" in err and err.count("\n") == 1
    found = faults_of(record)
    assert set().union(*found.values()) == kinds and record["failed"] == len(found)
    code, out, _ = run("inspect", model, "--data", toy.data)
    first = next(each for each in record["prototypes"] if each["faults"])
    name = f"{first['class']} {first['prototype']}" if first["prototype"] else f"{first['class']} as a whole"
    assert code == 5 and f"{name}: " in out


def test_a_class_as_a_whole_that_is_no_sum_of_its_parts(converted, vit, toy, tmp_path):
    def forged(model: PrototypeModel) -> PrototypeModel:
        prototypes = model.prototypes.double().clone()
        generator = torch.Generator().manual_seed(0)
        whole = torch.rand(prototypes.shape[1], generator=generator, dtype=torch.float64)
        prototypes[model.whole(1)] = whole / whole.norm()
        return fitted(model, prototypes)

    for file in (converted, vit):
        said = looked(file, toy.data)[1]["as_said"]["wholes"]
        assert said["count"] == said["of"] > 0
        code, record, err = looked(tampered(file, tmp_path / "t.safetensors", forged), toy.data)
        assert code == 5 and "1 by wholes that are no sum of their parts" in err
        model = load_model(file)[0]
        assert faults_of(record) == {model.whole(1): ["whole"]}
        out = run("inspect", tmp_path / "t.safetensors", "--data", toy.data)[1]
        assert f"{LABELS[1]} as a whole: its parts leave" in out


def test_a_head_made_to_fit_changes_no_answer(converted, toy, tmp_path):
    """So that nothing but a look at the patches can notice it."""
    tampering = protonmf_cli.load(tampered(converted, tmp_path / "t.safetensors", permuted))
    honest = protonmf_cli.load(converted)
    for c in range(4):
        a, b = (each.explain(toy.image(c)) for each in (honest, tampering))
        assert a.logit == pytest.approx(b.logit, abs=1e-3)


@pytest.mark.parametrize("kind", ["net", "few"])
def test_foreign_prototypes_of_other_kinds(kind, toy, tmp_path, request):
    def change(model: PrototypeModel) -> PrototypeModel:
        return replace(model, prototypes=model.prototypes.roll(3, dims=0))

    code, record, err = looked(tampered(request.getfixturevalue(kind), tmp_path / "t.safetensors", change), toy.data)
    assert code == 5, err
    assert set().union(*faults_of(record).values()) == {"map"}


def data_with(toy, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy.data, tmp_path / "data"))


def one_source(model: Path) -> str:
    """Of the first patch of the first prototype."""
    found, _ = load_model(model)
    return found.examples.sources[found.examples.of(0)[0]].path


def test_a_changed_image(converted, toy, tmp_path):
    data, source = data_with(toy, tmp_path), one_source(converted)
    path = data / "train" / source
    Image.open(io.BytesIO(path.read_bytes())).rotate(90, expand=True).save(path)
    code, record, err = looked(converted, data)
    assert code == 5 and "images that are not there or have changed" in err
    patch = record["prototypes"][0]["patches"][0]
    assert patch["source"] == source and patch["found"] == "changed" and patch["same_picture"] is False
    assert {"source", "picture"} <= set(record["prototypes"][0]["faults"])
    assert f"{source}" in run("inspect", converted, "--data", data)[1]


def test_an_image_that_is_gone_and_one_that_is_none(converted, toy, tmp_path):
    data, source = data_with(toy, tmp_path), one_source(converted)
    (data / "train" / source).write_bytes(b"no picture")
    patch = looked(converted, data)[1]["prototypes"][0]["patches"][0]
    assert patch["found"] == "changed" and "is not an image" in patch["reason"] and patch["picture"] is None
    (data / "train" / source).unlink()
    code, record, _ = looked(converted, data)
    assert code == 5 and record["prototypes"][0]["patches"][0]["found"] == "missing"


def test_an_image_of_another_class(converted, toy, tmp_path):
    data, source = data_with(toy, tmp_path), one_source(converted)
    target = data / "train" / LABELS[1]
    name = Path(source).name
    (target / name).unlink()
    shutil.move(data / "train" / source, target / name)
    code, record, err = looked(converted, data)
    assert code == 5 and "images of another class" in err
    first = record["prototypes"][0]
    assert "class" in first["faults"] and first["patches"][0]["classes"] == [LABELS[1]]
    assert first["patches"][0]["found"] == "as said"
    assert f"{source} listed under {LABELS[1]}" in " ".join(run("inspect", converted, "--data", data)[1].split())


def test_another_data_set_is_one_sentence(converted, toy, tmp_path):
    for c, label in enumerate(LABELS):
        (tmp_path / "other" / label).mkdir(parents=True)
        shutil.copy(toy.image(c), tmp_path / "other" / label / "new.png")
    code, record, err = looked(converted, tmp_path / "other")
    assert code == 3 and not record and err.count("\n") == 1
    assert "has none of the" in err and "give the data that the model was made from" in err


@pytest.mark.parametrize("form", ["zip", "parquet", "memory", "memory-zip"])
def test_data_in_other_forms(form, converted, toy, tmp_path):
    files = {
        path.relative_to(toy.data / "train").as_posix(): path.read_bytes()
        for path in sorted((toy.data / "train").rglob("*.png"))
    }
    code, record, err = looked(converted, packed.FORMS[form](tmp_path / "train", files))
    assert code == 0, err
    assert record["as_said"]["sources"] == {"count": 60, "of": 60}


@pytest.fixture(scope="module")
def boxes(toy, tmp_path_factory) -> Path:
    """CUB-200-2011's text files: every other image of both splits has a box, each another one."""
    folder = tmp_path_factory.mktemp("boxes")
    names = sorted({path.relative_to(path.parents[1]).as_posix() for path in toy.data.rglob("*.png")})
    (folder / "images.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(names, 1)))
    lines = [f"{n} {3 + n % 9} {2 + n % 7} {40 + n} {35 + n % 5}\n" for n in range(1, len(names) + 1)]
    (folder / "bounding_boxes.txt").write_text("".join(lines))
    return folder


def test_images_cut_to_their_boxes(toy, boxes, tmp_path):
    net = tmp_path / "net.safetensors"
    words = ("protopnet", "train", toy.name, "--data", toy.data, "--boxes", boxes, "-o", net, "-q", *SHORT)
    code, _, err = run(*words)
    assert code == 0, err
    code, record, err = looked(net, toy.data, "--boxes", boxes)
    assert code == 0 and record["failed"] == 0, err
    assert min(each["map"] for each in record["prototypes"]) > 0.999
    code, record, err = looked(net, toy.data)
    assert code == 3 and not record and "cut to bounding boxes: give --boxes too" in err
    moved = Path(shutil.copytree(boxes, tmp_path / "moved"))
    lines = [line.split() for line in (boxes / "bounding_boxes.txt").read_text().splitlines()]
    (moved / "bounding_boxes.txt").write_text("".join(f"{n} {x} {y} 25 60\n" for n, x, y, _, _ in lines))
    code, record, err = looked(net, toy.data, "--boxes", moved)
    assert code == 5 and "pictures that are not their image" in err
    assert all({"picture"} <= set(each["faults"]) for each in record["prototypes"])


def test_without_a_network_maps_are_left_out(toy, tmp_path):
    small = toys.Toy(folder=tmp_path, network=Path(shutil.copytree(toy.network, tmp_path / "network")), data=toy.data)
    model = toys.convert(small, tmp_path / "bare.safetensors", "--no-embed-backbone")
    assert looked(model, toy.data)[1]["as_said"]["maps"]["of"] == 8
    shutil.rmtree(small.network)
    code, record, err = looked(model, toy.data)
    assert code == 0 and "maps are not compared, for there is no network" in err
    assert record["as_said"]["maps"]["of"] == 0 and len(record["notes"]) == 1
    code, record, _ = looked(tampered(model, tmp_path / "t.safetensors", swapped), toy.data)
    assert code == 5 and set().union(*faults_of(record).values()) == {"class"}


def test_from_python(converted, toy, tmp_path):
    found = protonmf_cli.inspect_patches(protonmf_cli.load(converted), toy.data)
    assert not found.failed and found.counts["maps"] == (8, 8)
    protonmf_cli.check_patches(found)
    found = protonmf_cli.inspect_patches(tampered(converted, tmp_path / "t.safetensors", permuted), toy.data)
    assert all(each.map < LIKE_MAP for each in found.failed) and found.failed
    with pytest.raises(protonmf_cli.GateError, match="maps that the network does not give"):
        protonmf_cli.check_patches(found)


def test_words_that_do_not_fit(converted, toy):
    code, _, err = run("inspect", toy.name, "--data", toy.data)
    assert code in (2, 3) and err.count("\n") == 1
    assert run("inspect", converted, "--data", toy.data, "--class", LABELS[0])[0] == 2
    assert run("inspect", converted, "--class-order")[0] == 2


def test_correlation():
    a = torch.tensor([1.0, 2.0, 4.0])
    assert correlation(a, 3 * a - 7) == pytest.approx(1) and correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, torch.ones(3)) is None
