"""Grids of runs: what each run is started with, that grids resume, and what the report makes of them."""

import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_lora_pair, make_model
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from logitmix_lite.__main__ import chosen_preset, main, make_parser
from logitmix_lite.config import load_preset
from logitmix_lite.fast.precision import trainable
from logitmix_lite.hf import Mixture
from logitmix_lite.lab.report import FIGURES, plot_curves
from logitmix_lite.lab.sweep import sweep
from logitmix_lite.lab.tables import arm_of, complementarity, load_runs, summary, verdicts
from logitmix_lite.methods import METHODS
from logitmix_lite.models import average_with_base, load_model
from logitmix_lite.records import read_config
from logitmix_lite.schedules import Fixed

SMALL = dict(steps=1, prompts=2, samples=2, test_size=4, validation_size=2)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_of_a_grid_runs_with_its_own_settings_over_the_grids(tmp_path, monkeypatch, name):
    started = {}
    monkeypatch.setattr(
        "logitmix_lite.lab.sweep.subprocess.run",
        lambda words, **more: started.update(words=words) or subprocess.CompletedProcess(words, 0),
    )
    preset = load_preset("tiny", **SMALL, lr=1e-4, alpha=0.4, beta=0.2, keep_ref_states=False)
    sweep(preset, [name], [3], tmp_path)
    args = make_parser().parse_args(started["words"][3:])
    assert (args.method, args.seed, args.out, args.resume) == (name, 3, str(tmp_path / f"{name}-seed3"), False)
    assert chosen_preset(args) == preset and args.alpha is args.beta is None
    main([*started["words"][3:], "--steps", "0"])
    made = read_config(args.out)
    assert {name: made[name] for name in METHODS[name].settings} == METHODS[name].settings
    assert (made["method"], made["lr"], made["init"]) == (name, 1e-4, METHODS[name].init)
    assert made["alpha"] == METHODS[name].settings.get("alpha", 0.4)
    assert made["beta"] == METHODS[name].settings.get("beta", 0.2)
    (tmp_path / f"{name}-seed3" / "final").rename(tmp_path / "gone")  # as if it had been cut short
    sweep(preset, [name], [3], tmp_path)
    assert "--resume" in started["words"]


def test_what_was_recorded_under_older_names_is_still_the_right_curve(tmp_path):
    for folder, method, arm in (
        ("fixed-0.25-seed3", "fixed", "fixed-0.25"), ("fixed-0.25-seed3", "fixed-0.25", "fixed-0.25"),
        ("wise-ft-seed0", "grpo", "wise-ft"), ("mine", "grpo-kl-0.1", "grpo-kl-0.1"), ("mine-seed0", "prob", "prob"),
    ):  # fmt: skip
        assert arm_of(tmp_path / folder, {"method": method}) == arm
    with pytest.raises(ValueError, match="unknown method 'reinforce'"):
        arm_of(tmp_path / "mine", {"method": "reinforce"})


def test_the_recorded_runs_hold_every_method():
    runs = load_runs(Path(__file__).resolve().parents[1] / "data" / "results" / "tiny")
    assert set(runs["arm"]) == set(METHODS)
    alphas = runs[runs["step"] > 0].groupby("arm")["alpha"].agg(["min", "max"])
    for name, method in METHODS.items():
        if method.mixes and method.schedule is Fixed:
            assert tuple(alphas.loc[name]) == (method.settings.get("alpha", 0.5),) * 2, name
    assert not alphas.loc[[name for name, method in METHODS.items() if not method.mixes]].to_numpy().any()


def lightness(colour: str) -> float:
    """As a grey printer sees it (ITU-R BT.601)."""
    return sum(weight * part for weight, part in zip((0.299, 0.587, 0.114), to_rgb(colour), strict=True))


def test_methods_of_one_figure_stay_apart_in_grey():
    assert {arm for arms in FIGURES.values() for arm in arms} == set(METHODS)
    styles = [METHODS[name].style for name in METHODS]
    assert all(len({str(style[k]) for style in styles}) == len(styles) for k in range(3))
    for arms in FIGURES.values():
        for first, second in itertools.combinations([METHODS[name].style[0] for name in arms], 2):
            assert abs(lightness(first) - lightness(second)) > 0.1, (first, second)


def test_a_grid_trains_all_arms_keeps_what_is_there_and_goes_on_with_the_rest(tmp_path):
    sweep(load_preset("tiny", **SMALL), ["fixed"], [0], tmp_path)
    kept = tmp_path / "fixed-seed0" / "metrics.jsonl"
    before = kept.read_text()
    half = tmp_path / "wise-ft-seed0"
    grid = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    main(["train", "--method", "wise-ft", "--out", str(half), *grid])
    (half / "final").rename(tmp_path / "gone")  # as if it had been killed before its end
    main(["sweep", "--methods", "fixed,wise-ft", "--seeds", "0", "--jobs", "2", "--out", str(tmp_path), *grid])
    assert kept.read_text() == before and (half / "final").is_dir()
    runs = load_runs(tmp_path)
    assert runs.groupby("run")["step"].apply(list).to_dict() == {"fixed-seed0": [0, 1], "wise-ft-seed0": [0, 1]}
    assert set(runs["arm"]) == {"fixed", "wise-ft"} and set(runs["method"]) == {"fixed", "wise-ft"}
    page = (tmp_path / "report" / "report.md").read_text()
    assert "fixed mixing | 1 | 1" in page and "GRPO from averaged weights | 1 | 1" in page
    lines = plot_curves(runs).axes[0].get_legend().get_texts()
    assert [line.get_text() for line in lines] == ["fixed mixing (1 seed)", "GRPO from averaged weights (1 seed)"]
    plt.close("all")
    assert list(summary(runs)["seeds"]) == [1, 1]


def test_bad_grids(tmp_path):
    for flags, message in (
        (["--methods", "fixed,reinforce"], "unknown method 'reinforce'"),
        (["--seeds", "0,x"], "seeds are whole numbers"),
        (["--jobs", "0"], "jobs must be at least 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["sweep", "--out", str(tmp_path / "grid"), *flags])
    assert not (tmp_path / "grid").exists()


def test_runs_with_other_settings_are_not_taken_for_the_grid(tmp_path):
    (tmp_path / "fixed-seed0").mkdir()
    (tmp_path / "fixed-seed0" / "config.json").write_text(json.dumps({"lr": 1e-3, "eval_batch": 7}))
    with pytest.raises(ValueError, match=r"fixed-seed0 was made with lr = 0.001, not 0.0002: choose another --out"):
        sweep(load_preset("tiny", **SMALL), ["grpo", "fixed"], [0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fixed-seed0"]  # nothing was started


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


def write_grades(folder, name, method, seed=0, **policies):
    """A run that is only its grades; each policy's as "correct/formatted/number"."""
    run = folder / f"{name}-seed{seed}"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"command": "train", "method": method, "seed": seed}))
    rates = ("correct", "formatted", "number")
    grades = {policy: dict(zip(rates, bits.split("/"), strict=True)) for policy, bits in policies.items()}
    (run / "grades.json").write_text(json.dumps(grades))


def test_complementarity_counts_by_hand(tmp_path):
    write_grades(tmp_path, "fixed", "fixed", mixture="1001/1111/1001", theta="0001/0001/1110", ref="1001/1111/1001")
    write_grades(tmp_path, "grpo-kl", "grpo-kl", mixture="1111/1111/1111", theta="1111/1111/1111", ref="1001/1111/1001")
    write_grades(tmp_path, "grpo", "grpo", mixture="1111/1111/1111")
    table = complementarity(tmp_path)
    assert list(table["run"]) == ["fixed-seed0"]  # of mixtures only
    row, loose = table.iloc[0], complementarity(tmp_path, "number").iloc[0]
    assert (row["boxed, ref"], row["boxed, theta"], row["right, ref"], row["right, theta"]) == (100, 25, 50, 25)
    assert (row["format gap"], row["answer gap"], loose["answer gap"]) == (75, -25, 25)
    assert [row[name] for name in ("both", "theta only", "ref only", "neither")] == [1, 0, 1, 2]
    assert [loose[name] for name in ("both", "theta only", "ref only", "neither")] == [1, 2, 1, 0]
    assert (row["exactly one"], loose["exactly one"]) == ("1 (25.0%)", "3 (75.0%)")


def test_verdicts_of_runs_made_up_to_decide(tmp_path):
    random, none, every = np.random.default_rng(0), "0" * 400, "1" * 400

    def bits(share):
        return "".join(map(str, (random.random(400) < share).astype(int)))

    for seed in (0, 1, 2):
        ref, theta, mixture = bits(0.4), bits(0.7), bits(0.8)
        write_grades(tmp_path, "fixed", "fixed", seed, mixture=f"{mixture}/{every}/{mixture}",
                     theta=f"{none}/{none}/{theta}", ref=f"{ref}/{every}/{ref}")  # fmt: skip
        for arm, method, right in (
            ("adaptive", "adaptive", mixture), ("grpo-kl", "grpo-kl", ref), ("grpo-kl-0.1", "grpo-kl", theta)
        ):  # fmt: skip
            write_grades(tmp_path, arm, method, seed, mixture=f"{right}/{every}/{right}")
    write_grades(tmp_path, "base-anchor", "fixed", 2, mixture=f"{every}/{every}/{every}")
    write_grades(tmp_path, "grpo-kl-0.01", "grpo-kl", 0, mixture=f"{every}/{every}/{every}")  # one lucky seed
    (tmp_path / "mixing.csv").write_text(
        "rule,alpha,accuracy,accuracy_low,accuracy_high\nlogit,0.5,0.5,0.45,0.55\nprob,0.8,0.45,0.4,0.5\n"
        "logit,0.6,0.4,0.3,0.5\nprob,0.9,0.3,0.2,0.4\n"
    )
    found = verdicts(tmp_path)
    assert [
        (claim[: claim.index(")") + 1], verdict)
        for claim, verdict in zip(found["claim"], found["verdict"], strict=True)
    ] == [
        ("(i)", "supported"),  # ref boxes all, theta none
        ("(i)", "not supported"),  # theta boxes none, so none of its answers are right and boxed
        ("(ii)", "supported"),
        ("(i)", "supported"),  # boxed or not, theta is better
        ("(ii)", "supported"),
        ("(iii)", "undecided"),
        ("(iv)", "supported"),
        ("(v)", "supported"),  # equal answers
        ("(vi)", "not supported"),
    ]
    third = found[found["claim"].str.startswith("(iii)")].iloc[0]
    assert "alpha 0.5 against 0.8" in third["claim"] and third["effect"] == 5.0
    assert (third["low"], third["high"]) == (-2.1, 12.1)  # Newcombe: 5 -+ sqrt(5^2 + 5^2)
    fourth = found[found["claim"].str.startswith("(iv)")].iloc[0]
    assert "beta 0.1" in fourth["claim"] and fourth["seeds"] == 3  # against the best of the baselines
    assert found.iloc[-1]["seeds"] == 1  # only the common seed
