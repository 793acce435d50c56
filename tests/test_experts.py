"""n experts: their product and what its weights are learned by against plain float64 arithmetic; the records."""

import json
import re
from math import log
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import make_model
from torch.autograd import gradcheck

from logitmix_lite import Mixture, load_preset, load_tokenizer
from logitmix_lite.lab import experts
from logitmix_lite.lab.experts import ALL, EQUAL, LEARNED, cost, learn_weights, log_likelihood, read, specialist
from logitmix_lite.lab.experts import record as make_record
from logitmix_lite.lab.tables import RATES
from logitmix_lite.records import read_config
from logitmix_lite.tasks.load import encode_demo

RECORDS = Path(__file__).resolve().parents[1] / "data" / "results" / "beyond" / "experts"
DEMOS = [([5, 6, 7], [3, 4, 10, 1]), ([9, 2], [8, 8, 1])]  # prompt and completion
SMALL = dict(train_size=8, validation_size=3, test_size=4)
QUICK = dict(demos=4, steps=1, batch=2)


def by_hand(models, weights, demos):
    """Log-prob of each completion token under the product, one prefix at a time: from plain probabilities."""
    found = []
    for prompt, completion in demos:
        for t, token in enumerate(completion):
            ids = torch.tensor([prompt + completion[:t]])
            probs = [model(ids).logits[0, -1].double().softmax(-1) for model in models]
            product = torch.stack([p**w for p, w in zip(probs, weights, strict=True)]).prod(0)
            found.append((product[token] / product.sum()).log())
    return torch.stack(found)


@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.6, -0.2)])
def test_the_product_of_three_is_a_mixture_and_what_weights_are_learned_by(weights):
    models = [make_model(seed=k) for k in range(3)]
    expected = by_hand(models, weights, DEMOS)
    tokens = torch.tensor([token for _, completion in DEMOS for token in completion])
    logps = torch.stack([read(model, DEMOS) for model in models])
    found = log_likelihood(torch.tensor(weights).double(), logps, tokens)
    assert found.item() == pytest.approx(expected.mean().item(), abs=1e-6)
    mixed = read(Mixture(models, weights), DEMOS).gather(-1, tokens[:, None]).squeeze(-1)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_the_weights_is_exact():
    """What the data says each expert's log-prob is, minus what the product expects it to be."""
    logps = torch.randn(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    tokens, weights = torch.tensor([0, 4, 2, 2, 1, 3]), torch.tensor([0.5, 1.5, -0.3]).double().requires_grad_()
    log_likelihood(weights, logps, tokens).backward()
    for k in range(3):
        mine = 0.0
        for t, token in enumerate(tokens.tolist()):
            product = torch.stack([logps[j, t].exp() ** weights[j].item() for j in range(3)]).prod(0)
            mine += (logps[k, t, token] - (product / product.sum() * logps[k, t]).sum()).item() / 6
        assert weights.grad[k].item() == pytest.approx(mine, abs=1e-12)
    assert gradcheck(lambda w: log_likelihood(w, logps, tokens), weights)


def test_weights_are_learned_where_the_best_are_known():
    """Expert 1 says 3 to 1 where the data does, expert 2 only 3 to 1 where the data says 9 to 1: weights 1 and 2; a
    third expert that knows nothing is free, and stays where it began."""
    sure, even = torch.tensor([0.75, 0.25]).double().log(), torch.tensor([0.5, 0.5]).double().log()
    first = torch.stack([sure] * 4 + [even] * 10)
    second = torch.stack([even] * 4 + [sure] * 10)
    tokens = torch.tensor([0, 0, 0, 1] + [0] * 9 + [1])
    learned = learn_weights(torch.stack([first, second, even.expand(14, 2)]), tokens)
    assert learned == pytest.approx([1, 2, 1 / 3], abs=1e-5)
    best = log_likelihood(torch.tensor(learned).double(), torch.stack([first, second, even.expand(14, 2)]), tokens)
    assert best.item() == pytest.approx((3 * log(0.75) + log(0.25) + 9 * log(0.9) + log(0.1)) / 14)


def test_specialists_see_one_thing_each(monkeypatch):
    task, tokenizer, demos = load_preset("tiny", **SMALL).problems(), load_tokenizer("tiny-base"), []
    monkeypatch.setattr(experts, "fine_tuned", lambda model, given, **how: demos.append(given))
    for name, signs in (("plus", "+"), ("minus", "-"), ("box", "+-")):
        experts.specialist([name], 0, task, demos=200)
        questions, solutions = (tokenizer.batch_decode(side) for side in zip(*demos[-1], strict=True))
        assert len(set(questions)) == 200 and {c for q in questions for c in q if c in "+-"} == set(signs)
        boxed = sum("boxed" in solution for solution in solutions)
        assert boxed == 200 if name == "box" else 0 < boxed < 20
        for question, solution in zip(questions, solutions, strict=True):
            assert str(eval(question.rstrip("?"))) == re.findall(r"-?[0-9]+", solution)[-1]
    experts.specialist(ALL, 0, task, demos=200)
    one, two, three, together = ([prompt for prompt, _ in given] for given in demos)
    assert sorted(together) == sorted(one + two + three)


def test_a_small_run_is_made_again_and_costs_what_it_weighs(tmp_path):
    task, tokenizer = load_preset("tiny", **SMALL).problems(), load_tokenizer("tiny-base")
    for folder in ("one", "two"):
        make_record(tmp_path / folder, 3, task, **QUICK)
    one, two = (json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("one", "two"))
    assert one == two and read_config(tmp_path / "one") == read_config(tmp_path / "two")
    assert len(one["policies"]) == len(EQUAL) - 1 + 2 * (len(LEARNED) - 1)  # all but those with the anchor
    demos = [encode_demo(tokenizer, p) for p in task.validation]
    tokens = torch.tensor([token for _, completion in demos for token in completion])
    [row] = [row for row in one["policies"] if row["members"] == ["plus"]]
    plus = read(specialist(["plus"], 3, task, **QUICK), demos)
    assert row["log_likelihood"] == pytest.approx(plus.gather(-1, tokens[:, None]).mean().item())
    rows = cost(task, most=3, rounds=1)
    assert [row["members"] for row in rows] == [0, 1, 2, 3] and all(len(row["seconds"]) == 1 for row in rows)
    for size in ("weight_bytes", "cache_bytes"):
        assert [row[size] / rows[1][size] for row in rows[1:]] == [1, 2, 3]


def recorded():
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("seed*/summary.json"))]


def test_records_are_whole_and_their_weights_the_best_there_are():
    untrained = json.loads((RECORDS / "untrained" / "summary.json").read_text(encoding="utf-8"))
    assert len(recorded()) >= 3 and [row["members"] for row in untrained["cost"]] == [0, 1, 2, 3, 4]
    for record in [untrained, *recorded()]:
        likely = {(*row["members"], row["how"]): row["log_likelihood"] for row in record["policies"]}
        for row in record["policies"]:
            assert all(len(row[rate]) == 200 and set(row[rate]) <= {"0", "1"} for rate in RATES)
            assert row["correct"].count("1") <= min(row["number"].count("1"), row["formatted"].count("1"))
            if row["how"] == "learned":
                best = max(v for (*names, _), v in likely.items() if set(names) <= set(row["members"]))
                assert row["log_likelihood"] == best  # a product of fewer is this one with weights of 0


def test_the_notebook_says_what_the_records_say():
    notebook = nbformat.read(RECORDS.parents[3] / "notebooks" / "09_beyond.ipynb", as_version=4)
    [said] = [cell.outputs[0]["text"] for cell in notebook.cells if cell.id == "09-experts-table"]
    counts = [
        row["correct"].count("1")
        for record in recorded()
        for row in record["policies"]
        if row["members"] == [*ALL] and row["how"] == "equal"
    ]
    assert f"it is {100 * sum(counts) / len(counts) / 200:.0f}, of {len(counts)} seeds" in said
