"""Rollouts against exact probabilities, against `generate`, and against a loop without caches or batches."""

import sys
from inspect import signature

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, make_lora_pair, make_mixture, make_model
from oracles import PAIR_RULES, mixed
from scipy.stats import chisquare
from transformers.cache_utils import DynamicLayer

from logitmix_lite.fast.cache import BufferLayer, MixtureCache
from logitmix_lite.fast.decode import GraphDecoder
from logitmix_lite.fast.rows import pad_rows, token_batches
from logitmix_lite.hf import Mixture
from logitmix_lite.mixing import pair_weights
from logitmix_lite.rollout import completion_logprobs, rollout, sample

PROMPTS = [[5, 7, 9, 11, 3], [8, 2], [4, 4, 6]]
KINDS = ["pair", "lora", "late"]
EOS, ENDS = 1, [1, 4, 9, 17, 21]


def rescore(mixture, rollouts, **kwargs):
    """What the training pass makes of the rollouts."""
    prompts = rollouts.prompt_ids, rollouts.prompt_mask
    return completion_logprobs(mixture, *prompts, rollouts.completions, rollouts.mask, **kwargs)


def texts(rollouts):
    return [tuple(row[keep].tolist()) for row, keep in zip(rollouts.completions, rollouts.mask.bool(), strict=True)]


def members_of(kind):
    """theta and ref, in float64."""
    if kind == "pair":
        return [make_model(seed=seed, vocab=4).double() for seed in (0, 1)]
    theta, ref = (make_lora_pair(vocab=4, blocks=[1] if kind == "late" else None).double() for _ in range(2))
    theta.set_adapter("theta")
    ref.set_adapter("ref")
    return [theta, ref]


@torch.no_grad()
def enumerate_completions(members, rule, temperature, prompt, length=3):
    """The probability of every completion: up to EOS, or of the full length."""
    open_, finished = {(): 1.0}, {}
    for _ in range(length):
        ids = torch.tensor([[*prompt, *text] for text in open_])
        logits = [member(ids, use_cache=False).logits[:, -1] for member in members]
        probs = (mixed(rule, logits, (0.6, 0.4)) / temperature).softmax(-1).tolist()
        rows = zip(open_.items(), probs, strict=True)
        grown = {(*text, token): p * q for (text, p), row in rows for token, q in enumerate(row)}
        finished |= {text: p for text, p in grown.items() if text[-1] == EOS}
        open_ = {text: p for text, p in grown.items() if text[-1] != EOS}
    return finished | open_


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rule", PAIR_RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_exact_distribution(kind, rule, temperature):
    mixture = make_mixture(kind, [0.6, 0.4], rule, vocab=4)
    prompts, samples = [[2, 3, 0, 2], [3]], 4000
    rollouts = rollout(mixture, prompts, samples=samples, max_new_tokens=3, temperature=temperature, seed=1)
    scored = rescore(mixture, rollouts, temperature=temperature)
    drawn, summed, rescored = texts(rollouts), rollouts.logps.sum(-1), scored.sum(-1)
    for k, prompt in enumerate(prompts):
        exact = enumerate_completions(members_of(kind), rule, temperature, prompt)
        assert len(exact) == 40 and sum(exact.values()) == pytest.approx(1, abs=1e-9)
        rows = slice(k * samples, (k + 1) * samples)
        expected = torch.tensor([exact[text] for text in drawn[rows]]).log()
        torch.testing.assert_close(summed[rows], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(rescored[rows].detach(), expected, atol=1e-4, rtol=0)
        counts = np.array([drawn[rows].count(text) for text in exact])
        means = np.array(list(exact.values())) * samples
        rare = means < 8  # chi-square needs several of each: the rare ones count as one
        counts, means = (np.array([*x[~rare], x[rare].sum()]) for x in (counts, means))
        assert len(means) > 8 and chisquare(counts, means * samples / means.sum()).pvalue > 0.001


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_equals_generate(arch):
    ids, mask = pad_rows(PROMPTS, 0, left=True)
    for model in (make_model(arch), make_mixture(arch=arch), make_mixture("lora", arch=arch)):
        expected = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False)
        rollouts = rollout(model, PROMPTS, max_new_tokens=10, temperature=0)
        assert torch.equal(rollouts.completions, expected[:, ids.shape[1] :])
        assert torch.equal(rollouts.prompt_ids, ids) and torch.equal(rollouts.prompt_mask, mask)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_nash_md_of_trl_samples_from_the_same_mixture(alpha):
    """Its logits are ours normalised, and greedy texts are equal; the cache which it must go without mixes keys up."""
    pytest.importorskip("trl.experimental.nash_md", reason="TRL has Nash-MD up to version 1.13")
    from logitmix_lite.lab.bench.peers import nash_mixture

    theta, ref = make_model(seed=0, eos=None), make_model(seed=1, eos=None)
    trl, ours = nash_mixture(theta, ref, alpha), Mixture([theta, ref], pair_weights(alpha)).eval()
    ids, mask = pad_rows(PROMPTS, 0, left=True)
    inputs = dict(input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        torch.testing.assert_close(trl(**inputs, use_cache=False).logits, ours(**inputs).logits.log_softmax(-1))
    expected = rollout(ours, PROMPTS, max_new_tokens=10, temperature=0, eos=[], pad=0).completions
    greedy = dict(do_sample=False, max_new_tokens=10, pad_token_id=0)
    assert torch.equal(trl.generate(**inputs, **greedy)[:, ids.shape[1] :], expected)
    assert not torch.equal(trl.generate(**inputs, **greedy, use_cache=True)[:, ids.shape[1] :], expected)


@pytest.mark.parametrize("rule", PAIR_RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_a_loop_without_caches_or_batches(kind, rule, monkeypatch):
    """Rows that leave change nothing for the others; every prompt is prefilled once, a repeated one too."""
    mixture, prompts, samples, length = make_mixture(kind, rule=rule, eos=ENDS), [*PROMPTS, PROMPTS[1]], 6, 12
    batches, left, hidden, select = [], [], mixture.hidden, MixtureCache.select
    monkeypatch.setattr(mixture, "hidden", lambda ids, *args: batches.append(ids.shape) or hidden(ids, *args))
    monkeypatch.setattr(MixtureCache, "select", lambda cache, rows: left.append(len(rows)) or select(cache, rows))
    rollouts = rollout(mixture, prompts, samples=samples, max_new_tokens=length, seed=4)
    monkeypatch.undo()
    assert batches[:2] == [(3, 5), (24, 1)] and all(tokens == 1 for _, tokens in batches[1:])
    assert len(left) >= 2 and left == sorted(left, reverse=True) and batches[-1][0] == left[-1] < 15
    uniform = torch.from_numpy(np.random.default_rng(4).random((24, length)))
    for k, (text, logps) in enumerate(zip(texts(rollouts), rollouts.logps, strict=True)):
        row = list(prompts[k // samples])
        for step in range(len(text)):
            with torch.no_grad():
                logits = mixture(torch.tensor([row]), use_cache=False).logits[:, -1]
            token, logp = sample(logits, 1.0, uniform[[k], step])
            row.append(token.item())
            assert abs(logp - logps[step]) < 1e-4
        assert tuple(row[-len(text) :]) == text


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0])
@pytest.mark.parametrize("rule", PAIR_RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_training_pass_gives_the_logps_of_sampling(kind, rule, temperature):
    mixture = make_mixture(kind, rule=rule, eos=ENDS)
    rollouts = rollout(mixture, PROMPTS, samples=4, max_new_tokens=12, temperature=temperature)
    assert rollouts.mask.sum(-1).unique().numel() > 1  # ragged
    scored = rescore(mixture, rollouts, temperature=temperature)
    assert (scored - rollouts.logps).abs().max() < 1e-4 and (scored[rollouts.mask == 0] == 0).all()
    other = rescore(mixture, rollouts, temperature=1.5)
    assert (other - rollouts.logps).abs().max() > 0.1
    # more padding, on either side, is only padding
    ids, mask = (x.repeat_interleave(4, 0) for x in (rollouts.prompt_ids, rollouts.prompt_mask))
    left = [torch.nn.functional.pad(x, (3, 0)) for x in (ids, mask)]
    right = [torch.nn.functional.pad(x, (0, 2)) for x in (rollouts.completions, rollouts.mask)]
    wider = completion_logprobs(mixture, *left, *right, temperature=temperature)
    torch.testing.assert_close(wider[:, :-2], scored, atol=1e-5, rtol=0)
    assert wider.shape[1] == scored.shape[1] + 2 and (wider[:, -2:] == 0).all()


@pytest.mark.parametrize("pad", [0, "eos"])
@pytest.mark.parametrize("places", [(0,), (4,), (), (2, 6), (0, 3)])
def test_a_completion_ends_with_its_first_end_token(places, pad):
    """Places: of the end tokens in the first row; they end the other rows wherever those have them."""
    model, settings = make_model(), dict(samples=5, max_new_tokens=8, seed=2)
    free = rollout(model, PROMPTS, eos=[], **settings)
    assert free.truncated.all() and free.mask.all() and free.completions.shape == (15, 8)
    eos = [free.completions[0, place].item() for place in places] or [1]
    pad = eos[0] if pad == "eos" else pad
    rollouts = rollout(model, PROMPTS, eos=eos[0] if len(eos) == 1 else eos, pad=pad, **settings)
    width = rollouts.mask.shape[1]
    lengths = rollouts.mask.sum(-1).tolist()
    assert width == max(lengths)
    for k, row in enumerate(free.completions.tolist()):
        length = next((place + 1 for place, token in enumerate(row) if token in eos), 8)
        assert rollouts.mask[k].tolist() == [1] * length + [0] * (width - length)
        assert rollouts.completions[k].tolist() == row[:length] + [pad] * (width - length)
        torch.testing.assert_close(rollouts.logps[k, :length], free.logps[k, :length], atol=1e-5, rtol=0)
        assert (rollouts.logps[k, length:] == 0).all()
        assert rollouts.truncated[k] == (row[length - 1] not in eos)
    assert not places or lengths[0] <= places[0] + 1


def test_end_tokens_default_to_the_models_own():
    named = rollout(make_model(), PROMPTS, samples=8, max_new_tokens=9, eos=ENDS)
    assert texts(rollout(make_model(eos=ENDS), PROMPTS, samples=8, max_new_tokens=9)) == texts(named)
    assert named.truncated.any() and not named.truncated.all()


def test_the_seed_and_the_place_decide_the_sample():
    def run(prompts, seed):
        return texts(rollout(make_model(), prompts, samples=6, max_new_tokens=8, seed=seed))

    first = run(PROMPTS, 5)
    assert run(PROMPTS, 5) == first and run(PROMPTS[:2], 5) == first[:12] and len(set(first)) > 9
    assert run(PROMPTS, 6) != first and run(PROMPTS, [5, 1]) != run(PROMPTS, [5, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0])
def test_sample_never_picks_a_masked_token(temperature, dtype):
    logits = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:, [0, 1, 5, 11]] = -torch.inf
    for uniform in (0.0, 1 - 2**-53):
        tokens, logps = sample(logits, temperature, torch.full((500,), uniform, dtype=torch.float64))
        assert logps.isfinite().all() and logits.gather(-1, tokens[:, None]).isfinite().all()
        if temperature == 1.0:
            assert (tokens == (2 if uniform == 0 else 10)).all()


def test_buffer_layer_equals_dynamic_layer():
    plain, rows = DynamicLayer(), torch.tensor([0, 0, 1, 2, 2])
    # one query, which transformers named by its place before it counted them
    one = torch.zeros(1) if "cache_position" in signature(plain.get_mask_sizes).parameters else 1
    plain.update(*torch.randn(2, 3, 2, 4, 4))
    buffers = BufferLayer(plain, rows, room=5)
    plain.batch_select_indices(rows)
    for keep in (None, torch.tensor([4, 0, 2]), torch.tensor([1]), torch.tensor([0])):
        if keep is not None:
            plain.batch_select_indices(keep)
            buffers.batch_select_indices(keep)
            assert torch.equal(buffers.keys, plain.keys) and torch.equal(buffers.values, plain.values)
        new = torch.randn(2, len(plain.keys), 2, 1, 4)
        for ours, theirs in zip(buffers.update(*new), plain.update(*new), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(buffers.keys, plain.keys) and buffers.get_seq_length() == plain.get_seq_length()
        assert buffers.get_mask_sizes(one) == plain.get_mask_sizes(one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_steps_of_equal_shapes_give_the_same_rollouts(arch, kind, monkeypatch):
    """What a GPU records and replays, here without recording: rows end early and leave, prompts are padded."""
    mixture, made = make_mixture(kind, arch=arch), []

    class Replayed(GraphDecoder):
        def __init__(self, mixture, cache, *args):
            assert self.fits(mixture, cache)
            super().__init__(mixture, cache, *args, record=False)
            made.append(self.seen.shape)

        def step(self):
            super().step()
            made.append(self.seen.shape)

    settings = dict(samples=6, max_new_tokens=12, seed=3, eos=ENDS, keep=True)
    usual = rollout(mixture, PROMPTS, **settings)
    monkeypatch.setattr(sys.modules[rollout.__module__], "Decoder", Replayed)
    ours = rollout(mixture, PROMPTS, **settings)
    assert torch.equal(ours.completions, usual.completions) and len({len(shape) for shape in made}) == 1
    assert {width for _, width in made} == {5 + 12} and len({rows for rows, _ in made}) > 1  # one width; rows left
    torch.testing.assert_close(ours.logps, usual.logps, atol=1e-4, rtol=1e-4)
    for one, other in zip(ours.kept, usual.kept, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_gives_the_same_rollouts(kind, monkeypatch):
    mixture = make_mixture(kind).cuda()
    settings = dict(samples=6, max_new_tokens=12, seed=3, eos=ENDS)
    replayed = rollout(mixture, PROMPTS, **settings)
    monkeypatch.setattr(GraphDecoder, "fits", lambda *_: False)
    usual = rollout(mixture, PROMPTS, **settings)
    assert torch.equal(replayed.completions, usual.completions)
    torch.testing.assert_close(replayed.logps, usual.logps, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rule", PAIR_RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shared_prompts_give_the_gradient_of_whole_sequences(arch, kind, rule, recompute):
    """Log-probs and theta's gradient, prompts run once, against each sequence run alone, whole, without caches."""
    mixture = make_mixture(kind, rule=rule, arch=arch)
    rollouts = rollout(mixture, PROMPTS, samples=3, max_new_tokens=9, seed=1, eos=ENDS)
    rows = torch.tensor([8, 1, 2, 0, 7])  # an uneven choice, which leaves out one prompt
    weights = torch.randn(rollouts.mask.shape, generator=torch.Generator().manual_seed(0))
    mark = "members.0" if kind == "pair" else ".theta."
    theta = [p for name, p in mixture.named_parameters() if mark in name]
    whole = torch.zeros(rollouts.mask.shape)
    for row in rows.tolist():
        prompt, text = PROMPTS[row // 3], texts(rollouts)[row]
        hidden = mixture.hidden(torch.tensor([[*prompt, *text]]))
        logp = mixture.combine([h[:, len(prompt) - 1 : -1] for h in hidden]).log_softmax(-1)[0]
        whole[row, : len(text)] = logp.gather(-1, torch.tensor(text)[:, None]).squeeze(-1)
    expected = torch.autograd.grad((whole * weights).sum(), theta, allow_unused=True)
    if recompute:
        mixture.gradient_checkpointing_enable()
    prompts = rollouts.prompt_ids[[0, 2]], rollouts.prompt_mask[[0, 2]]
    batch = rollouts.completions[rows], rollouts.mask[rows]
    shared = completion_logprobs(mixture, *prompts, *batch, prompt_of=torch.tensor([1, 0, 0, 0, 1]))
    torch.testing.assert_close(shared, whole[rows], atol=1e-4, rtol=0)
    found = torch.autograd.grad((shared * weights[rows]).sum(), theta, allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("prompts", "match"),
    [([[2] * 57], "57 tokens"), ([], "one prompt"), ([[2], []], "one token"), ([[2]], "temperature")],
)
def test_bad_input(prompts, match):
    with pytest.raises(ValueError, match=match):
        rollout(make_model(), prompts, max_new_tokens=8, temperature=-0.5 if match == "temperature" else 1.0)
    assert len(rollout(make_model(), [[2] * 56], max_new_tokens=8).completions) == 1  # fits the context of 64 exactly


@pytest.mark.parametrize("weights", [(0.6, 0.4), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("rule", PAIR_RULES)
@pytest.mark.parametrize("kind", ["pair", "lora", "bare"])
def test_kept_states_replace_a_second_pass_of_ref(kind, rule, weights, monkeypatch):
    """Same log-probs and same gradient, and the frozen member is not run again."""
    mixture = make_mixture(kind, weights, rule)
    rollouts = rollout(mixture, PROMPTS, samples=3, max_new_tokens=9, seed=1, keep=True)
    assert len(rollouts.kept) == (weights[1] > 0)
    parameters = [p for p in mixture.parameters() if p.requires_grad]

    def gradients(logp):
        if not logp.requires_grad:
            return []
        return torch.autograd.grad(logp.exp().sum(), parameters, allow_unused=True, materialize_grads=True)

    plain = rescore(mixture, rollouts)
    expected = gradients(plain)
    run, body = [], mixture.body
    monkeypatch.setattr(mixture, "body", lambda k, *args: (run.append(k), body(k, *args))[1])
    kept = rescore(mixture, rollouts, kept=rollouts.kept)
    assert run == [0, 0] * (weights[0] > 0)  # the prompts, then their completions
    torch.testing.assert_close(kept, plain, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(kept), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_token_batches_hold_each_row_once_within_the_budget():
    lengths = [5, 1, 9, 3, 3, 20, 2]
    batches = token_batches(lengths, 10)
    assert sorted(k for batch in batches for k in batch) == list(range(7)) and [5] in batches
    assert all(len(batch) * max(lengths[k] for k in batch) <= 10 or len(batch) == 1 for batch in batches)
    assert token_batches([5, 5, 5], 10) == [[0, 1], [2]]  # as full as the budget allows
    assert len(token_batches(lengths, 1000)) == 1 and token_batches([], 10) == []


def test_a_model_that_knows_no_end_fills_every_place():
    model = make_model(eos=None)
    model.generation_config.eos_token_id = None
    drawn = rollout(model, [[5, 6], [7]], samples=2, max_new_tokens=5)
    assert drawn.truncated.all() and drawn.mask.all() and drawn.completions.shape == (4, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_completions_of_one_token_are_scored_from_their_prompts(kind):
    mixture = make_mixture(kind)
    drawn = rollout(mixture, PROMPTS, samples=2, max_new_tokens=1, eos=[])
    torch.testing.assert_close(rescore(mixture, drawn).detach(), drawn.logps, atol=1e-5, rtol=0)
