"""The whole tool from Python: typed, with the options of the command line, and without side effects on the process."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import protonmf_cli
from protonmf_cli import EditWords, ExplainOptions, ImageWords, Machine, Output, PageOptions, convert, load
from protonmf_cli.errors import InputError, ModelFileError, PartialError, UsageError, in_python
from protonmf_cli.output.records.conversion import conversion_json
from toys import LABELS, run


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
    found = protonmf_cli.explain(conversion.loaded, images, options, png=Output(path=tmp_path / "drawn"))
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
    "number must be": lambda: EditWords(number=0),
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
    (found,) = protonmf_cli.explain(model, str(toy.image(0)), png=str(tmp_path / "why.png"), html=tmp_path / "why.html")
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
    "number must be": lambda model, image: model.scale_everywhere({(LABELS[0], 0): 0.0}),
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
