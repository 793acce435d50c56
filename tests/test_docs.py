"""The pages say what is there: tests, files, commands, flags and messages that they name exist."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from logitmix_lite.__main__ import make_parser

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "data" / "README.md"]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def read(page):
    return page.read_text(encoding="utf-8")


@pages
def test_tests_that_are_named_exist(page):
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read(page)):
        tree = ast.parse(read(ROOT / file))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file} has no {name}"
    for file in re.findall(r"`((?:tests|docs|configs|constraints|logitmix_lite)/[\w./-]+)`", read(page)):
        assert (ROOT / file).exists(), f"{page.name} names {file}"


@pages
def test_files_that_are_linked_exist(page):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(page)):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pages
def test_commands_are_understood(page, capsys):
    """Every `python -m logitmix_lite ...` of a page goes through the parser: commands, flags, their kinds."""
    text = re.sub(r"\\\n\s*", " ", read(page))
    text = re.sub(r"(?<!`)`[^`]+`(?!`)", lambda code: " ".join(code[0].split()), text)  # a command that was wrapped
    for command in re.findall(r"python -m logitmix_lite ([^`\n]+)", text):
        words = shlex.split(command, comments=True)
        if words and "..." not in words and "--help" not in words:
            words += {"sft": ["--out", "x"], "evaluate": ["--model", "x"]}.get(words[0], [])  # may be left out in prose
            try:
                make_parser().parse_args(words)
            except SystemExit:
                pytest.fail(f"{page.name}: {command}\n{capsys.readouterr().err.splitlines()[-1]}")


@pages
def test_make_targets_are_there(page):
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.M))
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", read(page), re.M):
        assert target in targets, f"{page.name}: make {target}"


def test_make_help_lists_every_target_and_contributing_explains_it():
    help_ = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    listed = set(re.findall(r"^make (\S+)", help_, re.M))
    phony = re.search(r"^\.PHONY: (.+)", read(ROOT / "Makefile"), re.M)[1].split()
    assert listed == set(phony) - {"test-method"}
    assert listed - {"help"} <= set(re.findall(r"make ([a-z-]+)", read(ROOT / "CONTRIBUTING.md")))


def test_the_readme_is_a_page_that_one_finishes():
    words = re.sub(r"```.*?```", "", read(ROOT / "README.md"), flags=re.S)
    words = re.sub(r"!?\[([^][]*)\]\([^)]*\)", r"\1", words)
    assert 550 <= len(re.findall(r"[A-Za-z0-9][\w.,%'-]*", words)) <= 700
    table = dict(re.findall(r"\(notebooks/(\w+)\.ipynb\).*\| (\d+)(?: minutes)? \|", read(ROOT / "README.md")))
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert table == {path.stem: re.search(r"(\d+) minutes to read", read(path))[1] for path in notebooks}


def test_experiments_have_a_section_for_every_notebook():
    parts = r"\n\n- \*\*Command\*\*(?:.+\n)+?- \*\*Inspect\*\*(?:.+\n)+?- \*\*First sweeps\*\*"
    said = re.findall(rf"^## (\w+) .*{parts}", read(ROOT / "docs" / "experiments.md"), re.M)
    assert said == sorted(said) and {
        path.stem.partition("_")[0] for path in (ROOT / "notebooks").glob("*.ipynb")
    } <= set(said)


def said_by_the_package():
    """All text in the package's string literals and the Makefile, with … for what is filled in."""
    texts = [read(ROOT / "Makefile").replace('" \\\n\t\t"', "")]
    for file in (ROOT / "logitmix_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(read(file))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    return " ".join("\n".join(texts).replace("`", "").split())


def test_messages_in_troubleshooting_are_those_of_the_package():
    said = said_by_the_package()
    messages = re.findall(r"^### `(.+)`$", read(ROOT / "docs" / "troubleshooting.md"), re.M)
    assert len(messages) > 20
    for part in "…".join(messages).replace("(", "").replace(")", "").split("…"):
        assert part.strip(": ,") in said.replace("(", "").replace(")", ""), f"nobody says {part!r}"
