"""What it takes to add to the package: a rule is one function and one line, a schedule one class and one line."""

from dataclasses import dataclass

import pytest
import torch
from conftest import make_mixture

from logitmix_lite import load_preset, train
from logitmix_lite.__main__ import make_parser
from logitmix_lite.lab.report import report
from logitmix_lite.lab.tables import load_runs, summary
from logitmix_lite.methods import METHODS, Method
from logitmix_lite.mixing import RULES
from logitmix_lite.records import read_metrics

SMALL = dict(steps=3, prompts=2, samples=2, max_new_tokens=40, test_size=4, validation_size=2, eval_every=3)


def max_of_experts(logits, weights):
    """The larger of the members' probabilities at each token, whatever their weights; unnormalised."""
    return torch.stack([logit.log_softmax(-1) for logit in logits]).amax(0)


@dataclass
class Decay:
    """Alpha falls by a third after each step."""

    alpha: float

    @classmethod
    def of(cls, settings):
        return cls(settings.alpha)

    def after_step(self, step, solved):
        self.alpha *= 2 / 3
        return {"fallen": step}


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(RULES, "max", max_of_experts)
    monkeypatch.setitem(METHODS, "max-decay", Method(
        "max of experts, alpha decays", ("#123456", "-", "o"), mixes=True, rule="max", schedule=Decay
    ))  # fmt: skip


def test_a_new_rule_and_a_new_schedule_train_and_are_drawn(added, tmp_path):
    train(load_preset("tiny", **SMALL), "max-decay", tmp_path / "max-decay-seed0")
    lines = read_metrics(tmp_path / "max-decay-seed0")
    assert [line["alpha"] for line in lines] == pytest.approx([0.5, 0.5, 1 / 3, 2 / 9])
    assert [line.get("fallen") for line in lines] == [None, 1, 2, 3]
    assert lines[3]["accuracy_alpha"] == pytest.approx(4 / 27)  # of the next step's rollouts, as evaluated
    assert all(line["logp_gap"] < 1e-4 for line in lines[1:])  # scored as it was sampled
    assert list(summary(load_runs(tmp_path))["method"]) == ["max of experts, alpha decays"]
    assert "max of experts" in report(tmp_path, tmp_path / "report").read_text(encoding="utf-8")


def test_a_new_method_is_on_the_command_line(added):
    assert "max-decay" in make_parser().parse_args(["train", "--method", "max-decay", "--out", "x"]).method
    subparsers = next(a for a in make_parser()._actions if a.dest == "command")
    assert "max-decay" in "".join(subparsers.choices["train"].format_help().split())


def test_a_new_rule_samples_what_it_says(added):
    mixture = make_mixture("pair", rule="max")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        members = [model(ids).logits.double().softmax(-1) for model in mixture.models]
        expected = torch.maximum(*members)
        expected /= expected.sum(-1, keepdim=True)
        torch.testing.assert_close(mixture(ids).logits.softmax(-1).double(), expected, atol=1e-6, rtol=1e-5)
