"""What a visit to a GPU would run, decided without one: make gpu REHEARSE=1 runs all of it, in the tiny world."""

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import pytest

from logitmix_lite.config import Preset
from logitmix_lite.methods import METHODS

SPEC = importlib.util.spec_from_file_location("visit", Path(__file__).parent / "gpu" / "visit.py")
visit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(visit)


def runs(tmp_path, rewards: dict[str, list[float] | None]):
    """A folder a rate, with a line of metrics a step; None: the run never began."""
    for rate, earned in rewards.items():
        (tmp_path / rate).mkdir()
        if earned is not None:
            lines = [{"step": 0, "accuracy": 1.0}, *({"step": k, "reward": r} for k, r in enumerate(earned, 1))]
            (tmp_path / rate / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {rate: tmp_path / rate for rate in rewards}


@pytest.mark.parametrize(
    ("low", "high", "best"),
    [
        ([0.9] * 30 + [0.1] * 10, [0.0] * 30 + [0.2] * 10, "3e-4"),  # its last ten steps decide, not its best ones
        ([0.2] * 40, [0.2] * 40, "1e-4"),  # of equals the first
        ([0.3] * 4, [0.2] * 40, "1e-4"),  # shorter than ten
        (None, [0.0] * 3, "3e-4"),
        (None, None, "1e-4"),
    ],
)
def test_the_rate_is_the_one_that_earns_more_in_the_end(tmp_path, low, high, best):
    assert visit.best_rate(runs(tmp_path, {"1e-4": low, "3e-4": high})) == best


def test_a_visit_runs_methods_that_exist_once_each_at_a_searched_rate():
    assert set(visit.SEARCHED) | {name for name, _ in visit.RUNS} <= METHODS.keys()
    planned = [(name, 0) for name in visit.SEARCHED] + visit.RUNS
    assert len(set(planned)) == len(planned)
    assert {visit.LIKE.get(name, name) for name, _ in visit.RUNS} <= set(visit.SEARCHED)
    known = {f"--{f.name.replace('_', '-')}" for f in fields(Preset)}
    assert {word for word in visit.SETTINGS + visit.SHORT if word.startswith("--")} <= known
