"""Mixing rules against closed forms in plain Python, finite differences and a numerical optimiser."""

import math

import numpy as np
import oracles
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax, xlogy

from logitmix_lite.mixing import (
    RULES,
    barycenter_objective,
    contrastive,
    dexperts,
    log_z,
    mean_of_probs,
    mix_logits,
    mix_probs,
    pair_weights,
    product_of_experts,
)

INF = math.inf
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EPS = {dtype: 4 * torch.finfo(dtype).eps for dtype in DTYPES}


def rows(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probs(row, allowed):
    """Softmax of a list over the tokens in `allowed`, 0 elsewhere."""
    kept = [x if t in allowed else -INF for t, x in enumerate(row)]
    terms = [math.exp(x - max(kept)) for x in kept]
    return [term / sum(terms) for term in terms]


def log(p):
    return math.log(p) if p > 0 else -INF


def product(weights, members):
    columns = zip(*members, strict=True)
    return [-INF if -INF in xs else sum(w * x for w, x in zip(weights, xs, strict=True)) for xs in columns]


def mean(weights, members):
    columns = zip(*(probs(m, range(len(m))) for m in members), strict=True)
    return [log(sum(w * p for w, p in zip(weights, ps, strict=True))) for ps in columns]


def contrast(expert, amateur, gamma, plausibility):
    allowed = [t for t, xs in enumerate(zip(expert, amateur, strict=True)) if -INF not in xs]
    p, q = probs(expert, allowed), probs(amateur, allowed)
    kept = [t for t in allowed if p[t] >= plausibility * max(p)]
    return [log(p[t]) - gamma * log(q[t]) if t in kept else -INF for t in range(len(p))]


CASES = {  # name: (a rule on three members, the same in plain Python)
    "mix_logits": (lambda a, b, c: mix_logits(a, b, 0.3), lambda a, b, c: product((0.7, 0.3), (a, b))),
    "logit": (lambda *m: RULES["logit"](m, (0.5, 2.0, -0.75)), lambda *m: product((0.5, 2.0, -0.75), m)),
    "dexperts": (lambda *m: dexperts(*m, gamma=1.5), lambda *m: product((1.0, 1.5, -1.5), m)),
    "mix_probs": (lambda a, b, c: mix_probs(a, b, 0.3), lambda a, b, c: mean((0.7, 0.3), (a, b))),
    "prob": (lambda *m: RULES["prob"](m, (0.5, 0.3, 0.2)), lambda *m: mean((0.5, 0.3, 0.2), m)),
    "contrastive": (lambda a, b, c: RULES["contrastive"]([a, b], (1, -0.5)), lambda a, b, c: contrast(a, b, 0.5, 0.1)),
    "everywhere": (lambda a, b, c: contrastive(a, b, 1.0, 0.0), lambda a, b, c: contrast(a, b, 1.0, 0.0)),
}
each_case = pytest.mark.parametrize("rule, oracle", CASES.values(), ids=CASES)


def members(masked):
    """Three members of 4 x 9 logits. Masked: token 0 by all, 1 by the first, 2 by the second, 3 by the third."""
    logits = rows(3, 4, 9)
    if masked:
        logits[:, :, 0] = -INF
        for k in range(3):
            logits[k, :, k + 1] = -INF
    return logits


def test_equation_1_by_hand():
    theta, ref = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([5.0, 0.0, 1.0])
    assert mix_logits(theta, ref, 0.25).tolist() == [2.0, 1.5, -2.0]  # alpha weighs ref


@each_case
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rule_against_plain_python(rule, oracle, masked, dtype):
    logits = members(masked).to(dtype)
    expected = torch.tensor([oracle(*one) for one in logits.double().transpose(0, 1).tolist()], dtype=torch.float64)
    got = rule(*logits)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=EPS[dtype], atol=max(EPS[dtype], 1e-14))
    assert (got == -INF).equal(expected == -INF)


@each_case
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_against_finite_differences(rule, oracle, masked):
    logits = members(masked)[:, 0, :6]
    seen = (rule(*logits) != -INF).nonzero(as_tuple=True)

    def function(free):  # masked tokens are constants, and the result is read where it is finite
        mixed = rule(*free.masked_fill(logits == -INF, -INF))
        return mixed[seen], mixed.softmax(-1)

    assert torch.autograd.gradcheck(function, logits.nan_to_num(neginf=0.0).requires_grad_())


@each_case
def test_only_the_distributions_over_shared_tokens_matter(rule, oracle):
    a, b, c = members(False)
    padded = torch.cat([b, torch.full((4, 7), 50.0)], -1)  # logits that would win, were they looked at
    assert rule(a, padded, c).equal(rule(a, b, c)) and rule(padded, a, c).equal(rule(b, a, c))
    for other in (rule(a + 30, b - 7, c + 4), rule(*(x.log_softmax(-1) for x in (a, b, c)))):
        torch.testing.assert_close(other.softmax(-1), rule(a, b, c).softmax(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_0_and_1_are_one_member_bit_for_bit(dtype):
    theta, ref = rows(2, 50).to(dtype)
    assert mix_logits(theta, ref, 0.0).equal(theta) and mix_logits(theta, ref, 1.0).equal(ref)
    full = torch.promote_types(dtype, torch.float32)
    assert mix_probs(theta, ref, 0.0).equal(theta.to(full).log_softmax(-1).to(dtype))
    assert mix_probs(theta, ref, 1.0).equal(ref.to(full).log_softmax(-1).to(dtype))


@pytest.mark.parametrize("junk", [-INF, math.nan])
@pytest.mark.parametrize("rule", [mix_logits, mix_probs, log_z])
def test_a_member_of_weight_0_does_not_matter(rule, junk):
    theta = rows(6).requires_grad_()
    other = torch.full_like(theta, junk).requires_grad_()
    alone = torch.zeros(()) if rule is log_z else theta if rule is mix_logits else theta.log_softmax(-1)
    for mixed in (rule(theta, other, 0.0), rule(other, theta, 1.0)):
        torch.testing.assert_close(mixed, alone, check_dtype=False, rtol=0, atol=1e-15)
        for gradient in torch.autograd.grad((mixed * torch.arange(6.0)).sum(), [theta, other], allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def test_weight_0_in_the_other_rules():
    expert, junk = rows(6), torch.tensor([-INF, 0, math.nan, 1, -INF, 2], dtype=torch.float64)
    assert dexperts(expert, junk, junk, 0.0).equal(expert)
    assert product_of_experts([junk, expert], [0.0, 1.0]).equal(expert)
    torch.testing.assert_close(contrastive(expert, junk, 0.0, 0.0), expert.log_softmax(-1))


def test_mix_probs_stays_in_log_space():
    theta, ref = torch.tensor([1e4, 0.0, -1e4]), torch.tensor([0.0, 1e4, -2e4])
    expected = [math.log(0.75), math.log(0.25), math.log(0.75) - 2e4]
    torch.testing.assert_close(mix_probs(theta, ref, 0.25), torch.tensor(expected))
    assert mix_logits(theta, ref, 0.25).tolist() == [7500.0, 2500.0, -12500.0]


def kl(p, q):
    return float(np.sum(xlogy(p, p) - xlogy(p, q)))


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_equation_10_against_an_optimiser(alpha):
    theta, ref = rows(2, 5, seed=3).numpy()

    def objective(free):
        pi = softmax(free)
        return (1 - alpha) * kl(pi, softmax(theta)) + alpha * kl(pi, softmax(ref))

    found = minimize(objective, np.zeros(5), method="BFGS", options={"gtol": 1e-9})
    theta, ref = torch.tensor(theta), torch.tensor(ref)
    np.testing.assert_allclose(softmax(found.x), mix_logits(theta, ref, alpha).softmax(-1), atol=1e-5)
    assert found.fun == pytest.approx(-log_z(theta, ref, alpha).item(), abs=1e-9)
    best = mix_logits(theta, ref, alpha).log_softmax(-1)
    assert barycenter_objective(best, theta, ref, alpha).item() == pytest.approx(found.fun, abs=1e-9)
    for seed in range(5):
        free = rows(5, seed=seed + 10)
        got = barycenter_objective(free.log_softmax(-1), theta, ref, alpha).item()
        assert got == pytest.approx(objective(free.numpy()), rel=1e-12) and got > found.fun


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_log_z_is_negative_unless_equal(alpha, dtype):
    theta, ref = rows(2, 8, 6, seed=4).to(dtype)
    logs = [log_softmax(x.double().numpy(), axis=-1) for x in (theta, ref)]
    expected = np.log(np.exp((1 - alpha) * logs[0] + alpha * logs[1]).sum(-1))
    got = log_z(theta, ref, alpha)
    assert got.dtype == dtype and (got < 0).all()
    np.testing.assert_allclose(got.double(), expected, rtol=EPS[dtype], atol=1e-6)
    torch.testing.assert_close(log_z(theta, theta, alpha), torch.zeros(8, dtype=dtype), rtol=0, atol=1e-6)
    padded = torch.cat([ref, torch.full((8, 7), 50.0, dtype=dtype)], -1)
    assert log_z(theta, padded, alpha).equal(got)


def test_equation_10_with_masked_and_padded_tokens():
    logits = torch.tensor([[0, -INF, 0, -INF], [math.log(3.0), 0, -INF, -INF]], dtype=torch.float64).requires_grad_()
    value = log_z(*logits, 0.5)  # pi_theta = (1/2, 0, 1/2), pi_ref = (3/4, 1/4, 0): they share the first token
    assert value.item() == pytest.approx(0.5 * math.log(3 / 8))
    only = torch.tensor([0, -INF, -INF, -INF], dtype=torch.float64).requires_grad_()
    objective = barycenter_objective(only, *logits, 0.5)
    assert objective.item() == pytest.approx(-value.item())
    assert all(g.isfinite().all() for g in torch.autograd.grad(objective + value, [logits, only]))
    assert barycenter_objective(torch.full((4,), math.log(0.25)), *logits, 0.5).item() == INF
    padded = torch.cat([logits[1], torch.ones(7)])
    assert barycenter_objective(only, logits[0], padded, 0.5).item() == pytest.approx(objective.item())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: mix_logits(x, x, -0.01), "alpha"),
        (lambda x: mix_probs(x, x, 1.01), "alpha"),
        (lambda x: log_z(x, x, math.nan), "alpha"),
        (lambda x: barycenter_objective(x, x, x, 2), "alpha"),
        (lambda x: pair_weights(-1), "alpha"),
        (lambda x: product_of_experts([x, x], [1.0]), "2 members need as many weights, got 1"),
        (lambda x: mean_of_probs([x, x], [1.0]), "2 members need as many weights, got 1"),
        (lambda x: mean_of_probs([x, x], [0.5, 0.6]), "sum to 1"),
        (lambda x: mean_of_probs([x, x], [1.5, -0.5]), "nonnegative"),
        (lambda x: product_of_experts([x, x], [0.0, 0.0]), "every weight is 0"),
        (lambda x: contrastive(x, x, plausibility=1.5), "plausibility"),
        (lambda x: RULES["contrastive"]([x, x], (1.0, 0.5)), "expert and an amateur"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3))


def test_each_rule_of_two_has_its_oracle():
    others = {"contrastive", "kl-budget"}  # of weights (1, -gamma); in test_relatives.py
    assert set(oracles.PAIR_RULES) == set(RULES) - others
    theta, ref = rows(2, 4, 9)
    for rule in oracles.PAIR_RULES:
        found = RULES[rule]([theta, ref], (0.3, 0.7)).log_softmax(-1)
        torch.testing.assert_close(found, oracles.mixed(rule, [theta, ref], (0.3, 0.7)), atol=1e-12, rtol=0)
