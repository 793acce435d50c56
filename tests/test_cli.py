"""The command line: bad input is one clear sentence and a non-zero exit, and leaves nothing behind."""

import json
import re
import subprocess
import sys

import pytest
import torch

from logitmix_lite import HOME
from logitmix_lite.__main__ import COMMANDS, main
from logitmix_lite.methods import METHODS

TRAIN = ["train", "--method", "fixed", "--steps", "1", "--prompts", "2", "--samples", "2", "--test-size", "4"]


def jsonl(folder, *rows):
    path = folder / "problems.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--preset", "huge"], "unknown preset 'huge': choose one of tiny"),
        (["--method", "reinforce"], "unknown method 'reinforce': choose one of fixed"),
        (["--task", "sudoku"], "'sudoku'"),
        (["--task", "missing.jsonl"], "missing.jsonl"),
        (["--alpha", "1.5"], "alpha lies in [0, 1], got 1.5"),
        (["--alpha", "nan"], "alpha lies in [0, 1], got nan"),
        (["--method", "grpo", "--alpha", "0.5"], "grpo does not mix"),
        (["--beta", "0.1"], "fixed has no KL term"),
        (["--method", "fixed-0.25", "--alpha", "0.5"], "fixed-0.25 has alpha = 0.25 by itself: leave out --alpha"),
        (["--method", "grpo-kl-0.1", "--beta", "0.2"], "grpo-kl-0.1 has beta = 0.1 by itself"),
        (["--method", "base-anchor", "--anchor", "smol"], "base-anchor has anchor = 'base' by itself"),
        (["--samples", "1"], "samples must be at least 2"),
        (["--lr", "-1"], "lr must be positive"),
        (["--anchor", "./nowhere"], "no model at ./nowhere"),
        (["--init", "./nowhere"], "no model at ./nowhere"),
        (["--lora-rank", "4"], "holds no LoRA adapter"),
        (["--max-new-tokens", "1000"], "exceeds the model's context"),
        (["--resume"], "holds no run to resume"),
        (["--dtype", "bf16"], "dtype must be one of auto, float32"),
        (["--dtype", "bfloat16"], "small updates vanish in 16-bit weights"),
        (["--temperature", "0"], "temperature must be positive"),
        (["--seed", "-1"], "seed must not be negative"),
    ],
)
def test_bad_flags(tmp_path, capsys, flags, sentence):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main([*TRAIN, "--out", str(out), *flags])
    message = str(stop.value)
    assert sentence in message and message.startswith("error: ") and "\n" not in message
    assert not out.exists()


def test_out_of_memory_says_what_to_lower(monkeypatch):
    def full(args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setitem(COMMANDS, "report", full)
    with pytest.raises(SystemExit, match="^error: CUDA out of memory: lower --microbatch-tokens"):
        main(["report", "runs"])


def test_bad_evaluations(tmp_path):
    table = ["mixing-table", "--test-size", "4", "--out", str(tmp_path / "t.csv")]
    for words, sentence in (
        (["evaluate", "--model", "tiny-base", "--samples-each", "-1"], "samples must be at least 1, got -1"),
        ([*table, "--alpha", "0.5"], "mixing-table takes --alphas"),
        ([*table, "--alphas", "0,half"], "alphas are numbers in .0, 1. separated by commas"),
        ([*table, "--alphas", "0,1.5"], "lies in .0, 1., got 1.5"),
        (["compare", __file__, __file__], "is not a problems.jsonl of `evaluate`"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
            main(words)
    assert not list(tmp_path.iterdir())


def test_sft_refuses_weights_of_16_bits_too(tmp_path):
    with pytest.raises(SystemExit, match="small updates vanish in 16-bit weights"):
        main(["sft", "--dtype", "bfloat16", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_line_without_answer_is_named(tmp_path):
    path = jsonl(tmp_path, {"question": "1+1?", "answer": 2}, {"question": "2+2?"})
    with pytest.raises(SystemExit, match="problems.jsonl line 2: .*answer"):
        main([*TRAIN, "--task", path, "--out", str(tmp_path / "run")])


def test_long_prompt_is_refused_before_training(tmp_path):
    rows = [{"question": "1+" * (100 if k == 11 else 1) + f"{k}?", "answer": k} for k in range(12)]
    with pytest.raises(SystemExit, match="exceeds the model's context of 128"):
        main(
            [
                *TRAIN,
                "--task",
                jsonl(tmp_path, *rows),
                "--test-size",
                "2",
                "--validation-size",
                "2",
                "--out",
                str(tmp_path / "r"),
            ]
        )
    assert not (tmp_path / "r").exists()


def test_out_that_holds_another_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty"):
        main([*TRAIN, "--out", str(tmp_path)])
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and command in capsys.readouterr().out


def test_help_lists_every_method_and_the_flags_of_the_bench(capsys):
    for command, words in (("train", METHODS), ("sweep", METHODS), ("bench", ("--rows", "--shape", "limits"))):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = re.sub(r"-\n\s*", "-", capsys.readouterr().out)  # help is wrapped at hyphens too
        assert all(re.search(rf"(?<!\S){re.escape(word)}[,\s]", said) for word in words), command


def test_bad_benchmarks(tmp_path):
    for flags, sentence in (
        (["--rows", "rollout,nonsense"], "no row 'nonsense': choose of rollout, "),
        (["--runs", "0"], "must be at least 1"),
        (["--out", str(tmp_path)], "is there already"),
        (["--shape", "huge", "--rows", "rollout"], "no shape of 'huge' is written down"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
            main(["bench", *flags])


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "pandas", "scipy", "matplotlib", "numpy")
LOADED = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


@pytest.mark.parametrize(
    "work, loads",
    [
        ("import logitmix_lite, logitmix_lite.__main__, logitmix_lite.records", []),
        ("from logitmix_lite.__main__ import make_parser; make_parser().format_help()", []),
        ("from logitmix_lite.methods import METHODS; METHODS['adaptive'].schedule(0.5).update([1], [0])", []),
        ("from logitmix_lite import load_preset; load_preset('tiny')", []),
        ("from logitmix_lite.stats import interval, mcnemar; interval(1, 2)", ["numpy"]),
        ("import logitmix_lite.lab.report, logitmix_lite.lab.tables", ["pandas", "scipy", "matplotlib", "numpy"]),
    ],
)
def test_what_starts_at_once_loads_nothing_heavy(work, loads):
    assert python(f"{work}; {LOADED}") == str(loads)


@pytest.mark.parametrize("name", ["rollout", "train", "evaluate"])
def test_a_function_keeps_its_name_whatever_is_imported_first(name):
    """Importing a submodule makes it an attribute of its package, which would hide the function of the same name."""
    use = f"from logitmix_lite import {name}; assert callable({name}), {name}"
    reach = f"import logitmix_lite; assert callable(logitmix_lite.{name})"
    module = f"import logitmix_lite.{HOME[name]}, sys; sys.modules['logitmix_lite.{HOME[name]}'].{name}"
    for order in ((module, use, reach), (use, module, use, reach), (reach, module, reach)):
        python("; ".join(order))
    python(f"import logitmix_lite.{name}; {use}; {reach}")  # also where the function lives elsewhere


def test_importing_everything_changes_no_setting_of_the_notebook():
    code = """
import os, pkgutil, warnings
import torch, transformers, peft, datasets, accelerate, matplotlib.pyplot as plt
from transformers import AutoModelForCausalLM
from transformers.utils import logging
state = lambda: (list(warnings.filters), dict(os.environ), dict(plt.rcParams), logging.get_verbosity(),
                 logging.is_progress_bar_enabled(), torch.get_num_threads(), torch.is_grad_enabled())
before = state()
import logitmix_lite
for module in pkgutil.walk_packages(logitmix_lite.__path__, "logitmix_lite."):
    __import__(module.name)
for old, new in zip(before, state()):
    assert old == new, (old, new)
"""
    python(code)


def test_all_public_names_are_there():
    python(
        "from logitmix_lite import *; import logitmix_lite as p; assert set(p.__all__) <= set(globals()) & set(dir(p))"
    )
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from logitmix_lite import nonsense  # noqa: F401


def test_settings_from_a_file(tmp_path, capsys):
    file = tmp_path / "settings.json"
    small = {"prompts": 2, "samples": 2, "test_size": 4, "validation_size": 2, "alpha": 0.25, "steps": 5, "lr": 1e-4}
    file.write_text(json.dumps(small))
    run = ["train", "--settings", str(file), "--steps", "0", "--out", str(tmp_path / "run"), "--method"]
    main([*run, "adaptive"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {name: config[name] for name in small} == small | {"steps": 0}  # the flag counts before the file
    for text, sentence in (
        ("[1]", "is not a JSON object of settings"),
        ("{", "is not a JSON object of settings"),
        ('{"step": 1}', "a preset has no field 'step'"),
        ('{"prompts": "ten"}', "prompts must be int, got 'ten'"),
        ('{"prompts": true}', "prompts must be int, got True"),
        ('{"data": 3}', r"data must be str \| None, got 3"),
    ):
        file.write_text(text)
        with pytest.raises(SystemExit, match=sentence):
            main([*run, "fixed"])
    with pytest.raises(SystemExit, match="No such file"):
        main([*TRAIN, "--out", str(tmp_path / "b"), "--settings", str(tmp_path / "none.json")])


def test_evaluate_refuses_an_out_that_cannot_be_written_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("logitmix_lite.models.load_model", lambda *args: pytest.fail("the work was begun"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit, match="error: "):
            main(["evaluate", "--model", "tiny-base", "--test-size", "4", "--out", str(out)])
        with pytest.raises(SystemExit, match="error: "):
            main(["mixing-table", "--test-size", "4", "--out", str(out)])


def test_train_sweep_evaluate_report(tmp_path, capsys):
    small = TRAIN[3:]
    main(["sweep", "--methods", "fixed,grpo", "--seeds", "0,1", *small, "--out", str(tmp_path / "runs")])
    assert (tmp_path / "runs" / "report" / "accuracy.png").stat().st_size > 10_000
    assert "fixed mixing | 2 |" in (tmp_path / "runs" / "report" / "report.md").read_text()
    capsys.readouterr()
    final = str(tmp_path / "runs" / "fixed-seed0" / "final")
    main(["evaluate", "--model", final, "--test-size", "4", "--out", str(tmp_path / "evaluation")])
    found = json.loads(capsys.readouterr().out)
    last = json.loads((tmp_path / "runs" / "fixed-seed0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["accuracy"] == last["accuracy"]
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "problems.jsonl").read_text().splitlines()]
    assert sum(row["correct"] for row in rows) / 4 == found["accuracy"]
    with pytest.raises(SystemExit, match="no training runs below"):
        main(["report", str(tmp_path / "evaluation")])
    # what was trained on is not tested on; a mixture is not a policy to start from, its members are
    with pytest.raises(SystemExit, match="kept 4 test problems apart"):
        main(["evaluate", "--model", final, "--test-size", "5"])
    again = [*TRAIN, "--out", str(tmp_path / "again")]
    with pytest.raises(SystemExit, match="is a mixture: name one policy of it, such as .*member_0"):
        main([*again, "--init", final])
    main([*again, "--steps", "0", "--init", f"{final}/member_0"])
    capsys.readouterr()
    # member_0 was saved without a tokenizer: the preset's reads it
    main(["evaluate", "--model", f"{final}/member_0", "--test-size", "4"])
    assert json.loads(capsys.readouterr().out)["number_rate"] > 0
    # a grid does not pass off runs of other settings as its own
    with pytest.raises(SystemExit, match="fixed-seed0 was made with steps = 1, not 2"):
        main(["sweep", "--methods", "fixed", "--seeds", "0", *small, "--steps", "2", "--out", str(tmp_path / "runs")])
    main(["report", str(tmp_path / "again")])  # a run without a step has no reward to draw
