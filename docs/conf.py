"""The book: the pages and the notebooks with their stored outputs, as a site that asks nothing of the network.

`make book` runs `sphinx-build -c docs . build/book`: the source is the whole repository, so that links between README,
docs/, notebooks/ and data/ are the same here and on GitHub."""

import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "logitmix_lite"
copyright = "the logitmix_lite authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "data/README.md", "data/results/**.md", "C*.md"]
exclude_patterns = [".*", "*.egg-info", "build", "runs", "logitmix_lite", "tests", "configs", "constraints"]

suppress_warnings = ["toc.not_included"]  # reports of recorded runs, which other pages link to

html_theme = "furo"
html_title = "logitmix_lite"
html_static_path = ["_static", "../build/static"]
html_favicon = "_static/mixture.svg"
html_css_files = ["book.css"]
html_extra_path = ["_extra"]
html_show_sourcelink = False
templates_path = []
pygments_style, pygments_dark_style = "friendly", "github-dark"

myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they would come from another server; a widget shows its stored picture
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "Solution"
mathjax_path = "mathjax/tex-svg-full.js"  # put there by `make book`
mathjax3_config = {"options": {"enableMenu": False}}

autodoc_member_order = "bysource"
autodoc_typehints = "none"
default_role = "code"  # docstrings write `name` for code
toc_object_entries = False

LINK = re.compile(r"(?<!!)\[([^][]*)\]\(([^)\s:]+)\)")


def rewrite(app, docname, source):
    """What GitHub shows and a site cannot: links to folders. A solution in a notebook is folded here too."""
    here = (ROOT / docname).parent
    if docname == root_doc:  # the first page is the README, and below it stands the order of the others
        app.env.note_dependency(str(ROOT / "README.md"))
        readme = re.sub(r"(\]\()(?=[^)\s:]+\))(\./)?", r"\1../", (ROOT / "README.md").read_text(encoding="utf-8"))
        source[0] = readme + "\n" + source[0]

    def link(found):
        target = here / found[2].partition("#")[0]
        if not target.is_dir():
            return found[0]
        return f"[{found[1]}]({found[2].rstrip('/')}/README.md)" if (target / "README.md").exists() else found[1]

    if not (ROOT / f"{docname}.ipynb").exists():
        source[0] = LINK.sub(link, source[0])
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = LINK.sub(link, "".join(cell["source"]))
        elif "solution" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("hide-cell")
    source[0] = json.dumps(notebook)


def plain(app, what, name, obj, options, lines):
    """Docstrings are plain text: a line that begins with a name and a colon begins a paragraph, `name` is code."""
    text = re.sub(r"([*|\\])", r"\\\1", "\n".join(line.strip() for line in lines))
    text = re.sub(r"\n(?=[\w, ]{1,40}: )", "\n\n", text)
    lines[:] = re.sub(r"`([^`]+)`", lambda code: "``" + code[1].replace("\\", "") + "``", text).split("\n")


def add_browser_page(app, error):
    """The page on which the mixture runs stands by itself: plain files, served as they are."""
    page = ROOT / "docs" / "browser"
    if error is None and page.is_dir():
        shutil.copytree(page, Path(app.outdir) / "docs" / "browser", dirs_exist_ok=True)


def setup(app):
    app.connect("source-read", rewrite)
    app.connect("autodoc-process-docstring", plain)
    app.connect("build-finished", add_browser_page)
