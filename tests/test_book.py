"""The book, built and opened page by page in a headless Chromium: by itself it must be whole."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from browser import Server, find_chromium

pytest.importorskip("myst_nb", reason="the book needs `pip install -e .[book]`")
pytest.importorskip("furo")
ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = find_chromium()
MATHJAX = ROOT / "build" / "static" / "mathjax" / "tex-svg-full.js"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MATHJAX.exists(), reason="`make book` has not been run: no MathJax"),
]
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FORMULAS = "Promise.resolve(window.MathJax && MathJax.startup && MathJax.startup.promise).then(() => 1)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built book; building it must not even warn."""
    folder = tmp_path_factory.mktemp("book")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-b", "html", ".", str(folder)]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    server = Server(site)
    yield server.address + "/"
    server.close()


@in_chromium
def test_every_page_opens_without_errors_and_network_and_fits_a_phone(site, address, browser):
    files = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    files.remove("index.html")  # it only leads to docs/index.html, by its own link
    assert "docs/index.html" in files and "docs/browser/index.html" in files
    assert {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")} < set(files)
    for file in files:
        browser.open(address + file, width=390)
        browser.run(FORMULAS)
        assert not browser.errors, f"{file}: {browser.errors}"
        away = [url for url in browser.requests if not url.startswith((address, "data:", "blob:", "about:"))]
        assert not away, f"{file} asks for {away}"
        assert browser.run("document.documentElement.scrollWidth") <= 390, f"{file} scrolls sideways"
        assert browser.run("document.querySelectorAll('mjx-merror').length") == 0, f"{file}: a formula can't be read"
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert browser.run(broken) == [], f"{file} has pictures that can't be seen"


@in_chromium
def test_formulas_are_drawn(address, browser):
    browser.open(address + "notebooks/01_poe_math.html")
    browser.run(FORMULAS)
    assert browser.run("document.querySelectorAll('mjx-container svg').length") > 10


@in_chromium
def test_solutions_are_folded_and_unfold(site, address, browser):
    opened = "document.querySelectorAll('article details[open]').length"
    for file in sorted((site / "notebooks").glob("*.html")):
        browser.open(f"{address}notebooks/{file.name}")
        assert browser.run("document.querySelectorAll('article details').length") >= 2, f"{file.name}: no solutions"
        assert browser.run(opened) == 0
        browser.run("document.querySelector('article details > summary').click()")
        assert browser.run(opened) == 1


def test_links_within_the_site_hold(site):
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    names = {file: set(re.findall(r'\bid="([^"]+)"', text)) for file, text in pages.items()}
    for file, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:|//", link):
                continue
            target, place = urldefrag(urljoin(file, link))
            target = unquote(target.partition("?")[0]) or file
            assert (site / target).exists(), f"{file} links to {link}"
            if place and target in names and "=" not in place:  # the browser's page keeps its settings there
                assert unquote(place) in names[target], f"{file} links to {link}"
