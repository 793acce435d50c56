"""What every notebook promises, read from the files as they are in git; running them in full is nbval's part."""

import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import logitmix_lite

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import badges  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def outputs(cell):
    return "".join("".join(out.get("text", out.get("data", {}).get("text/plain", ""))) for out in cell.outputs)


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def setting(name):
    return re.search(rf"^{name} = (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]


def test_the_readme_leads_to_the_repository():
    where, readme = setting("REPOSITORY"), (ROOT / "README.md").read_text(encoding="utf-8")
    assert badges.badge(where, setting("BRANCH"), "00_quickstart.ipynb", ".") in readme, "run `make badges`"
    assert f"git clone https://github.com/{where} && cd {where.partition('/')[2]}\n" in readme


def test_badge_and_first_cell_say_what_make_badges_writes(path, notebook):
    where, branch = setting("REPOSITORY"), setting("BRANCH")
    written = nbformat.read(path, as_version=4)
    badges.write(written, path.name, where, branch)
    assert written == notebook, "run `make badges`"
    assert badges.badge(where, branch, path.name) in notebook.cells[0].source
    assert badges.BEFORE in prose(notebook)


def test_cells_are_short_and_prose_surrounds_them(notebook):
    code = [cell.source.count("\n") + 1 for cell in notebook.cells if cell.cell_type == "code"]
    assert statistics.median(code) <= 8 and max(code) <= 25 and len(notebook.cells) <= 45
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
    numbers = re.findall(r"^\*\*(\d)\. .*?\*\* \((?:easy|medium|hard), \d+ minutes\)", prose(notebook), re.M)
    assert 3 <= len(numbers) <= 6
    for number in numbers:
        said = [(cell.metadata.get("tags"), outputs(cell)) for cell in notebook.cells if cell.cell_type == "code"]
        said = [(tags, text) for tags, text in said if f"exercise {number}:" in text]
        assert [tags for tags, _ in said] == [None, ["solution"]]
        assert f"exercise {number}: not solved yet" in said[0][1] and f"exercise {number}: right" in said[1][1]


def test_links_lead_to_files_and_names_to_what_they_define(path, notebook):
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", prose(notebook)) if "://" not in link]
    assert links and not [link for link in links if not (path.parent / link).exists()]
    used = notebook.cells[-1].source.split("Functions used:")[1]
    before = r"((?:`[^`]+`(?:, )?)+) in \[[^]]+\]\(([^)]+\.py)\)"  # `names` in [file](link), or [`names`](link)
    inside = r"\[((?:`[^`]+`(?:, )?)+)\]\(([^)]+\.py)\)"
    for names, link in re.findall(before, used) + re.findall(inside, used):
        source = (path.parent / link).read_text(encoding="utf-8")
        for name in re.findall(r"`([^`/]+)`", names):
            defined = rf"^ *(?:def|class) {name.split('.')[-1]}\b|^{name}\b"
            assert re.search(defined, source, re.M), f"{link} does not define {name}"


NUMBER = r"-?\d+(?:\.\d+)?"
STATED = re.compile(
    rf"({NUMBER})(?:\s*(?:to|and|or|,|-|–)\s*({NUMBER}))*\s*(?:\\?%|percentage points|points\b|percent\b)"
)


def stated(notebook):
    """(number, sentence): percentages and points of the prose; what the paper says, and the 95 of intervals, aside."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for sentence in re.split(r"(?<=[.:?!])\s+(?=[A-Z*])|\n\n", cell.source):
                if "paper" not in sentence.lower():
                    numbers = [text for match in STATED.finditer(sentence) for text in re.findall(NUMBER, match[0])]
                    yield from ((text, sentence) for text in numbers if text not in ("95", "100", "0"))


def shown(notebook):
    """Every number in an output, as it is and as a percentage."""
    for cell in notebook.cells:
        for out in cell.get("outputs", ()):
            data = out.get("data", {})
            text = out.get("text", "") + data.get("text/plain", "") + re.sub("<[^>]*>", " ", data.get("text/html", ""))
            for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text):
                yield from (float(number), 100 * float(number))


def test_percentages_and_points_in_the_prose_stand_in_an_output(notebook):
    numbers = set(shown(notebook))
    for text, sentence in stated(notebook):
        digits = len(text.partition(".")[2])
        found = any(abs(round(number, digits) - abs(float(text))) < 1e-9 for number in numbers)
        assert found, f"no output shows {text}: {sentence}"


def test_data_is_found_by_the_package_and_not_from_the_working_folder(notebook):
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "start_notebook()" in code and not re.search(r"""Path\(["']\.\.|["'](?:\.\./|data/|logitmix_lite/)""", code)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["the repository", "elsewhere"])
def test_the_quickstart_runs_from_any_working_folder(where, tmp_path):
    """All of it that reads data; training is left out."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    training = next(k for k, cell in enumerate(code) if re.search(r"^ *train\(", cell.source, re.M))
    notebook.cells = code[:training] + [cell for cell in code[training:] if "results /" in cell.source]
    folder = ROOT if where == "the repository" else tmp_path
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


def test_without_the_repository_a_notebook_says_what_is_missing(tmp_path):
    """As after `pip install .`: the package lies alone in a folder of packages."""
    shutil.copytree(Path(logitmix_lite.__file__).parent, tmp_path / "logitmix_lite")
    begin = "from logitmix_lite.lab.course import start_notebook; start_notebook()"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run([sys.executable, "-c", begin], cwd=tmp_path, env=env, capture_output=True, text=True)
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: the course's data") and "clone the repository" in last
