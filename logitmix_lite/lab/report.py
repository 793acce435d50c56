"""The paper's figures from recorded runs, and a page with all of them and their tables."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..methods import known
from ..schedules import Fixed
from .tables import complementarity, load_runs, mean_and_band, summary, verdicts

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


def plot_curves(runs: pd.DataFrame, column="accuracy", label="held-out greedy accuracy", ax=None) -> Figure:
    """One line an arm over steps; thin lines are seeds, the band is a 95 % interval of their mean."""
    ax = ax or plt.subplots(figsize=(6.4, 4), layout="constrained")[1]
    for arm in [name for name in known() if name in set(runs["arm"])]:
        colour, line, marker = known()[arm].style
        mine = runs[runs["arm"] == arm]
        table = mean_and_band(mine, column)
        for _, seed in mine.dropna(subset=[column]).groupby("seed"):
            ax.plot(seed["step"], seed[column], color=colour, lw=0.7, alpha=0.4)
        count = int(table["count"].max())
        ax.plot(table.index, table["mean"], color=colour, ls=line, marker=marker, ms=5, lw=2,
                markevery=max(1, len(table) // 10),
                label=f"{known()[arm].label} ({count} seed{'s' * (count > 1)})")  # fmt: skip
        low, high = table["mean"] - table["half"], table["mean"] + table["half"]
        ax.fill_between(table.index, low, high, color=colour, alpha=0.15)
    ax.set(xlabel="RL step", ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    if column in SHARES:
        ax.set_ylim(-0.02, 1.02)
    return ax.figure


def report(folder: str | Path, out: str | Path) -> Path:
    """Write report.md with its figures and a CSV of all lines to `out`; returns the page's path."""
    runs, out = load_runs(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs.to_csv(out / "runs.csv", index=False)
    page = [f"# Runs of {', '.join(sorted(set(runs['preset'])))}\n", table(summary(runs)), ""]

    def draw(name: str, chosen: pd.DataFrame, column="accuracy", label="held-out greedy accuracy") -> None:
        figure = plot_curves(chosen, column, label)
        figure.savefig(out / f"{name}.png", dpi=150)
        plt.close(figure)
        page.append(f"![{label}]({name}.png)\n")

    present = set(runs["arm"])
    others = present - {arm for arms in FIGURES.values() for arm in arms}
    groups = {title: arms for title, arms in FIGURES.items() if len(present & set(arms)) > 1}
    groups |= {"other methods": ["fixed", *others]} if others else {}
    if len(present) > 4:
        for title, arms in groups.items():
            page.append(f"## {title[0].upper()}{title[1:]}\n")
            draw(title.split(":")[0].replace(" ", "-"), runs[runs["arm"].isin(arms)])
    else:
        draw("accuracy", runs)
    for name, label in {"reward": "reward of the rollouts", "entropy": "entropy, nats a token"}.items():
        if name in runs:  # not where no run has made a step
            draw(name, runs, name, label)
    moves = runs[runs["arm"].isin([arm for arm, method in known().items() if method.schedule is not Fixed])]
    if len(moves):
        draw("alpha", moves, "alpha", "alpha, weight of the reference (figure 7)")
    for rate, what in {"correct": "right means right and boxed", "number": "right means boxed or not"}.items():
        who = complementarity(folder, rate)
        if len(who):
            page += [f"## Tables 1 to 3: theta and ref, each alone, after training; {what}\n", table(who), ""]
    page += ["## The paper's claims\n", table(verdicts(folder)), ""]
    page.append(
        "Thin lines are seeds. Bands and brackets are 95 % t-intervals of the mean over seeds; for one run, or runs "
        "that all agree, brackets are Wilson's interval over the test problems. All lines: [runs.csv](runs.csv)."
    )
    (out / "report.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    return out / "report.md"


def table(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
