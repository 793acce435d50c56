"""`make badges`: what each notebook says about where the repository is, written from the one setting in the Makefile.

Until that names a real repository, badges lead to the page on Colab, and the first cell stops there and says what to
set: no notebook fetches code from an address that somebody else may own."""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "On Colab, the next cell fetches the package and what Colab lacks, and replaces nothing that is there. "
BEFORE += "On your machine it does nothing."
# --no-deps: numpy, torch and the like are imported before a notebook begins and must stay what they are.
CELL = """\
import sys

if "google.colab" in sys.modules:
    REPOSITORY = "{repository}"  # owner/name on GitHub
    assert "YOUR_NAME" not in REPOSITORY, "set REPOSITORY, a line above, to your copy on GitHub: owner/name"
    !git clone -q https://github.com/{{REPOSITORY}} logitmix_lite
    !pip install -q --no-deps -e logitmix_lite && pip install -q math-verify
    sys.path.insert(0, "logitmix_lite")"""


def badge(repository: str, branch: str, notebook: str, root: str = "..") -> str:
    """Markdown of the badge that opens a notebook in Colab; root: where the repository's folder is from the page."""
    colab = f"https://colab.research.google.com/github/{repository}/blob/{branch}/notebooks/{notebook}"
    real = "YOUR_NAME" not in repository
    return f"[![Open in Colab]({root}/docs/_static/colab.svg)]({colab if real else root + '/docs/install.md#colab'})"


def write(notebook, name: str, repository: str, branch: str) -> None:
    """Put badge and first code cell into a notebook (nbformat's), and the sentence above it."""
    first, code = notebook.cells[0], next(c for c in notebook.cells if c.cell_type == "code")
    first.source = re.sub(r"\[!\[Open in Colab\].*", badge(repository, branch, name), first.source, flags=re.I)
    code.source = CELL.format(repository=repository)
    above = notebook.cells[notebook.cells.index(code) - 1]
    above.source = re.sub(r"^On Colab, the next cell .*", BEFORE, above.source, flags=re.M)


def main(repository: str, branch: str) -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        write(notebook, path.name, repository, branch)
        nbformat.write(notebook, path)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    first = badge(repository, branch, "00_quickstart.ipynb", ".")
    text = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)", first, text)
    clone = f"github.com/{repository} && cd {repository.partition('/')[2]}"
    text = re.sub(r"github\.com/\S+ && cd \S+", clone, text)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
