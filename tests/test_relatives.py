"""The method's relatives, each against its published formula, computed another way in float64."""

import copy
import json
import sys
from math import exp, inf, log
from pathlib import Path

import pytest
import torch
from conftest import make_mixture
from safetensors.torch import load_file
from torch.autograd import gradcheck
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from logitmix_lite import Mixture, group_advantages, grpo_loss, load_model, load_preset, load_tokenizer, rollout, train
from logitmix_lite.__main__ import main
from logitmix_lite.grpo import aggregate, soft_overlong_punishment, surrogate
from logitmix_lite.lab.report import report
from logitmix_lite.lab.tables import load_grades, load_runs, solved
from logitmix_lite.methods import METHODS, RELATIVES, known
from logitmix_lite.mixing import RULES, budget_alpha
from logitmix_lite.models import make_mixture as tiny_mixture
from logitmix_lite.ranks import Ranks
from logitmix_lite.records import read_config, read_metrics
from logitmix_lite.relatives import Critic, distil, gae, reverse_kl, start_from, teacher_logits, theta_states, whiten
from logitmix_lite.runs import batch_indices
from logitmix_lite.schedules import Decay, Difficulty, Fixed
from logitmix_lite.tasks import encode_prompt
from logitmix_lite.tasks.rewards import Grade
from logitmix_lite.train import Trainer

QUICK = dict(steps=2, prompts=2, samples=3, max_new_tokens=40, train_size=40, test_size=4, validation_size=2,
             eval_every=2, save_every=1, overlong_cache=8)  # fmt: skip


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- alpha by a budget of KL --------------------------------------------------------------------------------------


def spent(theta, ref, alpha):
    """KL(pi_alpha || pi_theta) of one prefix, from plain probabilities."""
    p, q = theta.softmax(-1), ref.softmax(-1)
    pi = p ** (1 - alpha) * q**alpha
    pi = pi / pi.sum()
    return sum(x * log(x / y) for x, y in zip(pi.tolist(), p.tolist(), strict=True) if x > 0)


def test_alpha_is_the_largest_that_the_budget_allows():
    theta, ref = numbers(6, 5), 2 * numbers(6, 5, seed=1)
    for budget in (0.01, 0.1, 0.5):
        found = budget_alpha(theta, ref, budget)
        for a, t, r in zip(found.tolist(), theta, ref, strict=True):
            assert spent(t, r, a) <= budget + 1e-9
            assert a == 1 or spent(t, r, min(1.0, a + 1e-6)) > budget
    assert budget_alpha(theta, theta, 0.1).tolist() == [1.0] * 6  # ref is near enough
    ref[0, 2] = -inf  # what ref rules out costs theta's probability of it, even at the smallest alpha
    p = theta[0].softmax(-1)[2].item()
    assert budget_alpha(theta, ref, -log(1 - p) / 2)[0] == 0 < budget_alpha(theta, ref, -log(1 - p) * 2)[0] < 1
    assert (budget_alpha(theta, ref, 0.1)[1:] > 0).all()


def test_alpha_has_the_gradient_of_the_implicit_function():
    theta, ref = numbers(4, 5).requires_grad_(), 2 * numbers(4, 5, seed=1)
    ref[0, 2] = -inf
    for budget in (0.05, 0.4):
        assert gradcheck(lambda x, budget=budget: budget_alpha(x, ref, budget, halvings=60), theta)
    budget_alpha(theta, theta.detach(), 0.1).sum().backward()
    assert not theta.grad.any()  # where alpha is 1 it does not move with theta


def test_the_rule_is_a_policy_within_the_budget_with_an_exact_gradient():
    theta, ref, rule = numbers(4, 5).requires_grad_(), 3 * numbers(4, 5, seed=2), RULES["kl-budget"]
    mixed = rule([theta, ref], (0.8, 0.2)).log_softmax(-1)
    alpha = budget_alpha(theta, ref, 0.2).tolist()
    assert 0 < min(alpha) and max(alpha) < 1
    for m, t in zip(mixed.detach(), theta.detach().log_softmax(-1), strict=True):
        assert kl_div(t, m, log_target=True, reduction="sum").item() == pytest.approx(0.2, abs=1e-6)
    # finite differences of what is sampled: alpha moves too
    step, row, token = 1e-5, 1, 3
    mixed[row, token].backward()
    for k in range(5):
        moved = [theta.detach().clone() for _ in range(2)]
        moved[0][row, k] += step
        moved[1][row, k] -= step
        up, down = (rule([x, ref], (0.8, 0.2)).log_softmax(-1)[row, token].item() for x in moved)
        assert theta.grad[row, k].item() == pytest.approx((up - down) / (2 * step), abs=2e-4)
    held = (1 - alpha[row]) * (torch.eye(5)[token] - mixed[row].exp().detach())
    assert (theta.grad[row] - held).abs().max() > 0.01  # an alpha held constant has another gradient


def test_the_rule_at_its_ends_and_with_bad_weights():
    theta, ref, rule = numbers(2, 5), numbers(2, 5, seed=1), RULES["kl-budget"]
    assert torch.equal(rule([theta, ref], (1.0, 0.0)), theta) and torch.equal(rule([theta, ref], (0.0, 1.0)), ref)
    with pytest.raises(ValueError, match="theta and ref of weights"):
        rule([theta, ref, ref], (0.5, 0.2, 0.3))


# ---- the loss's relatives -----------------------------------------------------------------------------------------


@pytest.fixture
def batch():
    logp, old = -numbers(5, 4).abs(), -numbers(5, 4, seed=1).abs()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    return logp, old, torch.tensor([1.0, -1.0, 0.5, 0.0, -2.0], dtype=torch.float64), mask


def test_by_default_it_is_the_papers_loss_bit_for_bit(batch):
    logp, old, advantages, mask = batch
    loss = aggregate(-surrogate(*batch, clip=0.2), mask, "grpo", 5, int(mask.sum()), 9)
    assert torch.equal(loss, grpo_loss(*batch))
    each = advantages[:, None].expand(5, 4)  # of tokens, all alike
    assert torch.equal(surrogate(logp, old, each, mask, 0.2), surrogate(*batch, 0.2))


@pytest.mark.parametrize("high", [0.0, 0.28])
def test_clip_and_cap_by_hand(batch, high):
    logp, old, advantages, mask = batch
    clipped, capped = surrogate(*batch, clip=0.2, clip_high=high), surrogate(*batch, clip=0.2, cap=3.0)
    for n in range(5):
        for t in range(int(mask[n].sum())):
            rho, a = exp(logp[n, t] - old[n, t]), advantages[n].item()
            assert clipped[n, t].item() == pytest.approx(min(rho * a, min(max(rho, 0.8), 1 + (high or 0.2)) * a))
            assert capped[n, t].item() == pytest.approx(min(rho, 3.0) * a)  # as Logit Fusion's trainer truncates
    assert (logp - old).exp()[mask.bool()].max() > 3
    huge = (logp + 2000).requires_grad_()  # a ratio that overflows
    surrogate(huge, old, advantages, mask, 0.2, cap=3.0).sum().backward()
    assert torch.isfinite(huge.grad).all()


def test_aggregation_is_that_of_trl(batch):
    """Against the lines of TRL's GRPOTrainer, with num_items_in_batch the tokens of the batch."""
    loss, mask, longest = -surrogate(*batch, clip=0.2), batch[-1], 9
    theirs = {
        "grpo": ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean(),
        "dapo": (loss * mask).sum() / mask.sum(),
        "dr_grpo": (loss * mask).sum() / (loss.size(0) * longest),
    }
    for kind, expected in theirs.items():
        whole = (kind, 5, int(mask.sum()), longest)
        parts = sum(aggregate(loss[rows], mask[rows], *whole) for rows in torch.arange(5).split(2))
        torch.testing.assert_close(aggregate(loss, mask, *whole), expected)
        torch.testing.assert_close(parts, expected)
    assert len({round(x.item(), 9) for x in theirs.values()}) == 3


def test_rewards_that_are_not_scaled_and_length_that_costs():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    assert group_advantages(rewards, scale=False).tolist() == [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]
    lengths = torch.tensor([10, 48, 49, 56, 64])
    assert soft_overlong_punishment(lengths, 64, 16).tolist() == [0, 0, -1 / 16, -0.5, -1]


def test_gae_is_the_discounted_sum_of_errors():
    values, rewards, mask = numbers(3, 4), numbers(3, seed=1), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    gamma, lam = 0.9, 0.8
    advantages, returns = gae(values, rewards, mask, gamma, lam)
    for n, length in enumerate(mask.sum(-1).tolist()):
        v = [*values[n, :length].tolist(), 0.0]
        r = [0.0] * (length - 1) + [rewards[n].item()]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length))
            assert advantages[n, t].item() == pytest.approx(expected)
            assert returns[n, t].item() == pytest.approx(expected + v[t])
    assert not advantages[~mask.bool()].any()
    plain = gae(values, rewards, mask, 1.0, 1.0)[0]  # lambda 1: what came minus what was expected
    torch.testing.assert_close(plain, (rewards[:, None] - values) * mask)
    white = whiten(advantages, mask)[mask.bool()]
    assert white.mean().item() == pytest.approx(0) and white.std().item() == pytest.approx(1)


# ---- schedules ----------------------------------------------------------------------------------------------------


def test_alpha_decays_along_a_line_and_follows_difficulty():
    settings = load_preset("tiny", alpha=0.5, decay_steps=4)
    for kind, unsolved in ((Decay, 1.0), (Difficulty, 0.25)):
        schedule, seen = kind.of(settings), []
        for step in range(1, 7):
            schedule.after_step(step, lambda policy: [True, True, False, True])
            seen.append(schedule.alpha)
        assert seen == pytest.approx([unsolved * x for x in (0.375, 0.25, 0.125, 0, 0, 0)])
    resumed = Decay.of(settings)
    resumed.alpha = 0.25  # as a checkpoint gives it back after two steps
    resumed.after_step(3, None)
    assert resumed.alpha == 0.125


# ---- in the loop --------------------------------------------------------------------------------------------------


def make_trainer(critic=False, **changes):
    preset = load_preset("tiny", **(QUICK | changes))
    mixture, tokenizer = tiny_mixture("base", "tiny-anchor", "tiny-base", 0.5), load_tokenizer("tiny-base")
    trainer = Trainer(
        mixture, tokenizer, preset, Fixed(0.5), beta=0.0, seed=0, ends=[tokenizer.eos_token_id], solved=None,
        ranks=Ranks(), critic=Critic(mixture, 1e-3) if critic else None,
    )  # fmt: skip
    prompts = [encode_prompt(tokenizer, p.question) for p in preset.problems().train[:2]]
    return trainer, trainer.rollout(1, prompts, 3)


def plain_logps(model, rollouts):
    """Log-probs of each completion's tokens under one model, by one pass over prompt and completion at a time."""
    found = []
    for n, keep in enumerate(rollouts.mask.bool()):
        prompt = rollouts.prompt_ids[n // rollouts.samples][rollouts.prompt_mask[n // rollouts.samples].bool()]
        text = rollouts.completions[n][keep]
        logits = model(torch.cat([prompt, text])[None]).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(-1, text[:, None]).squeeze(-1))
    return found


def test_logit_fusions_ratio_is_theta_over_the_mixture_that_sampled():
    trainer, rollouts = make_trainer(ratio="theta", ratio_cap=1.5, max_grad_norm=1e9)
    advantages = torch.tensor([1.0, -0.5, -0.5, 0.0, 1.0, -1.0])
    theta = trainer.mixture.models[0]
    logps = plain_logps(theta, rollouts)
    terms = [
        ((x - rollouts.logps[n, : len(x)]).exp().clamp(max=1.5) * advantages[n]).mean() for n, x in enumerate(logps)
    ]
    expected = -sum(terms) / 6
    expected.backward()
    norm = torch.stack([p.grad.norm() for p in theta.parameters()]).norm().item()
    theta.zero_grad()
    found = trainer.update(rollouts, advantages)
    assert found["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert found["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert found["logp_gap"] is None and found["clip_fraction"] > 0


def test_a_critic_reads_thetas_states_and_learns_with_the_policy():
    trainer, rollouts = make_trainer(critic=True, adv_estimator="gae")
    states = theta_states(trainer.mixture, rollouts, torch.arange(6))
    for n, row in enumerate(plain_logps(trainer.mixture.models[0], rollouts)):
        logits = trainer.mixture.head(0)(states[n, : len(row)])
        picked = logits.log_softmax(-1).gather(-1, rollouts.completions[n, : len(row), None]).squeeze(-1)
        torch.testing.assert_close(picked, row, atol=1e-4, rtol=1e-4)
    rewards = torch.tensor([[1.0, 0, 0], [1, 1, 1]])
    advantages = trainer.advantages(rollouts, rewards)
    assert advantages.shape == rollouts.mask.shape and advantages[3:].any()  # a group of equal rewards teaches too
    before = trainer.critic.head.weight.clone()
    trainer.update(rollouts, advantages)
    assert not torch.equal(before, trainer.critic.head.weight) and trainer.critic.head.weight.grad is None


def test_completions_without_an_end_and_groups_of_equal_rewards():
    trainer, rollouts = make_trainer(mask_truncated_completions=True, overlong_cache=0)
    rollouts.truncated = torch.tensor([False, True, False, False, False, False])
    found = trainer.advantages(rollouts, torch.tensor([[1.0, 0, 0], [1, 1, 1]]))
    assert found[1] == 0 and found[0] > 0 > found[2] and not found[3:].any()
    second = rollouts.select(torch.tensor([1]))
    assert second.samples == 3 and torch.equal(second.completions, rollouts.completions[3:])
    assert torch.equal(second.prompt_ids[0], rollouts.prompt_ids[1])
    assert torch.equal(second.kept[0], rollouts.kept[0][3:])


def test_dynamic_sampling_trains_on_groups_that_differ(monkeypatch):
    trainer, _ = make_trainer(dynamic_sampling=2, overlong_cache=0)
    prompts = [encode_prompt(trainer.tokenizer, f"{k}+1-2+3?") for k in range(1, 5)]
    right = iter([*[False] * 3, *[True] * 3, True, False, True, False, False, True])
    grades = lambda texts, answers: [Grade(True, next(right), True, None) for _ in texts]  # noqa: E731
    monkeypatch.setattr(sys.modules["logitmix_lite.train"], "grade_all", grades)
    seen = {}
    monkeypatch.setattr(trainer, "update", lambda rollouts, advantages: seen.update(r=rollouts, a=advantages) or {})
    trainer.step(1, prompts, ["1"] * 4)
    assert len(seen["r"].prompt_ids) == 2 and (seen["a"].view(2, 3) != 0).all()
    assert seen["r"].prompt_ids[0][seen["r"].prompt_mask[0].bool()].tolist() == prompts[2]


@pytest.mark.parametrize("name", RELATIVES)
def test_every_relative_runs_logs_and_resumes(tmp_path, name):
    preset = load_preset("tiny", **QUICK)
    train(preset, name, tmp_path / f"{name}-seed0")
    lines = read_metrics(tmp_path / f"{name}-seed0")
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines[1:]:
        assert (line["logp_gap"] or 0) < 1e-4  # none where the ratio's two policies differ
    assert RELATIVES[name].settings.items() <= read_config(tmp_path / f"{name}-seed0").items()
    train(load_preset("tiny", **(QUICK | dict(steps=1))), name, tmp_path / "half")
    (tmp_path / "half" / "final").rename(tmp_path / "gone")
    train(preset, name, tmp_path / "half", resume=True)
    whole, half = (
        load_file(next((tmp_path / run / "final").rglob("*.safetensors"))) for run in (f"{name}-seed0", "half")
    )
    assert all(torch.equal(whole[key], half[key]) for key in whole)
    assert known()[name].label in report(tmp_path / f"{name}-seed0", tmp_path / "report").read_text(encoding="utf-8")


def test_relatives_are_told_apart_and_left_out_of_all():
    assert not METHODS.keys() & RELATIVES.keys() and named_styles_differ()


def named_styles_differ() -> bool:
    colours = [method.style[0] for method in known().values()]
    return len(set(colours)) == len(colours)


# ---- teachers and students ----------------------------------------------------------------------------------------


def test_sdpos_teacher_is_equation_11():
    """Members that read different prompts, of different lengths; against plain probabilities, a prefix at a time."""
    theta, ref = make_mixture("pair").models
    prompts, hints = [[5, 6, 7], [6, 4]], [[9, 8, 5, 6, 7], [3, 6, 4]]
    teacher, lam = Mixture([theta, ref], [0.3, 0.7]), 0.3
    said = rollout(teacher, prompts, samples=2, max_new_tokens=5, eos=[], pad=0)
    found = teacher_logits(teacher, said, hints)
    assert found.shape[:2] == said.mask.shape
    for n, text in enumerate(said.completions.tolist()):
        for t in range(5):
            starts = ((theta, hints[n // 2]), (ref, prompts[n // 2]))
            told, plain = (
                model(torch.tensor([[*start, *text[:t]]])).logits[0, -1].double().softmax(-1) for model, start in starts
            )
            expected = plain ** (1 - lam) * told**lam
            ours = found[n, t].double().softmax(-1)
            torch.testing.assert_close(ours, expected / expected.sum(), atol=1e-6, rtol=1e-4)


def test_without_hints_the_teacher_is_the_mixture():
    for kind in ("pair", "lora"):
        teacher = make_mixture(kind)
        said = rollout(teacher, [[5, 6, 7], [6, 4]], max_new_tokens=5)
        logps = teacher_logits(teacher, said).log_softmax(-1).gather(-1, said.completions[..., None]).squeeze(-1)
        torch.testing.assert_close(logps * said.mask, said.logps, atol=1e-4, rtol=1e-4)


def test_a_student_that_teaches_itself_learns_from_what_it_was_told():
    """One step of SDPO against its formula by autograd: the teacher is the student now, and gets no gradient."""
    student, tokenizer, lines = load_model("tiny-base"), load_tokenizer("tiny-base"), []
    prompts = [encode_prompt(tokenizer, f"{a}+3-2+4?") for a in range(4)]
    hints = [encode_prompt(tokenizer, f"{a + 3};{a + 1};{a + 5};{a}+3-2+4?") for a in range(4)]
    before, fresh = copy.deepcopy(student), copy.deepcopy(student)
    distil(Mixture([student]), student, tokenizer, prompts, hints=hints, steps=1, batch=4, lr=0.0, log=lines.append)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), student.parameters(), strict=True))
    picks = batch_indices(1, 4, 4, 0)
    said = rollout(before, [prompts[k] for k in picks], seed=[0, 1], eos=[tokenizer.eos_token_id], pad=0)
    total, tokens = 0.0, 0
    for n, k in enumerate(picks):
        text = said.completions[n][said.mask[n].bool()]
        plain, told = (
            before(torch.cat([torch.tensor(start), text])[None]).logits[0, len(start) - 1 : -1].double().log_softmax(-1)
            for start in (prompts[k], hints[k])
        )
        total, tokens = total + kl_div(told, plain, log_target=True, reduction="sum"), tokens + len(text)
    assert lines[0]["kl"] == pytest.approx((total / tokens).item(), rel=1e-4) and lines[0]["kl"] > 0.01
    distil(Mixture([fresh]), fresh, tokenizer, prompts, hints=hints, steps=1, batch=4, lr=1e-3)
    moved = sum((a - b).abs().sum().item() for a, b in zip(before.parameters(), fresh.parameters(), strict=True))
    assert moved > 0  # a teacher that were trained along would be at 0 already


def test_reverse_kl_is_torchs():
    student, teacher = numbers(2, 3, 5).requires_grad_(), numbers(2, 3, 5, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    ours, theirs = (x.log_softmax(-1)[mask.bool()] for x in (student, teacher))
    expected = kl_div(theirs, ours, log_target=True, reduction="sum") / 3
    torch.testing.assert_close(reverse_kl(student, teacher, mask), expected)
    assert gradcheck(lambda x: reverse_kl(x, teacher, mask), student)


def test_a_student_starts_from_theta_or_from_averaged_weights():
    mixture = make_mixture("pair", weights=(0.7, 0.3))
    theta, ref = (dict(model.named_parameters()) for model in mixture.models)
    for name, p in start_from(mixture, "theta").named_parameters():
        assert torch.equal(p, theta[name]) and p is not theta[name]
    for name, p in start_from(mixture, "average").named_parameters():
        torch.testing.assert_close(p, 0.7 * theta[name] + 0.3 * ref[name])
    with pytest.raises(ValueError, match="whole models"):
        start_from(make_mixture("lora"), "theta")


def test_distillation_brings_the_student_to_the_mixture():
    mixture, tokenizer, lines = tiny_mixture("base", "tiny-anchor", "tiny-base", 0.5), load_tokenizer("tiny-base"), []
    prompts = [encode_prompt(tokenizer, f"{a}+{a + 1}-2+3?") for a in range(1, 9)]
    student = distil(
        mixture, start_from(mixture, "theta"), tokenizer, prompts, steps=8, batch=8, lr=1e-3, log=lines.append
    )
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert sum(line["kl"] for line in lines[-2:]) < 0.5 * sum(line["kl"] for line in lines[:2])
    assert all(p.grad is None for p in mixture.parameters()) and not student.training


def test_the_command_writes_an_ordinary_model(tmp_path, capsys):
    train(load_preset("tiny", **(QUICK | dict(steps=0))), "fixed", tmp_path / "run")
    flags = ["--steps", "1", "--prompts", "2", "--test-size", "4", "--max-new-tokens", "40"]
    main(["distil", "--mixture", str(tmp_path / "run" / "final"), "--out", str(tmp_path / "one"), *flags])
    assert "student: accuracy" in capsys.readouterr().out
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["mixture"]["bytes"] == 2 * summary["student"]["bytes"] and len(summary["student"]["correct"]) == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "final")
    assert type(model).__name__ == "Qwen2ForCausalLM" and load_tokenizer(tmp_path / "one" / "final")
    assert len(read_metrics(tmp_path / "one")) == 1 and Path(tmp_path / "one" / "config.json").exists()


# ---- what is recorded ---------------------------------------------------------------------------------------------

RECORDED = Path(__file__).resolve().parents[1] / "data" / "results" / "beyond"


def test_recorded_runs_are_whole_and_let_go_of_the_anchor():
    runs, grades = load_runs(RECORDED), load_grades(RECORDED)
    assert set(runs["arm"]) <= set(RELATIVES) and (runs.groupby("run")["step"].max() == 60).all()
    fusion = runs[runs["arm"] == "fusion"].groupby("step")["alpha"].first()
    assert fusion[1] == 0.5 and fusion[21] == 0.25 and not fusion[41:].any()
    assert solved(grades, "fusion", "mixture").equals(solved(grades, "fusion", "theta"))


@pytest.mark.parametrize("summary", sorted(RECORDED.glob("distil-*/summary.json")), ids=lambda path: path.parent.name)
def test_recorded_students_keep_the_mixtures_accuracy_at_half_its_weights(summary):
    found = json.loads(summary.read_text(encoding="utf-8"))
    mixture, student = found["mixture"], found["student"]
    assert student["accuracy"] == student["correct"].count("1") / 200 >= 0.95 * mixture["accuracy"]
    assert student["bytes"] == mixture["bytes"] / 2
