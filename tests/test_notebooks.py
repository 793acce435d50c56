"""What every notebook promises, read from the files as they are in git; running them is nbval's part."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def outputs(cell):
    return "".join("".join(out.get("text", out.get("data", {}).get("text/plain", ""))) for out in cell.outputs)


def test_badge_and_install_cell_name_the_repository(path, notebook):
    makefile = (ROOT / "Makefile").read_text()
    where, branch = (re.search(rf"^{name} = (\S+)$", makefile, re.M)[1] for name in ("REPOSITORY", "BRANCH"))
    colab = f"https://colab.research.google.com/github/{where}/blob/{branch}/notebooks/{path.name}"
    assert f"]({colab})" in notebook.cells[0].source, "run `make badges`"
    assert f"git clone -q https://github.com/{where} " in "\n".join(cell.source for cell in notebook.cells)


def test_cells_are_short_and_prose_surrounds_them(notebook):
    code = [cell.source.count("\n") + 1 for cell in notebook.cells if cell.cell_type == "code"]
    assert statistics.median(code) <= 8 and max(code) <= 40
    first = notebook.cells[0].source
    assert first.startswith("# ") and "What you will learn" in first and "minutes" in first
    assert any("## Take away" in cell.source for cell in notebook.cells)


def test_outputs_are_kept_and_clean(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert "execution" not in cell.metadata, "when and how long: of no use to a reader"
        assert not [out for out in cell.outputs if out.output_type == "error" or out.get("name") == "stderr"]
        assert not re.search(r"Warning|/home/|/tmp/|/root/|/work/|0x[0-9a-f]{6}| s/it|it/s", outputs(cell)), cell.source


def test_exercises_start_unsolved_and_their_solutions_pass(notebook):
    """Checks print: before the student's work that it is not solved, after the folded solution that it is right."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    numbers = re.findall(r"^\*\*(\d)\. .*?\*\* \((?:easy|medium|hard), \d+ minutes\)", prose, re.M)
    assert 2 <= len(numbers) <= 4
    for number in numbers:
        said = [(cell.metadata.get("tags"), outputs(cell)) for cell in notebook.cells if cell.cell_type == "code"]
        said = [(tags, text) for tags, text in said if f"exercise {number}:" in text]
        assert [tags for tags, _ in said] == [None, ["solution"]]
        assert f"exercise {number}: not solved yet" in said[0][1] and f"exercise {number}: right" in said[1][1]
