"""The report in a real browser: the same numbers as the commands, search, state, keys, hostile names; and bad input."""

import base64
import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from importlib import resources
from pathlib import Path

import matplotlib.text
import numpy as np
import pytest
import torch
from PIL import Image

import pages
import toys
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.jobs.loaded import load
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.wording import part_name
from protonmf_cli.output.page.page import SCRIPT, script
from protonmf_cli.pipelines.page import cases, content
from toys import run, slow


def made(model, output, *words, code=0):
    found, out, err = run("report", "--model", model, "-o", output, "--device", "cpu", "--json", *words)
    assert found == code, err
    return json.loads(out)


@pytest.fixture(scope="module")
def page_file(toy, converted, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("report") / "report.html"
    report = made(converted, output, "--data", toy.data, "--per-class", 2)
    assert (report["schema"], report["images"], report["classes"], report["prototypes"]) == (
        "protonmf.report/1",
        8,
        4,
        8,
    )
    assert report["bytes"] == output.stat().st_size and report["left_out"] == report["unreadable"] == []
    return output


@pytest.fixture(scope="module")
def augmented(toy) -> Path:
    return toys.convert(toy, toy.folder / "augmented.safetensors", "--augment", "min-norm")


@pytest.fixture(scope="module")
def vit_augmented(toy, vit) -> Path:
    words = ("--augment", "min-norm", "--no-stability")
    return toys.convert(replace(toy, network=toy.folder / "vit"), toy.folder / "vit-augmented.safetensors", *words)


@pytest.fixture(scope="module")
def protopnet(toy) -> Path:
    output = toy.folder / "report-net.safetensors"
    words = ("--epochs", 2, "--warm-epochs", 1, "--cycles", 1, "--batch-size", 8, "-p", 2, "--width", 16)
    code, _, err = run(
        "protopnet", "train", toy.name, "--data", toy.data, "-o", output, "--device", "cpu", "-q", *words
    )
    assert code == 0, err
    return output


@pytest.fixture(scope="module")
def combined(protopnet, toy) -> Path:
    """Two networks that see crops of different sizes."""
    other = toy.folder / "report-other.safetensors"
    words = (
        "--no-pretrained",
        "--img-size",
        96,
        "--epochs",
        1,
        "--cycles",
        1,
        "--batch-size",
        8,
        "-p",
        2,
        "--width",
        16,
    )
    data = ("--data", toy.data, "-o", other, "--device", "cpu", "-q")
    code, _, err = run("protopnet", "train", "test_efficientnet", *data, *words)
    assert code == 0, err
    code, _, err = run("protopnet", "combine", protopnet, other, "-o", toy.folder / "both.safetensors", "--json")
    assert code == 0, err
    return toy.folder / "both.safetensors"


@pytest.fixture(scope="module")
def fewshot(toy) -> Path:
    output = toy.folder / "report-few.safetensors"
    code, _, err = run(
        "fewshot", "fit", toy.name, "--data", toy.data, "--shots", 5, "-o", output, "--device", "cpu", "-q"
    )
    assert code == 0, err
    return output


def test_it_opens_without_error_or_request(browser, page_file):
    with pages.opened(browser, page_file) as page:
        assert page.title() == "network"
        assert [link.inner_text() for link in page.query_selector_all("nav a")] == [
            "Explanations 8",
            "Prototypes 8",
            "Gallery 4",
            "Summary",
        ]
        assert page.locator("#view-explain").is_visible() and not page.locator("#view-gallery").is_visible()
        assert page.locator("#images li").count() == 8
        assert all(text for text in page.eval_on_selector_all(".main img", "found => found.map((each) => each.alt)"))
        for name in ("prototypes", "gallery", "summary", "explain"):
            page.click(f"nav a[data-view={name}]")
            assert page.locator(f"#view-{name}").is_visible()
        broken = page.eval_on_selector_all(
            "img", "all => all.filter((each) => each.complete && !each.naturalWidth).length"
        )
        assert broken == 0


def shown_command(page, model, *places):
    """The command of the page, run; its JSON."""
    words = pages.command_of(page, model, *places)
    code, out, err = run(*words[1:], "--json", "--device", "cpu")
    assert code == 0, err
    return json.loads(out)


def check_same(page, found):
    """The page's predictions are those of `intervene --json`."""
    after = found["after"]["predictions"]
    mine, shares = pages.logits(page), pages.probabilities(page)
    assert list(mine) == [p["class_index"] for p in after][:5]
    for p in after[:5]:
        assert abs(mine[p["class_index"]] - p["logit"]) < 1e-4
        assert abs(shares[p["class_index"]] - p["probability"]) < 1e-4


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("converted", ()),
        slow("paper", ()),
        slow("augmented", ()),
        slow("augmented", ("--form", "plain")),
        ("vit", ()),
        slow("vit_augmented", ()),
        slow("vit_augmented", ("--form", "plain")),
        ("protopnet", ()),
        slow("combined", ()),
        slow("fewshot", ()),
    ],
)
def test_sliders_do_what_intervene_does(browser, request, toy, tmp_path, kind, words):
    model = request.getfixturevalue(kind)
    made(model, tmp_path / "page.html", "--images", toy.image(1), *words)
    with pages.opened(browser, tmp_path / "page.html") as page:
        before = pages.logits(page)
        assert not page.locator("#command").is_visible()
        shown = [int(each.get_attribute("data-prototype")) for each in page.query_selector_all("article.part")]
        pages.slide(page, shown[0], 0.35)
        check_same(page, shown_command(page, model, toy.image(1)))
        pages.slide(page, shown[-1], 0)
        assert not page.is_checked(f'[data-prototype="{shown[-1]}"] [data-switch]')
        found = shown_command(page, model, toy.image(1))
        check_same(page, found)
        assert len(found["edits"]) == 2 and pages.logits(page) != before
        # a second class: the first one's edits stay, and each class stands before its own
        first = page.input_value("#choose-class")
        page.select_option("#choose-class", index=1)
        assert page.input_value("#choose-class") != first
        other = int(page.get_attribute("article.part", "data-prototype"))
        pages.slide(page, other, 1.5)
        assert page.inner_text("#words").count("protonmf intervene") == 1
        assert page.inner_text("#words").count("--class") == 2
        found = shown_command(page, model, toy.image(1))
        check_same(page, found)
        assert len({edit["class_index"] for edit in found["edits"]}) == 2 and len(found["edits"]) == 3
        page.click("#reset")
        assert pages.logits(page) == before and not page.locator("#command").is_visible()


def test_the_switch_goes_back_to_one(browser, page_file):
    with pages.opened(browser, page_file) as page:
        before = pages.logits(page)
        switch = page.locator("[data-switch]").first
        switch.click()
        assert pages.logits(page) != before and page.locator("article.part output").first.inner_text() == "× 0"
        switch.click()
        assert pages.logits(page) == before


def number_of(text):
    return float(text.replace("−", "-").replace("%", ""))


@pytest.mark.parametrize("kind", ["vit", *map(slow, ("converted", "vit_augmented", "split", "paper"))])
def test_amounts_contributions_and_logits_under_edits_are_those_of_the_commands(
    browser, request, converted, toy, tmp_path, kind
):
    """Every row of the page beside the ledger of the edited model that the page's own command writes."""
    parts = toys.convert(toy, tmp_path / "p.safetensors", "--near-as", "parts") if kind == "split" else None
    model = request.getfixturevalue(kind) if parts is None else split(parts, tmp_path / "s.safetensors", 3)
    loaded = load(model)
    generator = np.random.default_rng(0)
    made(model, tmp_path / "page.html", "--images", toy.image(1), "--images", toy.image(3))
    data = pages.data_of(tmp_path / "page.html")
    with pages.opened(browser, tmp_path / "page.html") as page:
        for image, shown in ((1, 0), (3, 1)):
            page.click(f"#images button[data-image='{shown}']")
            for c in range(4):
                page.select_option("#choose-class", str(c))
                if page.locator("#all").count():
                    page.click("#all")
                # what the page holds before any edit
                before = loaded.explain(toy.image(image), str(c))
                mine = pages.contributions_of(data, shown, c)
                assert mine.keys() == {x.prototype_id for x in before.contributions}
                for x in before.contributions:
                    assert mine[x.prototype_id][1] == pytest.approx(x.contribution, abs=1e-4)
                # the page tells the amount and the share of the residual apart
                for x in loaded.explain(toy.image(image), str(c), form="plain").contributions:
                    assert mine[x.prototype_id][0] == pytest.approx(x.evidence, abs=1e-4)
                entries = [
                    int(each.get_attribute("data-prototype")) for each in page.query_selector_all("article.part")
                ]
                assert entries and set(entries) == set(mine)
                for j in generator.choice(entries, min(2, len(entries)), replace=False).tolist():
                    pages.slide(page, j, float(generator.choice([0.0, 0.35, 1.7])))
                found = shown_command(page, model, toy.image(image))
                check_same(page, found)
                target = tmp_path / f"edited-{kind}-{image}-{c}.safetensors"
                words = pages.command_of(page, model, toy.image(image))[1:]
                assert run(*words, "-o", target, "--device", "cpu", "-q")[0] == 0
                after = load(target).explain(toy.image(image), str(c))
                # the ledger, row by row, to the digits that are shown
                rows = pages.waterfall(page)
                names = {x.prototype_id: title(x, c) for x in after.contributions}
                assert len(set(names.values())) == len(names)
                for x in after.contributions:
                    assert rows[names[x.prototype_id]] == pytest.approx(x.contribution, abs=0.00511)
                assert rows["bias"] == pytest.approx(after.bias, abs=0.00511)
                assert rows.get("residual", 0) == pytest.approx(after.residual, abs=0.00511)
                assert ("no place" in rows) == (after.unplaced is not None) == kind.startswith("vit")
                assert rows.get("no place", 0) == pytest.approx(after.unplaced or 0, abs=0.00511)
                logit = float(page.get_attribute("#logit", "data-value"))
                assert logit == pytest.approx(after.logit, abs=1e-4)
                page.click("#reset")


def title(contribution, class_index):
    return part_name(contribution.prototype, "" if contribution.owner_index == class_index else contribution.owner_name)


def test_cards_say_amount_usual_range_and_weight(browser, vit, toy, tmp_path):
    made(vit, tmp_path / "page.html", "--images", toy.image(2))
    found = load(vit).explain(toy.image(2))
    with pages.opened(browser, tmp_path / "page.html") as page:
        for x in found.contributions:
            words = page.inner_text(f'article.part[data-prototype="{x.prototype_id}"] .sum').replace("−", "-")
            low, high = (0.0 if abs(each) < 0.05 else each for each in x.usual)
            said = f"{x.evidence:.2f} × {x.weight:+.2f} amount (usual {low:.1f} to {high:.1f}) × weight = "
            assert " ".join(words.split()).startswith(said), words
            assert words.split()[-1] == f"{round(x.contribution, 2) + 0.0:+.2f}"
            card = page.inner_text(f'article.part[data-prototype="{x.prototype_id}"]')
            assert ("less than none of" in card) == (x.evidence < 0)
            # no box is drawn around what is not there
            boxes = page.locator(f'article.part[data-prototype="{x.prototype_id}"] figure >> nth=0').locator("rect")
            assert boxes.count() == (0 if x.evidence < 0 else 2)
        assert "no place" in page.inner_text("#waterfall")


@pytest.mark.parametrize("kind", ["presence", "contribution"])
def test_maps_are_drawn_on_the_scale_that_is_usual(browser, vit, toy, tmp_path, kind):
    """Full colour is the usual amount at the strongest place, so that a faint map is drawn faint."""
    loaded = load(vit)
    images = [toy.image(n, split) for n in range(4) for split in ("val", "train")]
    image, found = next(
        (image, found)
        for image, found in ((each, loaded.explain(each)) for each in images)
        if any(x.evidence < 0 for x in found.contributions)
    )
    made(vit, tmp_path / "page.html", "--images", image)
    data = pages.data_of(tmp_path / "page.html")
    with pages.opened(browser, tmp_path / "page.html") as page:
        page.select_option("#map", kind)
        for x in found.contributions:
            assert data["prototypes"][x.prototype_id]["full"] == loaded.model.amounts.peak_of(x.prototype_id)
            drawn = page.evaluate(
                """(j) => { const canvas = document.querySelector(`article.part[data-prototype="${j}"] canvas`);
                const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                return [...pixels].filter((_, n) => n % 4 === 3); }""",
                x.prototype_id,
            )
            full = x.scale[kind] or np.abs(x.maps[kind]).max()
            relative = np.clip(x.maps[kind] / full, -1, 1)
            signed = kind == "contribution" or x.evidence < 0  # which is less than none: the map has both signs
            opacity = np.abs(relative) if signed else np.clip(relative.clip(0) ** 1.5 * 1.6, 0, 1)
            assert np.allclose(np.array(drawn).reshape(relative.shape), 255 * 0.62 * opacity, atol=3)


def split(model, target, count):
    """The same model with every prototype cut into equal parts: no part decides what the whole decided.

    Of amounts, equal prototypes hold the same amount, and the weight is shared out among them.
    """
    old, weights = load_model(model)
    w, parts = old.weights, torch.arange(count)

    def copies(values):
        return values.repeat_interleave(count, dim=0)

    numbers = (w.prototype[:, None] * count + parts).flatten()
    examples = replace(old.examples, prototype=old.examples.prototype * count)
    new = replace(
        old,
        prototypes=copies(old.prototypes),
        owner=copies(old.owner),
        weights=replace(
            w, class_index=copies(w.class_index), prototype=numbers, value=copies(w.value) / count,
            residual_share=copies(w.residual_share) / count,
        ),
        examples=examples,
        evidence=old.evidence
        if old.amounts is None
        else replace(
            old.amounts, usual=copies(old.amounts.usual), edit_readers=copies(old.amounts.edit_readers), images=None
        ),
        card=replace(old.card, measured=replace(old.card.measured, stability=())),
    )  # fmt: skip
    save_model(target, new, weights)
    return target


def blended(toy, folder, pairs):
    """Images of two classes in one, more of the first: a prototype alone may decide between them."""
    folder.mkdir()
    for first, second in pairs:
        pictures = [Image.open(toy.image(c)).resize((80, 80)) for c in (first, second)]
        Image.blend(*pictures, 0.42).save(folder / f"{first} and {second}.png")
    return folder


@pytest.mark.parametrize(
    ("kind", "count"), [("converted", 6), *(slow(*each) for each in (("converted", 1), ("paper", 6), ("paper", 1)))]
)
def test_the_hint_flips_the_decision_with_the_fewest(browser, request, toy, tmp_path, kind, count):
    model = split(request.getfixturevalue(kind), tmp_path / "model.safetensors", count)
    images = blended(toy, tmp_path / "blended", [(a, b) for a in range(3) for b in range(3) if a != b])
    made(model, tmp_path / "page.html", "--images", images)
    needed = []
    with pages.opened(browser, tmp_path / "page.html") as page:
        for _ in range(6):
            words = page.inner_text("#hint")
            if page.locator("#try").count():
                top = next(iter(pages.logits(page)))
                page.click("#try")
                assert next(iter(pages.logits(page))) != top, words
                assert "flipped from" in page.inner_text("#live")
                needed.append(page.url.count("x0"))
                assert words.startswith("Switching off" if needed[-1] == 1 else "No single prototype")
                if needed[-1] > 1:  # one less is not enough
                    page.locator("[data-switch]:not(:checked)").last.click()
                    assert next(iter(pages.logits(page))) == top
                page.click("#reset")
            page.keyboard.press("ArrowRight")
    assert needed and (min(needed) == 1 if count == 1 else max(needed) > 1)


@pytest.mark.parametrize("kind", ["converted", "paper", "vit"])
def test_numbers_and_crop_are_those_of_the_figure(browser, request, toy, tmp_path, kind):
    from protonmf_cli.output.figures.figure import explanation_figure

    converted = request.getfixturevalue(kind)
    explanation = load(converted).explain(toy.image(0))
    texts = [text.get_text() for text in explanation_figure(explanation, 5).findobj(matplotlib.text.Text)]
    code, _, err = run("explain", toy.image(0), "--model", converted, "--html", tmp_path / "page.html", "-q")
    assert code == 0, err
    with pages.opened(browser, tmp_path / "page.html") as page:
        numbers = [text.replace("−", "-") for text in page.locator("#waterfall .number").all_inner_texts()]
        parts = [text.replace("−", "-") for text in page.locator(".part .sum").all_inner_texts()]
        shown = page.locator("#bars [data-probability]").first.inner_text()
    in_figure = {text.strip() for text in texts}
    count = min(5, len(explanation.contributions)) + 3 + (kind == "vit")  # bias, residual, logit; what has no place
    assert len(numbers) == count and set(numbers) <= in_figure
    for contribution in explanation.contributions[:5]:
        weight = f"{round(contribution.evidence, 2) + 0.0:.2f}  ×  {round(contribution.weight, 2) + 0.0:+.2f}"
        if kind == "paper":
            weight = f"{contribution.weight:+.3f}  ×  {contribution.evidence:.2f}"
        else:
            low, high = (each + 0.0 for each in contribution.usual)
            assert f"amount × weight; usual {low:.1f} to {high:.1f}" in in_figure
        assert weight in in_figure and any(part.startswith(weight.replace("  ", " ")) for part in parts)
    assert ("less than none of this" in in_figure) == any(c.is_less_than_none for c in explanation.contributions[:5])
    assert ("no place" in in_figure) == (kind == "vit")
    assert any(text.endswith(shown) for text in in_figure)
    data = pages.data_of(tmp_path / "page.html")
    (tmp_path / "crop.jpg").write_bytes(base64.b64decode(data["pictures"][data["cases"][0]["pictures"][0]]))
    with Image.open(tmp_path / "crop.jpg") as crop:
        assert crop.size == explanation.crop.shape[1::-1]
        mine = np.asarray(crop.convert("RGB")).astype(float)
    blocks = [pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)) for pixels in (mine, explanation.crop)]
    assert np.abs(blocks[0] - blocks[1]).max() < 6  # JPEG keeps the mean of a block, whatever is in it
    boxes = {j: part["box"] for j, part in data["cases"][0]["drawn"][str(explanation.class_index)]["parts"].items()}
    for contribution in explanation.contributions:
        wanted = np.array(contribution.box) / 64
        assert np.allclose(boxes[str(contribution.prototype_id)], wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["converted", "paper", "vit"])
def test_maps_are_those_of_the_explanation(request, toy, tmp_path, kind):
    converted = request.getfixturevalue(kind)
    explanation = load(converted).explain(toy.image(0))
    run("explain", toy.image(0), "--model", converted, "--html", tmp_path / "page.html", "-q")
    parts = pages.data_of(tmp_path / "page.html")["cases"][0]["drawn"][str(explanation.class_index)]["parts"]
    for contribution in explanation.contributions:
        for kind, grid in contribution.maps.items():
            part = parts[str(contribution.prototype_id)]
            held = part.get(kind)
            if held is None:  # the page multiplies the amount with the weight
                assert explanation.reads_amounts and kind == "contribution"
                held = {**part["presence"], **{k: part["presence"][k] * contribution.weight for k in ("lo", "hi")}}
            raw = np.frombuffer(base64.b64decode(held["q"]), dtype=np.uint8).reshape(held["h"], held["w"])
            values = held["lo"] + (held["hi"] - held["lo"]) * raw / 255
            assert np.allclose(values, grid, atol=0.51 * abs(held["hi"] - held["lo"]) / 255 + 1e-12)


def test_maps_are_kept_of_the_largest_contributions(converted, toy, tmp_path):
    model = split(converted, tmp_path / "model.safetensors", 3)
    made(model, tmp_path / "page.html", "--images", toy.image(0))
    explanation = load(model).explain(toy.image(0))
    kept = pages.data_of(tmp_path / "page.html")["cases"][0]["drawn"][str(explanation.class_index)]["parts"]
    sizes = {str(c.prototype_id): abs(c.contribution) for c in explanation.contributions}
    assert len(kept) == cases.DRAWN < len(sizes) and kept.keys() <= sizes.keys()
    left = [size for j, size in sizes.items() if j not in kept]
    assert min(sizes[j] for j in kept) >= max(left) - 1e-6


def test_search_and_sorting(browser, page_file, converted):
    model, _ = load_model(converted)
    names = [c.shown for c in model.card.classes]

    def listed(page):
        return page.locator("#shelf article.class h2").all_inner_texts()

    with pages.opened(browser, page_file, "#gallery") as page:
        assert listed(page) == sorted(names)
        page.fill("#query", "BLUE")
        assert listed(page) == ["blue things"] and "1 of 4" in page.inner_text("#count")
        page.fill("#query", "nothing like it")
        assert listed(page) == [] and "No class fits" in page.inner_text("#shelf")
        page.fill("#query", "")
        measured = model.card.measured.per_class
        for key, field in (("residual", "residual_share"), ("accuracy", "accuracy")):
            page.select_option("#sort", key)
            sign = -1 if key == "residual" else 1
            wanted = sorted(range(4), key=lambda c: (sign * getattr(measured[str(c)], field), names[c]))
            assert listed(page) == [names[c] for c in wanted]
        # without an audit nothing is called suspicious; the page names the command that looks
        assert page.locator("#sort option").count() == 5 and page.locator("nav a[data-view=audit]").count() == 0
        assert page.inner_text("#audit-hint code") == f"protonmf audit --model {converted.name} --data DIR"
        # a class as a whole is no prototype of its class's: explanations of others weigh it
        for j in range(len(model.prototypes)):
            assert page.locator(f'.prototype[data-prototype="{j}"]').count() == (0 if model.wholes[j] else 1)


def test_a_prototype_says_for_whom_else_it_counts_about_as_much(browser, toy, tmp_path):
    file, names = tmp_path / "parts.safetensors", toys.LABELS
    code, _, err = run("convert", toy.name, "--data", toy.data, "-o", file, "-p", 2, "--near", 1, "--near-as", "parts")
    assert code == 0, err
    model, _ = load_model(file)
    made(file, tmp_path / "page.html", "--images", toy.image(0))
    weight = {(int(c), int(j)): float(v) for c, j, v in zip(
        model.weights.class_index, model.weights.prototype, model.weights.value, strict=True
    )}  # fmt: skip
    with pages.opened(browser, tmp_path / "page.html", "#gallery") as page:
        counted = 0
        for (c, j), value in weight.items():
            owner = int(model.owner[j])
            if owner != c:
                words = f"{names[c]} ({value:+.2f})".replace("-", "−")
                text = page.inner_text(f'.prototype[data-prototype="{j}"]')
                as_much = abs(value) >= 0.5 * abs(weight[owner, j])
                assert (words in text) == as_much
                assert not as_much or "counts at least half as much for" in text
                counted += as_much
        assert counted


def test_the_address_keeps_the_state(browser, page_file):
    with pages.opened(browser, page_file) as page:
        page.click("#images button[data-image='5']")
        shown = int(page.get_attribute("article.part", "data-prototype"))
        pages.slide(page, shown, 0.25)
        page.select_option("#choose-against", index=2)
        logits, url, against = pages.logits(page), page.url, page.inner_text("#contrast h2")
    fragment = url[url.index("#") :]
    with pages.opened(browser, page_file, fragment) as page:
        assert pages.logits(page) == logits and page.inner_text("#contrast h2") == against
        assert page.get_attribute("#images button[aria-current=true]", "data-image") == "5"
        page.evaluate("location.hash = '#gallery?q=green&sort=residual'")
        page.wait_for_selector("#view-gallery:not([hidden])")
        assert page.input_value("#query") == "green" and page.input_value("#sort") == "residual"
        page.go_back()
        page.wait_for_selector("#view-explain:not([hidden])")
        assert pages.logits(page) == logits
    with pages.opened(browser, page_file, fragment) as page:  # the link to the content is no other address
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        pages.until(page, "location.hash !== '#main'")
        assert page.url.endswith(fragment) and pages.logits(page) == logits
        page.click("nav a[data-view=gallery]")
        page.locator("a.chip").first.click()
        assert "edit=" in page.url, "edits stay when another image is looked at"


@pytest.mark.slow
def test_broken_addresses(browser, page_file, converted):
    model, _ = load_model(converted)
    stranger = next(j for j in range(8) if j not in model.weights.prototype[model.entries(0)].tolist())
    for words in ("image=99&class=x&against=-1", "edit=1.2xNaN,foo,9.9x3", "edit=0.99999x0", f"edit=0.{stranger}x0",
                  f"edit=0.{model.own(0)[0]}x1", f"edit=0.{model.own(0)[0]}x5000000"):  # fmt: skip
        with pages.opened(browser, page_file, f"#explain?{words}") as page:
            assert page.locator("article.part").count() and not page.locator("#command").is_visible()
    for fragment in ("#nowhere", "#gallery?sort=bad&page=77&open=-1", "#explain?image=1&class=2&against=2"):
        with pages.opened(browser, page_file, fragment) as page:
            assert page.locator("main").inner_text()


def test_it_works_with_the_keyboard_alone(browser, page_file):
    with pages.opened(browser, page_file, "#explain?image=0") as page:
        first = page.get_attribute("#images button[aria-current=true]", "data-image")
        page.keyboard.press("ArrowRight")
        assert page.get_attribute("#images button[aria-current=true]", "data-image") != first
        page.focus("[data-edit] >> nth=0")
        before = pages.logits(page)
        page.keyboard.press("ArrowLeft")
        assert pages.logits(page) != before
        page.keyboard.press("Home")
        assert page.locator("article.part output").first.inner_text() == "× 0"
        page.focus("[data-switch] >> nth=0")
        page.keyboard.press("Space")
        assert pages.logits(page) == before
        page.focus("figure button >> nth=0")
        page.keyboard.press("Enter")
        assert page.locator("dialog[open]").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("dialog[open]").count()
        page.focus("nav a[data-view=gallery]")
        page.keyboard.press("Enter")
        assert page.locator("#view-gallery").is_visible()
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("/")
        page.keyboard.type("grey")
        assert page.locator("#shelf article.class").count() == 1
        page.click("nav a[data-view=explain]")
        for chosen, key in (
            ("#next", "Enter"),
            ("#smooth", "Space"),
            ("#map", "ArrowDown"),
            ("#choose-class", "ArrowDown"),
        ):
            page.focus(chosen)
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.id") == chosen[1:], "the focus stays on what was used"
        page.go_back()  # to the image before
        pages.until(page, "location.hash.includes('image=1')")
        page.click("nav a[data-view=gallery]")
        reached = set()
        for _ in range(25):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert {"sort", "BUTTON", "A"} <= reached


@pytest.mark.parametrize("kind", ["converted", slow("protopnet"), slow("fewshot")])
def test_it_fits_a_phone(browser, request, toy, tmp_path, kind):
    made(request.getfixturevalue(kind), tmp_path / "page.html", "--images", toy.image(2), "--images", toy.image(3))
    with pages.opened(browser, tmp_path / "page.html", width=360, height=740, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollHeight") <= 3 * 800, "of an explanation"
        for closed in page.query_selector_all("details:not([open]) > summary"):
            closed.click()
        assert pages.findings(page) == []
        for view in ("explain", "prototypes", "gallery", "summary"):
            page.click(f"nav a[data-view={view}]")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"


def hostile(model, target, names):
    """The same model with other class names."""
    old, weights = load_model(model)
    card = replace(old.card, classes=tuple(ClassName(label=label, description=words) for label, words in names))
    save_model(target, replace(old, card=card), weights)
    return target


def test_hostile_names_are_text(browser, converted, toy, tmp_path):
    names = [
        ("<script>alert(1)</script>", ""),
        ("a\"b'c\\d", "</script><img src=x onerror=alert(2)>"),
        ("--zero", "{{ 7 * 7 }} & ${8 * 8} <b>bold</b>"),
        ("it's; rm -rf \u2028 *", ""),
    ]
    model = hostile(converted, tmp_path / "a 'quoted' model.safetensors", names)
    image = tmp_path / "<img src=x onerror=alert(3)> 'q' $(ls).png"
    shutil.copy(toy.image(1), image)
    made(model, tmp_path / "page.html", "--images", image)
    with pages.opened(browser, tmp_path / "page.html") as page:
        page.wait_for_timeout(100)
        assert page.locator("b", has_text="bold").count() == 0 and page.locator("img[src=x]").count() == 0
        assert "{{ 7 * 7 }} & ${8 * 8} <b>bold</b>" in page.inner_text("main")
        for chosen in page.eval_on_selector_all("#choose-class option", "all => all.map((each) => each.value)"):
            page.select_option("#choose-class", chosen)
            for each in page.query_selector_all("article.part"):
                pages.slide(page, int(each.get_attribute("data-prototype")), 0.5)
            check_same(page, shown_command(page, model, image))
            page.click("#reset")
        page.click("nav a[data-view=gallery]")
        assert "<script>alert(1)</script>" in page.inner_text("#shelf")
        page.click("nav a[data-view=summary]")


def test_evaluation_tables_and_provenance(browser, converted, toy, tmp_path):
    code, out, err = run(
        "evaluate", "--data", toy.data, "--model", converted, "--table", "oracle", "--json", "--device", "cpu"
    )
    assert code == 0, err
    (tmp_path / "evaluation.json").write_text(out)
    found = json.loads(out)
    made(converted, tmp_path / "page.html", "--evaluation", tmp_path / "evaluation.json")
    with pages.opened(browser, tmp_path / "page.html", "#summary") as page:
        words = page.inner_text("#view-summary")
        assert "Same decisions" in words and "Evaluation on 18 images" in words
        assert f"{found['accuracy']['prototype_model']:.1%}" in words
        for column in found["tables"]["oracle"]["columns"]:
            assert column["heading"] in words
        model, _ = load_model(converted)
        for each in (
            model.card.source.digest,
            model.card.data.digest,
            model.card.versions["torch"],
            "nmf.solver=hals",
        ):
            assert each in words
        page.click("nav a[data-view=gallery]")
        for row in found["per_class"]:
            assert f"accuracy {row['prototype_model']:.0%}" in page.inner_text(f"#class-{row['class_index']}")
        assert page.locator("nav a[data-view=explain]").count() == 0


def test_an_edited_model_is_not_called_the_same(browser, converted, toy, tmp_path):
    code, _, err = run(
        "intervene", toy.image(0), "--model", converted, "--zero", 1, "-o", tmp_path / "e.safetensors", "-q"
    )
    assert code == 0, err
    made(tmp_path / "e.safetensors", tmp_path / "page.html", "--images", toy.image(0))
    with pages.opened(browser, tmp_path / "page.html", "#summary") as page:
        words = page.inner_text(".badge")
        assert "Edited" in words and "Same decisions" not in words
        assert page.inner_text("#view-summary").count("before the edits") == 4
        page.click("nav a[data-view=gallery]")
        assert "accuracy" not in page.inner_text("#shelf") and "residual share" not in page.inner_text("#shelf")
        page.click("nav a[data-view=explain]")
        shown = int(page.get_attribute("article.part", "data-prototype"))
        pages.slide(page, shown, 0.5)
        check_same(page, shown_command(page, tmp_path / "e.safetensors", toy.image(0)))


def test_a_plain_edit_of_an_augmented_model_keeps_the_ledger(browser, toy, tmp_path):
    image, augmented, edited = toy.image(0), tmp_path / "a.safetensors", tmp_path / "e.safetensors"
    made_of = ("convert", toy.name, "--data", toy.data, "-p", 2, "--near", 0, "--augment", "paper")
    assert run(*made_of, "--reconstruction", "paper", "-o", augmented, "-q")[0] == 0
    words = (
        "intervene",
        image,
        "--model",
        augmented,
        "--form",
        "plain",
        "--class",
        0,
        "--zero",
        "1",
        "-o",
        edited,
        "-q",
    )
    assert run(*words)[0] == 0
    code, out, err = run("explain", image, "--model", edited, "--class", 0, "--json", "--html", tmp_path / "page.html")
    found = json.loads(out)
    assert code == 0 and found["form"] == "augmented" and found["ledger_error"] < 1e-5, err
    residual = found["residual"]["contribution"]
    assert abs(residual) > 1e-3, "what the prototype carried is left"
    with pages.opened(browser, tmp_path / "page.html", "#explain?class=0") as page:
        assert abs(float(page.get_attribute("#logit", "data-value")) - found["logit"]) < 1e-4
        assert f"{residual:+.2f}".replace("-", "−") in page.inner_text("#waterfall")


@pytest.mark.parametrize("recipe", ["default", slow("paper")])
def test_a_class_without_images_is_made_of_other_classes_or_all_residual(browser, toy, tmp_path, recipe):
    data = tmp_path / "data"
    shutil.copytree(toy.data, data)
    shutil.rmtree(data / "train" / toys.LABELS[3])
    words = ("--augment", "none", "--recipe", recipe, "-o", tmp_path / "m.safetensors", "-p", 2, "-q")
    code, _, err = run("convert", toy.name, "--data", data, *words)
    assert code == 0, err
    made(tmp_path / "m.safetensors", tmp_path / "page.html", "--data", toy.data, "--per-class", 3)
    model, _ = load_model(tmp_path / "m.safetensors")
    data = pages.data_of(tmp_path / "page.html")
    number = next(n for n, one in enumerate(data["cases"]) if one["top"] == 3)
    with pages.opened(browser, tmp_path / "page.html", f"#explain?image={number}") as page:
        said = "its rows are of other classes" if recipe == "default" else "all of its logit is residual"
        assert f"has no prototypes of its own in this model: {said}" in page.inner_text("main")
        assert page.locator("article.part").count() == (3 if recipe == "default" else 0)
        assert page.locator("[aria-label=Residual] canvas").count() == (1 if recipe == "default" else 2)
        logits = pages.logits(page)
        nearest = max(model.active_classes.tolist(), key=lambda c: logits[c])
        assert nearest == int(page.input_value("#choose-against"))
        if recipe == "default":  # and they can be edited
            pages.slide(page, int(page.get_attribute("article.part", "data-prototype")), 0)
            check_same(page, shown_command(page, tmp_path / "m.safetensors", toy.data))
        page.click("#nearest")
        assert page.inner_text("#what") == f"What the logit of {model.card.classes[nearest].shown} is made of"
        assert page.locator("article.part canvas").count()
    # or the best class with prototypes is what is explained
    made(tmp_path / "m.safetensors", tmp_path / "some.html", "--images", toy.image(3), "--among", "prototypes")
    first = pages.data_of(tmp_path / "some.html")["cases"][0]["first"]
    with pages.opened(browser, tmp_path / "some.html") as page:
        assert int(page.input_value("#choose-class")) == first == max(range(3), key=lambda c: pages.logits(page)[c])
        said = f"The classifier's own answer is {model.card.classes[3].shown} ("
        assert page.inner_text("#headline").startswith(said)
        assert "a class without prototypes here" in page.inner_text("#headline")


def test_two_classes_are_compared_on_the_same_amounts(browser, vit, toy, tmp_path):
    made(vit, tmp_path / "page.html", "--images", toy.image(1))
    with pages.opened(browser, tmp_path / "page.html") as page:
        first, second = (int(page.input_value(f"#choose-{which}")) for which in ("class", "against"))
        words = ("--model", vit, "--class", first, "--against", second, "--json", "--device", "cpu")
        code, out, err = run("explain", toy.image(1), *words)
        assert code == 0, err
        found = json.loads(out)["against"]
        rows = [each.inner_text().split("\t") for each in page.query_selector_all("#contrast tbody tr")]
        assert rows[-1][0] == "logit"
        assert number_of(rows[-1][4]) == pytest.approx(found["difference"], abs=0.00511)
        for row, mine in zip(found["rows"][:8], rows, strict=False):
            expected = (row["amount"], *(row["amount"] * w for w in row["weights"]), row["difference"])
            assert [number_of(cell) for cell in mine[1:5]] == pytest.approx(expected, abs=0.00511)
        named = {mine[0]: mine for mine in rows}
        for name, key in (("no place", "no_place"), ("residual", "residual"), ("bias", "bias")):
            assert [number_of(cell) for cell in named[name][2:4]] == pytest.approx(found[key], abs=0.00511)
        # an edit is one more row
        pages.slide(page, int(page.get_attribute("article.part", "data-prototype")), 0)
        rows = [each.inner_text().split("\t") for each in page.query_selector_all("#contrast tbody tr")]
        (edits,) = (mine for mine in rows if mine[0] == "the edits")
        after = shown_command(page, vit, toy.image(1))["after"]["predictions"]
        logits = {p["class_index"]: p["logit"] for p in after}
        assert number_of(rows[-1][4]) == pytest.approx(logits[first] - logits[second], abs=0.00511)
        assert number_of(edits[4]) == pytest.approx(logits[first] - logits[second] - found["difference"], abs=0.00511)


def test_a_combined_model_shows_what_each_network_saw(combined, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "DRAWN", 100)  # or those of one network alone might be the largest
    made(combined, tmp_path / "page.html", "--images", toy.image(0))
    data = pages.data_of(tmp_path / "page.html")
    sizes = []
    for number in data["cases"][0]["pictures"]:
        (tmp_path / "crop.jpg").write_bytes(base64.b64decode(data["pictures"][number]))
        with Image.open(tmp_path / "crop.jpg") as crop:
            sizes.append(crop.size)
    assert sizes == [(64, 64), (96, 96)]
    explanation = load(combined).explain(toy.image(0))
    parts = data["cases"][0]["drawn"][str(explanation.class_index)]["parts"]
    assert len({c.network for c in explanation.contributions}) == 2
    for c in explanation.contributions:
        wanted = np.array(c.box) / (64 if c.network == "local-dir:" + str(toy.network) else 96)
        assert np.allclose(parts[str(c.prototype_id)]["box"], wanted, atol=1e-4)
    assert (tmp_path / "page.html").read_text().count("<title>network + test_efficientnet") == 1
    # prototypes are compared within their network, by what sets them apart there
    for j, one in enumerate(data["prototypes"]):
        assert all(data["prototypes"][k]["m"] == one["m"] for k, _ in one["near"]), j


def test_methods_show_their_own_pictures(browser, toy, protopnet, fewshot, tmp_path):
    made(protopnet, tmp_path / "net.html", "--images", toy.image(0))
    with pages.opened(browser, tmp_path / "net.html") as page:
        local = page.inner_text("[aria-label='Local analysis']")
        assert local.count("similarity") == 8 and "looks like that" in local
        assert page.locator("[aria-label=Residual]").count() == 0
    made(fewshot, tmp_path / "few.html", "--images", toy.image(0))
    with pages.opened(browser, tmp_path / "few.html") as page:
        where = page.locator("[aria-label='Where it lies']")
        assert where.locator("path").count() == 1 and where.locator("circle").count() == 20
        assert "nearest training images" in where.inner_text()
        page.click("nav a[data-view=gallery]")
        assert "Training images and prototypes" in page.inner_text("#shelf")


def test_a_folder_holds_the_pictures_beside_the_page(browser, converted, toy, tmp_path):
    words = ("--folder", "--data", toy.data, "--per-class", 1)
    report = made(converted, tmp_path / "r", *words)
    files = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert report["bytes"] == sum(path.stat().st_size for path in files) and len(files) > 4
    with pages.opened(browser, tmp_path / "r" / "index.html") as page:
        pages.until(page, "[...document.images].every((each) => !each.complete || each.naturalWidth)")
        assert page.evaluate("document.querySelector('.main img').naturalWidth") == 64
    model, _ = load_model(converted)
    held = {model.examples.picture(e) for e in range(len(model.examples.prototype))}
    assert held <= {path.read_bytes() for path in files if path.suffix == ".jpg"}, "the file's own pictures"
    code, _, err = run("report", "--model", converted, "-o", tmp_path / "r", *words)
    assert code == 3 and "exists already" in err
    made(converted, tmp_path / "r", *words, "--force")
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    code, _, err = run("report", "--model", converted, "-o", tmp_path / "r", *words, "--force")
    assert code == 3 and "holds more than a report (thesis.txt)" in err and (tmp_path / "r" / "thesis.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_pictures_get_smaller_to_fit(browser, converted, toy, tmp_path):
    full = made(converted, tmp_path / "full.html", "--data", toy.data)
    pictures = sum(map(len, pages.data_of(tmp_path / "full.html")["pictures"]))
    most = (full["bytes"] - 0.4 * pictures) / 1e6
    small = made(converted, tmp_path / "small.html", "--data", toy.data, "--max-size", most)
    assert small["bytes"] <= most * 1e6 and "To stay below" in small["left_out"][0]
    with pages.opened(browser, tmp_path / "small.html", "#summary") as page:
        assert "To stay below" in page.inner_text("#view-summary")
    code, _, err = run("report", "--model", converted, "-o", tmp_path / "x.html", "--max-size", 0.01)
    assert code == 3 and "does not fit into 0.01 MB" in err and "--folder" in err and not (tmp_path / "x.html").exists()


def test_too_many_images_are_refused_before_they_are_read(converted):
    from protonmf_cli.errors import InputError
    from protonmf_cli.output.page.page import check_size

    model, _ = load_model(converted)
    check_size(model, 1000, 10**6)
    with pytest.raises(InputError, match="does not fit into 1 MB.*Give fewer images"):
        check_size(model, 10**5, 10**6)


def test_one_image_needs_no_other_class(browser, converted, toy, tmp_path):
    (image,) = blended(toy, tmp_path / "blended", [(0, 1)]).iterdir()
    code, _, err = run("explain", image, "--model", converted, "--html", tmp_path / "page.html", "--class", 2, "-q")
    assert code == 0, err
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert page.inner_text("#what") == "What the logit of blue things is made of"
        shown = page.eval_on_selector_all("#choose-class option", "all => all.length")
        assert shown == 4 and page.locator("#images").count() == 0
        page.click("#try")  # the hint is about the predicted class: it is explained then
        top = int(page.input_value("#choose-class"))
        assert f"edit={top}." in page.url
        page.click("nav a[data-view=gallery]")
        there = {int(each.get_attribute("id")[6:]) for each in page.query_selector_all("article.class")}
        links = page.eval_on_selector_all("#shelf .prototype a", "all => all.map((each) => each.hash)")
        assert {int(link.split("=")[1]) for link in links} <= there < {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["converted", "vit", "vit_augmented"])
def test_a_page_of_very_many_classes_has_rows_of_some_and_edits_as_the_command_does(
    browser, request, toy, tmp_path, monkeypatch, kind
):
    model = request.getfixturevalue(kind)
    monkeypatch.setattr(content, "MOST_CLASSES", 3)
    output = tmp_path / "report.html"
    found = made(model, output, "--images", toy.image(3))
    (said,) = found["left_out"]
    assert said.startswith("The page has rows of 3 of 4 classes: those explained")
    with pages.opened(browser, output) as page:
        data = json.loads(page.inner_text("#data"))
        listed, prototypes = data["listed"], data["prototypes"]
        assert len(listed) == 3 and {fact["c"] for fact in data["facts"]} == set(listed)
        assert len(prototypes) <= 12 and len(data["classes"]) == 4
        assert sorted(data["own"][str(c)] for c in listed)
        j = int(page.get_attribute("article.part", "data-prototype"))
        stored, _ = load_model(model)
        assert prototypes[j]["n"] in [0, *(stored.number(k) for k in stored.own(prototypes[j]["c"]))]
        pages.slide(page, j, 0)
        check_same(page, shown_command(page, model, toy.image(3)))


def test_no_examples_no_names_and_a_crowd(browser, converted, toy, tmp_path):
    model, weights = load_model(converted)
    empty = torch.empty(0, dtype=torch.int64)
    bare = replace(
        model.examples, prototype=empty, score=torch.empty(0), box=empty.reshape(0, 4), map=torch.empty(0, 0, 0),
        crop=empty.reshape(0, 2), jpeg=torch.empty(0, dtype=torch.uint8), sources=(),
    )  # fmt: skip
    classes = tuple(ClassName(label=str(c)) for c in range(4))
    save_model(
        tmp_path / "bare.safetensors", replace(model, examples=bare, card=replace(model.card, classes=classes)), weights
    )
    made(tmp_path / "bare.safetensors", tmp_path / "bare.html", "--images", toy.image(0))
    with pages.opened(browser, tmp_path / "bare.html") as page:
        assert "The file holds no training patches." in page.inner_text("article.part")
        pages.slide(page, int(page.get_attribute("article.part", "data-prototype")), 0)
        check_same(page, shown_command(page, tmp_path / "bare.safetensors", toy.image(0)))
        page.click("nav a[data-view=gallery]")
        assert "The file holds no training patches." in page.inner_text("#shelf")
    # hundreds of prototypes in one class: the first one, 300 times
    owner = torch.cat([model.owner, torch.zeros(300, dtype=torch.int64)])
    order = owner.argsort(stable=True)
    back = order.argsort()
    extra = torch.arange(len(model.owner), len(owner))
    w = model.weights
    crowd = replace(
        model,
        prototypes=torch.cat([model.prototypes, model.prototypes[:1].expand(300, -1)])[order],
        owner=owner[order],
        weights=replace(
            w,
            class_index=torch.cat([w.class_index, torch.zeros(300, dtype=torch.int64)]),
            prototype=back[torch.cat([w.prototype, extra])],
            value=torch.cat([w.value, torch.full((300,), 1e-3)]),
            residual_share=torch.cat([w.residual_share, torch.zeros(300)]),
        ),
        evidence=replace(
            model.amounts,
            usual=torch.cat([model.amounts.usual, torch.ones(300, 4)])[order],
            edit_readers=torch.cat([model.amounts.edit_readers, model.amounts.edit_readers[:1].expand(300, -1)])[order],
            images=None,
        ),
        examples=replace(model.examples, prototype=back[model.examples.prototype]),
        card=replace(model.card, measured=replace(model.card.measured, stability=()), edits=({"class_index": 0},)),
    )
    save_model(tmp_path / "crowd.safetensors", crowd, weights)
    made(tmp_path / "crowd.safetensors", tmp_path / "crowd.html", "--images", toy.image(0))
    with pages.opened(browser, tmp_path / "crowd.html", "#explain?class=0") as page:
        assert page.locator("article.part").count() == 5
        page.click("#all")
        assert page.locator("article.part").count() > 300
        page.click("nav a[data-view=gallery]")
        assert page.locator("#class-0 .prototype").count() == 12
        page.click("#class-0 .more button")
        assert page.locator("#class-0 .prototype").count() == 302


def test_images_that_cannot_be_read(browser, converted, toy, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no picture")
    code, _, err = run("report", "--model", converted, "-o", tmp_path / "x.html", "--images", tmp_path / "in")
    assert code == 3 and "none of the 1 images could be read" in err and "a.jpg" in err
    assert not (tmp_path / "x.html").exists()
    shutil.copy(toy.image(0), tmp_path / "in" / "b.png")
    report = made(converted, tmp_path / "x.html", "--images", tmp_path / "in", code=6)
    assert report["images"] == 1 and report["unreadable"][0]["path"].endswith("a.jpg")
    with pages.opened(browser, tmp_path / "x.html", "#summary") as page:
        assert "a.jpg" in page.inner_text("#view-summary")
    words = ("explain", *sorted((tmp_path / "in").iterdir()), "--model", converted, "-q")
    assert run(*words, "--html", tmp_path / "e.html")[0] == 6
    with pages.opened(browser, tmp_path / "e.html", "#summary") as page:
        assert "a.jpg" in page.inner_text("#view-summary")
    code, _, err = run(
        "explain", toy.image(0), "--model", converted, "--html", tmp_path / "s.png", "--figure", tmp_path / "s.png"
    )
    assert code == 2 and "--figure and --html both name" in err and not (tmp_path / "s.png").exists()


def test_refusals(converted, toy, tmp_path):
    output = tmp_path / "report.html"
    (tmp_path / "empty").mkdir()
    code, out, _ = run("evaluate", "--data", toy.data, "--model", converted, "--json", "--device", "cpu")
    assert code == 0
    (tmp_path / "evaluation.json").write_text(out)
    edited = tmp_path / "edited.safetensors"
    assert run("intervene", toy.image(0), "--model", converted, "--zero", 1, "-o", edited, "-q")[0] == 0
    for name, change in (("list", {"tables": []}), ("nan", {"images": float("nan")}), ("text", {"accuracy": "high"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(json.loads(out) | change))
    (tmp_path / "wrong.json").write_text('{"schema": "protonmf.explanation/1"}')
    (tmp_path / "less.json").write_text(json.dumps({k: v for k, v in json.loads(out).items() if k != "intervals"}))
    (tmp_path / "not.json").write_text("[1, 2")
    for words, code, sentence in (
        (("--model", tmp_path / "none.safetensors"), 3, "there is no prototype model at"),
        (("--model", tmp_path / "evaluation.json"), 3, "evaluation.json"),
        (("--images", tmp_path / "empty"), 3, "there are no images in"),
        (("--images", tmp_path / "gone.png"), 3, "gone.png cannot be read"),
        (("--data", tmp_path / "gone"), 3, "does not exist"),
        (("--boxes", toy.data), 2, "--boxes is about the images of --data"),
        (("--per-class", 3, "--images", toy.image(0)), 2, "--per-class is about the images of --data"),
        (("--max-size", 0), 2, "--max-size must be a number of megabytes above zero"),
        (("--max-size", "nan"), 2, "--max-size must be"),
        (("--form", "augmented"), 3, "no augmented prototypes"),
        (("--evaluation", tmp_path / "gone.json"), 3, "cannot be read"),
        (("--evaluation", tmp_path / "wrong.json"), 3, "holds protonmf.explanation/1, not protonmf.evaluation/1"),
        (("--evaluation", tmp_path / "not.json"), 3, "is not what `protonmf evaluate --json` writes"),
        (
            ("--evaluation", tmp_path / "less.json"),
            3,
            "is not a whole evaluation of this version (KeyError: 'intervals')",
        ),
        (("--evaluation", tmp_path / "evaluation.json", "--model", edited), 3, "evaluates another model"),
        (("--evaluation", tmp_path / "list.json"), 3, "is not a whole evaluation of this version"),
        (("--evaluation", tmp_path / "nan.json"), 3, "is not what `protonmf evaluate --json` writes"),
        (("--evaluation", tmp_path / "text.json"), 3, "is not a whole evaluation of this version"),
        (("--folder", "-o", "."), 3, "is where you are"),
        (("-o", tmp_path), 3, "is a folder"),
        (("-o", tmp_path / "no" / "page.html"), 3, "does not exist"),
        (("--folder", "-o", tmp_path / "evaluation.json"), 3, "is a file; give the name of a folder"),
    ):
        given = (
            *words,
            *(() if "--model" in words else ("--model", converted)),
            *(() if "-o" in words else ("-o", output)),
        )
        found, _, err = run("report", *given)
        assert (found, sentence in err) == (code, True), (words, found, err)
        assert err.count("\n") <= 3 and not output.exists()
    output.write_text("mine")
    found, _, err = run("report", "--model", converted, "-o", output)
    assert found == 3 and "exists already" in err and output.read_text() == "mine"
    found, _, err = run("explain", toy.image(0), "--model", converted, "--html", output)
    assert found == 3 and "exists already" in err and output.read_text() == "mine"


def test_the_command_runs_where_the_report_was_made(browser, converted, toy, tmp_path, monkeypatch):
    """With data that was named by a relative path; of other data it says no folder above it."""
    monkeypatch.chdir(toy.data.parent)
    made(converted, tmp_path / "page.html", "--data", toy.data.name, "--per-class", 1)
    with pages.opened(browser, tmp_path / "page.html") as page:
        page.locator("[data-switch]").first.click()
        image = shlex.split(page.inner_text("#words"))[2]
        assert image.startswith(f"{toy.data.name}/") and Path(image).is_file()
    made(converted, tmp_path / "far.html", "--data", toy.data, "--per-class", 1)
    assert str(toy.data.parent) not in (tmp_path / "far.html").read_text()


def test_an_archive_gives_a_command_with_a_gap(browser, converted, toy, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", toy.data)
    made(converted, tmp_path / "page.html", "--data", archive, "--per-class", 1)
    with pages.opened(browser, tmp_path / "page.html") as page:
        page.locator("[data-switch]").first.click()
        assert page.inner_text("#words").startswith("protonmf intervene IMAGE --model")


def test_equal_reports_are_equal(converted, toy, page_file, tmp_path):
    made(converted, tmp_path / "again.html", "--data", toy.data, "--per-class", 2)
    assert (tmp_path / "again.html").read_bytes() == page_file.read_bytes()
    assert page_file.stat().st_mode & 0o777 == 0o644


def test_every_part_of_the_script_is_joined_once_and_no_name_is_defined_twice():
    folder = resources.files("protonmf_cli.output.page") / "js"
    parts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".js")}
    joined = script()
    assert len(parts) > 5 and all(joined.count(text) == 1 for text in parts.values())
    assert sorted(parts) == sorted(f"{name}.js" for name in SCRIPT)
    # outside functions stand definitions alone, one name each, but in the part that starts the page
    parts = {name: re.sub(r"/\*.*?\*/|(^| )// .*?$", "", parts[name], flags=re.DOTALL | re.MULTILINE) for name in parts}
    names = []
    for name in sorted(parts.keys() - {"main.js"}):
        for line in re.findall(r"^\w.*", parts[name], flags=re.MULTILINE):
            found = re.match(r"(?:async )?(?:function|const|let) (\w+)", line)
            assert found, (name, line)
            names.append(found[1])
    assert len(names) > 100 and len(set(names)) == len(names)
    used = Counter(word for text in parts.values() for word in re.findall(r"\w+", text))
    assert [name for name in names if used[name] < 2] == []


def test_the_page_says_how_usual_an_image_is(page_file, converted, toy, browser):
    case = pages.data_of(page_file)["cases"][0]
    code, out, err = run("explain", toy.data / case["image"], "--model", converted)
    assert code == 0, err
    assert f"unlike: {case['unlike']}" in " ".join(out.split())
    with pages.opened(browser, page_file, "#explain?image=0") as page:
        assert page.inner_text("#unlike") == f"unlike: {case['unlike']}"
