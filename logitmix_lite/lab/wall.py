"""A wall of squares, one a problem: who solves it, theta alone, the anchor alone, or only both together."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

from .plots import MIX, REF, THETA

GROUPS = ("only theta", "both", "only the anchor", "only the mixture", "nobody")


def who_solves(theta: Sequence[bool], ref: Sequence[bool], mixture: Sequence[bool]) -> np.ndarray:
    """The place in `GROUPS` of each problem, from who solves it: each policy alone, and the mixture."""
    theta, ref, mixture = (np.asarray(who, bool) for who in (theta, ref, mixture))
    return np.select([theta & ~ref, theta & ref, ref & ~theta, mixture], range(4), 4)


def wall(ax: Axes, groups: Sequence[int], order: Sequence[int] | None = None, columns: int = 20) -> None:
    """Draw `who_solves` as squares: theta's blue, the anchor's orange, half of each for both, the mixture's green for
    what it alone solves, white for nobody.

    order: which problem stands first, second, ...: the same for all walls that are to be compared."""
    order = range(len(groups)) if order is None else order
    for place, problem in enumerate(order):
        x, y, name = place % columns, -(place // columns), GROUPS[groups[problem]]
        fill = {"only theta": THETA, "both": THETA, "only the anchor": REF, "only the mixture": MIX}.get(name)
        ax.add_patch(Rectangle((x, y), 0.86, 0.86, facecolor=fill[0] if fill else "white", edgecolor="0.6", lw=0.5))
        if name == "both":
            ax.add_patch(Polygon([(x, y), (x + 0.86, y), (x + 0.86, y + 0.86)], facecolor=REF[0], lw=0))
        if name == "only the mixture":  # dark and middle look alike in grey
            ax.plot(x + 0.43, y + 0.43, ".", color="white", ms=3)
    ax.set(xlim=(-0.2, columns), ylim=(-(len(groups) - 1) // columns - 0.1, 1.1), aspect="equal")
    ax.axis("off")
