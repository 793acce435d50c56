"""The book, built and opened page by page in a headless Chromium: by itself it must be whole."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

pytest.importorskip("myst_nb", reason="the book needs `pip install -e .[book]`")
pytest.importorskip("furo")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MATHJAX = ROOT / "build" / "static" / "mathjax" / "tex-svg-full.js"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built book; building it must not even warn."""
    if not MATHJAX.exists():
        pytest.skip("`make book` has not been run: no MathJax")
    folder = tmp_path_factory.mktemp("book")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-b", "html", ".", str(folder)]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


def test_every_page_opens_without_errors_and_network_and_fits_a_phone(site, address, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    wrong = []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda asked: wrong.append(asked.url) if not asked.url.startswith((address, "data:", "blob:")) else 0
    )
    page.on("response", lambda got: wrong.append(f"{got.status} {got.url}") if got.status >= 400 else None)
    files = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert "docs/index.html" in files and "notebooks/00_quickstart.html" in files
    for file in files:
        page.goto(address + file, wait_until="load")
        page.wait_for_function("!window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)")
        assert not wrong, f"{file}: {wrong}"
        if file != "index.html":
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, f"{file} scrolls sideways"
        assert page.locator("mjx-merror").count() == 0, f"{file} has a formula that MathJax can't read"
    page.close()


def test_links_within_the_site_hold(site):
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    names = {file: set(re.findall(r'\bid="([^"]+)"', text)) for file, text in pages.items()}
    for file, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:|//", link) or "pagename" in link:
                continue
            target, place = urldefrag(urljoin(file, link.partition("?")[0] if "#" not in link else link))
            target = unquote(target.partition("?")[0]) or file
            assert (site / target).exists(), f"{file} links to {link}"
            if place and target in names and place != "":
                assert unquote(place) in names[target], f"{file} links to {link}"


def test_solutions_are_folded_and_unfold(site, address, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    for file in sorted((site / "notebooks").glob("*.html")):
        page.goto(f"{address}notebooks/{file.name}", wait_until="load")
        folds = page.locator("article details")
        assert folds.count() >= 2, f"{file.name}: its exercises have solutions"
        assert page.locator("article details[open]").count() == 0
        folds.first.locator("summary").first.click()
        assert page.locator("article details[open]").count() >= 1
    page.close()


def test_formulas_and_figures_are_drawn(address, browser):
    page = browser.new_page()
    page.goto(address + "notebooks/01_poe_math.html", wait_until="load")
    page.wait_for_function("MathJax.startup.promise.then(() => true)")
    assert page.locator("mjx-container svg").count() > 10
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.close()
