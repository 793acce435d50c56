"""The paper's figures from recorded runs, and a page with all of them and their tables."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..methods import known
from ..schedules import Fixed
from .tables import (
    complementarity,
    complementarity_of_arms,
    load_runs,
    mean_and_band,
    measured_rarely,
    smoothed,
    summary,
    verdicts,
)  # fmt: skip

ACCURACY, REWARD = "held-out greedy accuracy", "reward of the rollouts"
SHARES = ("accuracy", "reward", "format_rate", "number_rate", "test_format_rate", "test_number_rate", "alpha",
          "frac_reward_zero_std", "truncated", "gain", "forgetting")  # fmt: skip
# What the paper's figures compare: accuracy over steps of these arms.
FIGURES = {
    "figures 2 to 5: fixed mixing and KL-GRPO": ["fixed", "grpo-kl", "grpo-kl-0.01", "grpo-kl-0.1"],
    "figure 3: GRPO without KL": ["fixed", "grpo-anchor", "grpo"],
    "figure 6: fixed and adaptive": ["fixed", "adaptive", "adaptive-steep"],
    "figure 8: the anchor": ["fixed", "base-anchor"],
    "figure 9: logit and probability mixing": ["fixed", "prob"],
    "the weight of the anchor": ["fixed", "fixed-0.25", "fixed-0.75"],
    "averaged weights": ["fixed", "wise-ft"],
}


def arms_of(runs: pd.DataFrame) -> list[str]:
    """The arms of `runs`, in the order of `methods.known`."""
    return [name for name in known() if name in set(runs["arm"])]


def plot_curves(runs: pd.DataFrame, column="accuracy", label=ACCURACY, ax: Axes | None = None, smooth=1) -> Figure:
    """The mean over seeds of each arm with its 95 % t-interval: a line in a band, each point of it a mean of the last
    `smooth` steps. Where `column` was measured at some steps only: markers, joined faintly, with error bars."""
    ax = ax or plt.subplots(figsize=(6.4, 4), layout="constrained")[1]
    arms = arms_of(runs.dropna(subset=[column]))
    for place, arm in enumerate(arms):
        colour, line, marker = known()[arm].style
        mine = runs[runs["arm"] == arm]
        table = mean_and_band(smoothed(mine, column, smooth), column)
        count = int(table["count"].max())
        style = {"color": colour, "label": f"{known()[arm].label} ({count} seed{'s' * (count > 1)})"}
        if measured_rarely(mine, column):
            shift = 0.01 * mine["step"].max() * (place - (len(arms) - 1) / 2)  # so that bars do not hide each other
            ax.plot(table.index + shift, table["mean"], color=colour, lw=1, alpha=0.35)
            style |= {"fmt": marker, "ms": 6, "capsize": 3}
            ax.errorbar(table.index + shift, table["mean"], table["half"].fillna(0), **style)
            continue
        style |= {"ls": line, "lw": 2, "marker": marker, "ms": 5, "markevery": max(1, len(table) // 10)}
        ax.plot(table.index, table["mean"], **style)
        low, high = table["mean"] - table["half"], table["mean"] + table["half"]
        ax.fill_between(table.index, low, high, color=colour, alpha=0.15, lw=0)
    ax.set(xlabel="RL step", ylabel=label)
    steps_axis(ax, column)
    ax.legend(frameon=False)
    return ax.figure


def steps_axis(ax: Axes, column: str) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.grid(alpha=0.3)
    if column in SHARES:
        ax.set_ylim(-0.02, 1.02)


def plot_panels(runs: pd.DataFrame, column: str, label: str, smooth=5) -> Figure:
    """A panel for each arm: the mean over seeds and its 95 % t-interval, before the means of all others in grey."""
    arms = arms_of(runs)
    means = {arm: mean_and_band(smoothed(runs[runs["arm"] == arm], column, smooth), column) for arm in arms}
    rows = -(-len(arms) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(6.4, 1.9 * rows + 0.4), sharex=True, sharey=True, squeeze=False,
                                layout="constrained")  # fmt: skip
    for arm, ax in zip(arms, axes.flat, strict=False):
        for other in arms:
            ax.plot(means[other]["mean"], color="0.85", lw=0.8)
        table, colour = means[arm], known()[arm].style[0]
        low, high = table["mean"] - table["half"], table["mean"] + table["half"]
        ax.fill_between(table.index, low, high, color=colour, alpha=0.2, lw=0)
        ax.plot(table["mean"], color=colour, lw=2.2)
        steps_axis(ax, column)
        ax.set_title(known()[arm].label.replace(", ", ",\n"), fontsize=9)
    if column in SHARES:  # from 0 to what there is to see
        axes[0, 0].set_ylim(-0.02, max(float(table["mean"].max()) for table in means.values()) + 0.1)
    for ax in axes.flat[len(arms) :]:
        ax.remove()
    figure.supxlabel("RL step", fontsize=10)
    figure.supylabel(label, fontsize=10)
    return figure


def label_ends(ax: Axes) -> None:
    """Each curve's name at its end, in its colour, in place of the legend; how many seeds once, if all have as many."""
    handles, names = ax.get_legend_handles_labels()
    seeds = {name.rsplit(" (", 1)[1].rstrip(")") for name in names}
    if len(seeds) == 1:
        names = [name.rsplit(" (", 1)[0] for name in names]
        ax.set_xlabel(f"{ax.get_xlabel()} ({seeds.pop()}{' each' * (len(names) > 1)})")
    names = [name.replace(", ", ",\n").replace(" (", "\n(") for name in names]
    lines = [handle if hasattr(handle, "get_ydata") else handle.lines[0] for handle in handles]
    low, high = ax.get_ylim()
    tall = [0.06 * (high - low) * (1 + name.count("\n")) for name in names]
    order, at = sorted(range(len(lines)), key=lambda k: lines[k].get_ydata()[-1]), {}
    for under, k in zip([None, *order], order, strict=False):  # from below, none into the one before
        free = at[under] + (tall[under] + tall[k]) / 2 if at else -np.inf
        at[k] = max(lines[k].get_ydata()[-1], free)
    for k, y in at.items():
        dark = tuple(0.6 * part for part in to_rgb(lines[k].get_color()))
        ax.annotate(names[k], (ax.get_xlim()[1], y), color=dark, va="center", fontsize=9, annotation_clip=False,
                    xytext=(4, 0), textcoords="offset points")  # fmt: skip
    ax.get_legend().remove()


def best_beta(runs: pd.DataFrame) -> str:
    """The arm with a KL term that ends highest, among those with the most seeds: a single run may be best by luck."""
    ends = runs.dropna(subset=["accuracy"]).sort_values("step").groupby("run").tail(1)
    ends = ends[[known()[arm].kl for arm in ends["arm"]]].groupby("arm")["accuracy"].agg(["count", "mean"])
    return max(ends.index, key=lambda arm: tuple(ends.loc[arm]))


def plot_headline(runs: pd.DataFrame) -> Figure:
    """Fixed mixing against KL-GRPO with its best beta and GRPO without KL, both from the anchor: what each starts with,
    where each ends, and how often base alone reaches the right number, were no box asked for."""
    best = best_beta(runs)
    chosen = runs[runs["arm"].isin(["fixed", best, "grpo-anchor"])]
    figure = plot_curves(chosen)
    ax, first = figure.axes[0], runs[runs["step"] == 0].groupby("arm")[["accuracy", "test_number_rate"]].mean()
    shown = [*chosen["accuracy"].dropna()]
    if "grpo" in first.index:  # theta alone, as it starts: base
        base = first.loc["grpo", "test_number_rate"]
        ax.axhline(base, color=known()["base-anchor"].style[0], ls=":", lw=1.2)
        ax.annotate(f"base, were no box asked for: {base:.0%}", (0, base), va="bottom", xytext=(0, 2), fontsize=9,
                    textcoords="offset points", color=known()["base-anchor"].style[0])  # fmt: skip
        shown.append(base)
    start, other = first.loc["fixed", "accuracy"], first.loc[best, "accuracy"]
    ax.annotate("", (0, other), (0, start), arrowprops={"arrowstyle": "<->", "color": "0.3"})
    said = f"{100 * abs(start - other):.1f} points {'ahead' if start >= other else 'behind'}\nbefore step 1"
    near = abs(start - other) < 0.1  # no room between the two
    ax.annotate(said, (0, min(start, other) if near else (start + other) / 2), xytext=(0, -14) if near else (8, 0),
                textcoords="offset points", va="top" if near else "center", fontsize=9)  # fmt: skip
    ax.set_ylim(np.floor(10 * min(shown) - 0.5) / 10, np.ceil(10 * max(shown) + 0.5) / 10)
    label_ends(ax)
    return figure


def what_is_seen(runs: pd.DataFrame, column: str, label: str, smooth=1) -> str:
    """A figure's curves in words, for those who do not see it."""
    said = []
    for arm in arms_of(runs):
        mean = mean_and_band(smoothed(runs[runs["arm"] == arm], column, smooth), column)["mean"]
        (start, first), (end, last) = mean.iloc[[0, -1]].items()
        form = ".1%" if column in SHARES and column != "alpha" else ".2f"
        said.append(f"{known()[arm].label} from {first:{form}} at step {start} to {last:{form}} at step {end}")
    return f"{label[0].upper()}{label[1:]}, mean over seeds: {'; '.join(said)}."


def report(folder: str | Path, out: str | Path) -> Path:
    """Write report.md with its figures, and the long tables as CSV, to `out`; returns the page's path."""
    runs, out = load_runs(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs.to_csv(out / "runs.csv", index=False)
    marked = {f"{what} before": f"{what} before (over problems)" for what in ("accuracy", "boxed")}
    marked |= {f"{what} after": f"{what} after (over seeds)" for what in ("accuracy", "boxed")}
    page = [f"# Runs of {', '.join(sorted(set(runs['preset'])))}\n", table(summary(runs).rename(columns=marked)), ""]
    page.append(
        "Accuracy: right and boxed, of the test problems, decoded greedily. Brackets are 95 % intervals: before "
        "training, where all seeds are the same model, Wilson's over the test problems; after it, Student's t for the "
        "mean over seeds on the same problems; for a single run, or runs that all agree, Wilson's again. All lines of "
        "all runs: [runs.csv](runs.csv).\n"
    )

    def draw(name: str, title: str, figure: Figure, alt: str) -> None:
        figure.savefig(out / f"{name}.png", dpi=150)
        plt.close(figure)
        page.append(f"## {title[0].upper()}{title[1:]}\n\n![{alt}]({name}.png)\n")

    def title(chosen: pd.DataFrame) -> str:
        first, *others = (known()[arm].label for arm in arms_of(chosen))
        return f"{first} against {'; '.join(others)}" if others else first

    def compare(name: str, title: str, chosen: pd.DataFrame) -> None:
        figure = plot_curves(chosen)
        label_ends(figure.axes[0])
        draw(name, title, figure, what_is_seen(chosen, "accuracy", ACCURACY))

    present = set(runs["arm"])
    if len(present) > 4:
        others = present - {arm for arms in FIGURES.values() for arm in arms}
        groups = FIGURES | ({"other methods": ["fixed", *others]} if others else {})
        for key, arms in groups.items():
            name, paper, chosen = key.split(":")[0].replace(" ", "-"), key.split(":")[0], runs[runs["arm"].isin(arms)]
            source = f" ({paper} of the paper)" if paper.startswith("figure") else ""
            if len(set(chosen["arm"])) < 2:
                continue
            if name == "figures-2-to-5":
                chosen = runs[runs["arm"].isin(["fixed", best_beta(runs), "grpo-anchor"])]
                draw(name, title(chosen) + source, plot_headline(runs), what_is_seen(chosen, "accuracy", ACCURACY))
            else:
                compare(name, title(chosen) + source, chosen)
    else:
        compare("accuracy", title(runs), runs)
    for name, label in {"reward": REWARD, "entropy": "entropy, nats a token"}.items():
        if name in runs:  # not where no run has made a step
            each = f"{label}, each method before all others (mean of the last 5 steps)"
            draw(name, each, plot_panels(runs, name, label), what_is_seen(runs, name, label, 5))
    moves = runs[runs["arm"].isin([arm for arm, method in known().items() if method.schedule is not Fixed])]
    if len(moves):
        label = "alpha, weight of the anchor"
        figure = plot_curves(moves, "alpha", label)
        label_ends(figure.axes[0])
        draw("alpha", f"{label}, where it moves (figure 7 of the paper)", figure, what_is_seen(moves, "alpha", label))
    long = []
    for rate, what in {"correct": "right and boxed", "number": "right, boxed or not"}.items():
        who = complementarity_of_arms(folder, rate)
        if len(who):
            long.append(complementarity(folder, rate).assign(**{"right means": what}))
            page += [f"## Who solves what alone, after training (tables 1 to 3 of the paper): right means {what}\n"]
            page += [table(who), ""]
    if long:
        pd.concat(long).to_csv(out / "complementarity.csv", index=False)
        page.append(
            "Means over seeds: rates in percent, gaps in percentage points, the rest counts problems. A row a run: "
            "[complementarity.csv](complementarity.csv).\n"
        )
    page += ["## The paper's claims\n", table(verdicts(folder)), ""]
    page.append(
        "Bars and bands of the figures are 95 % t-intervals of the mean over seeds. Intervals of the claims are over "
        "seeds and problems together (`bootstrap_interval`); over problems alone where there is one seed."
    )
    (out / "report.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    return out / "report.md"


def table(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
