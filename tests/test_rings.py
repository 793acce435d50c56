"""The package's rings, read from its import statements: a ring imports those below it and never one above.

So a reader of the method needs nothing of the recipe, and a reader of the recipe nothing of the lab."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import logitmix_lite

PACKAGE = Path(logitmix_lite.__file__).parent
# From the bottom up; fast and tasks stand beside each other.
RINGS = [
    {"fast", "tasks"},
    {"mixing", "grpo", "schedules", "mixture", "hf", "rollout", "train"},
    {"config", "methods", "models", "sft", "evaluate", "runs", "records", "stats", "ranks", "recipe", "watch",
     "disk", "fingerprints", "relatives", "trackers"},
    {"lab"},
    {"__init__", "__main__"},
]
HEIGHT = {name: height for height, ring in enumerate(RINGS) for name in ring}
METHOD = {"torch", "transformers", "numpy", "tqdm"}  # what the method and fast/ may import of other packages
LONGEST = 250

# Files that do not keep the rules yet, with the rule; to become empty.
NOT_YET: set[tuple[str, str]] = set()
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def files(rule: str):
    """All files of the package, as test cases of one of the rules."""
    late = pytest.mark.xfail(reason="not yet", strict=False)
    return pytest.mark.parametrize(
        "file", [pytest.param(file, marks=[late] if (file, rule) in NOT_YET else [], id=file) for file in FILES]
    )


def ring(module: str) -> str:
    """`logitmix_lite.lab.plots` as "lab", `logitmix_lite.config` as "config", and the package itself as "__init__"."""
    return (module.split(".") + ["__init__"])[1]


def statements(tree: ast.AST, at_once: bool) -> Iterator[ast.AST]:
    """All nodes below one; at_once: without the bodies of functions, which run later."""
    for node in ast.iter_child_nodes(tree):
        if not (at_once and isinstance(node, ast.FunctionDef)):
            yield node
            yield from statements(node, at_once)


def imported(file: str, at_once: bool = False) -> Iterator[str]:
    """The modules that a file names in import statements, wherever they stand; what is public by its own module.

    at_once: only those that are imported together with the file."""
    here = ["logitmix_lite", *Path(file).with_suffix("").parts]
    for node in statements(ast.parse((PACKAGE / file).read_text(encoding="utf-8")), at_once):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = here[: -node.level] if node.level else []
            module = ".".join(parent + [node.module] * (node.module is not None))
            if module == "logitmix_lite":
                yield from (f"{module}.{logitmix_lite.HOME.get(alias.name, alias.name)}" for alias in node.names)
            else:
                yield module


def test_import_statements_are_understood(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "x.py").write_text(
        "import os.path\nfrom .. import models, rollout\nfrom ..config import Preset\nfrom . import y\n"
        "def f():\n    from ...nowhere import z\n    from .y import a\n    import torch as t\n"
        "    from logitmix_lite import grade\n"
    )
    assert set(imported(str(Path("lab/x.py")))) == {
        "os.path", "logitmix_lite.models", "logitmix_lite.rollout", "logitmix_lite.config", "logitmix_lite.lab",
        "nowhere", "logitmix_lite.lab.y", "torch", "logitmix_lite.tasks.rewards",
    }  # fmt: skip
    assert not set(imported(str(Path("lab/x.py")), at_once=True)) & {"nowhere", "torch"}
    assert [ring(m) for m in ("logitmix_lite.lab.y", "logitmix_lite.models", "logitmix_lite")] == [
        "lab", "models", "__init__"
    ]  # fmt: skip


@files("rings")
def test_a_ring_imports_none_above_it(file):
    own = Path(file).with_suffix("").parts[0]
    assert own in HEIGHT, f"{file} belongs to no ring: add it to RINGS"
    for module in imported(file):
        if module.split(".")[0] == "logitmix_lite":
            other = ring(module)
            assert other in HEIGHT, f"{file} imports {module}, which belongs to no ring"
            assert HEIGHT[other] <= HEIGHT[own], f"{file} imports {module}, which is above it"
            assert {own, other} != {"fast", "tasks"}, f"{file} imports {module}, which stands beside it"


@files("method")
def test_the_method_imports_nothing_slower_than_torch_and_transformers(file):
    own = Path(file).with_suffix("").parts[0]
    if own in RINGS[1] | {"fast"}:
        found = {module.split(".")[0] for module in imported(file, at_once=True)}
        others = found - {"logitmix_lite"} - set(sys.stdlib_module_names)
        assert others <= METHOD, f"{file} imports {others - METHOD}"


@files("length")
def test_no_file_is_long(file):
    assert len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_lab_is_small():
    """All of it but the benchmark, which compares with other packages, the drawing of pictures, and two studies beyond
    the paper, each of which remakes its records."""
    others = ("lab/bench/", "lab/pictures", "lab/wall", "lab/experts", "lab/hints")
    lab = [file for file in FILES if file.startswith("lab/") and not file.startswith(others)]
    assert sum(len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in lab) <= 1425


def test_what_is_listed_as_late_exists():
    assert {file for file, _ in NOT_YET} <= set(FILES), "a file is gone or renamed: take it off the list"
