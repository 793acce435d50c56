"""A wheel works without the repository: what it needs is inside, or is named with a command that makes it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what the wheel holds, and a function that runs a command with it, somewhere else."""
    source, site, elsewhere = (tmp_path_factory.mktemp(name) for name in ("source", "site", "elsewhere"))
    for name in ("logitmix_lite", "data/tiny", "data/smol"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(site), "."]
    built = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = site.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)

    def run(*words):
        env = os.environ | {"PYTHONPATH": str(site), "LOGITMIX_HOME": str(elsewhere / "home"), "HF_HUB_OFFLINE": "1"}
        return subprocess.run([sys.executable, "-m", *words], cwd=elsewhere, env=env, capture_output=True, text=True)

    return site, run


def test_the_tiny_models_and_the_anchor_are_inside(installed):
    site, run = installed
    for file in ("tiny/base/model.safetensors", "tiny/anchor/tokenizer.json", "smol/anchor/adapter_model.safetensors"):
        assert (site / "logitmix_lite" / "data" / file).read_bytes() == (ROOT / "data" / file).read_bytes()
    small = ["--steps", "1", "--prompts", "2", "--samples", "2", "--test-size", "4", "--train-size", "8"]
    done = run("logitmix_lite", "train", "--preset", "tiny", "--method", "fixed", *small, "--out", "run")
    assert done.returncode == 0, done.stderr
    done = run("logitmix_lite", "evaluate", "--preset", "tiny", "--model", "run/final", "--test-size", "4")
    assert done.returncode == 0 and '"accuracy"' in done.stdout, done.stderr


def test_what_is_not_inside_is_named_with_what_makes_it(installed):
    _, run = installed
    done = run("logitmix_lite", "evaluate", "--preset", "smol", "--model", "smol", "--test-size", "4")
    assert done.stderr.strip().endswith("smol is not there yet: make it with `python -m logitmix_lite fetch smol`")
