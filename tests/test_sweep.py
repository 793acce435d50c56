"""Grids of runs: what each command line says, that grids resume, and what the report makes of them."""

import json

import pytest
import torch
from conftest import make_lora_pair, make_model
from matplotlib import pyplot as plt

from logitmix_lite.__main__ import main, make_parser
from logitmix_lite.mixture import Mixture
from logitmix_lite.models import average_with_base, load_model, trainable
from logitmix_lite.presets import load_preset
from logitmix_lite.report import complementarity, load_runs, plot_curves, summary
from logitmix_lite.sweep import ARMS, command, sweep

SMALL = dict(steps=1, prompts=2, samples=2, test_size=4, validation_size=2)


@pytest.mark.parametrize("name", ARMS)
def test_the_command_of_an_arm_is_understood_and_says_what_the_arm_says(tmp_path, name):
    preset = load_preset("tiny", lr=1e-4, alpha=0.4, beta=0.2, keep_ref_states=False, where={"type": ["a", "b"]})
    words = command(preset, name, 3, tmp_path / "run")
    args = make_parser()[0].parse_args(words[3:])
    arm = ARMS[name]
    assert (args.method, args.seed, args.init, args.lr) == (arm.method, 3, arm.init, 1e-4)
    assert args.keep_ref_states is False and args.where == {"type": ["a", "b"]} and not args.resume
    assert args.alpha == (None if arm.method.startswith("grpo") else arm.settings.get("alpha", 0.4))
    assert args.beta == (arm.settings.get("beta", 0.2) if arm.method == "grpo-kl" else None)
    assert args.anchor == arm.settings.get("anchor")


def test_a_grid_trains_all_arms_keeps_what_is_there_and_goes_on_with_the_rest(tmp_path):
    sweep(load_preset("tiny", **SMALL), ["fixed"], [0], tmp_path)
    kept = tmp_path / "fixed-seed0" / "metrics.jsonl"
    before = kept.read_text()
    half = tmp_path / "wise-ft-seed0"
    main(command(load_preset("tiny", **SMALL), "wise-ft", 0, half)[3:])
    (half / "final").rename(tmp_path / "gone")  # as if it had been killed before its end
    grid = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    main(["sweep", "--methods", "fixed,wise-ft", "--seeds", "0", "--jobs", "2", "--out", str(tmp_path), *grid])
    assert kept.read_text() == before and (half / "final").is_dir()
    runs = load_runs(tmp_path)
    assert runs.groupby("run")["step"].apply(list).to_dict() == {"fixed-seed0": [0, 1], "wise-ft-seed0": [0, 1]}
    assert set(runs["arm"]) == {"fixed", "wise-ft"} and set(runs["method"]) == {"fixed", "grpo"}
    page = (tmp_path / "report" / "report.md").read_text()
    assert "fixed mixing | 1 | 1" in page and "GRPO from averaged weights | 1 | 1" in page
    lines = plot_curves(runs).axes[0].get_legend().get_texts()
    assert [line.get_text() for line in lines] == ["fixed mixing (1 seed)", "GRPO from averaged weights (1 seed)"]
    plt.close("all")
    assert list(summary(runs)["seeds"]) == [1, 1]


def test_bad_grids(tmp_path):
    for flags, message in (
        (["--methods", "fixed,ppo"], "unknown arm 'ppo'"),
        (["--seeds", "0,x"], "seeds are whole numbers"),
        (["--jobs", "0"], "jobs must be at least 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["sweep", "--out", str(tmp_path / "grid"), *flags])
    assert not (tmp_path / "grid").exists()


def test_a_run_that_fails_is_reported_and_does_not_stop_the_others(tmp_path):
    (tmp_path / "fixed-seed0").mkdir()
    (tmp_path / "fixed-seed0" / "mine.txt").write_text("something else")
    with pytest.raises(OSError, match="1 of 2 runs failed, first fixed-seed0: error: .*is not empty"):
        sweep(load_preset("tiny", **SMALL), ["fixed", "grpo"], [0], tmp_path)
    assert (tmp_path / "grpo-seed0" / "final").is_dir()


def test_average_with_base_of_whole_models():
    anchor = load_model("tiny-anchor", "float32", "cpu")
    before = {name: p.detach().clone() for name, p in anchor.named_parameters()}
    average_with_base(Mixture([anchor]), "tiny-base")
    base = dict(load_model("tiny-base", "float32", "cpu").named_parameters())
    assert any(not torch.equal(before[name], base[name]) for name in base)
    for name, parameter in anchor.named_parameters():
        torch.testing.assert_close(parameter, (before[name] + base[name]) / 2)


def test_average_with_base_of_an_adapter_is_that_of_the_merged_weights():
    ids = torch.tensor([[3, 4, 5]])
    base, merged = make_model(), make_lora_pair().merge_and_unload(adapter_names=["theta"])
    weights = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            parameter.lerp_(weights[name], 0.5)
    mixture = Mixture([make_lora_pair()], [1.0], adapters=["theta"])
    for name, parameter in mixture.named_parameters():
        parameter.requires_grad_(".theta." in name)
    assert trainable(mixture)
    average_with_base(mixture, "unused")
    torch.testing.assert_close(mixture(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)


def test_complementarity_counts_by_hand(tmp_path):
    run = tmp_path / "fixed-seed0"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"command": "train", "method": "fixed"}))
    theta = {"correct": "0000", "formatted": "0001", "number": "1110"}
    ref = {"correct": "1001", "formatted": "1111", "number": "1001"}
    (run / "grades.json").write_text(json.dumps({"mixture": ref, "theta": theta, "ref": ref}))
    row = complementarity(tmp_path).iloc[0]
    assert (row["boxed, ref"], row["boxed, theta"], row["right, ref"], row["right, theta"]) == (100, 25, 50, 75)
    assert (row["format gap"], row["answer gap"]) == (75, 25)
    assert [row[name] for name in ("both", "theta only", "ref only", "neither")] == [1, 2, 1, 0]
    assert row["exactly one"] == "3 (75.0%)"
