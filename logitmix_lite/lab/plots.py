"""The figures of the notebooks: one style, colours of different lightness, patterns that survive printing in grey."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..methods import BLUE, GREEN, MAGENTA, ORANGE

# colour, line style, hatch: dark, light, middle
THETA = (BLUE, "-", "")
REF = (ORANGE, "--", "//")
MIX = (GREEN, "-", "..")
PROB = (MAGENTA, "-.", "xx")
RATES = {  # of an Evaluation
    "boxed": ("format_rate", REF),
    "right, boxed or not": ("number_rate", THETA),
    "right and boxed: the reward": ("accuracy", MIX),
}
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])  # of the simplex of three tokens


def use_style() -> None:
    """Set matplotlib's defaults: small figures, light grids, legends without a frame."""
    plt.rcParams.update({
        "figure.figsize": (6.4, 3.6), "figure.constrained_layout.use": True, "figure.dpi": 100, "font.size": 10,
        "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "axes.spines.top": False,
        "axes.spines.right": False, "lines.linewidth": 2, "legend.frameon": False,
    })  # fmt: skip


def bars(groups: Mapping[str, Sequence[float]], names: Sequence[str], styles: Sequence[tuple], ax: Axes, errors=None):
    """Grouped bars: a group for each of `names`, in it a bar for each entry of `groups` (label to heights).

    errors: for each entry of `groups`, lower and upper ends of its error bars."""
    width = 0.8 / len(groups)
    for shift, ((label, heights), (colour, _, hatch)) in enumerate(zip(groups.items(), styles, strict=True)):
        places = np.arange(len(names)) + width * (shift - (len(groups) - 1) / 2)
        spread = None
        if errors is not None:
            low, high = np.array(errors[label]).T
            spread = np.maximum(0, [np.array(heights) - low, high - np.array(heights)])
        ax.bar(places, heights, width * 0.92, yerr=spread, capsize=3, label=label, color=colour, hatch=hatch,
               edgecolor="black", linewidth=0.6)  # fmt: skip
    ax.set_xticks(range(len(names)), names)
    ax.grid(axis="x", visible=False)


def rate_bars(results: Mapping[str, object]) -> Figure:
    """Format rate, rate of right answers and accuracy of some Evaluations, by name, with 95 % intervals."""
    figure, ax = plt.subplots()
    found = [result.summary() for result in results.values()]
    groups = {label: [f[rate] for f in found] for label, (rate, _) in RATES.items()}
    errors = {label: [f[f"{rate}_95"] for f in found] for label, (rate, _) in RATES.items()}
    bars(groups, list(results), [style for _, style in RATES.values()], ax, errors)
    ax.set(ylabel=f"share of {found[0]['problems']} held-out problems", ylim=(0, 1.09))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def to_plane(probs: Tensor) -> np.ndarray:
    """Distributions over three tokens, `[..., 3]`, as points of the triangle, `[..., 2]`."""
    return probs.double().numpy() @ CORNERS


def simplex(ax: Axes, names: Sequence[str], height=None, levels: Sequence[float] | int = 12) -> None:
    """The triangle of all distributions over three tokens, each corner one token for sure.

    height: function of log-probs `[n, 3]` to `[n]`, drawn as contours at `levels` (a number of them, or which)."""
    if height is not None:
        side = np.linspace(0.004, 0.992, 120)
        first, second = np.meshgrid(side, side)
        inside = first + second < 0.996
        probs = torch.tensor(np.stack([first, second, 1 - first - second], -1)[inside])
        where, values = to_plane(probs), height(probs.log()).numpy()
        drawn = ax.tricontour(where[:, 0], where[:, 1], values, levels=levels, colors="0.6", linewidths=0.7)
        ax.clabel(drawn, fontsize=8, fmt="%g")  # as they are, not rounded
    ax.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color="black", lw=1)
    for name, (x, y), align in zip(names, CORNERS, ("right", "left", "center"), strict=True):
        ax.annotate(name, (x, y), xytext=(0, 6 if y else -12), textcoords="offset points", ha=align)
    ax.set_aspect("equal")
    ax.axis("off")
