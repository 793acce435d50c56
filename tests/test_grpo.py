"""GRPO pieces against hand-computed numbers, enumeration of small vocabularies, loops in numpy, finite differences."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from logitmix_lite.fast.logprobs import token_distributions, token_logprobs
from logitmix_lite.grpo import group_advantages, grpo_loss, kl_k3, sequence_mean

NAN, INF = math.nan, math.inf


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged(lengths, width):
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


@pytest.mark.parametrize("eps", [1e-4, 1e-6, 0.5])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.float64])
def test_advantages_against_numpy(dtype, eps):
    rewards = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [0, 1, 1, 0]], dtype=dtype)
    centred = rewards.double().numpy() - np.array([[1 / 4], [3 / 4], [1 / 2]])
    expected = centred / (np.sqrt((centred**2).sum(1, keepdims=True) / 4) + eps)  # by 4, not 3
    got = group_advantages(rewards, eps)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1 * 3, 0.7, 1 / 3, -0.1])
def test_equal_rewards_teach_exactly_nothing(reward, dtype):
    for size in range(1, 17):
        assert not group_advantages(torch.full((2, size), reward, dtype=dtype), eps=1e-12).any()
    assert group_advantages(torch.tensor([[0.1 * 3, 0.3]], dtype=torch.float64)).abs().max() < 1e-9  # unequal by an ulp


@pytest.mark.parametrize(
    "ratio, advantage, surrogate, slope",  # slope: d surrogate / d logp = ratio * advantage where not clipped, else 0
    [
        (1.5, 1.0, 1.2, 0.0),  # good token, already pushed up enough
        (0.5, 1.0, 0.5, 0.5),  # good token that got rarer: no clip may stand in the way back
        (1.5, -1.0, -1.5, -1.5),  # bad token that got likelier: likewise
        (0.5, -1.0, -0.8, 0.0),  # bad token, already pushed down enough
        (1.1, 2.0, 2.2, 2.2),
        (0.9, -2.0, -1.8, -1.8),
        (1.0, 3.0, 3.0, 3.0),  # theta = theta_old: the policy gradient
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clip_in_every_quadrant(ratio, advantage, surrogate, slope):
    old = torch.tensor([[-1.3]], dtype=torch.float64)
    logp = (old + math.log(ratio)).requires_grad_()
    loss = grpo_loss(logp, old, torch.tensor([advantage], dtype=torch.float64), torch.ones(1, 1), clip=0.2)
    assert loss.item() == pytest.approx(-surrogate) and grad(loss, logp)[0].item() == pytest.approx(-slope)


@pytest.fixture
def batch():
    """Six ragged completions, the last without tokens; ratios in and beyond the clip range, none on its edge."""
    logp = randn(6, 7)
    old = logp - randn(6, 7, seed=1, scale=0.4)
    ratio = (logp - old).exp()
    assert min((ratio - edge).abs().min() for edge in (0.8, 1.2)) > 1e-3 and ratio.min() < 0.8 and ratio.max() > 1.2
    return logp, old, randn(6, seed=2), ragged([7, 3, 1, 5, 6, 0], 7)


@pytest.mark.parametrize("clip", [0.2, 10.0])
def test_loss_against_a_loop_over_tokens(batch, clip):
    logp, old, advantages, mask = (x.numpy() for x in batch)
    losses = np.zeros((6, 7))  # as TRL's loss_type "grpo" writes it
    for i, t in itertools.product(range(6), range(7)):
        coef_1 = np.exp(logp[i, t] - old[i, t])
        coef_2 = np.clip(coef_1, 1 - clip, 1 + clip)
        losses[i, t] = -min(coef_1 * advantages[i], coef_2 * advantages[i])
    expected = ((losses * mask).sum(-1) / mask.sum(-1).clip(min=1)).mean()
    assert grpo_loss(*batch, clip).item() == pytest.approx(expected, rel=1e-12)
    assert gradcheck(lambda x: grpo_loss(x, *batch[1:], clip), batch[0].requires_grad_())


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("junk, old_junk", [(-INF, -INF), (NAN, 0.0), (0.0, NAN), (1e4, -1e4), (-INF, INF)])
def test_padding_may_hold_anything(batch, junk, old_junk, mask_dtype):
    logp, old, advantages, mask = batch
    results = []
    for fill, old_fill in ((0.0, 0.0), (junk, old_junk)):
        leaf = logp.masked_fill(mask == 0, fill).requires_grad_()
        loss = grpo_loss(leaf, old.masked_fill(mask == 0, old_fill), advantages, mask.to(mask_dtype))
        results.append((loss, *grad(loss, leaf)))
    assert all(x.isfinite().all() and x.equal(y) for x, y in zip(*results, strict=True))


def test_microbatches_weighted_by_size_are_the_batch(batch):
    logp = batch[0].requires_grad_()
    whole = grpo_loss(logp, *batch[1:])
    for size in (1, 2, 4):
        parts = sum(grpo_loss(*rows) * len(rows[0]) / 6 for rows in zip(*(x.split(size) for x in batch), strict=True))
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
        torch.testing.assert_close(grad(parts, logp), grad(whole, logp, retain_graph=True), rtol=1e-12, atol=1e-15)


def test_the_end_token_is_trained_though_padding_looks_the_same(batch):
    end = 2  # pad id == end id; only the mask tells the first end token from the padding after it
    tokens = torch.tensor([[5, 4, end, end, end], [end, end, end, end, end], [3, 3, 3, 3, 3]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    logits = randn(3, 5, 6).requires_grad_()
    logp = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    loss = grpo_loss(logp, logp.detach(), torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64), mask)
    share = -torch.tensor([[1 / 3] * 3 + [0] * 2, [-1, 0, 0, 0, 0], [2 / 5] * 5], dtype=torch.float64) / 3
    onehot = torch.nn.functional.one_hot(tokens, 6)
    torch.testing.assert_close(grad(loss, logits)[0], share[..., None] * (onehot - logits.softmax(-1)).detach())
    values = tokens.double().masked_fill(mask == 0, NAN)
    assert sequence_mean(values, mask).tolist() == pytest.approx([11 / 3, 2, 3])


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_expected_gradient_on_policy_is_the_policy_gradient(alpha):
    """All 9 completions of 2 tokens out of 3; the policy has one row of logits at the start, and one after each."""
    theta, ref, returns = randn(4, 3).requires_grad_(), randn(4, 3, seed=1), randn(3, 3, seed=2)
    table = ((1 - alpha) * theta + alpha * ref).log_softmax(-1)
    p = table.exp()
    objective = (p[0][:, None] * p[1:] * returns).sum()  # E[R], differentiated through the probabilities
    expected = torch.zeros_like(theta)
    for a, b in itertools.product(range(3), range(3)):
        logp = torch.stack([table[0, a], table[1 + a, b]])[None]
        loss = grpo_loss(logp, logp.detach(), returns[a, b][None], torch.ones(1, 2))
        expected += logp.detach().sum().exp() * grad(loss, theta, retain_graph=True)[0]
    torch.testing.assert_close(expected, -grad(objective, theta)[0] / 2)  # 2 = |o|; the loss is minimised
    assert expected.abs().max() > 0.01


def test_k3_facts_by_enumeration():
    logits, ref = randn(5).requires_grad_(), randn(5, seed=1).log_softmax(-1)
    logp = logits.log_softmax(-1)
    p, q = logp.detach().exp(), ref.exp()
    forward, reverse = (logp.exp() * (logp - ref)).sum(), (q * (ref - logp)).sum()  # KL(pi || ref), KL(ref || pi)
    assert forward.item() != pytest.approx(reverse.item(), rel=0.05)
    k3 = kl_k3(logp, ref)
    assert (k3 > 0).all() and (p * k3).sum().item() == pytest.approx(forward.item())
    plain, weighted = (p * k3).sum(), (p * (logp - logp.detach()).exp() * k3).sum()
    for loss, divergence in ((plain, reverse), (weighted, forward)):
        torch.testing.assert_close(*(grad(x, logits, retain_graph=True)[0] for x in (loss, divergence)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_is_accurate_and_nonnegative_where_policies_nearly_agree(dtype):
    difference = torch.cat([10.0 ** -torch.arange(1.0, 9), -(10.0 ** -torch.arange(1.0, 9)), torch.zeros(1)]).to(dtype)
    got = kl_k3(torch.zeros_like(difference), difference)
    series = sum(difference.double() ** n / math.factorial(n) for n in range(2, 12))
    assert (got >= 0).all()
    torch.testing.assert_close(got.double(), series, rtol=0.01, atol=torch.finfo(dtype).eps * 1e-3)


@pytest.mark.parametrize("junk", [0.0, -30.0, 30.0])
def test_k3_of_padding_is_dropped(junk):
    mask = ragged([3, 1, 0], 3)
    logp = randn(3, 3).masked_fill(mask == 0, junk).requires_grad_()
    means = sequence_mean(kl_k3(logp, randn(3, 3, seed=1)), mask)
    k3 = kl_k3(logp, randn(3, 3, seed=1)).detach()
    assert means.tolist() == pytest.approx([k3[0].mean().item(), k3[1, 0].item(), 0.0])
    assert grad(means.sum(), logp)[0].ne(0).equal(mask == 1)


N, V, D = 7, 6, 3


def problem(grads=(True, True)):
    hidden, weight = randn(N, D), randn(V, D, seed=1)
    tokens = torch.tensor([0, 5, 3, 3, 3, 0, 1])  # with repeats
    return hidden.requires_grad_(grads[0]), weight.requires_grad_(grads[1]), tokens


def naive(hidden, weight, tokens):
    return (hidden @ weight.T).log_softmax(-1)[torch.arange(len(tokens)), tokens]


@pytest.mark.parametrize("chunk", [None, 1, 3, N + 5])
@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, True)])
def test_token_logprobs(chunk, grads):
    hidden, weight, tokens = problem(grads)
    logps = token_logprobs(hidden, weight, tokens, chunk)
    torch.testing.assert_close(logps, naive(hidden, weight, tokens), rtol=1e-12, atol=1e-12)
    upstream = randn(N, seed=2)  # a different weight on each row
    assert gradcheck(lambda h, w: (token_logprobs(h, w, tokens, chunk) * upstream).sin().sum(), (hidden, weight))
    (logps * upstream).sum().backward()
    assert (hidden.grad is not None, weight.grad is not None) == grads


@pytest.mark.parametrize("chunk", [None, 1, 3, N + 5])
def test_token_distributions_against_loops(chunk):
    hidden, weight, tokens = problem()
    ref_hidden = (hidden.detach() + randn(*hidden.shape, seed=5, scale=0.3)).requires_grad_()
    found = token_distributions(hidden, weight, tokens, ref_hidden, chunk)
    for n, (logp, entropy, kl) in enumerate(zip(*found, strict=True)):
        p, q = (np.exp((weight @ h[n]).detach().numpy()) for h in (hidden, ref_hidden))
        p, q = p / p.sum(), q / q.sum()
        assert logp.item() == pytest.approx(math.log(p[tokens[n]]), rel=1e-12)
        assert entropy.item() == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-12)
        assert kl.item() == pytest.approx(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)), rel=1e-10)
    upstream = randn(3, N, seed=2)

    def total(hidden, weight, ref_hidden):
        return (torch.stack(token_distributions(hidden, weight, tokens, ref_hidden, chunk)) * upstream).sin().sum()

    assert gradcheck(total, (hidden, weight, ref_hidden))


def test_a_second_derivative_is_refused_instead_of_wrong():
    hidden, weight, tokens = problem()
    (first,) = grad(token_logprobs(hidden, weight, tokens).square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_full(dtype):
    tokens, upstream = torch.arange(1024) % 50, randn(1024, seed=3).abs()
    values, results = (randn(1024, 16).to(dtype), randn(50, 16, seed=1, scale=0.3).to(dtype)), []
    for score, precision in ((partial(token_logprobs, chunk=4), dtype), (naive, torch.float64)):
        hidden, weight = (x.to(precision).requires_grad_() for x in values)
        logps = score(hidden, weight, tokens)  # many chunks: their sum must not lose the small ones
        assert logps.dtype == torch.promote_types(precision, torch.float32)
        results.append([x.double() for x in (logps, *grad((logps * upstream).sum(), [hidden, weight]))])
    for got, exact in zip(*results, strict=True):
        assert (got - exact).norm() < 1.5 * torch.finfo(dtype).eps * exact.norm()


class Largest(TorchDispatchMode):
    """Records the most numbers in any one tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            self.numel = max(self.numel, x.numel() if isinstance(x, torch.Tensor) else 0)
        return result


def distributions(hidden, weight, tokens):
    return sum(token_distributions(hidden, weight, tokens, hidden.detach() + 1, chunk=64))


@pytest.mark.parametrize(
    "function, small", [(partial(token_logprobs, chunk=64), True), (distributions, True), (naive, False)]
)
def test_logits_are_never_held_whole(function, small):
    rows, vocabulary = 4096, 1000
    hidden, weight = randn(rows, 16).requires_grad_(), randn(vocabulary, 16).requires_grad_()
    with Largest() as largest:
        logps = function(hidden, weight, torch.arange(rows) % vocabulary)
        forward, largest.numel = largest.numel, 0
        logps.sum().backward()
    for numel in (forward, largest.numel):
        assert numel < rows * vocabulary / 8 if small else numel >= rows * vocabulary  # the naive way shows it measures
