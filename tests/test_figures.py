"""Figures are what their names say, carry their letters, and say which colour is which value."""

import re
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from PIL import Image

import protonmf_cli
import toys
from protonmf_cli.errors import UsageError
from protonmf_cli.models.sheets import Cell, Chart, Panel, Strip, Table
from protonmf_cli.output.figures.card import _map_of, explanation_card
from protonmf_cli.output.figures.figure import explanation_figure, shade_of
from protonmf_cli.output.figures.formats import format_of
from protonmf_cli.output.figures.overlay import as_rgb, colour, enlarge
from protonmf_cli.output.figures.rendering import rendered
from protonmf_cli.output.figures.sheets import panels_figure
from protonmf_cli.output.figures.strips import gallery_figure
from protonmf_cli.output.figures.table import curves_figure, table_figure
from toys import run, slow

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF-"}


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize(("option", "suffix"), [("--figure", "png"), slow("--png", "SVG"), slow("--figure", "pdf")])
def test_the_name_says_which_file(toy, converted, tmp_path, option, suffix):
    target = tmp_path / f"why.{suffix}"
    code, _, err = run("explain", toy.image(0), "--model", converted, option, target)
    assert code == 0, err
    content = target.read_bytes()
    assert content.startswith(MAGIC[suffix.lower()])
    said = str(Image.open(target).info).encode() if suffix.lower() == "png" else content  # its pixels may say anything
    assert b"eq." not in said and str(tmp_path).encode() not in content


def test_letters_are_in_the_file(toy, converted, tmp_path):
    figure = explanation_figure(protonmf_cli.load(converted).explain(toy.image(0)), 2)
    pdf, svg = rendered(figure, "why.pdf"), rendered(figure, "why.svg")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert b"<text" not in svg and svg.count(b"<path") > 100
    again = explanation_figure(protonmf_cli.load(converted).explain(toy.image(0)), 2)
    assert rendered(again, "why.pdf") == pdf and rendered(again, "why.svg") == svg


@pytest.mark.parametrize("name", ["why.jpg", "why", "why.", ".png", "why.html"])
def test_other_names_are_refused_before_any_work(toy, converted, tmp_path, monkeypatch, name):
    from protonmf_cli import jobs

    monkeypatch.setattr(jobs.loaded, "load", lambda *_, **__: pytest.fail("loaded"))
    commands = (
        ("explain", toy.image(0), "--model", converted),
        ("inspect", converted, "--class", "red things"),
        ("fewshot", "fit", toy.name, "--data", toy.data, "-o", tmp_path / "few.safetensors"),
        ("protopnet", "train", toy.name, "--data", toy.data, "-o", tmp_path / "net.safetensors"),
    )
    for words in commands:
        code, out, err = run(*words, "--figure", tmp_path / name)
        assert (code, out) == (2, ""), err
        assert f"{name} names no kind of figure: end it in .png, .svg or .pdf" in err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"^figure .* names no kind of figure"):
        protonmf_cli.explain(converted, toy.image(0), figure=tmp_path / name)


def test_several_images_make_a_folder_of_png(toy, converted, tmp_path):
    images = [toy.image(0), toy.image(1)]
    code, _, err = run("explain", *images, "--model", converted, "--figure", tmp_path / "all.svg")
    assert code == 2 and "looks like a file, but there are 2 images: give a folder" in err
    assert run("explain", *images, "--model", converted, "--figure", tmp_path / "all")[0] == 0
    assert {path.suffix for path in (tmp_path / "all").iterdir()} == {".png"}


@pytest.mark.parametrize(("kind", "unit"), [("presence", "amount per place"), ("contribution", "logit per place")])
def test_every_map_has_its_scale(toy, converted, kind, unit):
    explanation = protonmf_cli.load(converted).explain(toy.image(0), map_kind=kind)
    texts = texts_of(explanation_figure(explanation, 2))
    maps = 2 + (kind == "contribution" and bool(explanation.residual))
    assert texts.count(unit) == maps
    for part in explanation.contributions[:2]:
        assert f"{part.scale[kind]:.2g}" in texts
        assert (f"{-part.scale[kind]:.2g}" in texts) == (kind == "contribution")
    assert not any(re.search(r"\beq\. ?\d", text) for text in texts)


def test_rows_of_other_classes_alone_are_not_said_to_have_no_place(toy, converted):
    found = protonmf_cli.load(converted).explain(toy.image(0))
    others = tuple(replace(c, owner_index=(c.owner_index + 1) % 4) for c in found.contributions if c.owner_index == 0)
    texts = " ".join(texts_of(explanation_figure(replace(found, contributions=others), 2)))
    assert "none of the prototypes\nbelow is its own" in texts and "nothing can be placed" not in texts


def test_the_residual_of_projections_is_named_in_words(toy, paper):
    texts = texts_of(explanation_figure(protonmf_cli.load(paper).explain(toy.image(0)), 1))
    assert "where the residual is" in texts and "code per place" in texts


def test_sheets_say_the_values_of_their_colours(tmp_path):
    crop, grid = np.full((20, 20, 3), 128, np.uint8), np.array([[0.0, -2.5], [1.0, 0.5]])
    signed = Panel(crop=crop, maps=(grid,), style="signed", unit="logit per place", full=(2.5,))
    heat = Panel(crop=crop, maps=(grid.clip(0),), style="heat", unit="amount per place", full=(1.0,))
    texts = texts_of(panels_figure([[Panel(crop=crop), signed, heat]]))
    assert texts == ["logit per place", "amount per place"] or {"-2.5", "2.5", "0", "1"} <= set(texts)
    picture = tmp_path / "sheet.png"
    picture.write_bytes(rendered(panels_figure([[signed]]), picture.name))
    assert Image.open(picture).width > 100


def test_formats():
    assert [format_of(name) for name in ("a.png", "b/c.Svg", "d.e.pdf")] == ["png", "svg", "pdf"]


def test_colours_are_distinct_and_own_ones_go_by_number(toy, converted):
    explanation = protonmf_cli.load(converted).explain(toy.image(0))
    own = [c for c in explanation.contributions if c.owner_index == explanation.class_index]
    assert [shade_of(explanation, c) for c in own] == [colour(c.prototype) for c in own]
    assert len(explanation.contributions) > len(own) > 1
    assert len({shade_of(explanation, c) for c in explanation.contributions}) == len(explanation.contributions) <= 10


def test_what_an_image_has_less_than_none_of_is_drawn_below_zero(toy, tmp_path):
    """Its amount is negative, and so is most of the map that adds up to it: that must be seen."""
    model = protonmf_cli.load(toys.convert(toy, tmp_path / "parts.safetensors", "--near-as", "parts"))
    found = [(each, c) for n in range(4) for each in [model.explain(toy.image(n))] for c in each.contributions]
    explanation, part = min(found, key=lambda pair: pair[1].evidence)
    assert part.evidence < 0 and explanation.lacks(part)
    assert part.maps["presence"].sum() == pytest.approx(part.evidence)
    one = replace(explanation, contributions=(part,))
    texts = texts_of(explanation_figure(one, 1))
    assert f"{-part.peak:.2g}" in texts and f"{part.peak:.2g}" in texts
    drawn = _map_of(one, part).astype(int) - (as_rgb(one.crop) * 0.9).round().astype(int)
    lowest = np.unravel_index(enlarge(part.maps["presence"], drawn.shape[:2]).argmin(), drawn.shape[:2])
    red, _, blue = drawn[lowest]
    assert blue > red
    assert not explanation.lacks(replace(part, evidence=0.1))


FORMULA = r"a $\frac$ b"


def test_names_are_no_formulas(toy, converted, tmp_path):
    """matplotlib reads letters between dollars as mathematics, and stops at what is none."""
    found = protonmf_cli.load(converted).explain(toy.image(0))
    parts = tuple(replace(c, owner_name=FORMULA, owner_index=1) for c in found.contributions)
    figure = explanation_figure(replace(found, image=FORMULA, name=FORMULA, contributions=parts), 2)
    assert sum(FORMULA in text for text in texts_of(figure)) > 3
    cell = Cell(crop=found.crop)
    strip = Strip(title=FORMULA, words=(FORMULA,), cells=(cell,), number=1)
    curve = [{"prototypes": 1, "feature_relative_error": 0.5, "residual_share": 0.1, "stability": 0.9}]
    table = Table(
        name="parts", title=FORMULA, columns=(), rows=({"class": FORMULA, "v": 1.0},),
        charts=(Chart(x="class", y=FORMULA, lines=("v",), bars=True),),
    )  # fmt: skip
    drawn = (
        figure,
        gallery_figure(FORMULA, [strip], [FORMULA]),
        panels_figure([[Panel(crop=found.crop, caption=FORMULA)]]),
        curves_figure({"0": curve}, {"0": FORMULA}, {"0": 1}),
        table_figure(table),
    )
    for each in drawn:
        assert any(FORMULA in text for text in texts_of(each))
        assert rendered(each, "why.png") and rendered(each, "why.svg")


def test_letters_that_the_font_lacks_are_drawn_without_a_warning(toy, converted):
    found = replace(protonmf_cli.load(converted).explain(toy.image(0)), image="日本 ไทย 𐐷.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rendered(explanation_figure(found, 1), "why.pdf")


def test_names_of_prototypes_stand_in_figures_and_notebooks(toy, converted):
    bare = protonmf_cli.load(converted).explain(toy.image(0))
    parts = tuple(replace(c, caption=f"“<b>{c.prototype_id}” 0.31") for c in bare.contributions)
    named = replace(bare, contributions=parts, named_by="named by nobody")
    texts = texts_of(explanation_figure(named, 2))
    assert [text for text in texts if "“" in text] == [c.caption for c in parts[:2]]
    assert "names in quotation marks: named by nobody" in texts
    card = explanation_card(named)
    assert all(f"“&lt;b&gt;{c.prototype_id}” 0.31" in card for c in parts[:2]) and "named by nobody" in card
    assert not any("quotation" in text or "“" in text for text in texts_of(explanation_figure(bare, 2)))
    assert "quotation" not in explanation_card(bare)
