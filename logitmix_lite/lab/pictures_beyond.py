"""The figures of notebooks 09 and 09b: who answers alone, alpha along an answer, what a schedule or a loss does."""

from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..methods import known
from .plots import MIX, THETA
from .tables import ended, mean_and_band, smoothed, solved

# One loss a row: from the anchor's weights, and through the mixture.
FAMILIES = {
    "GRPO": ("grpo-anchor", "fixed"), "DAPO": ("dapo", "dapo-mixed"), "Dr. GRPO": ("dr-grpo", "dr-grpo-mixed"),
    "PPO": ("ppo", "ppo-mixed"),
}  # fmt: skip


def alone_and_together(found: pd.DataFrame, title: str) -> Figure:
    """A row an arm: what its mixture ends with, and what its theta alone does, with their intervals.

    found: columns arm, answers with ("mixture" or "theta"), right, low and high, in percent."""
    order = list(dict.fromkeys(found.sort_values("right")["arm"]))
    figure, ax = plt.subplots(figsize=(5.4, 0.5 * len(order) + 1.2))
    for policy, (colour, *_), marker, shift in (("theta", THETA, "o", -0.14), ("mixture", MIX, "s", 0.14)):
        mine = found[found["answers with"] == policy]
        y = np.array([order.index(arm) for arm in mine["arm"]]) + shift
        spread = np.abs(mine[["low", "high"]].to_numpy().T - mine["right"].to_numpy())
        ax.errorbar(mine["right"], y, xerr=spread, fmt=marker, color=colour, ms=7, capsize=3)
    ax.text(0, len(order) - 0.35, "● theta alone", color=THETA[0], weight="bold", va="center")
    ax.text(30, len(order) - 0.35, "■ the mixture", color=MIX[0], weight="bold", va="center")
    ax.set_yticks(range(len(order)), [name.replace(", ", ",\n").replace(" from", "\nfrom") for name in order])
    ax.tick_params(axis="y", labelsize=8)
    ax.set(xlabel="right and boxed, % (95 %, seeds and problems)", ylim=(-0.6, len(order)), xlim=(-3, 80))
    ax.set_title(title)
    return figure


def through_a_valley(runs: pd.DataFrame, arms: Sequence[str], title: str) -> Figure:
    """Alpha, and the share of rollouts that are boxed, over the steps of two arms."""
    figure, axes = plt.subplots(2, 1, figsize=(5.4, 4.6), sharex=True)
    for arm in arms:
        mine, colour = runs[(runs["arm"] == arm) & (runs["step"] > 0)], known()[arm].style[0]
        for ax, column in zip(axes, ("alpha", "format_rate"), strict=True):
            table = mean_and_band(smoothed(mine, column, 3), column)
            half = table["half"].fillna(0)
            ax.plot(table["mean"], color=colour)
            ax.fill_between(table.index, table["mean"] - half, table["mean"] + half, color=colour, alpha=0.15, lw=0)
        last = mine[mine["step"] == 20]["alpha"].mean()
        axes[0].text(21, last + 0.03, known()[arm].label, color=colour, weight="bold")
    axes[0].set(ylabel="alpha", ylim=(-0.03, 0.65))
    axes[1].set(ylabel="share boxed", xlabel="RL step (mean and 95 % t-interval over seeds)", ylim=(0, 1.05))
    axes[0].set_title(title)
    return figure


def in_two_lines(text: str) -> Iterator[tuple[Axes, slice, np.ndarray]]:
    """A figure with a text's characters below its x axes, half of them each: axes, which characters, their places."""
    half = text.index(";", len(text) // 3) + 1
    _, axes = plt.subplots(2, 1, figsize=(5.8, 4.2), sharey=True)
    for ax, span in zip(axes, (slice(0, half), slice(half, len(text))), strict=True):
        places = np.arange(len(text[span]))
        ax.set_xticks(places, list(text[span]), family="monospace", fontsize=10)
        ax.set_xlim(-0.6, max(half, len(text) - half) - 0.4)
        ax.grid(axis="x", visible=False)
        yield ax, span, places


def alpha_along(text: str, along: Mapping[float, Sequence[float]], title: str) -> Figure:
    """Alpha at each character of an answer, in two lines, for two budgets: the larger one behind the smaller."""
    for ax, span, places in in_two_lines(text):
        for (budget, values), colour, width in zip(along.items(), (MIX[0], "#9fd3bd"), (0.4, 0.8), strict=True):
            bars = ax.bar(places, values[span], width, color=colour, zorder=3 - 2 * width)
            bars.set_label(f"budget {budget} nats")
        ax.set(ylabel="alpha", ylim=(0, 1.05))
    figure = ax.figure
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.axes[0].set_title(title)
    return figure


def blame(text: str, kl: Sequence[float], instead: Sequence[str], title: str) -> Figure:
    """KL, nats, at each character of an answer, and above the tall bars the character that was wanted there."""
    for ax, span, places in in_two_lines(text):
        ax.bar(places, kl[span], 0.8, color=THETA[0])
        for x, height, wanted in zip(places, kl[span], instead[span], strict=True):
            if height > 0.2 * max(kl):
                ax.text(x, height, f"wants {wanted}", ha="center", va="bottom", family="monospace", weight="bold")
        ax.set(ylabel="KL, nats", ylim=(0, 1.2 * max(kl)))
    ax.figure.axes[0].set_title(title)
    return ax.figure


def students_learn(curves: Mapping[str, Sequence[float]], title: str) -> Figure:
    """KL(student || mixture) over the steps of a distillation, one line a student: from "theta" or from "average"."""
    figure, ax = plt.subplots(figsize=(5.4, 3.2))
    styles = {"theta": THETA, "average": known()["wise-ft"].style}
    for name, kl in curves.items():
        colour, line, _ = styles[name]
        ax.semilogy(range(1, len(kl) + 1), kl, color=colour, ls=line)
        ax.annotate(f"from {name}", (len(kl), kl[-1]), xytext=(4, 5), textcoords="offset points")
    ax.set(
        xlabel="step of distillation",
        ylabel="KL(student || mixture), nats",
        xlim=(0, 1.35 * max(map(len, curves.values()))),
    )
    ax.set_title(title)
    return figure


def experts_and_products(found: pd.DataFrame, title: str) -> Figure:
    """A row a policy, from one model at the bottom to four at the top: right at all, and right and boxed.

    found: indexed by names, sorted by the column models (how many run); for each of number and accuracy a column, and
    with _low and _high added to its name one more, in percent."""
    top = len(found)
    figure, ax = plt.subplots(figsize=(5.4, 0.42 * top + 1.5))
    for rate, (colour, *_), marker, shift in (("number", THETA, "o", 0.14), ("accuracy", MIX, "s", -0.14)):
        middle, face = found[rate].to_numpy(), "white" if rate == "number" else colour
        spread = np.array([middle - found[f"{rate}_low"], found[f"{rate}_high"] - middle]).clip(min=0)
        places = np.arange(top) + shift
        ax.errorbar(middle, places, xerr=spread, fmt=marker, color=colour, mfc=face, ms=7, capsize=3)
    ax.text(0, top + 0.45, "○ right, boxed or not", color=THETA[0], weight="bold", va="center")
    ax.text(0, top - 0.3, "■ right and boxed", color=MIX[0], weight="bold", va="center")
    for place, models in found["models"].reset_index(drop=True).drop_duplicates().items():
        ax.axhline(place - 0.5, color="0.5", lw=0.8)
        ax.text(103, place - 0.4, f"{models:.0f} model{'s' * (models > 1)}", ha="right", fontsize=9)
    ax.set_yticks(range(top), [name.replace(" × minus × ", "\n× minus × ") for name in found.index])
    ax.tick_params(axis="y", labelsize=8)
    ax.set(xlabel="% of problems (95 %, seeds and problems)", ylim=(-0.6, top + 1), xlim=(-3, 104))
    ax.set_title(title)
    return figure


def losses_side_by_side(grades: pd.DataFrame, title: str) -> Figure:
    """What each loss of `FAMILIES` ends with, without and with mixing: the mean, its interval, and a dot a seed."""
    figure, ax = plt.subplots(figsize=(5.4, 4.2))
    alone = (known()["grpo-anchor"].style[0], "o", "● from the anchor, no mixing", -0.2)
    through = (MIX[0], "s", "■ through the mixture", 0.2)
    for side, (colour, marker, words, shift) in enumerate((alone, through)):
        ax.text(0.02 + 0.54 * side, 0.95, words, color=colour, weight="bold", fontsize=9, transform=ax.transAxes)
        for row, arms in enumerate(FAMILIES.values()):
            found, each = ended(grades, arms[side]), 100 * solved(grades, arms[side]).mean(axis=1)
            spread = [[found["right"] - found["low"]], [found["high"] - found["right"]]]
            ax.errorbar(found["right"], row + shift, xerr=spread, fmt=marker, color=colour, ms=8, capsize=3)
            ax.plot(each, np.full(len(each), row + shift + 0.13), ".", color=colour, ms=4, alpha=0.7)
    ax.set_yticks(range(len(FAMILIES)), FAMILIES)
    ax.set(xlabel="right and boxed, % (95 %, seeds and problems; dots: seeds)", xlim=(-2, 85), ylim=(3.6, -0.9))
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    return figure


def self_teaching(lines: pd.DataFrame, title: str) -> Figure:
    """KL(student || told teacher) over the steps of SDPO, a line a seed: columns arm, seed, step, kl."""
    figure, ax = plt.subplots(figsize=(5.4, 3.4))
    styles = {
        "SDPO": (THETA[0], "-", "the student now, told"),
        "SDPO, lam 0.5": (MIX[0], "--", "half of it the reader, untold"),
    }
    for (arm, _), run in lines.groupby(["arm", "seed"]):
        colour, line, _ = styles[arm]
        ax.semilogy(run["step"], run["kl"], color=colour, ls=line, lw=1.5)
    for place, (colour, line, words) in enumerate(styles.values()):
        ax.text(0.98, 0.95 - 0.09 * place, f"{'—' if line == '-' else '- -'} {words}", color=colour, weight="bold",
                ha="right", va="top", transform=ax.transAxes)  # fmt: skip
    ax.set(xlabel="step of self-distillation", ylabel="KL(student || teacher), nats")
    ax.set(xticks=range(0, int(lines["step"].max()) + 1, 5), ylim=(None, 8 * lines["kl"].max()))
    ax.set_title(title)
    return figure
