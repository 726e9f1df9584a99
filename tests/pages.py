"""Pages in a real browser that has no network, watched for errors and requests."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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
