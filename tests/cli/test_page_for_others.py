"""The report for somebody who did not make it: what it says in words, whose folders it does not name, what a hand finds."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import pages
from protonmf_cli.jobs.loaded import load
from protonmf_cli.models.wording import part_name
from protonmf_cli.output.page.words import GLOSSARY
from toys import LABELS, run, slow


def made(model, output, *words):
    code, _, err = run("report", "--model", model, "-o", output, "--device", "cpu", "-q", *words)
    assert code == 0, err
    return output


@pytest.fixture(scope="module")
def page_file(toy, converted, tmp_path_factory) -> Path:
    return made(converted, tmp_path_factory.mktemp("others") / "report.html", "--data", toy.data, "--per-class", 2)


@pytest.fixture(scope="module")
def fewshot(toy) -> Path:
    output = toy.folder / "others-few.safetensors"
    words = ("--data", toy.data, "--shots", 5, "-o", output, "--device", "cpu", "-q")
    assert run("fewshot", "fit", toy.name, *words)[0] == 0
    return output


def text(page, selector):
    return " ".join(page.inner_text(selector).replace("−", "-").split())


# what it says


def test_it_says_what_it_is_and_how_to_read_a_row(browser, converted, toy, tmp_path):
    made(converted, tmp_path / "page.html", "--images", toy.image(1))
    largest = load(converted).explain(toy.image(1)).contributions[0]
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert text(page, "#about").startswith("This page shows how the image classifier network decides")
        words = text(page, "[data-fold=how]")
        name = next(name for name, value in row_values(load(converted).explain(toy.image(1))).items()
                    if value == largest.contribution)  # fmt: skip
        assert f"{name} adds {largest.contribution:+.2f}, its contribution" in words
        assert f"{largest.evidence:.2f}, its amount: how much of it the image holds" in words
        assert f"times {largest.weight:+.2f}, its weight" in words
        assert f"make the logit, {float(page.get_attribute('#logit', 'data-value')):.2f}" in words


@pytest.mark.parametrize(("usual", "where"), [((3, 4), "less than"), ((-4, -3), "more than"), ((-9, 9), "as much as")])
def test_a_row_says_how_usual_its_amount_is(browser, page_file, tmp_path, usual, where):
    data = pages.data_of(page_file)
    for prototype in data["prototypes"]:
        prototype["usual"] = usual
    pages.altered(page_file, tmp_path / "page.html", data)
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert f"holds, {where} is usual in training images of" in text(page, "[data-fold=how]")
        assert f"({usual[0]:.1f} to {usual[1]:.1f})" in text(page, "[data-fold=how]")


def test_the_page_says_what_it_is_without_javascript(page_file):
    assert re.search(
        r'<p class="about" id="about">This page shows how the image classifier network', page_file.read_text()
    )


WORDS = {
    "#explain": {"prototype", "contribution", "amount", "usual", "weight", "logit", "bias", "residual", "residual share", "ledger error", "unlike",
                 "map", "probability"},
    "#gallery": {"stability", "weight", "residual share", "nearest"},
    "#summary": {"exactness", "accuracy", "stability", "residual share", "cancellation", "evidence"},
}  # fmt: skip


@pytest.mark.parametrize("view", ["#explain", slow("#gallery"), slow("#summary")])
def test_technical_words_explain_themselves_where_they_stand(browser, page_file, view):
    with pages.opened(browser, page_file, view) as page:
        shown = page.locator(f"#view-{view[1:]} button.word:visible")
        about = {one.get_attribute("aria-describedby") for one in shown.all()}
        assert {f"about-{name.replace(' ', '-')}" for name in WORDS[view]} <= about
        for name in about:
            said = page.inner_html(f"#{name}")
            button = page.locator(f"#view-{view[1:]} button.word[aria-describedby={name}]:visible").first
            button.focus()
            assert len(said) > 20 and page.locator("#tip").is_visible() and page.inner_html("#tip") == said
            page.keyboard.press("Escape")
            assert not page.locator("#tip").is_visible()
            button.click()
            box = page.locator("#tip").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
        page.click("h1")
        assert not page.locator("#tip").is_visible()
        shown.first.hover()
        page.locator("#tip").hover()
        page.wait_for_timeout(300)
        assert page.locator("#tip").is_visible(), "what the pointer is on stays"
        page.mouse.move(0, 0)
        pages.until(page, "document.getElementById('tip').hidden")


def row_names(explanation):
    """Of each row of an explanation, as a sentence calls it: its value."""
    found = {}
    for x in explanation.contributions:
        name = part_name(x.prototype, x.owner_name if x.owner_index != explanation.class_index else "")
        lacking = x.evidence < 0 and x.weight * x.evidence * x.contribution > 0
        found[("the lack of " if lacking else "") + name] = x.contribution
    found["the bias"] = explanation.bias
    found["the unexplained residual"] = explanation.residual
    if explanation.unplaced is not None:
        found["what has no place in the picture"] = explanation.unplaced
    return found


def listed(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def expected_sentences(explanation):
    """What speaks for a class and what against it, said anew from the explanation's numbers."""
    rows = sorted(row_names(explanation).items(), key=lambda row: -abs(row[1]))
    above, below = ([row for row in rows if sign * row[1] > 0] for sign in (1, -1))
    whole, lost = sum(v for _, v in above), sum(v for _, v in below)
    count = next(n for n in (1, 2, 3) if n == min(3, len(above)) or sum(v for _, v in above[:n]) >= 0.6 * whole)
    named = listed([f"{name} ({100 * v / whole:.0f}%)" for name, v in above[:count]])
    most = sum(v for _, v in above[:count]) >= whole / 2
    few = "Many small parts: the largest " + ("is " if count == 1 else "are ")
    yield f"{'Mostly ' if most else few}{named} of all that speaks for {explanation.name}."
    if -lost >= 0.1 * whole:
        more = f", and {len(below) - 1} more: {lost:+.2f} in all" if len(below) > 1 else ""
        yield f"Against it: {below[0][0]} ({below[0][1]:+.2f}){more}, for it {whole:+.2f}."


@pytest.mark.parametrize("kind", ["converted", "vit", "paper"])
def test_the_headline_is_made_of_the_rows_alone(browser, request, toy, tmp_path, kind):
    model = request.getfixturevalue(kind)
    made(model, tmp_path / "page.html", "--images", toy.image(1))
    loaded, seen = load(model), set()
    with pages.opened(browser, tmp_path / "page.html") as page:
        for c in range(4):
            page.select_option("#choose-class", str(c))
            explanation = loaded.explain(toy.image(1), str(c))
            words = [" ".join(each.replace("−", "-").split()) for each in page.locator("#headline p").all_inner_texts()]
            expected = list(expected_sentences(explanation))
            assert words[: len(expected)] == expected
            seen.add(len(expected))
            # and the last one is the contrast's strongest row
            first, rival = c, int(page.input_value("#choose-against"))
            logits = pages.logits(page)
            gap = logits[first] - logits[rival]
            names = [LABELS[first], LABELS[rival]][:: 1 if gap > 0 else -1]
            rows = [each.split("\t") for each in page.locator("#contrast tbody tr").all_inner_texts()][:-1]
            lack = ["the lack of " if len(row) == 6 and row[1].startswith("−") else "" for row in rows]
            values = [
                (float(row[-2].replace("−", "-")) * (1 if gap > 0 else -1), none + row[0])
                for row, none in zip(rows, lack, strict=True)
            ]
            value, name = max(values)
            (said,) = re.findall(r"most (?:is|of all for) (.*) \((\S+) for (.*) over (.*)\)\.$", words[-1])
            assert said == (name if name.startswith(("prototype", "the ")) else said[0], f"{value:+.2f}", *names)
            top = max(logits, key=logits.get)
            wins = "to win instead" if first == top else "to be ahead of it"
            assert gap < 0 or f"For {LABELS[rival]} {wins}, its logit" in words[-1]
            assert said[0].endswith(name) and f"{abs(gap):.2f}" in words[-1]
    assert seen


def test_the_headline_says_when_an_answer_is_wrong_and_follows_the_edits(browser, page_file, tmp_path):
    data = pages.data_of(page_file)
    one = data["cases"][0]
    other = next(c for c in range(4) if c != one["top"])
    one["targets"] = [other]
    pages.altered(page_file, tmp_path / "wrong.html", data)
    with pages.opened(browser, tmp_path / "wrong.html", "#explain?image=0") as page:
        words = text(page, "#headline")
        assert f"This is wrong: the true class, {LABELS[other]}, would need a logit" in words
        assert text(page, "#why") == f"Why {LABELS[one['top']]}?"
        shown = int(page.get_attribute("article.part", "data-prototype"))
        pages.slide(page, shown, 0)
        assert text(page, "#headline").startswith("With the edits: ") and text(page, "#headline") != words
        page.click("#reset")
        assert text(page, "#headline") == words
        page.select_option("#choose-class", str(other))
        assert text(page, "#why") == f"What speaks for {LABELS[other]}?"
        assert f"It is behind {LABELS[one['top']]}" in text(page, "#headline")


def test_how_to_read_a_row_follows_the_edits(browser, page_file):
    with pages.opened(browser, page_file, "#explain?image=0") as page:
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        row, logit = page.locator("#how p").first, page.locator("#how p").last
        name, value = re.fullmatch(
            r"A row of the table above, the largest: (.*) adds (\S+), its .*", row.inner_text()
        ).groups()
        assert value in page.locator("#waterfall").inner_text()
        before = page.locator("#logit").inner_text()
        assert f"All rows together make the logit, {before}" in logit.inner_text().replace("?", "")
        shown = int(page.get_attribute("article.part", "data-prototype"))
        pages.slide(page, shown, 0)
        after = page.locator("#logit").inner_text()
        assert after != before and f"make the logit, {after}" in logit.inner_text()
        assert name not in row.inner_text()
        pages.slide(page, shown, 0.9)
        assert name in row.inner_text() and "times 0.90, as it was edited" in page.locator("#how").inner_text()


def test_the_colours_of_rows_are_distinct(browser, page_file):
    with pages.opened(browser, page_file, "#explain?image=0") as page:
        if page.locator("#all").count():
            page.locator("#all").click()
        shades = page.locator("article.part").evaluate_all("all => all.map((each) => each.style.borderLeftColor)")
        assert len(set(shades)) == len(shades) >= 3


def test_a_class_that_is_not_the_next_one_is_said_to_be_the_next_with_prototypes(browser, page_file, tmp_path):
    """Where the runner-up has no prototypes, another class is compared with."""
    data = pages.data_of(page_file)
    one = data["cases"][0]
    order = np.argsort(pages.numbers(one["logits"], "<f4"))[::-1].tolist()
    del data["own"][str(order[1])]
    pages.altered(page_file, tmp_path / "bare.html", data)
    with pages.opened(browser, tmp_path / "bare.html", "#explain?image=0") as page:
        if one["targets"] == [order[0]]:
            words = f"For {LABELS[order[2]]} (the next class with prototypes; {LABELS[order[1]]} has none) to win"
            assert words in text(page, "#headline")
    with pages.opened(browser, page_file, "#explain?image=0") as page:
        assert "the next class with prototypes" not in text(page, "#headline")


def test_a_logit_that_is_mostly_residual_is_not_called_its_prototypes(browser, page_file, tmp_path):
    data = pages.data_of(page_file)
    weights = pages.numbers(data["links"]["weight"], "<f4")
    data["links"]["weight"] = pages.packed(weights * 1e-3, "<f4")
    one = data["cases"][0]
    logits = np.array(pages.numbers(one["logits"], "<f4"))
    logits[one["top"]] = 5
    one["logits"] = pages.packed(logits, "<f4")
    pages.altered(page_file, tmp_path / "residual.html", data)
    with pages.opened(browser, tmp_path / "residual.html", "#explain?image=0") as page:
        said = page.locator("#headline p").first.inner_text()
        assert re.match(r"Mostly the unexplained residual \((9\d|100)%\) of all that speaks for", said)
    # and where nothing speaks for a class, that is said
    logits[one["top"]] = -5
    data["bias"] = pages.packed(-np.ones(4), "<f4")
    data["links"]["weight"] = pages.packed(-1e-6 * np.ones_like(weights), "<f4")
    data["links"]["cosines"] = None
    one["evidence"] = pages.packed(np.ones(len(data["prototypes"])), "<f8")
    one["logits"] = pages.packed(logits, "<f4")
    pages.altered(page_file, tmp_path / "nothing.html", data)
    with pages.opened(browser, tmp_path / "nothing.html", f"#explain?image=0&class={one['top']}") as page:
        assert text(page, "#headline").startswith(f"Nothing speaks for {LABELS[one['top']]}.")


def test_prototypes_that_speak_against_their_own_class_are_flagged(browser, page_file, tmp_path):
    data = pages.data_of(page_file)
    start, linked = (pages.numbers(data["links"][name], "<i4") for name in ("start", "prototype"))
    weights, first = np.abs(pages.numbers(data["links"]["weight"], "<f4")), data["own"]["1"][0]
    weights[start[1] + linked[start[1] : start[2]].tolist().index(first)] *= -1
    data["links"]["weight"] = pages.packed(weights, "<f4")
    pages.altered(page_file, tmp_path / "page.html", data)
    flag = "negative weight for its own class"
    said = f"1 of the 2 prototypes of {LABELS[1]} has a negative weight for it"
    with pages.opened(browser, tmp_path / "page.html", "#explain?class=1") as page:
        assert said in text(page, "#against-own")
        cards = {
            int(each.get_attribute("data-prototype")): flag in each.inner_text()
            for each in page.query_selector_all("article.part")
        }
        assert [j for j, flagged in cards.items() if flagged] == [first]
        page.select_option("#choose-class", "0")
        assert page.locator("#against-own").count() == 0
        page.click("nav a[data-view=prototypes]")
        tiles = {
            int(each.get_attribute("data-prototype")): flag in each.inner_text()
            for each in page.query_selector_all(".tile")
        }
        assert [j for j, flagged in tiles.items() if flagged] == [first]
        page.click("nav a[data-view=gallery]")
        assert said in text(page, "#class-1") and said not in text(page, "#class-0")
        assert flag in page.inner_text(f'.prototype[data-prototype="{first}"]')


# whose folders it does not name


def sent(html: Path) -> str:
    """Everything in a page but its pictures."""
    return re.sub(r"[A-Za-z0-9+/=]{200,}", "", html.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["converted", slow("fewshot"), slow("vit")])
def test_no_folder_of_its_author_is_in_the_page(request, toy, tmp_path, kind):
    model = request.getfixturevalue(kind)
    code, out, err = run("evaluate", "--data", toy.data, "--model", model, "--json", "--device", "cpu")
    assert code == 0, err
    (tmp_path / "evaluation.json").write_text(out)
    (tmp_path / "my pictures").mkdir()
    shutil.copy(toy.image(0), tmp_path / "my pictures" / "a.png")
    (tmp_path / "my pictures" / "b.png").write_bytes(b"none")
    page = tmp_path / "page.html"
    words = ("--data", toy.data, "--images", tmp_path / "my pictures", "--evaluation", tmp_path / "evaluation.json")
    assert run("report", "--model", model, "-o", page, *words, "--device", "cpu", "-q")[0] == 6
    assert run("explain", toy.image(2), "--model", model, "--html", tmp_path / "one.html", "-q")[0] == 0
    for file in (page, tmp_path / "one.html"):
        text = sent(file)
        for folder in (tmp_path, toy.folder, Path.cwd(), Path.home()):
            assert str(folder) not in text.replace("file://", "") or len(folder.parts) < 3, folder
        assert not re.search(r"/(?:tmp|home|root|work|Users)/", text)
        assert pages.data_of(file)["file"] == model.name
    images = [case["image"] for case in pages.data_of(page)["cases"]]
    assert all((toy.data / image).is_file() for image in images[1:]) and images[0] == "a.png"
    assert "b.png" in sent(page)


def test_no_folder_of_its_author_is_in_the_page_of_an_audit(converted, toy, tmp_path):
    page = tmp_path / "audit.html"
    words = ("--data", toy.data, "--split", "val", "--device", "cpu", "-q")
    code, _, err = run("audit", "--model", converted, *words, "-o", page)
    assert code == 0, err
    assert not re.search(r"/(?:tmp|home|root|work|Users)/", sent(page))
    assert pages.data_of(page)["audit"]["data"][:2] == ["--data", toy.data.name]


# what it opens on, and what is found in it


def test_it_opens_on_a_right_and_confident_answer(browser, page_file, tmp_path):
    data = pages.data_of(page_file)
    for k, (case, probability) in enumerate(zip(data["cases"], (1, 0.6, 0.99, 0.99, 0.7, 0.2, 0.9, 0.98), strict=True)):
        case["probability"], case["targets"] = probability, [case["top"] if k else (case["top"] + 1) % 4]
        case["drawn"][str(case["top"])]["share"] = 0.1 if k == 3 else 0.3
    pages.altered(page_file, tmp_path / "page.html", data)
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert page.get_attribute("#images button[aria-current=true]", "data-image") == "3"
        assert "right" in text(page, "#live .chips")
        assert page.locator("#listed-only option").all_inner_texts() == ["all (8)", "right (7)", "wrong (1)"]
        for name, wanted in (("wrong", ["0"]), ("right", list("1234567")), ("all", list("01234567"))):
            page.select_option("#listed-only", name)
            assert page.eval_on_selector_all("#images button", "all => all.map((each) => each.dataset.image)") == wanted
    for case in data["cases"]:
        case["targets"] = []
    pages.altered(page_file, tmp_path / "page.html", data)
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert page.get_attribute("#images button[aria-current=true]", "data-image") == "0"
        assert page.locator("#listed-only").count() == 0
    # an image of a class without prototypes is not the first one
    data["own"].pop(str(data["cases"][0]["top"]))
    pages.altered(page_file, tmp_path / "page.html", data)
    first = next(k for k, case in enumerate(data["cases"]) if case["top"] != data["cases"][0]["top"])
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert page.get_attribute("#images button[aria-current=true]", "data-image") == str(first)


def test_the_overview_shows_all_prototypes_and_leads_to_them(browser, page_file):
    data = pages.data_of(page_file)
    often = {}
    for number, case in enumerate(data["cases"]):
        values = pages.contributions_of(data, number, case["top"])
        own = data["own"][str(case["top"])]
        first = max(own, key=lambda j: values[j][1])
        for j in own:
            count, images = often.get(j, (0, 0))
            often[j] = (count + (j == first), images + 1)
    prototypes = data["prototypes"]

    def shown(page):
        return [int(each.get_attribute("data-prototype")) for each in page.query_selector_all(".tile")]

    with pages.opened(browser, page_file, "#prototypes") as page:
        by_class = sorted(range(8), key=lambda j: (LABELS[prototypes[j]["c"]], prototypes[j]["n"]))
        assert shown(page) == by_class and text(page, "#tile-count") == "8 of 8 prototypes"
        for j in range(8):
            words = text(page, f'.tile[data-prototype="{j}"]')
            assert words.startswith(f"{LABELS[prototypes[j]['c']]} prototype {prototypes[j]['n']}")
            assert f"stability {prototypes[j]['stability']:.2f}" in words
            assert ("strongest in {} of {}".format(*often[j]) in words) if j in often else "strongest" not in words
            assert page.locator(f'.tile[data-prototype="{j}"] img').count() == 1
        page.select_option("#order", "stable")
        assert shown(page) == sorted(by_class, key=lambda j: prototypes[j]["stability"])
        page.select_option("#order", "often")
        assert shown(page) == sorted(by_class, key=lambda j: -often.get(j, (0, 0))[0])
        page.check("#doubtful")
        assert set(shown(page)) == {j for j in range(8) if prototypes[j]["signs"]}
        page.uncheck("#doubtful")
        page.fill("#find-prototype", "blue")
        assert {prototypes[j]["c"] for j in shown(page)} == {2} and "2 of 8" in text(page, "#tile-count")
        address = page.url
        last = shown(page)[-1]
        page.focus(".tile >> nth=1")
        page.keyboard.press("Enter")
        assert page.locator("#view-gallery").is_visible() and f"at={last}" in page.url
        assert page.evaluate("document.activeElement.closest('.prototype').dataset.prototype") == str(last)
        assert page.locator(f'.prototype.here[data-prototype="{last}"]').count() == 1
        page.go_back()
        pages.until(page, "!document.getElementById('view-prototypes').hidden")
        assert page.url == address and len(shown(page)) == 2


def test_a_row_lights_its_map_up(browser, page_file):
    alphas = """(node) => [...node.getContext("2d").getImageData(0, 0, node.width, node.height).data]
        .filter((_, n) => n % 4 === 3)"""
    with pages.opened(browser, page_file, "#explain?image=0") as page:
        names = page.locator("#waterfall button.row")
        target = page.locator(".seen figure").first
        caption = target.inner_text()
        assert target.locator("canvas").count() == 0 and names.count() >= 2
        for n in (0, 1):
            names.nth(n).hover()
            j = names.nth(n).evaluate("node => node.closest('[data-light]').dataset.light")
            assert target.locator("canvas.lit").count() == 1 and "where it is" in target.inner_text()
            mine = np.array(target.locator("canvas.lit").evaluate(alphas))
            own = np.array(
                page.locator(f'article.part[data-prototype="{j}"] figure >> nth=0').locator("canvas").evaluate(alphas)
            )
            assert np.allclose(mine, own * 0.72 / 0.62, atol=2) and mine.max() > 20
        page.mouse.move(0, 0)
        assert target.locator(".lit").count() == 0 and target.inner_text() == caption
        names.first.focus()
        assert target.locator("canvas.lit").count() == 1
        page.focus("#choose-class")
        assert target.locator("canvas.lit").count() == 0
        # Enter enlarges it; Escape closes, and the focus is where it was
        names.first.focus()
        page.keyboard.press("Enter")
        assert page.locator("dialog[open] canvas").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0
        assert page.evaluate("document.activeElement === document.querySelector('#waterfall button.row')")
        page.locator(".that figure button").first.click()
        assert page.get_attribute("dialog", "aria-label").startswith("training patch of")
        page.mouse.click(5, 5)
        assert page.locator("dialog[open]").count() == 0


def test_two_images_side_by_side(browser, converted, toy, page_file):
    data, loaded = pages.data_of(page_file), load(converted)
    c = data["cases"][1]["top"]
    other = next(k for k in (7, 6, 5, 4, 3) if str(c) in data["cases"][k]["drawn"])  # maps are kept of the class
    with pages.opened(browser, page_file, f"#explain?image=1&class={c}") as page:
        assert page.locator("#beside").count() == 0
        page.select_option("#choose-beside", str(other))
        assert f"beside={other}" in page.url and page.locator("#beside figure").count() == 2
        rows = {row[0]: [number(cell) for cell in row[1:4]] for row in
                (each.split("\t") for each in page.locator("#twins tbody tr").all_inner_texts())}  # fmt: skip
        both = [loaded.explain(toy.data / data["cases"][k]["image"], str(c)) for k in (1, other)]
        assert rows["logit"][:2] == pytest.approx([each.logit for each in both], abs=0.00511)
        for name, field in (("bias", "bias"), ("residual", "residual")):
            assert rows[name][:2] == pytest.approx([getattr(each, field) for each in both], abs=0.00511)
        values = [row_values(each) for each in both]
        shown = [name for name in rows if name.startswith("prototype") or name.endswith("as a whole")]
        assert len(shown) >= 3
        for name in shown:
            pair = [each[name] for each in values]
            assert rows[name] == pytest.approx([*pair, pair[0] - pair[1]], abs=0.0102)
        page.locator("#twins tbody tr").first.hover()
        assert page.locator("#beside canvas.lit").count() == 2
        address = page.url
        page.click("#swap")
        assert f"image={other}" in page.url and "beside=1" in page.url
        assert text(page, "#twins tbody tr:last-child").split()[1:3] == [f"{rows['logit'][n]:+.2f}" for n in (1, 0)]
        page.click("#alone")
        assert page.locator("#beside").count() == 0
    with pages.opened(browser, page_file, address[address.index("#") :]) as page:
        assert page.locator("#beside figure").count() == 2


def number(cell):
    return float(cell.replace("−", "-"))


def row_values(explanation):
    return {
        part_name(x.prototype, "" if x.owner_index == explanation.class_index else x.owner_name): x.contribution
        for x in explanation.contributions
    }


# for every screen and every reader


@pytest.mark.parametrize(("width", "height"), [(390, 844), (360, 800)])
def test_an_explanation_is_three_screens_of_a_phone(browser, page_file, width, height):
    with pages.opened(browser, page_file, width=width, height=height, has_touch=True, is_mobile=True) as page:
        for k in range(8):
            page.evaluate(f"location.hash = '#explain?image={k}'")
            pages.until(page, f"document.querySelector('#images [aria-current=true]').dataset.image === '{k}'")
            assert page.evaluate("document.documentElement.scrollHeight") <= 3 * 800
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        # what is closed opens, and stays so with the next image
        assert not page.locator("#choose-class").is_visible()
        page.tap("[data-fold=choices] summary")
        page.select_option("#choose-class", index=1)
        assert page.locator("#choose-class").is_visible()
        # sliders, and the prediction that stays in sight, come with "What if?"
        live = "getComputedStyle(document.querySelector('.live')).position"
        assert not page.locator("[data-edit]").first.is_visible() and page.evaluate(live) == "static"
        page.tap("[data-fold=intervene] summary")
        assert page.locator("[data-edit]").first.is_visible() and page.evaluate(live) == "sticky"
        page.tap("button.word >> nth=1")
        assert page.locator("#tip").is_visible()
        count = page.locator("article.part").count()
        page.click("#all")
        assert page.locator("article.part").count() > count


@pytest.mark.parametrize(
    ("kind", "width", "scheme"),
    [
        slow("page_file", 390, "dark"),
        slow("page_file", 390, "light"),
        *(slow("page_file", 1280, scheme) for scheme in ("light", "dark")),
        *(slow("few", width, scheme) for width in (390, 1280) for scheme in ("light", "dark")),
    ],
)
def test_nothing_keeps_people_out(browser, request, page_file, toy, tmp_path, kind, width, scheme):
    file = page_file
    if kind == "few":
        file = made(request.getfixturevalue("fewshot"), tmp_path / "few.html", "--images", toy.image(0))
    with pages.opened(browser, file, width=width, color_scheme=scheme) as page:
        for view in ("explain", "prototypes", "gallery", "summary"):
            page.click(f"nav a[data-view={view}]")
            assert pages.findings(page) == []
        if kind == "few":
            return
        page.click("nav a[data-view=explain]")
        if width == 390:
            page.click("[data-fold=choices] summary")
        page.select_option("#choose-beside", index=2)
        page.locator("button.word:visible").first.focus()
        assert pages.findings(page) == []
        page.locator(".that figure button").first.click()
        assert pages.findings(page) == []


def test_every_word_of_the_list_says_something():
    assert all(len(words) > 20 for words in GLOSSARY.values())
