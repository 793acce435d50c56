"""Statistics against closed forms, and the adaptive schedule against equations 8 and 9."""

from math import comb, exp, sqrt

import pytest

from logitmix_lite import evaluate, load_policy, load_task, load_tokenizer
from logitmix_lite.evaluate import contingency, interval, mcnemar
from logitmix_lite.schedules import Adaptive


@pytest.mark.parametrize("successes, trials", [(0, 200), (1, 10), (57, 200), (200, 200)])
def test_interval_is_wilsons(successes, trials):
    z, share = 1.959964, successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    low, high = interval(successes, trials)
    assert (low, high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-6)


def test_paired_comparison():
    first = [True] * 9 + [False] * 2 + [True] * 5 + [False] * 3
    second = [False] * 9 + [True] * 2 + [True] * 5 + [False] * 3
    assert contingency(first, second) == {"both": 5, "first only": 9, "second only": 2, "neither": 3}
    by_hand = 2 * sum(comb(11, k) for k in range(3)) / 2**11  # two-sided binomial tail of 2 among 11
    assert mcnemar(first, second) == pytest.approx(by_hand)
    assert mcnemar(first, first) == 1


def test_adaptive_alpha():
    schedule = Adaptive(0.5, offset=0.1, scale=0.2)
    found = schedule.update([1, 1, 1, 0], [0, 0, 1, 1])  # gain 2/4, forgetting 1/4
    assert found == pytest.approx({"gain": 0.5, "forgetting": 0.25, "alpha": 1 / (1 + exp(-(0.25 - 0.1) / 0.2))})
    slow = Adaptive(0.5, offset=0.1, scale=0.2, smoothing=0.25)
    assert slow.update([1, 1, 1, 0], [0, 0, 1, 1])["alpha"] == pytest.approx(0.75 * 0.5 + 0.25 * found["alpha"])
    assert Adaptive(0.5, scale=1e-4).update([0], [1])["alpha"] == 0  # far out, and no overflow


def test_tiny_world_has_its_complementarity():
    """Base reasons and does not box, the anchor boxes and reasons worse: counted on the shipped checkpoints."""
    task = load_task("chain", train=1, validation=1, test=200)
    tokenizer = load_tokenizer("tiny-base")
    base, anchor = (
        evaluate(load_policy(name), tokenizer, task.test, max_new_tokens=64, batch=200)
        for name in ("tiny-base", "tiny-anchor")
    )
    assert base.format_rate < 0.10 and 0.40 <= base.number_rate <= 0.70
    assert anchor.format_rate >= 0.98 and anchor.accuracy < base.number_rate - 0.05
    assert [p.question for p in base.problems] == [p.question for p in anchor.problems]
    rows = base.records()
    assert sum(row["number"] for row in rows) / 200 == base.number_rate
    assert base.summary()["format_rate_95"][1] < 0.12
