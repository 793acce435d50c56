"""What the page of recorded runs shows: each figure has its words, each arm its row, and no name hides another."""

import json
import re
import shutil
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from logitmix_lite.lab.pictures_beyond import FAMILIES
from logitmix_lite.lab.report import best_beta, label_ends, plot_curves, plot_headline, plot_panels, report
from logitmix_lite.lab.tables import (
    apart,
    complementarity,
    complementarity_of_arms,
    ended,
    load_grades,
    load_runs,
    solved,
)  # fmt: skip
from logitmix_lite.methods import METHODS, RELATIVES
from logitmix_lite.stats import interval

TINY = Path(__file__).resolve().parents[1] / "data" / "results" / "tiny"


def made(arm: str, seed: int, accuracies: dict, **columns) -> pd.DataFrame:
    """A run of 20 steps after step 0, with its accuracy at some of them."""
    rows = pd.DataFrame({"step": range(21), "arm": arm, "seed": seed, "run": f"{arm}-seed{seed}", **columns})
    return rows.assign(accuracy=rows["step"].map(accuracies), reward=rows["step"] / 20)


@pytest.fixture
def runs():
    found = [made("fixed", seed, {0: 0.6, 20: 0.7 + seed / 50}) for seed in range(2)]
    found += [made("grpo-kl", seed, {0: 0.4, 20: 0.5 + seed / 50}) for seed in range(2)]
    found += [made("grpo-kl-0.1", 0, {0: 0.4, 20: 0.65}), made("grpo-anchor", 0, {0: 0.4, 20: 0.55})]
    found += [made("grpo", 0, {0: 0.0, 20: 0.5}, test_number_rate=0.68)]
    yield pd.concat(found, ignore_index=True)
    plt.close("all")


def test_what_was_measured_at_some_steps_is_no_line_and_what_was_at_all_steps_is_one(runs):
    for column, ends, sparse in (("accuracy", 0.71, True), ("reward", 1.0, False)):
        ax = plot_curves(runs[runs["arm"] == "fixed"], column).axes[0]
        line = next(line for line in ax.lines if len(line.get_xdata()) > 1)
        assert (line.get_alpha() == 0.35) == sparse and bool(ax.containers) == sparse
        assert line.get_ydata()[-1] == pytest.approx(ends)
        assert list(line.get_xdata()) == ([0, 20] if sparse else list(range(21)))


def test_a_smoothed_curve_is_the_mean_of_the_last_steps_of_each_run(runs):
    line = plot_curves(runs[runs["arm"] == "fixed"], "reward", smooth=5).axes[0].lines[0]
    assert line.get_ydata()[[0, 1, 20]] == pytest.approx([0, 0.5 / 20, 18 / 20])


def test_what_was_measured_rarely_is_not_smoothed_and_an_arm_without_it_is_left_out(runs):
    runs = runs.assign(kl=runs["accuracy"].where(runs["arm"] != "grpo"))
    ax = plot_curves(runs[runs["arm"].isin(["grpo-anchor", "grpo"])], "kl", smooth=5).axes[0]
    assert {line.get_ydata()[-1] for line in ax.lines} == {0.55}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["GRPO without KL, from the anchor (1 seed)"]


def test_a_panel_shows_its_arm_in_colour_before_all_in_grey(runs):
    axes = plot_panels(runs, "reward", "reward").axes
    arms = [arm for arm in METHODS if arm in set(runs["arm"])]
    assert [ax.get_title().replace("\n", " ") for ax in axes] == [METHODS[arm].label for arm in arms]
    for arm, ax in zip(arms, axes, strict=True):
        colours = [line.get_color() for line in ax.lines]
        assert colours == ["0.85"] * len(arms) + [METHODS[arm].style[0]]


def test_names_at_the_ends_do_not_overlap_and_the_legend_is_gone(runs):
    figure = plot_curves(runs.assign(accuracy=runs["accuracy"] / 10))  # all ends close together
    ax = figure.axes[0]
    label_ends(ax)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == runs["arm"].nunique() and ax.get_legend() is None
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    ends = runs.groupby(["arm", "seed"])["accuracy"].last().groupby("arm").mean()
    said = sorted((text.xy[1], text.get_text().split("\n(")[0].replace("\n", " ")) for text in ax.texts)
    assert [name for _, name in said] == [METHODS[arm].label for arm in ends.sort_values(kind="stable").index]


def test_the_best_beta_is_of_those_with_the_most_seeds(runs):
    assert best_beta(runs) == "grpo-kl"  # grpo-kl-0.1 ends higher, by one run
    assert best_beta(runs[runs["seed"] == 0]) == "grpo-kl-0.1"


def test_the_headline_says_who_leads_before_training_and_what_base_knows(runs):
    for lower, said in ((0, "20.0 points ahead"), (0.3, "10.0 points behind")):
        shifted = runs.assign(accuracy=runs["accuracy"] - lower * (runs["arm"] == "fixed"))
        ax = plot_headline(shifted).axes[0]
        assert f"{said}\nbefore step 1" in [text.get_text() for text in ax.texts]
        assert "base, were no box asked for: 68%" in [text.get_text() for text in ax.texts]
    assert plot_headline(runs).axes[0].get_ylim() == pytest.approx((0.3, 0.8))


def test_the_page_has_words_for_each_figure_a_row_for_each_arm_and_long_tables_beside_it(tmp_path):
    chosen = [f"{arm}-seed{seed}" for arm in ("fixed", "adaptive", "grpo-kl", "grpo-anchor", "grpo") for seed in (0, 1)]
    for name in chosen:
        shutil.copytree(TINY / name, tmp_path / "runs" / name)
    out = tmp_path / "report"
    page = report(tmp_path / "runs", out).read_text(encoding="utf-8")
    figures = re.findall(r"^!\[(.+)\]\((.+\.png)\)$", page, re.M)
    assert {name for _, name in figures} == {path.name for path in out.glob("*.png")}
    assert len({words for words, _ in figures}) == len(figures)
    seen = dict((name, words) for words, name in figures)["figures-2-to-5.png"]
    lines = pd.read_csv(out / "runs.csv")
    for arm, label in (("fixed", "fixed mixing"), ("grpo-kl", "KL-GRPO from the anchor")):
        first, last = (lines[(lines["arm"] == arm) & (lines["step"] == step)]["accuracy"].mean() for step in (0, 60))
        assert f"{label} from {first:.1%} at step 0 to {last:.1%} at step 60" in seen
    titles = re.findall(r"^## (.*)$", page, re.M)
    assert "Fixed mixing against adaptive mixing (figure 6 of the paper)" in titles
    assert page.count("\n| fixed mixing |") == 3  # of accuracy, and of who solves what by both meanings of right
    long = pd.read_csv(out / "complementarity.csv")
    assert sorted(long["run"]) == sorted(2 * [name for name in chosen if name[0] in "fa"])


def test_a_row_an_arm_is_the_mean_of_its_runs():
    for rate in ("correct", "number"):
        runs, arms = complementarity(TINY, rate), complementarity_of_arms(TINY, rate).set_index("method")
        mine = runs[runs["run"].str.fullmatch(r"fixed-0\.25-seed\d")]
        row = arms.loc["fixed mixing, alpha 0.25"]
        assert row["seeds"] == len(mine) == 8
        for column in ("boxed, theta", "right, theta", "theta only", "neither"):
            assert row[column] == pytest.approx(mine[column].mean(), abs=0.05)
        one = mine["exactly one"].str.split().str[0].astype(int).mean()
        assert row["exactly one"] == pytest.approx(one, abs=0.05)


@pytest.mark.parametrize(("world", "last"), [("qwen", 40), ("qwen-cpu", 12)])
def test_the_tables_of_qwen_are_those_of_their_records(world, last):
    """Each row in data/README.md: right and boxed before and after, with intervals, boxed before and after, of 200."""
    data = TINY.parents[1]
    text = (data / "README.md").read_text(encoding="utf-8")
    section = text[text.index(f"## results/{world}/ ") :].split("\n## ")[0]
    rows = [line.strip("|\n ").split(" | ") for line in section.splitlines() if line.startswith("|") and "%" in line]
    told = {row[0]: row[1:] for row in rows}
    runs, grades = load_runs(data / "results" / world), load_grades(data / "results" / world)

    def row(*shares):
        counts = [round(200 * share) for share in shares]
        cells = [f"{n / 2:.1f} % ({100 * interval(n, 200)[0]:.1f} to {100 * interval(n, 200)[1]:.1f})" for n in counts]
        return [*cells[:2], *(f"{n / 2:.1f} %" for n in counts[2:])]

    labels = {"fixed": "fixed mixing, alpha 0.5"} | {
        arm: METHODS[arm].label for arm in ("grpo-anchor", "grpo", "grpo-kl")
    }
    for arm in set(runs["arm"]):
        tested = runs[runs["arm"] == arm].dropna(subset=["accuracy"]).sort_values("step")
        reached, ends = tested["step"].iloc[-1], tested.iloc[[0, -1]]
        label = labels[arm] if reached == last else f"{labels[arm]}, to step {reached}"
        assert told.pop(label) == row(*ends["accuracy"], *ends["test_format_rate"])
    [label] = told  # theta alone: before, it is base
    if "H100" in label:
        premise = json.loads((data / "results/gpu/premise/human-200.json").read_text(encoding="utf-8"))["test-320"]
        [base] = [p for p in premise["policies"] if p["policy"] == "theta"]
        before = base["correct"], base["formatted"]
    else:
        before = runs[(runs["arm"] == "grpo") & (runs["step"] == 0)].iloc[0][["accuracy", "test_format_rate"]].tolist()
    right, boxed = (solved(grades, "fixed", "theta", rate).to_numpy().mean() for rate in ("correct", "formatted"))
    assert told[label] == row(before[0], right, before[1], boxed)


def test_the_rate_of_qwen_is_the_one_that_earned_more():
    """Mean reward of the last ten steps that all runs have, at both rates, as data/README.md tells it."""
    data = TINY.parents[1]
    text = " ".join((data / "README.md").read_text(encoding="utf-8").split())
    runs = {"1e-4": load_runs(data / "results/qwen"), "3e-4": load_runs(data / "results/qwen-search/lr-3e-4")}
    assert all((found["lr"] == float(rate)).all() for rate, found in runs.items())
    shortest = min(found.groupby("arm")["step"].max().min() for found in runs.values())
    assert f"Training reward of steps {shortest - 9} to {shortest}" in text
    for arm, name in (
        ("fixed", "fixed"),
        ("grpo-anchor", "GRPO from the anchor"),
        ("grpo", "from base"),
        ("grpo-kl", "KL-GRPO"),
    ):
        low, high = (
            found[(found["arm"] == arm) & found["step"].between(shortest - 9, shortest)]["reward"].mean()
            for found in runs.values()
        )
        assert low > high
        assert re.search(rf"{name} {low:.3f} (at 1e-4 )?and {high:.3f}", text)


def test_the_tables_of_the_relatives_are_those_of_their_records():
    """Both tables of docs/results.md on results/beyond: each loss with and without mixing, and what theta is alone."""
    results, text = TINY.parent, (TINY.parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    grades = pd.concat([load_grades(results / "tiny"), load_grades(results / "beyond")])
    assert set(grades[grades["arm"].isin(RELATIVES)].groupby("arm")["seed"].nunique()) == {8}

    def share(*what):
        return "{right:.1f} % ({low:.1f} to {high:.1f})".format(**ended(grades, *what))

    def points(first, second):
        return "{points:.1f} ({low:.1f} to {high:.1f})".format(**apart(grades, first, second))

    for loss, (alone, through) in FAMILIES.items():
        row = share(through), share(alone), points((through, "mixture"), (alone, "mixture"))
        assert f"| {loss} | {' | '.join(row)} |" in text
    alone = {
        "the paper's training": "fixed", "the same at alpha 0.25": "fixed-0.25", "an alpha that falls to 0": "decay",
        "Logit Fusion: that, and theta in the ratio": "fusion",
        "Logit Fusion, alpha follows difficulty": "fusion-difficulty",
        "theta in the ratio, the anchor kept": "fusion-kept",
    }  # fmt: skip
    for words, arm in alone.items():
        assert f"| {words} | {share(arm, 'theta')} | {points(('fixed', 'mixture'), (arm, 'theta'))} |" in text


def test_the_second_exam_of_qwen_is_told_as_it_came_out():
    data = TINY.parents[1]
    text = " ".join((data / "README.md").read_text(encoding="utf-8").split())
    again = json.loads((data / "results/qwen/exams.json").read_text(encoding="utf-8"))
    first = json.loads((data / "results/qwen/fixed-seed0/grades.json").read_text(encoding="utf-8"))
    right = [bits["correct"].count("1") / 2 for bits in again.values()]
    assert list(again) == ["mixture", "theta", "ref", "averaged weights"]
    assert "Right and boxed: {} %, {} %, {} % and {} %".format(*right) in text
    alike = [sum(a == b for a, b in zip(again[who]["correct"], first[who]["correct"], strict=True)) for who in first]
    assert "200 grades {}, {} and {} are those of the H200".format(*alike) in text
