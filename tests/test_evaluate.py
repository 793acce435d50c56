"""Statistics against closed forms, and the adaptive schedule against equations 8 and 9."""

import itertools
import json
from math import comb, exp
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import binomtest

from logitmix_lite import evaluate, load_policy, load_task, load_tokenizer
from logitmix_lite.config import load_preset
from logitmix_lite.evaluate import majority_vote
from logitmix_lite.lab.study import compare
from logitmix_lite.schedules import Adaptive
from logitmix_lite.stats import (
    bootstrap_interval,
    contingency,
    difference_interval,
    interval,
    mcnemar,
    mean_interval,
    pass_at,
)
from logitmix_lite.tasks.rewards import grade


@pytest.mark.parametrize("successes, trials", [(0, 200), (1, 10), (57, 200), (200, 200), (0, 1)])
def test_interval_is_wilsons(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_paired_comparison():
    first = [True] * 9 + [False] * 2 + [True] * 5 + [False] * 3
    second = [False] * 9 + [True] * 2 + [True] * 5 + [False] * 3
    assert contingency(first, second) == {"both": 5, "first only": 9, "second only": 2, "neither": 3}
    by_hand = 2 * sum(comb(11, k) for k in range(3)) / 2**11  # two-sided binomial tail of 2 among 11
    assert mcnemar(first, second) == pytest.approx(by_hand)
    assert mcnemar(first, first) == 1
    for only in ((0, 1), (3, 3), (2, 7), (40, 90)):
        pair = [True] * only[0] + [False] * only[1], [False] * only[0] + [True] * only[1]
        assert mcnemar(*pair) == pytest.approx(binomtest(only[0], sum(only)).pvalue, rel=1e-9)


@pytest.mark.parametrize("k, correct", [(1, 2), (3, 2), (4, 2), (5, 2), (6, 2), (2, 0), (2, 6)])
def test_pass_at_k_counts_all_choices(k, correct):
    outcomes = [True] * correct + [False] * (6 - correct)
    chosen = list(itertools.combinations(outcomes, k))
    assert pass_at(k, 6, correct) == pytest.approx(fmean(any(some) for some in chosen))


def test_pass_at_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="pass@3 needs at least 3 completions a problem, there are 2"):
        pass_at(3, 2, 1)


def test_intervals_cover_as_often_as_they_say():
    """Simulated evaluations of 100 problems: the true value lies inside in about 95 of 100 (binomial noise: 1.1)."""
    random, trials = np.random.default_rng(0), 400
    inside = {"paired": 0, "shares": 0}
    for _ in range(trials):
        first, second = random.random(100) < 0.5, random.random(100) < 0.5
        second = np.where(random.random(100) < 0.6, first, second)  # the two policies resemble each other
        low, high = difference_interval(first, second)
        inside["paired"] += low <= 0 <= high
        shares = random.binomial(4, random.beta(1, 1, 100)) / 4  # four completions of problems of all difficulties
        low, high = mean_interval(shares.tolist())
        inside["shares"] += low <= 0.5 <= high
    assert all(0.915 <= count / trials <= 0.985 for count in inside.values()), inside


@pytest.mark.parametrize("spread", [0.0, 0.3], ids=["seeds alike", "seeds differ"])
def test_bootstrap_covers_seeds_and_problems(spread):
    """Eight seeds on 100 problems, each with an effect of its own: the interval must hold for new seeds and problems,
    which one over problems alone does not."""
    random, trials, inside, naive = np.random.default_rng(0), 300, 0, 0
    for _ in range(trials):
        values = random.normal(0, spread, (8, 1)) + random.normal(0, 1, (1, 100)) + random.normal(0, 1, (8, 100))
        low, high = bootstrap_interval(values)
        inside += low <= 0 <= high
        low, high = bootstrap_interval(values.mean(0))
        naive += low <= 0 <= high
    assert 0.91 <= inside / trials
    assert (naive / trials < 0.85) == (spread > 0)
    one = random.normal(0, 1, 400)
    width = np.subtract(*bootstrap_interval(one)[::-1])
    assert width == pytest.approx(2 * 1.96 * one.std() / 20, rel=0.1)


def test_majority_vote_counts_answers_that_mean_the_same_together():
    def vote(*texts):
        return majority_vote([grade(text, "0.5") for text in texts])

    assert vote(r"\boxed{0.5}", r"\boxed{1/2}", r"\boxed{2}")
    assert not vote(r"\boxed{0.5}", r"\boxed{2}", r"\boxed{2}", "0.5", "0.5")  # what stands in no box has no vote
    assert vote(r"\boxed{\frac12}", r"\boxed{2}")  # equally frequent: the first
    assert not vote("0.5", "no idea")


def test_two_record_files_compare(tmp_path):
    rows = [{"question": f"q{k}", "gold": "1", "correct": k < 4} for k in range(10)]
    other = [row | {"correct": k >= 3} for k, row in enumerate(rows)]
    files = []
    for name, table in (("a", rows), ("b", list(reversed(other))), ("c", rows[:9]), ("d", rows + rows[:1])):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in table))
    found = compare(*files[:2])
    assert (found["problems"], found["first"], found["second"]) == (10, 0.4, 0.7)
    assert (found["both"], found["first only"], found["second only"], found["neither"]) == (1, 3, 6, 0)
    assert found["p_value"] == pytest.approx(2 * sum(comb(9, k) for k in range(4)) / 2**9)
    assert found["difference"] == pytest.approx(0.3) and found["difference_95"][0] < 0 < found["difference_95"][1]
    with pytest.raises(ValueError, match="not about the same problems"):
        compare(files[0], files[2])
    with pytest.raises(ValueError, match="several completions of one problem"):
        compare(files[3], files[0])


def test_several_samples_of_each_problem():
    task, tokenizer = load_task("chain", train=1, validation=1, test=6), load_tokenizer("tiny-anchor")
    policy = load_policy("tiny-anchor")
    found = evaluate(policy, tokenizer, task.test, max_new_tokens=64, samples=4, temperature=1.0, batch=8)
    assert found.samples == 4 and len(found.records()) == 24
    right = [sum(g.correct for g in group) for group in found.groups()]
    assert [sum(row["correct"] for row in found.records() if row["question"] == p.question) for p in task.test] == right
    summary = found.summary()
    assert summary["accuracy"] == pytest.approx(sum(right) / 24) == pytest.approx(summary["pass_at"]["1"])
    assert summary["pass_at"]["4"] == fmean(r > 0 for r in right)
    lengths = [len(tokenizer(text)["input_ids"]) for text in found.completions]
    assert all(n + (not cut) == m for n, cut, m in zip(lengths, found.truncated, found.lengths, strict=True))
    with pytest.raises(ValueError, match="set a temperature above 0"):
        evaluate(policy, tokenizer, task.test, samples=2)


def test_adaptive_alpha():
    schedule = Adaptive(0.5, offset=0.1, scale=0.2)
    solves = {"mixture": [1, 1, 1, 0], "theta": [0, 0, 1, 1]}
    assert schedule.after_step(1, solves.get) == {"gain": 0.5, "forgetting": 0.25}
    assert schedule.alpha == pytest.approx(1 / (1 + exp(-(0.25 - 0.1) / 0.2)))
    slow = Adaptive(0.5, offset=0.1, scale=0.2, smoothing=0.25)
    slow.after_step(1, solves.get)
    assert slow.alpha == pytest.approx(0.75 * 0.5 + 0.25 * schedule.alpha)
    assert Adaptive.of(load_preset("tiny")) == Adaptive(0.5)  # the same defaults in both places
    steep = Adaptive(0.5, scale=1e-4)
    steep.update([0], [1])
    assert steep.alpha == 0  # far out, and no overflow
