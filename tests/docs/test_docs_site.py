"""The documentation site: it builds without a warning, every link leads somewhere, and a browser shows it offline."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import in_a_browser, launched, opened

import pliant

pytest.importorskip("sphinx", reason="the site is built with Sphinx: pip install 'pliant[docs]'")
pytestmark = pytest.mark.wide
ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        if known.get("id"):
            self.ids.add(known["id"])
        if tag == "a" and known.get("href"):
            self.links.append(known["href"])
        if tag in ("img", "script", "iframe") and known.get("src"):
            self.loaded.append(known["src"])
        if tag == "link" and known.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(known["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-b", "html"]
    made = subprocess.run(
        [*command, "-d", str(tmp_path_factory.mktemp("trees")), str(ROOT / "docs"), str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert made.returncode == 0, made.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_of_the_folder_is_in_the_site(pages):
    sources = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert sources <= set(pages)


def test_every_link_and_everything_loaded_is_there(site, pages):
    checked = 0
    for path, page in pages.items():
        for target in page.loaded:
            assert not re.match(r"\w+:|//", target), f"{path} loads {target} from elsewhere"
            assert (site / path.parent / target.partition("?")[0]).exists(), (path, target)
        for target in page.links:
            if re.match(r"(https?|mailto):", target):
                continue
            name, _, anchor = unquote(target).partition("#")
            there = (site / path.parent / name).resolve() if name else (site / path).resolve()
            assert there.exists(), (str(path), target)
            if anchor and there.suffix == ".html":
                assert anchor in pages[there.relative_to(site.resolve())].ids, (str(path), target)
            checked += 1
    assert checked > 1000


def test_every_public_name_is_described(pages):
    ids = set().union(*(page.ids for page in pages.values()))
    names = [f"pliant.{name}" for name in pliant.__all__]
    for module in pliant._MODULES:
        exported = import_module(f"pliant.{module}").__all__
        names += [f"pliant.{module}.{name}" for name in exported if name not in pliant.__all__]
    for module in pliant._INTEGRATIONS:
        place = f"pliant.integrations.{module}"
        names += [f"{place}.{name}" for name in import_module(place).__all__]
    assert [name for name in names if name not in ids] == []


def test_no_formula_stays_as_it_was_typed(site):
    for path in site.rglob("*.html"):
        text = re.sub(r"<(pre|code|script).*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\$[^$<]*\\[a-z]+[^$<]*\$", text), path
        assert "merror" not in text, path


@in_a_browser
def test_the_site_works_from_a_folder_without_a_network(site):
    with launched() as browser:
        for name in ("index", "methods/continual_backprop", "spectrum", "results/demo", "reference/attach"):
            with opened(browser, site / f"{name}.html") as page:
                assert page.locator("h1").first.inner_text().strip()
                wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth + 1")
                assert not wide, f"{name} is wider than the window"
                broken = "Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
                assert page.evaluate(broken) == []
        with opened(browser, site / "spectrum.html") as page:
            assert page.locator("math").count() > 10
            assert page.locator("math").first.bounding_box()["width"] > 5
        with opened(browser, site / "index.html") as page:
            page.locator("input[name=q]").first.fill("maturity_threshold")
            page.keyboard.press("Enter")
            page.wait_for_selector("#search-results li", timeout=20_000)
            assert "ContinualBackprop" in page.locator("#search-results").inner_text()
