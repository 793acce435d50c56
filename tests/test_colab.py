"""The notebooks' first cell on Colab: it adds what is missing, and changes nothing that is there."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import badges  # noqa: E402

THERE = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints" / "colab.txt").read_text(), re.M))
ADDED = re.findall(r"pip install -q ([a-z][a-z-]+)", badges.CELL)


def test_what_colab_has_is_new_enough_and_the_rest_is_added():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    needed = {requirement.name: requirement for requirement in map(Requirement, needed)}
    for name, version in THERE.items():
        assert needed[name].specifier.contains(version), f"{needed[name]}, and Colab has {version}"
    everywhere = {"safetensors", "filelock", "scipy", "matplotlib", "tqdm"}  # Colab has them, or the others need them
    assert set(needed) - set(THERE) - everywhere == set(ADDED) == {"math-verify"}


def test_pip_adds_only_what_colab_lacks(tmp_path):
    """As pip resolves it from nothing: so none of what Colab has can be replaced, whatever its version."""
    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", str(report)]
    if subprocess.run([*pip, *ADDED], capture_output=True).returncode:
        pytest.skip("no package index")
    found = {item["metadata"]["name"].lower() for item in json.loads(report.read_text())["install"]}
    assert "math-verify" in found and not found & {*THERE, "scipy", "matplotlib", "tqdm", "safetensors", "ipython"}
    assert "--no-deps -e logitmix_lite" in badges.CELL  # the package itself brings none of its own


@pytest.mark.parametrize("repository", ["YOUR_NAME/logitmix_lite", "someone/her_copy"])
def test_the_cell_stops_before_it_fetches_from_nowhere(repository, capsys):
    """The cell as Python, its shell commands printed: away from Colab nothing, on Colab as REPOSITORY says."""
    commands = re.sub(r"^( +)!(.*)$", r'\1print(f"\2")', badges.CELL.format(repository=repository), flags=re.M)
    exec(commands)
    assert capsys.readouterr().out == ""
    sys.modules["google.colab"] = sys
    try:
        exec(commands)
    except AssertionError as stopped:
        assert "YOUR_NAME" in repository and "set REPOSITORY" in str(stopped)
        assert capsys.readouterr().out == ""
    else:
        assert f"git clone -q https://github.com/{repository} logitmix_lite" in capsys.readouterr().out
        assert "YOUR_NAME" not in repository
    finally:
        del sys.modules["google.colab"]
        if "logitmix_lite" in sys.path:
            sys.path.remove("logitmix_lite")
