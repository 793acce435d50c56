"""Laws that hold for any input: mixing, advantages, masks and log-probs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitmix_lite import grpo_loss, kl_k3, mix_logits, mix_probs, product_of_experts, token_logprobs
from logitmix_lite.fast.rows import pad_rows, token_batches
from logitmix_lite.grpo import group_advantages, sequence_mean
from logitmix_lite.mixing import log_z
from logitmix_lite.mixture import positions
from logitmix_lite.rollout import sample

quick = settings(deadline=None, max_examples=60)
number = st.floats(-50, 50, width=32)
share = st.floats(0, 1)
masked = st.one_of(number, st.just(-math.inf))


@st.composite
def pairs(draw, entry=number, least=2):
    """Logits of two members over one vocabulary."""
    size = draw(st.integers(least, 9))
    return [torch.tensor(draw(st.lists(entry, min_size=size, max_size=size)), dtype=torch.float64) for _ in range(2)]


@quick
@given(pairs(), share, number)
def test_a_mixture_does_not_care_for_constants_or_order(logits, alpha, constant):
    theta, ref = logits
    for mix in (mix_logits, mix_probs):
        policy = mix(theta, ref, alpha).softmax(-1)
        torch.testing.assert_close(mix(theta + constant, ref, alpha).softmax(-1), policy, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(mix(ref, theta, 1 - alpha).softmax(-1), policy, atol=1e-9, rtol=1e-6)
        assert policy.sum().item() == pytest.approx(1)


@quick
@given(pairs(masked), share)
def test_masks_never_become_nan_and_never_come_back(logits, alpha):
    theta, ref = logits
    theta[0] = ref[0] = 0.0  # each can say something
    either = (theta == -math.inf) & (alpha < 1) | (ref == -math.inf) & (alpha > 0)
    both = ((theta == -math.inf) | (alpha == 1)) & ((ref == -math.inf) | (alpha == 0))
    product, mean = mix_logits(theta, ref, alpha), mix_probs(theta, ref, alpha)
    assert not product.isnan().any() and not mean.isnan().any()
    assert (product == -math.inf).equal(either) and (mean == -math.inf).equal(both)


@quick
@given(pairs(), share)
def test_the_product_gives_no_token_more_than_the_most_generous_member(logits, alpha):
    """pi_mix = pi_theta^(1-alpha) pi_ref^alpha / Z with Z <= 1, and log Z is minus the least price of disagreeing."""
    theta, ref = (x.log_softmax(-1) for x in logits)
    assert log_z(theta, ref, alpha).item() <= 1e-9
    found = mix_logits(theta, ref, alpha).log_softmax(-1)
    assert (found <= torch.maximum(theta, ref) - log_z(theta, ref, alpha) + 1e-9).all()


@quick
@given(st.integers(1, 5), st.integers(2, 8), st.data())
def test_weights_add_up(members, size, data):
    logits = [torch.tensor(data.draw(st.lists(number, min_size=size, max_size=size))) for _ in range(members)]
    weights = data.draw(st.lists(st.floats(-2, 2, width=32), min_size=members, max_size=members))
    if any(weights):
        expected = sum(w * x.double() for w, x in zip(weights, logits, strict=True))
        torch.testing.assert_close(product_of_experts(logits, weights).double(), expected, atol=1e-3, rtol=1e-5)


@quick
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=4, max_size=4), min_size=1, max_size=4), number)
def test_advantages_compare_within_a_group(rewards, constant):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    found = group_advantages(rewards)
    torch.testing.assert_close(found.sum(-1), torch.zeros(len(rewards), dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(group_advantages(rewards + constant), found, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(group_advantages(rewards.flip(-1)), found.flip(-1))
    equal = (rewards == rewards[:, :1]).all(-1)
    assert (found[equal] == 0).all() and (found[~equal].abs().amax(-1) > 0).all()


@st.composite
def completions(draw):
    """Log-probs now and before, advantages, and a mask of at least one token a row."""
    count, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, width), min_size=count, max_size=count))
    row = st.lists(st.floats(-5, 0, width=32), min_size=width, max_size=width)
    logp, old = (torch.tensor([draw(row) for _ in lengths], dtype=torch.float64) for _ in range(2))
    advantages = torch.tensor([draw(st.floats(-2, 2, width=32)) for _ in lengths], dtype=torch.float64)
    return logp, old, advantages, (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


@quick
@given(completions(), st.floats(0, 0.9))
def test_the_loss_is_that_of_a_loop_and_padding_may_hold_anything(batch, clip):
    logp, old, advantages, mask = batch
    total = 0.0
    for row in range(len(mask)):
        terms = []
        for t in range(int(mask[row].sum())):
            rho = math.exp(logp[row, t] - old[row, t])
            terms.append(min(rho * advantages[row], min(max(rho, 1 - clip), 1 + clip) * advantages[row]).item())
        total -= sum(terms) / len(terms) / len(mask)
    assert grpo_loss(logp, old, advantages, mask, clip).item() == pytest.approx(total, abs=1e-9)
    for junk in (math.inf, -math.inf, math.nan):
        spoilt = (x.masked_fill(mask == 0, junk) for x in (logp, old))
        assert grpo_loss(*spoilt, advantages, mask, clip).item() == pytest.approx(total, abs=1e-9)


@quick
@given(completions())
def test_k3_is_never_negative_and_zero_where_the_policies_agree(batch):
    logp, ref, _, mask = batch
    assert (kl_k3(logp, ref) >= 0).all() and (kl_k3(logp, logp) == 0).all()
    assert (sequence_mean(kl_k3(logp, ref), mask) >= 0).all()


@quick
@given(st.integers(1, 7), st.integers(1, 5), st.integers(2, 9), st.integers(1, 8), st.integers(0, 99))
def test_log_probs_in_chunks_are_those_of_a_softmax(rows, width, size, chunk, seed):
    torch.manual_seed(seed)
    hidden, weight = (torch.randn(count, width).double().requires_grad_() for count in (rows, size))
    tokens, upstream = torch.randint(size, (rows,)), torch.randn(rows).double()
    ours = token_logprobs(hidden, weight, tokens, chunk)
    theirs = (hidden @ weight.T).log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(*(torch.autograd.grad(x @ upstream, [hidden, weight]) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other)


@quick
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5), st.booleans())
def test_padding_keeps_every_token_and_positions_count_from_the_first(texts, left):
    ids, mask = pad_rows(texts, 0, left)
    for text, row, real, place in zip(texts, ids, mask.bool(), positions(mask), strict=True):
        assert row[real].tolist() == text and (row[~real] == 0).all()
        assert place[real].tolist() == list(range(len(text)))


@quick
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 40))
def test_batches_hold_each_row_once_within_their_tokens(lengths, budget):
    batches = token_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[row] for row in batch) <= budget or len(batch) == 1 for batch in batches)


@quick
@given(st.lists(masked, min_size=2, max_size=8), st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, 2.0]))
def test_a_masked_token_is_never_drawn(logits, uniform, temperature):
    logits[0] = 0.0
    token, logp = sample(torch.tensor([logits]), temperature, torch.tensor([uniform], dtype=torch.float64))
    assert logits[token.item()] > -math.inf and logp.isfinite().all()
