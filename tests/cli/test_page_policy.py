"""What the page's Content-Security-Policy lets run: its own script and styles, and nothing that got into it."""

import re

import pytest

import pages
from toys import run

INJECTED = (
    '<script>document.title = "taken"</script><script src="data:text/javascript,document.title=`taken`"></script>'
    '<img src="data:," onerror="document.title = \'taken\'"><style>h1 { color: rgb(1, 2, 3) }</style>'
    '<p id="dressed" style="color: rgb(1, 2, 3)">words</p><a id="link" href="javascript:document.title=`taken`">go</a>'
)


@pytest.fixture(scope="module")
def page_file(converted, toy, tmp_path_factory):
    file = tmp_path_factory.mktemp("policy") / "page.html"
    code, _, err = run("report", "--model", converted, "--data", toy.data, "--per-class", 1, "-o", file)
    assert code == 0, err
    return file


def test_what_gets_into_the_page_does_not_run_and_the_page_does(page_file, browser, tmp_path):
    hurt = tmp_path / "hurt.html"
    hurt.write_text(page_file.read_text().replace("<main", f"{INJECTED}<main", 1))
    place = browser.new_context()
    page = place.new_page()
    page.goto(hurt.as_uri())
    pages.until(page, "document.documentElement.dataset.ready !== undefined")
    page.click("#link")
    page.wait_for_timeout(100)
    assert page.title() != "taken"
    colours = "['h1', '#dressed'].map((one) => getComputedStyle(document.querySelector(one)).color)"
    assert "rgb(1, 2, 3)" not in page.evaluate(colours)
    place.close()


def test_every_view_shows_without_anything_that_the_policy_forbids(page_file, browser):
    with pages.opened(browser, page_file) as page:
        for view in ("prototypes", "gallery", "summary", "explain"):
            page.click(f"nav a[data-view={view}]")
            page.wait_for_timeout(50)


def test_a_page_without_script_hides_what_needs_it(page_file, browser):
    place = browser.new_context(java_script_enabled=False)
    page = place.new_page()
    page.goto(page_file.as_uri())
    assert not page.is_visible("nav") and page.is_visible("#view-summary")
    place.close()


def test_the_data_is_no_script_and_nothing_is_inline(page_file):
    text = page_file.read_text()
    assert re.findall("<script[^>]*>", text) == ['<script type="application/json" id="data">', "<script>"]
    assert "unsafe" not in re.search('Content-Security-Policy" content="([^"]*)"', text)[1]
    assert not re.search(r"<[^>]+\s(on\w+|style)=", re.sub(r"(?s)<(script|style).*?</\1>", "", text))
