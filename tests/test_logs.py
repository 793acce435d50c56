"""What a run tells besides its records: completions, trackers, a callback, a progress line. None changes the run."""

import io
import json
import re
from math import isclose

import pytest
import torch
from accelerate import tracking
from test_runs import same_run
from tqdm import tqdm

import logitmix_lite.recipe
from logitmix_lite import group_advantages, load_preset, train
from logitmix_lite.__main__ import main
from logitmix_lite.records import read_metrics
from logitmix_lite.tasks.load import load_task
from logitmix_lite.tasks.rewards import grade

SMALL = load_preset(
    "tiny", task="chain-easy", prompts=2, samples=4, steps=4, test_size=2, validation_size=2, eval_every=9,
    max_new_tokens=40, save_every=2,
)  # fmt: skip


class Stop(Exception):
    pass


def stop_after(step):
    def callback(line):
        if line["step"] == step:
            raise Stop

    return callback


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without any of it."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(SMALL, "fixed", folder)
    return folder


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("logged") / "run", []
    train(SMALL, "fixed", folder, log_completions=6, callback=lines.append)
    return folder, lines


def completions(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_is_the_same_with_and_without(plain, logged):
    folder, lines = logged
    same_run(plain, folder)
    assert (plain / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert {f.name for f in folder.iterdir()} - {f.name for f in plain.iterdir()} == {"completions.jsonl"}
    assert lines == read_metrics(folder)


def test_completions_are_those_of_the_step(logged):
    folder, _ = logged
    rows, metrics = completions(folder), read_metrics(folder)
    assert [row["step"] for row in rows] == [step for step in (1, 2, 3, 4) for _ in range(6)]
    answers = {p.question: p.answer for p in load_task("chain-easy", train=4000, validation=2, test=2).train}
    for step in (1, 2, 3, 4):
        group = [row for row in rows if row["step"] == step][:4]  # the first prompt's four; of the second there are two
        assert len({row["prompt"] for row in group}) == 1
        assert [row["reward"] for row in group] == [
            float(grade(row["completion"], answers[row["prompt"]]).correct) for row in group
        ]
        rewards = torch.tensor([[row["reward"] for row in group]])
        expected = group_advantages(rewards)[0].tolist()
        assert all(isclose(row["advantage"], a, abs_tol=1e-5) for row, a in zip(group, expected, strict=True))
        said = [len(row["completion"]) for row in rows if row["step"] == step]
        assert max(said) <= 40 and 0 < metrics[step]["length"] <= 40
    assert len({row["reward"] for row in rows}) == 2  # right ones and wrong ones, or this would test little


def test_a_resumed_run_writes_no_completion_twice(tmp_path, logged):
    whole, out = logged[0], tmp_path / "run"
    with pytest.raises(Stop):
        train(SMALL, "fixed", out, log_completions=6, callback=stop_after(3))
    assert {row["step"] for row in completions(out)} == {1, 2, 3}  # the checkpoint is of step 2
    with (out / "completions.jsonl").open("a") as file:
        file.write('{"step": 4, "prom')  # as a crash may leave it
    train(SMALL, "fixed", out, log_completions=6, resume=True)
    assert (out / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()
    same_run(whole, out)


class Fake(tracking.GeneralTracker):
    """Notes what it is told."""

    name, requires_logging_directory, tracker = "trackio", False, None
    made: list["Fake"] = []

    def __init__(self, project, **options):
        super().__init__()
        self.project, self.options, self.told, self.state = project, options, {}, "new"
        self.made.append(self)

    def start(self):
        self.state = "started"

    def log(self, values, step):
        assert self.state == "started" and step not in self.told
        self.told[step] = values

    def finish(self):
        self.state = "finished"


def test_a_tracker_gets_all_metrics(tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Fake)
    monkeypatch.setattr(tracking, "_available_trackers", ["trackio"])
    out = tmp_path / "run"
    with pytest.raises(Stop):
        train(SMALL, "fixed", out, report_to="trackio", callback=stop_after(3))
    first = Fake.made.pop()
    assert first.state == "finished" and list(first.told) == [0, 1, 2, 3]
    assert (first.project, first.options["name"], first.options["config"]["method"]) == (
        "logitmix_lite", str(out), "fixed"
    )  # fmt: skip
    train(SMALL, "fixed", out, report_to="trackio", resume=True)
    second = Fake.made.pop()
    assert second.state == "finished" and list(second.told) == [0, 1, 2, 3, 4]  # also the steps before the resume
    for line in read_metrics(out):
        told = second.told[line["step"]]
        assert told and told == {k: v for k, v in line.items() if k in told}
        left = [v for k, v in line.items() if k not in told and k != "step"]
        assert not any(isinstance(v, (int, float)) for v in left)


def test_tensorboard_shows_each_step_once(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    with pytest.raises(Stop):
        train(SMALL, "fixed", out, report_to="tensorboard", callback=stop_after(3))
    train(SMALL, "fixed", out, report_to="tensorboard", resume=True)
    found = reader.EventAccumulator(str(out / "tensorboard")).Reload()
    for name in ("reward", "alpha", "entropy"):
        expected = [(line["step"], line[name]) for line in read_metrics(out) if name in line]
        seen = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in seen] == [step for step, _ in expected]
        assert all(isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(seen, expected, strict=True))


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--report-to", "paper"], "unknown tracker 'paper': --report-to takes one of tensorboard, wandb, trackio"),
        (["--report-to", "wandb"], "--report-to wandb needs a package that is not installed: pip install wandb"),
        (["--log-completions", "-1"], "log_completions must not be negative, got -1"),
    ],
)
def test_bad_flags(tmp_path, monkeypatch, flags, sentence):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(SystemExit, match=f"error: {re.escape(sentence)}"):
        main(["train", "--method", "fixed", "--out", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()


def test_the_progress_line_tells_the_time_left_also_after_a_resume(tmp_path, monkeypatch):
    """Its rate counts the steps of this process only: those before a resume took no time of it."""
    bars = []

    class Shown(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | dict(file=io.StringIO(), disable=False, mininterval=0, smoothing=0))
            bars.append(self)

    monkeypatch.setattr(logitmix_lite.recipe, "tqdm", Shown)
    out = tmp_path / "run"
    with pytest.raises(Stop):
        train(SMALL, "fixed", out, callback=stop_after(2))
    train(SMALL, "fixed", out, resume=True, callback=lambda line: None)
    first, second = (bar.fp.getvalue() for bar in bars)
    assert "| 0/5 [00:00<?" in first and re.search(r"\| 2/5 \[\d\d:\d\d<\d\d:\d\d, .*reward=", first)
    assert "| 3/5 [00:00<?" in second and re.search(r"\| 4/5 \[\d\d:\d\d<\d\d:\d\d, .*reward=", second)
    assert "| 5/5 [" in second
    bar = bars[1].format_dict
    assert bar["initial"] == 3 and bar["n"] == 5
