"""Pages in a real browser that has no network, watched for errors and requests."""

import base64
import json
import shlex
import shutil
from contextlib import contextmanager
from itertools import chain, combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")


def browser_path() -> str | None:
    """A Chromium of the system."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


@contextmanager
def opened(browser: "Browser", file: Path, fragment: str = "", width: int = 1280, height: int = 900, **context):
    """A page from disk; afterwards nothing may have gone wrong and nothing may have been asked for."""
    place = browser.new_context(viewport={"width": width, "height": height}, **context)
    place.set_offline(True)
    page = place.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda ask: ask.url.startswith(("file:", "data:")) or wrong.append(f"request: {ask.url}"))
    try:
        page.goto(f"{file.resolve().as_uri()}{fragment}")
        until(page, "document.documentElement.dataset.ready !== undefined")
        yield page
        assert wrong == []
    finally:
        place.close()


def until(page: "Page", condition: str) -> None:
    """Wait; the page's own rules forbid Playwright's way of waiting for an expression."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} never came true")


def command_of(page: "Page", model: Path, *places: Path) -> list[str]:
    """The page's command for a shell in which its relative names are found.

    Args:
        page: that shows an edit.
        model: file that the page is of, named by its last part.
        places: images that the page shows, or a folder that it names them relative to.
    """
    words = shlex.split(page.inner_text("#words"))
    assert words[:2] == ["protonmf", "intervene"]
    place = words.index("--model") + 1
    assert words[place] == model.name
    words[place] = str(model)
    folders = [each / words[2] for each in places if each.is_dir()]
    found = [each for each in places if each.is_file() and str(each).endswith(words[2])]
    words[2] = str(next(each for each in (*folders, *found) if each.is_file()))
    return words


def logits(page: "Page") -> dict[int, float]:
    """Class -> logit of the list of predictions, as the page computed them."""
    return {
        int(cell.get_attribute("data-logit")): float(cell.get_attribute("data-value"))
        for cell in page.query_selector_all("[data-logit]")
    }


def probabilities(page: "Page") -> dict[int, float]:
    return {
        int(cell.get_attribute("data-probability")): float(cell.get_attribute("data-value"))
        for cell in page.query_selector_all("[data-probability]")
    }


def slide(page: "Page", prototype: int, factor: float) -> None:
    """Move the slider of one prototype of the class that is explained."""
    name = page.get_attribute(f'[data-prototype="{prototype}"] [data-edit]', "data-edit")
    page.evaluate(
        """([name, value]) => { const range = document.querySelector(`[data-edit="${name}"]`);
        range.value = value; range.dispatchEvent(new Event("input", { bubbles: true })); }""",
        [name, factor],
    )


def data_of(file: Path) -> dict:
    """What the page's script reads."""
    text = file.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def altered(file: Path, target: Path, data: dict) -> Path:
    """The same page with other data."""
    text = file.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    end = text.index("</script>", start)
    target.write_text(text[:start] + json.dumps(data).replace("<", "\\u003c") + text[end:], encoding="utf-8")
    return target


def packed(values: np.ndarray, kind: str) -> str:
    """As the page keeps numbers."""
    return base64.b64encode(np.asarray(values, dtype=kind).tobytes()).decode()


def findings(page: "Page") -> list[str]:
    """What axe-core finds in the way of a keyboard or a screen reader, of the kinds that are serious or worse."""
    page.evaluate(pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [
        f"{each['impact']} {each['id']}: {node['html']} {node['failureSummary']}"
        for each in found
        for node in each["nodes"]
        if each["impact"] in {"serious", "critical"}
    ]


def numbers(text: str, kind: str) -> np.ndarray:
    """What the page keeps in base64."""
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def contributions_of(data: dict, number: int, class_index: int) -> dict[int, tuple[float, float]]:
    """Prototype -> evidence and contribution of one class in one image, from the page's numbers alone."""
    links, one = data["links"], data["cases"][number]
    start, prototype = numbers(links["start"], "<i4"), numbers(links["prototype"], "<i4")
    wide = "<f8"
    first, last = start[class_index], start[class_index + 1]
    chosen = prototype[first:last]
    evidence = numbers(one["evidence"], wide)[chosen]
    if links["cosines"]:
        cosines = links["cosines"]
        length = numbers(cosines["length"], wide)
        gram = np.zeros((len(length), len(length)))
        together = (combinations(sorted(prototype[a:b].tolist()), 2) for a, b in pairwise(start))
        pairs = list(dict.fromkeys(chain.from_iterable(together)))
        for pair, cosine in zip(pairs, numbers(cosines["value"], wide), strict=True):
            gram[pair] = cosine
        gram = (gram + gram.T + np.eye(len(length)))[np.ix_(chosen, chosen)]
        made = np.linalg.inv(gram + cosines["ridge"] * np.eye(len(chosen)))
        carried = (made * gram).sum(axis=1)
        evidence = made @ (evidence / length[chosen]) / (carried * length[chosen])
    found = numbers(links["weight"], "<f4")[first:last] * evidence
    if links["share"] and one["reach"]:
        found = found + numbers(links["share"], "<f4")[first:last] * numbers(one["reach"], "<f4")[class_index]
    return {int(j): (float(e), float(v)) for j, e, v in zip(chosen, evidence, found, strict=True)}


def waterfall(page: "Page") -> dict[str, float]:
    """Name -> number of every row of the ledger, as it is shown."""
    cells = page.eval_on_selector_all(
        "#waterfall > span", "all => all.map((each) => [each.title, each.className, each.textContent])"
    )
    found, name = {}, ""
    for title, kind, text in cells:
        name = title or name
        if kind == "number":
            found[name] = float(text.replace("−", "-"))
    return found
