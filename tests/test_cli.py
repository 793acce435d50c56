"""The command line: bad input is one clear sentence and a non-zero exit, and leaves nothing behind."""

import json

import pytest

from logitmix_lite.__main__ import main

TRAIN = ["train", "--method", "fixed", "--steps", "1", "--prompts", "2", "--samples", "2", "--test-size", "4"]


def jsonl(folder, *rows):
    path = folder / "problems.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--preset", "huge"], "unknown preset 'huge': choose one of tiny"),
        (["--method", "ppo"], "unknown method 'ppo': choose one of fixed"),
        (["--task", "sudoku"], "'sudoku'"),
        (["--task", "missing.jsonl"], "missing.jsonl"),
        (["--alpha", "1.5"], "alpha lies in [0, 1], got 1.5"),
        (["--alpha", "nan"], "alpha lies in [0, 1], got nan"),
        (["--method", "grpo", "--alpha", "0.5"], "grpo does not mix"),
        (["--beta", "0.1"], "fixed has no KL term"),
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


COMMANDS = ["fetch", "tiny", "sft", "train", "evaluate", "compare", "sweep", "report", "bench"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and command in capsys.readouterr().out


def test_bench_passes_its_flags_on(capfd):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--rows", "rollout,nonsense", "--runs", "1"])
    assert stop.value.code == 2 and "no row 'nonsense': choose of rollout, training" in capfd.readouterr().err


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
