"""An audit on the report's page, in a real browser: the numbers that were planted, the command, names, size, narrow screens."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch

import pages
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.jobs.loaded import load
from protonmf_cli.jobs.page import decoded, drawn_page
from protonmf_cli.maths.metrics import wilson_interval
from protonmf_cli.models import audit as audits
from protonmf_cli.models.audit import Audit, Candidate, Need, Pasted, Share, Sign, Transplant
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.options import PageOptions
from protonmf_cli.output.page.pictures import DETAILS, WITHOUT_AUDIT
from protonmf_cli.pipelines.explaining.pasting import LARGEST, strongest_region
from protonmf_cli.pipelines.page.content import report_of
from toys import run

NEED = Need(own=(0.75, 0.5), probability=(0.812, 0.409), everything=(0.875, 0.625), images=4)


def share(hits, trials):
    low, high = wilson_interval(hits, trials) if trials else (0.0, 1.0)
    return Share(hits=hits, trials=trials, low=low, high=high)


def transplant(flips=0, recoloured=0):
    return Transplant(
        flips=share(flips, 16), elsewhere=share(3, 16), siblings=share(5, 32), left=share(1, 16),
        recoloured=share(recoloured, 8), recoloured_left=share(2 if recoloured else 0, 8),
        carries_colours=recoloured > 0,
    )  # fmt: skip


def pasted(before, after, target, seed, path="b/1.png"):
    generator = np.random.default_rng(seed)
    host, changed = generator.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    return Pasted(path=path, target=target, before=before, after=after, host=host, changed=changed)


def candidate(model, prototype, **changes):
    plain = Candidate(
        prototype_id=prototype, number=model.number(prototype), class_index=int(model.owner[prototype]),
        transplant=transplant(), need=NEED, outside=None, signs=(), score=0.0, is_shortcut=False, reason="flips nothing",
    )  # fmt: skip
    return replace(plain, **changes)


def audit_of(model, *first, **changes):
    """An audit that ranks some prototypes first, and all others after them."""
    others = [candidate(model, j) for j in model.parts if j not in [c.prototype_id for c in first]]
    plain = Audit(images=16, accuracy=0.875, groups=None, candidates=(*first, *others), notes=())
    return replace(plain, **changes)


def write(path, loaded, audit, *, max_size=20.0, images=(), folder=False, data=("--data", "val pictures")):
    """The page of an audit."""
    batches = list(loaded.reader.batches(list(images)))
    content = report_of(
        loaded.backbone, loaded.model, batches, file=str(loaded.path), decode=decoded, audit=audit, audit_data=data
    )
    page = drawn_page(loaded, content, None, PageOptions(max_size=max_size, folder=folder))
    path.write_bytes(page.html)
    for name, picture in page.pictures.items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(picture)
    return page


@pytest.fixture(scope="module")
def loaded(converted):
    return load(converted)


@pytest.fixture(scope="module")
def planted(loaded):
    """Prototype 5 flips 11 of 16 images and nobody needs it; 2 flips by its colours; the others do nothing."""
    model = loaded.model
    five = candidate(
        model, 5, transplant=transplant(flips=11), score=0.69, is_shortcut=True, outside=0.37,
        need=Need(own=(0.75, 1.0), probability=(0.7, 0.69), everything=(0.875, 0.9375), images=4, worst_group=(0.4, 0.6)),
        signs=(Sign(kind="twin", words="nearly the same as another"), Sign(kind="border", words="90% lies on the border")),
        reason="flips 69% of other images when pasted in; 90% lies on the border",
        pasted=(pasted(0, 2, 0, 1), pasted(3, 2, 1, 2, "c/2.png")),
    )  # fmt: skip
    two = candidate(
        model, 2, transplant=transplant(recoloured=6), score=0.4, is_shortcut=True, need=None,
        pasted=(pasted(0, 1, 0, 3),),
    )  # fmt: skip
    return audit_of(
        model, five, two, groups={"with <b>": (6, 0.4), "without": (10, 0.9)}, notes=("3 images were not read.",)
    )


@pytest.fixture(scope="module")
def page_file(loaded, planted, tmp_path_factory):
    path = tmp_path_factory.mktemp("audit") / "audit.html"
    write(path, loaded, planted)
    return path


def card(page, prototype):
    return " ".join(page.inner_text(f"#suspect-{prototype}").split())


def test_the_audit_is_seen_first_and_says_what_was_found(browser, page_file):
    with pages.opened(browser, page_file) as page:
        links = page.locator("nav a").all_inner_texts()
        assert links == ["Audit 2", "Prototypes 8", "Gallery 4", "Summary"] and page.locator("#view-audit").is_visible()
        said = page.inner_text("#audit-summary")
        assert "2 of 8 prototypes look like shortcuts" in said and "16 images" in said and "87.5% right" in said
        assert "3 images were not read." in said
        rows = page.locator("#groups tbody tr").all_inner_texts()
        assert [row.split("\t") for row in rows] == [["with <b>", "6", "40.0%"], ["without", "10", "90.0%"]]
        page.click("nav a[data-view=summary]")
        assert "shortcut" in page.inner_text(".words") and "suspicious" not in page.inner_text(".words")


def test_the_numbers_of_a_prototype_stand_where_they_belong(browser, page_file, loaded):
    name = loaded.model.card.classes[int(loaded.model.owner[5])].shown
    number = loaded.model.number(5)
    with pages.opened(browser, page_file) as page:
        assert page.eval_on_selector_all(".suspect", "all => all.map((each) => each.id)") == ["suspect-5", "suspect-2"]
        words = card(page, 5)
        assert words.startswith(f"1 {name}, prototype {number} ⚠︎ looks like a shortcut score 0.69 Flips 69% of other")
        assert "37% of its maps lie outside the objects" in words and "nearly the same as another" in words
        assert words.count("90% lies on the border") == 1, "the reason names it already"
        shown = [" ".join(text.split()) for text in page.locator("#suspect-5 .shares > span").all_inner_texts()]
        low, high = (f"{100 * bound:.0f}" for bound in wilson_interval(11, 16))
        assert dict(zip(shown[::2], shown[1::2], strict=True)) == {
            "its patches pasted in": f"69% 11 of 16, {low} to {high}%",
            "other places of its pictures": "19% 3 of 16, 7 to 43%",
            "the class's other prototypes": "16% 5 of 32, 7 to 32%",
            "its patches, and it is taken out": "6% 1 of 16, 1 to 28%",
        }
        rows = [text.split("\t") for text in page.locator("#suspect-5 tbody tr").all_inner_texts()]
        assert rows == [
            [f"accuracy of {name} (4 images)", "75.0%", "100.0%"],
            ["its mean probability there", "0.70", "0.69"],
            ["accuracy of all 16 images", "87.5%", "93.8%"],
            ["accuracy of the worst group", "40.0%", "60.0%"],
        ]
        # colours only where they flip something, and what is not known is said
        words = card(page, 2)
        assert "its pictures' colours 75% 6 of 8" in words and "its colours, and it is taken out 25% 2 of 8" in words
        assert f"There is no image of {loaded.model.card.classes[int(loaded.model.owner[2])].shown} in the" in words
        about = "all => all.map((each) => each.getAttribute('aria-describedby'))"
        words = {"about-score", "about-interval", "about-taken-out", "about-pasted"}
        assert words <= set(page.eval_on_selector_all("#view-audit button.word", about))
        # a bar is as long as its share, its whiskers are the interval
        bar = page.locator("#suspect-5 .shares svg").first
        assert float(bar.locator("rect").get_attribute("width")) == pytest.approx(100 * 11 / 16)
        ends = [float(line.get_attribute("x1")) for line in bar.locator("line").all()[1:]]
        assert ends == pytest.approx([100 * bound for bound in wilson_interval(11, 16)], abs=0.01)


def test_what_was_pasted_is_shown_side_by_side(browser, page_file, loaded):
    names = [c.shown for c in loaded.model.card.classes]
    with pages.opened(browser, page_file) as page:
        pairs = [" ".join(text.split()) for text in page.locator("#suspect-5 .pair").all_inner_texts()]
        assert pairs == [
            f"before: {names[0]} → after: {names[2]} b/1.png",
            f"before: {names[3]} → after: {names[2]} c/2.png, truly {names[1]}",
        ]
        assert "Pasted into images of other classes" in card(page, 5)
        assert "Images of other classes in its pictures' colours" in card(page, 2)
        # the outline is that of the strongest places of each map
        data = pages.data_of(page_file)
        first = data["audit"]["ranked"][0]
        examples = loaded.model.examples
        for cells, number in zip(first["regions"], examples.of(5), strict=True):
            grid = examples.map[number]
            wanted = strongest_region(grid, tuple(grid.shape)).flatten().nonzero()[:, 0].tolist()
            assert cells == wanted and 0 < len(cells) <= LARGEST * grid.numel()
            assert grid.flatten()[cells].min() >= np.delete(grid.numpy().flatten(), cells).max()
        outlines = page.locator("#suspect-5 figure path")
        assert outlines.count() == 2 * len(first["regions"])  # a light and a dark line
        page.locator("#suspect-5 figure button").last.click()
        assert page.locator("dialog[open] img").get_attribute("alt") == "c/2.png with the patch"


@pytest.mark.parametrize("kind", ["converted", "paper"])
def test_the_command_takes_it_out(browser, request, toy, tmp_path, kind):
    file = request.getfixturevalue(kind)
    loaded = load(file)
    data = ("--data", str(toy.data), "--split", "val")
    first = [candidate(loaded.model, j, is_shortcut=True, score=1.0) for j in (5, 2)]
    write(tmp_path / "page.html", loaded, audit_of(loaded.model, *first), data=data)
    with pages.opened(browser, tmp_path / "page.html", permissions=["clipboard-read", "clipboard-write"]) as page:
        one, both = page.inner_text("#suspect-5 code"), page.inner_text("#audit-summary code")
        page.click("#suspect-5 .command button")
        assert page.evaluate("navigator.clipboard.readText()") == one
        assert page.inner_text("#suspect-5 .command button") == "copied"
    for words, removed in ((one, [5]), (both, [2, 5])):
        assert words.endswith("-o clean.safetensors") and ("--everywhere" in words) == (kind == "converted")
        clean = tmp_path / f"clean{len(removed)}.safetensors"
        places = {file.name: file, toy.data.name: toy.data}
        parsed = [str(places.get(word, word)) for word in shlex.split(words)]
        assert parsed[:2] == ["protonmf", "intervene"]
        code, out, err = run(*parsed[1:-1], clean, "--device", "cpu", "--json")
        assert code == 0, err
        edits = json.loads(out)["edits"]
        assert sorted(edit["prototype_id"] for edit in edits) == removed and {e["factor"] for e in edits} == {0}
        weights, owner = load_model(clean)[0].weights, loaded.model.owner
        gone = torch.isin(weights.prototype, torch.tensor(removed))
        if kind == "paper":  # only in the logit of its class
            gone &= weights.class_index == owner[weights.prototype]
        assert gone.any() and not weights.value[gone].any()


def test_all_are_ranked_and_many_stay_quick(browser, loaded, tmp_path):
    """A ranking of 3000: a part of it at a time, pictures of the first ones and of every shortcut."""
    model = loaded.model
    many = [candidate(model, j % 8, score=1 - j / 3000, is_shortcut=j == 40) for j in range(3000)]
    for j, one in enumerate(many):  # of eight prototypes, each 375 times: the page goes by their numbers
        many[j] = replace(one, class_index=int(model.owner[j % 8]))
    write(tmp_path / "page.html", loaded, audit_of(model, candidates=tuple(many)))
    ranked = pages.data_of(tmp_path / "page.html")["audit"]["ranked"]
    assert len(ranked) == 3000
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert (
            page.locator("#ranking tbody tr").count() == 50 and page.inner_text("#ranked") == "3000 of 3000 prototypes"
        )
        assert page.locator(".suspect").count() <= 24
        page.click("#ranking-pager button >> nth=1")
        assert "page 2 of 60" in page.inner_text("#ranking-pager") and "rows=1" in page.url
        page.fill("#find", model.card.classes[1].shown)
        assert page.inner_text("#ranked") == f"{375 * len(model.own(1))} of 3000 prototypes"


def test_pictures_are_of_the_first_ones_and_of_every_shortcut(browser, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "PICTURED", 3)
    model = loaded.model
    ranked = [candidate(model, j, score=1 - j / 8, is_shortcut=j == 6, pasted=(pasted(0, 1, 0, j),)) for j in range(8)]
    write(tmp_path / "page.html", loaded, audit_of(model, *ranked))
    with pages.opened(browser, tmp_path / "page.html") as page:
        shown = page.eval_on_selector_all(".suspect", "all => all.map((each) => each.dataset.prototype)")
        assert shown == ["0", "1", "2", "6"] and page.locator("#ranking tbody tr").count() == 8
        verdicts = page.locator("#ranking .verdict-word").all_inner_texts()
        assert [n for n, words in enumerate(verdicts) if "shortcut" in words] == [6]
        # a row leads to the card, or where there is none into the gallery
        page.click("#rank-2 a")
        assert "at=2" in page.url and page.locator("#suspect-2").is_visible()
        page.click("#rank-7 a")
        assert "#gallery" in page.url
        page.click('.prototype[data-prototype="6"] a:has-text("looks like a shortcut")')
        assert "#audit?at=6" in page.url
        page.click("nav a[data-view=gallery]")
        page.click('.prototype[data-prototype="4"] a:has-text("audit: place 5")')
        assert "#audit?at=4" in page.url and page.locator("#rank-4").is_visible()


def test_without_shortcuts_it_says_so(browser, loaded, tmp_path):
    write(tmp_path / "page.html", loaded, audit_of(loaded.model))
    with pages.opened(browser, tmp_path / "page.html") as page:
        said = page.inner_text("#audit-summary")
        assert (
            "None of 8 prototypes looks like a shortcut" in said
            and page.locator("#audit-summary .command").count() == 0
        )
        assert page.locator(".suspect").count() == 6
        page.click("#more-cards")
        assert page.locator(".suspect").count() == 8 and page.locator("#more-cards").count() == 0
        assert "does not look like a shortcut" in card(page, 0)


def test_explained_images_come_first_and_name_the_shortcut(browser, loaded, planted, toy, tmp_path):
    from protonmf_cli.jobs.page import _loose_images

    write(tmp_path / "page.html", loaded, planted, images=list(_loose_images([toy.image(2)])))
    owner = int(loaded.model.owner[5])
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert page.locator("#view-explain").is_visible()
        page.select_option("#choose-class", str(owner))
        chips = page.locator('article.part a:has-text("looks like a shortcut")')
        flagged = {5, 2} & {int(e.get_attribute("data-prototype")) for e in page.query_selector_all("article.part")}
        assert chips.count() == len(flagged) > 0
        chips.first.click()
        assert "#audit?at=" in page.url and page.locator("#view-audit").is_visible()
        page.go_back()
        pages.until(page, "location.hash.startsWith('#explain')")


@pytest.mark.slow
def test_pasted_pictures_shrink_first(browser, loaded, tmp_path):
    model = loaded.model
    ranked = [
        candidate(model, j, is_shortcut=True, pasted=tuple(pasted(0, 1, 0, 10 * j + n) for n in range(6)))
        for j in range(8)
    ]
    audit = audit_of(model, *ranked)
    full = write(tmp_path / "full.html", loaded, audit)
    assert not full.left_out and len(pages.data_of(tmp_path / "full.html")["audit"]["ranked"][0]["pasted"]) == 6
    seen, pictures = [], sum(map(len, pages.data_of(tmp_path / "full.html")["pictures"]))
    for part in (0.8, 0.3, 0.15, 0.1):
        most = full.size - (1 - part) * pictures
        small = write(tmp_path / "small.html", loaded, audit, max_size=most / 1e6)
        data = pages.data_of(tmp_path / "small.html")
        patches = max(len(p["patches"]) for p in data["prototypes"])
        seen.append((len(data["audit"]["ranked"][0]["pasted"]), patches))
        assert small.size <= most and "something pasted in" in small.left_out[0]
        with pages.opened(browser, tmp_path / "small.html") as page:
            assert page.locator("#suspect-0 .pair").count() == seen[-1][0]
    most = max(len(p["patches"]) for p in pages.data_of(tmp_path / "full.html")["prototypes"])
    assert seen[0] == (2, most), "the training patches are as they were"
    assert seen == sorted(seen, reverse=True) and seen[-1][0] < 2
    # without an audit nothing is said of pasted pictures
    assert not any("pasted" in detail.words(audited=False) for detail in WITHOUT_AUDIT)
    assert all(detail.words(audited=False) for detail in WITHOUT_AUDIT[1:]) and set(WITHOUT_AUDIT) < set(DETAILS)


def test_equal_pictures_are_kept_once(loaded, tmp_path):
    model = loaded.model
    same = [candidate(model, j, pasted=(pasted(0, 1, 0, 1),)) for j in range(8)]
    write(tmp_path / "page.html", loaded, audit_of(model, *same))
    data = pages.data_of(tmp_path / "page.html")
    assert len({tuple(one["pasted"][0]["pictures"]) for one in data["audit"]["ranked"]}) == 1
    page = write(tmp_path / "folder.html", loaded, audit_of(model, *same), folder=True)
    assert len(page.pictures) == len(data["pictures"])


def test_hostile_names_are_text(browser, converted, toy, tmp_path):
    old, weights = load_model(converted)
    names = ("<script>alert(1)</script>", "a\"b'c\\d", "--zero", "it's; rm -rf \u2028 *")
    card_ = replace(old.card, classes=tuple(ClassName(label=name) for name in names))
    file = tmp_path / "a 'quoted' model.safetensors"
    save_model(file, replace(old, card=card_), weights)
    loaded = load(file)
    ranked = [
        candidate(
            loaded.model, j, is_shortcut=True, reason="<img src=x onerror=alert(2)>",
            signs=(Sign(kind="twin", words="<img src=x onerror=alert(3)>"),),
            pasted=(pasted(0, 1, 2, j, "<img src=x onerror=alert(4)> $(ls).png"),),
        )
        for j in range(8)
    ]  # fmt: skip
    audit = audit_of(
        loaded.model, *ranked, groups={"<img src=x onerror=alert(5)>": (1, 1.0)}, notes=("<script>alert(6)</script>",)
    )
    (tmp_path / "it's val").symlink_to(toy.data)
    write(tmp_path / "page.html", loaded, audit, data=("--data", str(tmp_path / "it's val"), "--class-order"))
    with pages.opened(browser, tmp_path / "page.html") as page:
        page.wait_for_timeout(100)
        assert page.locator("img[src=x]").count() == 0 and "<script>alert(1)</script>" in page.inner_text("main")
        commands = {j: page.inner_text(f"#suspect-{j} code") for j in range(8)}
    places = {file.name: file, "it's val": tmp_path / "it's val"}
    for j, words in commands.items():
        parsed = [str(places.get(word, word)) for word in shlex.split(words)]
        code, out, err = run(*parsed[1:-2], "--device", "cpu", "--json")
        assert code == 0 and [e["prototype_id"] for e in json.loads(out)["edits"]] == [j], err


def test_the_command_takes_the_prototype_alone_out_of_an_augmented_model(browser, request, tmp_path):
    plain = load(request.getfixturevalue("paper"))
    weights = plain.model.weights
    shared = replace(weights, residual_share=torch.full_like(weights.residual_share, 0.5))
    for found, words in ((plain, False), (replace(plain, model=replace(plain.model, weights=shared)), True)):
        write(tmp_path / "page.html", found, audit_of(found.model, candidate(found.model, 0, is_shortcut=True)))
        with pages.opened(browser, tmp_path / "page.html") as page:
            assert (" --form plain " in page.inner_text("#suspect-0 code")) is words


def test_the_address_and_the_keyboard(browser, page_file):
    with pages.opened(browser, page_file, "#audit?find=green&at=5") as page:
        assert page.input_value("#find") == "green" and page.locator("#suspect-5").is_visible()
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "find"
        page.keyboard.press("Control+A")
        page.keyboard.type("no such class")
        assert "No class fits." in page.inner_text("#ranking") and "find=no" in page.url
        page.click("#audit-summary a")
        assert page.evaluate("document.activeElement.id") == "find"
        reached = set()
        page.evaluate("document.querySelector('#audit-summary a').focus()")
        for _ in range(30):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.textContent || document.activeElement.id"))
        assert "copy" in reached and any(words.endswith("prototype 2") for words in reached)
    for fragment in ("#audit?rows=99&at=77", "#audit?at=x", "#nowhere"):
        with pages.opened(browser, page_file, fragment) as page:
            assert page.locator("#ranking tbody tr").count() == 8


def test_it_fits_a_phone_and_paper(browser, page_file):
    with pages.opened(browser, page_file, width=360, height=740, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert pages.findings(page) == []
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.suspect')).backgroundColor") == "rgb(29, 32, 38)"
        )
        page.emulate_media(media="print", color_scheme="light")
        assert (
            page.locator(".suspect").first.is_visible()
            and not page.locator(".suspect .command button").first.is_visible()
        )


def test_an_audit_without_places_or_trials(browser, loaded, tmp_path):
    bare = replace(loaded.model.examples, map=torch.zeros(len(loaded.model.examples.prototype), 0, 0))
    model = replace(loaded.model, examples=bare)
    ranked = [candidate(model, 0, transplant=None, need=None, is_shortcut=True)]
    none = replace(transplant(), siblings=share(0, 0))
    ranked.append(candidate(model, 1, transplant=none, is_shortcut=True))
    write(tmp_path / "page.html", replace(loaded, model=model), audit_of(model, *ranked))
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert "Nothing could be pasted." in card(page, 0) and "outlined" not in card(page, 0)
        assert "the class's other prototypes not tried" in card(page, 1)
        assert page.locator("#rank-0 td").all_inner_texts()[2:] == ["", "", "", "", "", "", "", "0.00"]
