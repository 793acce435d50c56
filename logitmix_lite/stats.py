"""Intervals and paired comparisons: how sure a measured share is, and whether two policies differ."""

from collections.abc import Sequence
from math import comb
from statistics import NormalDist, fmean, stdev

import numpy as np


def interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of a share: unlike the textbook one, right for shares near 0 and 1."""
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / trials
    centre = share + z * z / (2 * trials)
    half = z * (share * (1 - share) / trials + z * z / (4 * trials**2)) ** 0.5
    low, high = ((centre + side * half) / (1 + z * z / trials) for side in (-1, 1))
    return (max(0.0, low) if successes else 0.0), (min(1.0, high) if successes < trials else 1.0)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Normal confidence interval of the mean of shares, one a problem, within [0, 1]."""
    half = NormalDist().inv_cdf((1 + confidence) / 2) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 1.0
    return max(0.0, fmean(values) - half), min(1.0, fmean(values) + half)


def pass_at(k: int, samples: int, correct: int) -> float:
    """Chance that at least one of `k` completions is right, estimated without bias from `correct` of `samples`
    (arXiv:2107.03374)."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} completions a problem, there are {samples}")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def contingency(first: Sequence[bool], second: Sequence[bool]) -> dict[str, int]:
    """On how many problems both, only the first, only the second, or neither succeeded."""
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    cells = {"both": (True, True), "first only": (True, False), "second only": (False, True), "neither": (False, False)}
    return {name: pairs.count(cell) for name, cell in cells.items()}


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact McNemar test: the p-value of "both succeed equally often" on the same problems; 1 if they never differ.

    Where only one succeeded, either one is as likely: both tails of a binomial distribution with a half."""
    table = contingency(first, second)
    less, more = sorted((table["first only"], table["second only"]))
    return min(1.0, 2 * sum(comb(less + more, k) for k in range(less + 1)) / 2 ** (less + more))


def difference_interval(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the share of `second` minus that of `first` on the same problems.

    Agresti and Min's (2005): Wald's for pairs, after half a problem is added to each cell of the table, which keeps its
    coverage for few problems and for shares near 0 and 1."""
    table = contingency(first, second)
    total, gained, lost = len(first) + 2, table["second only"] + 0.5, table["first only"] + 0.5
    centre = (gained - lost) / total
    half = NormalDist().inv_cdf((1 + confidence) / 2) * ((gained + lost) / total - centre**2) ** 0.5 / total**0.5
    return max(-1.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(values, confidence: float = 0.95, draws: int = 4000) -> tuple[float, float]:
    """Confidence interval of the mean of `values`, `[seeds, problems]`, over both other seeds and other problems.

    Resamples rows and columns at once (Owen's pigeonhole bootstrap, arXiv:0712.1111, slightly too wide rather than too
    narrow). One row resamples problems alone. For a paired comparison pass differences."""
    values, random = np.atleast_2d(np.asarray(values, float)), np.random.default_rng(0)
    seeds, problems = values.shape
    rows = random.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    columns = random.multinomial(problems, np.full(problems, 1 / problems), draws) / problems
    means = np.einsum("ds,sp,dp->d", rows, values, columns, optimize=True)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
