"""The whole tool from Python: typed, with the options of the command line, and without side effects on the process."""

import base64
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.datasets import ImageFolder

import protonmf_cli
from protonmf_cli import EditWords, ExplainOptions, ImageWords, Machine, Output, PageOptions, convert, load
from protonmf_cli.errors import InputError, ModelFileError, PartialError, UsageError, in_python
from protonmf_cli.files.images.from_datasets import write_images
from protonmf_cli.maths.scoring import peak_box
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.output.records.conversion import conversion_json
from toys import LABELS, PREPROCESSING, run


@pytest.fixture(scope="module")
def conversion(toy, tmp_path_factory):
    return convert(toy.name, toy.data, output=tmp_path_factory.mktemp("python") / "m.safetensors")


def test_everything_is_there():
    assert set(protonmf_cli.__all__) <= set(dir(protonmf_cli))
    for name in protonmf_cli.__all__:
        assert getattr(protonmf_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        protonmf_cli.audits  # noqa: B018


@pytest.mark.slow
def test_types_reach_the_user(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from protonmf_cli import convert, explain, load\n"
        "reveal_type(load('m.safetensors').explain('img.jpg').contributions[0].contribution)\n"
        "reveal_type(convert('resnet18', 'data/').loaded.model)\n"
        "load('m.safetensors', devise='cpu')\n"
    )
    words = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    words += ["--cache-dir", str(tmp_path / "cache"), str(script)]
    above = Path(protonmf_cli.__file__).parents[1]
    # mypy finds an installed package by itself, but does not follow the finder of an editable installation
    place = os.environ | ({} if above.name == "site-packages" else {"MYPYPATH": str(above)})
    done = subprocess.run(words, cwd=tmp_path, env=place, capture_output=True, text=True, timeout=300)
    assert 'mine.py:2: note: Revealed type is "float"' in done.stdout.replace("builtins.", ""), done.stdout
    assert "PrototypeModel" in done.stdout and 'Unexpected keyword argument "devise"' in done.stdout
    assert "Found 1 error in 1 file" in done.stdout


def test_convert_writes_what_the_command_writes(toy, conversion, tmp_path):
    code, out, err = run("convert", toy.name, "--data", toy.data, "-o", tmp_path / "m.safetensors", "--json")
    assert code == 0, err
    assert (tmp_path / "m.safetensors").read_bytes() == conversion.loaded.path.read_bytes()
    said, mine = json.loads(out), json.loads(json.dumps(conversion_json(conversion)))
    for each in (said, mine):
        del each["seconds"], each["output"]
    assert said == mine


def test_a_conversion_explains_as_its_file_does(toy, conversion):
    image = toy.image(1)
    first, second = conversion.loaded.explain(image), load(conversion.loaded.path).explain(image)
    assert first.logit == pytest.approx(second.logit, abs=1e-5)
    assert [c.prototype_id for c in first.contributions] == [c.prototype_id for c in second.contributions]
    assert first.contributions[0].contribution == pytest.approx(second.contributions[0].contribution, abs=1e-5)


def test_explain_draws_and_says_which_images_it_could_not_read(toy, conversion, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    images = [toy.image(0), broken, str(toy.image(1))]
    options = ExplainOptions(class_name=LABELS[0], against=LABELS[1])
    found = protonmf_cli.explain(conversion.loaded, images, options, figure=Output(path=tmp_path / "drawn"))
    assert [hasattr(each, "explanation") for each in found] == [True, False, True]
    assert found[1].path == str(broken) and "not an image" in found[1].reason
    assert found[0].contrast is not None and found[0].explanation.name == LABELS[0]
    assert {path.suffix for path in (tmp_path / "drawn").iterdir()} == {".png"}
    with pytest.raises(InputError, match="broken.jpg"):
        protonmf_cli.explain(conversion.loaded, broken)


def test_intervene_saves_what_it_measured(toy, conversion, tmp_path):
    target = tmp_path / "edited.safetensors"
    edits = [EditWords(number=1), EditWords(number=2, factor=0.5, class_name=LABELS[1])]
    found = protonmf_cli.intervene(
        str(conversion.loaded.path), edits, data=toy.data, class_name=LABELS[0], output=target
    )  # fmt: skip
    assert found.on_data is not None and found.path == target
    before, after = (load(path).explain(toy.image(0), LABELS[0]) for path in (conversion.loaded.path, target))
    kept = {c.prototype_id: c.contribution for c in after.contributions}
    for part in before.contributions:
        gone = part.owner_label == LABELS[0] and part.prototype == 1
        assert kept[part.prototype_id] == pytest.approx(0.0 if gone else part.contribution, abs=1e-4)
    with pytest.raises(UsageError, match="which class is to be edited"):
        protonmf_cli.intervene(conversion.loaded, edits, data=toy.data)
    with pytest.raises(UsageError, match="must not be the model"):
        protonmf_cli.intervene(conversion.loaded, edits, toy.image(0), output=conversion.loaded.path)


def test_report_writes_a_page(toy, conversion, tmp_path):
    options = PageOptions(per_class=1)
    words = ImageWords(data=toy.data, split="val")
    written = protonmf_cli.report(conversion.loaded, [], words, options, output=tmp_path / "page.html")
    assert written.images == len(LABELS) and len(written.content.cases) == len(LABELS)
    assert (tmp_path / "page.html").stat().st_size == written.page.size
    with pytest.raises(UsageError, match="max_size must be"):
        protonmf_cli.report(conversion.loaded, options=PageOptions(max_size=0.0))


WRONG = {
    "no model": (lambda toy: load("missing.safetensors"), ModelFileError, "no prototype model at missing"),
    "no data": (lambda toy: convert("resnet0", "missing"), InputError, "data missing does not exist"),
    "no network": (lambda toy: convert("resnet0", toy.data), UsageError, "no model called 'resnet0'"),
    "no device": (lambda toy: convert(toy.name, toy.data, machine=Machine(device="cuda:99")), UsageError, "^device cuda:99 is not"),
    "no number": (lambda toy: convert(toy.name, toy.data, machine=Machine(dtype="float8")), UsageError, "^dtype float8 is not one"),
    "two orders": (lambda toy: convert(toy.name, ImageWords(data=toy.data, split="test")), InputError, "split train"),
    "no weights": (lambda toy: convert(protonmf_cli.NetworkWords(name=toy.name, weights=Path("w.pth")), toy.data, embed=False), UsageError, "Leave one of the two out"),
    "many prototypes": (lambda toy: convert(toy.name, toy.data, protonmf_cli.ConversionOptions(prototypes=999)), InputError, "only .* rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_is_an_error_of_its_kind(toy, tmp_path, monkeypatch, name):
    call, kind, words = WRONG[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=words) as caught:
        call(toy)
    assert "--" not in re.sub("`[^`]*`", "", str(caught.value))  # an option has its name in Python
    assert list(tmp_path.iterdir()) == []


OUT_OF_RANGE = {
    "prototypes must be a number of at least 1, not 0": lambda: protonmf_cli.ConversionOptions(prototypes=0),
    "near must be a number of at least 0, not -1": lambda: protonmf_cli.ConversionOptions(near=-1),
    "reconstruction 'best' is not one of amounts, paper": lambda: protonmf_cli.ConversionOptions(reconstruction="best"),
    "tolerance must be .* not nan": lambda: protonmf_cli.NmfOptions(tolerance=float("nan")),
    "batch_size must be": lambda: Machine(batch_size=0),
    "workers must be": lambda: Machine(workers=-1),
    "max_skipped must be a number from 0 to 1, not 2": lambda: ImageWords(data=Path("data"), max_skipped=2),
    "number must be": lambda: EditWords(number=-1),
    "factor must be .* not nan": lambda: EditWords(number=1, factor=float("nan")),
    "top must be": lambda: ExplainOptions(top=0),
    "form 'round' is not one of plain, augmented": lambda: PageOptions(form="round"),
    "patch must be": lambda: protonmf_cli.ProtoPNetOptions(patch=(0, 1)),
    "folds must be a number of at least 2": lambda: protonmf_cli.FewShotOptions(folds=1),
    "max_residual_share must be a number of at most 1": lambda: protonmf_cli.GateOptions(max_residual_share=1.5),
}


@pytest.mark.parametrize("words", OUT_OF_RANGE)
def test_options_out_of_range_are_refused(words):
    with pytest.raises(UsageError, match=f"^{words}"):
        OUT_OF_RANGE[words]()


def test_a_path_is_one_image_and_a_word_is_one_name(toy, conversion, tmp_path):
    model = conversion.loaded
    written = protonmf_cli.report(model, str(toy.image(0)), output=str(tmp_path / "page.html"))
    assert written.images == 1
    (found,) = protonmf_cli.explain(
        model, str(toy.image(0)), figure=str(tmp_path / "why.png"), html=tmp_path / "why.html"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "why.png", "why.html"}
    assert list(protonmf_cli.evaluate(model, toy.data, tables="oracle").tables) == ["oracle"]
    again = protonmf_cli.intervene(model, EditWords(number=1), toy.image(0), class_name=found.explanation.class_index)
    assert again.outcomes is not None
    assert model.explain(toy.image(0), 1).label == LABELS[1]
    assert protonmf_cli.inspect(model).path == model.path
    assert ImageWords(data="data").data == Path("data") and Output(path="m").path == Path("m")


NOTHING = {
    "there is no image to explain": lambda model, image: protonmf_cli.explain(model, []),
    "nothing to do": lambda model, image: protonmf_cli.intervene(model, [], image),
    "map_kind 'place' is not one of": lambda model, image: model.explain(image, map_kind="place"),
    "form 'round' is not one of": lambda model, image: model.explain(image, form="round"),
    "factor must be": lambda model, image: model.scale(LABELS[0], {1: float("nan")}),
    "number must be": lambda model, image: model.scale_everywhere({(LABELS[0], -1): 0.0}),
    "recipe 'best' is not one of default, paper": lambda model, image: protonmf_cli.train_protopnet("n", "data", recipe="best"),
}  # fmt: skip


@pytest.mark.parametrize("words", NOTHING)
def test_calls_that_say_nothing_sensible(toy, conversion, tmp_path, monkeypatch, words):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        NOTHING[words](conversion.loaded, toy.image(0))


def test_options_have_their_names_in_python_and_on_the_command_line():
    failure = PartialError("give --batch-size 8, or run `protonmf convert --no-stability`.")
    assert str(failure) == "give batch_size 8, or run `protonmf convert --no-stability`."
    assert failure.words == "give --batch-size 8, or run `protonmf convert --no-stability`."
    assert in_python("a - b, --") == "a - b, --"
    assert in_python("another -o, a smaller -p, re-open") == "another output, a smaller prototypes, re-open"


def test_the_process_stays_as_it_was(toy, conversion, tmp_path, capsys):
    threads, offline, seed = torch.get_num_threads(), constants.HF_HUB_OFFLINE, torch.initial_seed()
    machine = Machine(device="cpu", threads=threads + 1, offline=True)
    convert(toy.name, toy.data, output=tmp_path / "m.safetensors", machine=machine)
    with pytest.raises(InputError, match="cannot be downloaded"):
        convert("resnet18", toy.data, output=tmp_path / "n.safetensors", machine=machine)
    assert (torch.get_num_threads(), constants.HF_HUB_OFFLINE, torch.initial_seed()) == (threads, offline, seed)
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err


def test_warnings_reach_the_log(toy, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="protonmf"):
        options = protonmf_cli.ConversionOptions(prototypes=9, stability=False)
        convert(toy.name, toy.data, options, output=tmp_path / "m.safetensors")
    levels = {record.levelname for record in caplog.records}
    assert "INFO" in levels
    assert any(record.name == "protonmf" and "loading the model" in record.getMessage() for record in caplog.records)


def as_network_pixels(crops: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (PREPROCESSING.mean, PREPROCESSING.std))
    return (crops / 255 - mean) / std


GIVEN = {
    "PIL image": lambda picture, crop: picture,
    "array": lambda picture, crop: np.asarray(picture),
    "tensor": lambda picture, crop: torch.from_numpy(np.array(picture)).permute(2, 0, 1),
    "floats": lambda picture, crop: torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255,
    "crop": lambda picture, crop: crop,
    "batch": lambda picture, crop: np.stack([np.asarray(picture)] * 2),
    "batch of tensors": lambda picture, crop: torch.stack([crop, crop]).double() / 255,
    "channels last": lambda picture, crop: torch.stack([crop, crop]).permute(0, 2, 3, 1),
    "list": lambda picture, crop: [picture, np.asarray(picture), crop],
    "labelled batches": lambda picture, crop: iter(
        [(torch.stack([crop, crop]), torch.tensor([0, 1])), [crop[None], [7]]]
    ),
    "data set": lambda picture, crop: TensorDataset(torch.stack([crop] * 3), torch.tensor([1, 2, 3])),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_an_image_is_explained_alike_whatever_it_is_given_as(toy, conversion, kind):
    path, model = toy.image(1), conversion.loaded
    expected, given = model.explain(path), GIVEN[kind](Image.open(path), model.crop(path))
    found = model.explain(given)
    assert isinstance(found, list) == (kind not in ("PIL image", "array", "tensor", "floats", "crop"))
    for each in found if isinstance(found, list) else [found]:
        assert np.array_equal(each.crop, expected.crop)
        assert each.logit == pytest.approx(expected.logit, abs=1e-5)
    assert isinstance(model.explain(np.asarray(Image.open(path).convert("L"))), protonmf_cli.Explanation)


def test_only_a_tensor_of_the_networks_size_is_taken_as_it_is(toy, conversion):
    model = conversion.loaded
    crop = model.crop(toy.image(1))
    seen = torch.from_numpy(model.explain(crop).crop).permute(2, 0, 1)
    resized = torch.from_numpy(model.explain(crop.permute(1, 2, 0).numpy()).crop).permute(2, 0, 1)
    assert torch.equal(seen, crop) and not torch.equal(resized, crop)
    picture = Image.fromarray(crop.permute(1, 2, 0).numpy())
    assert torch.equal(resized, model.reader.crop(picture))
    assert (model.explain(torch.full((3, 64, 64), 0.501)).crop == 128).all()  # 127.755
    larger = nn.functional.pad(crop, (0, 1))
    assert not torch.equal(torch.from_numpy(model.explain(larger).crop).permute(2, 0, 1), crop)


def test_many_images_are_read_in_batches_and_explained_as_each_alone(toy, conversion):
    model = load(conversion.loaded.path, machine=Machine(batch_size=5))
    paths = sorted(toy.data.rglob("*.png"))[:12]
    sizes = []
    hook = model.backbone.network.conv1.register_forward_hook(lambda _, __, output: sizes.append(len(output)))
    found = model.explain(paths)
    hook.remove()
    assert sum(sizes) == len(paths) and max(sizes) > 1
    assert [each.image for each in found] == list(map(str, paths))
    assert len({each.label for each in found}) > 1
    for many, path in zip(found, paths, strict=True):
        alone = conversion.loaded.explain(path)
        assert [c.prototype_id for c in many.contributions] == [c.prototype_id for c in alone.contributions]
        assert many.logit == pytest.approx(alone.logit, abs=1e-5) and many.unlike.said == alone.unlike.said
        assert np.array_equal(many.crop, alone.crop)
        for one, other in zip(many.contributions, alone.contributions, strict=True):
            assert one.contribution == pytest.approx(other.contribution, abs=1e-5)
            assert one.box == other.box and [e.jpeg for e in one.examples] == [e.jpeg for e in other.examples]
            np.testing.assert_allclose(one.maps["presence"], other.maps["presence"], atol=1e-6)
    outcomes = model.predict(paths)
    assert [each.logit for each in outcomes] == pytest.approx([each.logit for each in found], abs=1e-5)
    assert model.predict(paths[0], LABELS[2]).label == LABELS[2]


def test_a_box_is_around_the_peak_of_its_map(toy, conversion):
    for kind in ("presence", "contribution"):
        for part in conversion.loaded.explain(toy.image(2), map_kind=kind).contributions:
            peak = part.maps[kind] * (1 if kind == "presence" else np.sign(part.weight))
            assert part.box == peak_box(torch.from_numpy(peak), (64, 64))


NO_IMAGES = {
    "values from -1 to 0: floats go from 0 to 1": lambda image: torch.linspace(-1, 0, 48).reshape(3, 4, 4),
    "of int64 is no picture: tensors hold uint8": lambda image: torch.zeros(3, 8, 8, dtype=torch.int64),
    "of float64 is no picture: arrays hold bytes": lambda image: np.zeros((8, 8, 3)),
    "must be (3, height, width), or a batch": lambda image: torch.zeros(8, 8, 8),
    "must be (height, width, 3) or (height, width)": lambda image: np.zeros((2, 2, 2, 2, 3), dtype=np.uint8),
    "holds no pixels": lambda image: np.zeros((0, 8, 3), dtype=np.uint8),
    "NoneType is no image: give a path": lambda image: None,
    "int is no image": lambda image: [image, 7],
    "dict is no image": lambda image: {"image": image},
}


@pytest.mark.parametrize("words", NO_IMAGES)
def test_what_is_no_image_is_refused(toy, conversion, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        conversion.loaded.explain(NO_IMAGES[words](toy.image(0)))


def test_an_image_that_cannot_be_read_is_named(toy, conversion, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    cut = io.BytesIO(toy.image(0).read_bytes()[:400])
    for given, named in (
        (tmp_path / "broken.jpg", "broken.jpg is not an image"),
        ([Image.open(cut)], "image 1 is damaged"),
    ):
        with pytest.raises(InputError, match=named):
            conversion.loaded.explain(given)
    with pytest.raises(UsageError, match="one image is wanted"):
        conversion.loaded.crop([toy.image(0)] * 2)
    assert conversion.loaded.explain([]) == []


def test_explain_takes_pictures_as_well_as_paths(toy, conversion, tmp_path):
    pixels = np.asarray(Image.open(toy.image(2)))
    found = protonmf_cli.explain(conversion.loaded, [toy.image(1), pixels], figure=tmp_path)
    assert [each.explanation.image for each in found] == [str(toy.image(1)), "image 2"]
    for each, c in zip(found, (1, 2), strict=True):
        expected = conversion.loaded.explain(toy.image(c))
        assert each.explanation.label == expected.label
        assert each.explanation.logit == pytest.approx(expected.logit, abs=1e-5)
    assert found[0].explanation.logit != pytest.approx(found[1].explanation.logit, abs=1e-2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image 0.png", "image 2.png"]


def test_an_explanation_shows_itself(toy, conversion):
    why = load(conversion.loaded.path).explain(toy.image(1))
    lines = repr(why).splitlines()
    assert len(why.contributions) > 4 and len(lines) == 2 and max(map(len, lines)) < 200
    assert why.name in lines[0] and f"logit {why.logit:.2f} = {why.contributions[0].contribution:+.2f}" in lines[1]
    assert sum(map(float, re.findall(r"[+-]\d+\.\d\d", lines[1]))) == pytest.approx(why.logit, abs=0.04)
    parts = [why.contributions[0], why.contributions[0].examples[0]]
    assert all(len(repr(part)) < 700 and "array(" not in repr(part) for part in parts)
    assert "presence': float64 array (4, 4)" in repr(parts[0])
    code, out, err = run("explain", toy.image(1), "--model", conversion.loaded.path, "--json")
    assert code == 0, err
    said = json.loads(out)
    mine = json.loads(json.dumps(why.to_dict()))
    assert [c.pop("box") for c in said["contributions"]] == [c.pop("box") for c in mine["contributions"]]
    assert said.keys() == mine.keys() and said["predictions"] == mine["predictions"]
    assert isinstance(pickle.loads(pickle.dumps(why)).contributions[0].box, tuple)
    assert why.figure(top=1)._repr_png_().startswith(b"\x89PNG")


def test_a_card_holds_the_ledger_and_needs_nothing_else(toy, conversion):
    found = conversion.loaded.explain(toy.image(1))
    why = replace(found, image="<b>&</b>.png", residual=found.residual - 9, logit=found.logit - 9)
    card = why._repr_html_()
    assert ElementTree.fromstring(card).tag == "div"
    assert "<script" not in card and "<b>&amp;" not in card and "&lt;b&gt;" in card
    sources = re.findall(r'(?:src|href)="([^"]*)"', card)
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    for source in sources:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).load()
    values = [float(value) for value in re.findall(r">([+-]\d+\.\d\d)</td></tr>", card)]
    assert sum(values[:-1]) == pytest.approx(values[-1], abs=0.005 * len(values))
    assert values[-1] == pytest.approx(why.logit, abs=0.005)
    widths = re.findall(r'<rect x="([-\d.]+)" y="1" width="([\d.]+)"', card)
    assert len(widths) == len(values) and all(float(x) >= 0 and float(x) + float(w) <= 221 for x, w in widths)


class Small(nn.Module):
    """A network that says nothing of itself."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 9, stride=8), nn.ReLU())
        self.head = nn.Linear(width, len(LABELS))

    def forward(self, pixels):
        return self.head(self.body(pixels).mean(dim=(2, 3)))


QUICK = protonmf_cli.ConversionOptions(prototypes=1, near=0, stability=False)
SEEN = {
    "input_size": (3, 64, 64), "mean": PREPROCESSING.mean, "std": PREPROCESSING.std, "crop_pct": 0.9,
    "interpolation": "bicubic",
}  # fmt: skip


@pytest.fixture(scope="module")
def small(toy, tmp_path_factory):
    torch.manual_seed(0)
    module = Small()
    folder = tmp_path_factory.mktemp("small")
    images = ImageFolder(toy.data / "train")
    return module, convert(module, images, QUICK, preprocessing=SEEN, output=folder / "small.safetensors")


def test_a_module_of_timm_is_converted_as_its_name_is(toy, conversion, tmp_path):
    module = timm.create_model(toy.name, pretrained=True).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    images = Subset(ImageFolder(toy.data / "train"), range(30))
    found = convert(module, images, output=tmp_path / "m.safetensors").loaded
    assert torch.equal(found.model.prototypes, conversion.loaded.model.prototypes)
    assert found.model.examples.sources == conversion.loaded.model.examples.sources
    assert found.model.card.classes == conversion.loaded.model.card.classes
    assert found.model.card.source.library == "timm"
    assert module.training and all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert load(found.path).explain(toy.image(1)).logit == pytest.approx(found.explain(toy.image(1)).logit, abs=1e-5)


def test_a_module_is_converted_and_opened_with_another_one(toy, small):
    module, conversion = small
    found = conversion.loaded
    assert [each.label for each in found.model.card.classes] == sorted(LABELS)
    assert found.model.card.source.features == "body" and module.training
    crop = found.crop(toy.image(1))
    with torch.no_grad():
        logits = module.eval()(as_network_pixels(crop[None]))[0]
    module.train()
    why = load(found.path, network=Small()).explain(toy.image(1))
    assert why.logit == pytest.approx(float(logits.max()), abs=1e-5) and why.ledger_error < 1e-4
    with pytest.raises(InputError, match=r"`load\(path, network=module\)`"):
        load(found.path)
    with pytest.raises(InputError, match="does not fit"):
        load(found.path, network=Small(width=9))
    with pytest.raises(InputError, match="read at its module 'body', which Linear does not have"):
        load(found.path, network=nn.Linear(2, 2))


LOADED = {
    "bytes": lambda crops: crops,
    "shares": lambda crops: crops / 255,
    "normalised": as_network_pixels,
}


@pytest.mark.parametrize("kind", LOADED)
def test_tensors_of_a_loader_are_the_images_that_the_network_saw(toy, small, tmp_path, kind):
    module, conversion = small
    images = ImageFolder(toy.data / "train")
    crops = torch.stack([conversion.loaded.crop(path) for path, _ in images.samples])
    labels = torch.tensor(images.targets)
    loader = DataLoader(TensorDataset(LOADED[kind](crops), labels), batch_size=7)
    found = convert(
        module, loader, QUICK, features="body", preprocessing=SEEN, classes=images.classes,
        output=tmp_path / "m.safetensors",
    ).loaded  # fmt: skip
    assert torch.equal(found.model.prototypes, conversion.loaded.model.prototypes)
    assert np.array_equal(found.explain(toy.image(1)).crop, conversion.loaded.explain(toy.image(1)).crop)
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors"}


def picture(side: int = 64):
    return Image.new("RGB", (side, side))


NO_DATA = {
    "whose values are no pixels": lambda: [(torch.full((3, 64, 64), 0.3331), 0)],
    "the label 4 of the data is none of the 4 classes": lambda: [(picture(), 4)],
    "the label 0.5 of the data is none": lambda: [(picture(), np.float64(0.5))],
    "holds 2 images and 1 labels": lambda: [(torch.zeros(2, 3, 64, 64), [0])],
    "gives Image where (image, label)": lambda: [picture()],
    "is str: PIL images": lambda: [("a.png", 0)],
    "holds no images": lambda: [],
    "either all are, or none": lambda: [(torch.zeros(3, 64, 64), 0), (picture(), 0)],
    "int is no data": lambda: 5,
}  # fmt: skip


@pytest.mark.parametrize("words", NO_DATA)
def test_data_that_is_none_is_refused(tmp_path, words):
    with pytest.raises((UsageError, InputError), match=re.escape(words)):
        convert(Small(), NO_DATA[words](), QUICK, preprocessing=SEEN, output=tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_python_holds_is_converted_by_this_process_alone(toy, tmp_path):
    two, output = protonmf_cli.Distribution(processes=2), tmp_path / "m.safetensors"
    for model, data in ((Small(), toy.data), (toy.name, [(picture(), 0)])):
        with pytest.raises(UsageError, match="cannot be shared with others"):
            convert(model, data, output=output, distribution=two)
    with pytest.raises(UsageError, match="preprocessing and classes are of a module"):
        convert(toy.name, toy.data, classes=LABELS, output=output)
    with pytest.raises(InputError, match="3 labels, but its classifier has 4 classes"):
        convert(Small(), toy.data, classes=LABELS[:3], preprocessing=SEEN, output=output)


class Named(list):
    """Pictures and labels with names for the labels."""

    classes: tuple[str, ...]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("GREEN_THINGS", "red things"), {"green things": 1, "red things": 2}),  # by name, where all have one
        (("a", "b", "c", "d"), {"red things": 1, "green things": 2}),  # by number, where they are as many
        (None, {"red things": 1, "green things": 2}),
    ],
)
def test_labels_of_a_data_set_are_classes_by_name_or_by_number(tmp_path, names, expected):
    data = Named(
        [(picture(), 0), (picture().convert("CMYK"), torch.tensor(1)), (np.zeros((9, 7), np.uint8), np.int64(1))]
    )
    if names:
        data.classes = names
    classes = tuple(ClassName(label=label) for label in LABELS)
    written = write_images(data, tmp_path, PREPROCESSING, classes)
    named = json.loads(written.class_map.read_text())
    assert not written.cropped
    assert {named[folder.name]: len(list(folder.iterdir())) for folder in written.folder.iterdir()} == expected
    assert {Image.open(path).size for path in written.folder.rglob("*.png")} == {(64, 64), (7, 9)}
