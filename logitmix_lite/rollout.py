"""Sampling completions from a mixture, and scoring them again under the same policy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .fast.decode import Decoder, GraphDecoder
from .fast.rows import pad_rows
from .hf import Mixture
from .mixture import MixedPolicy, evaluating, positions


@dataclass
class Rollouts:
    """`Q` prompts with `G` completions each; completion `i` of `N = Q * G` belongs to prompt `i // G`.

    prompt_ids, prompt_mask: `[Q, P]`, padded on the left. completions, mask: `[N, T]`, padded on the right; the mask is
    1 up to and including the first end token. logps: `[N, T]`, natural log-probs under the policy that sampled, at the
    temperature that sampled (at 1 for greedy), 0 on padding. truncated: `[N]`, true where no end token came.
    kept: the frozen members' last hidden states where each token was sampled, `[N, T, D_k]` a member, if asked for."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    completions: Tensor
    mask: Tensor
    logps: Tensor
    truncated: Tensor
    kept: list[Tensor] | None = None

    @property
    def samples(self) -> int:
        """G, completions a prompt."""
        return len(self.completions) // len(self.prompt_ids)

    def select(self, groups: Tensor) -> "Rollouts":
        """Those of some prompts alone."""
        rows = (groups[:, None] * self.samples + torch.arange(self.samples, device=groups.device)).flatten()
        each = (self.completions, self.mask, self.logps, self.truncated)
        kept = self.kept and [states[rows] for states in self.kept]
        return Rollouts(self.prompt_ids[groups], self.prompt_mask[groups], *(x[rows] for x in each), kept)

    def texts(self, tokenizer) -> list[str]:
        """The completions as text, without end and padding tokens."""
        rows = [ids[keep] for ids, keep in zip(self.completions, self.mask.bool(), strict=True)]
        return tokenizer.batch_decode(rows, skip_special_tokens=True)


@torch.no_grad()
def rollout(
    mixture,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int | Sequence[int] = 0,
    eos: int | Sequence[int] | None = None,
    pad: int | None = None,
    keep: bool = False,
    skip: int = 0,
) -> Rollouts:
    """Sample `samples` completions of each prompt (a list of token ids) from a Mixture or any causal language model.

    Each distinct prompt runs through the members once, and its caches are expanded to its samples. Finished completions
    leave the batch. temperature 0 is greedy decoding. A completion depends on the seed and on its place in the batch,
    not on when the others finish. eos, pad: default to the model's own; eos may be several ids. keep: return what the
    frozen members found (`Rollouts.kept`), so that `completion_logprobs` need not run them again; it costs
    `N * T * D_k` numbers a member, D_k / V of its logits. skip: how many completions, sampled elsewhere, come before
    these in the batch; these are as if sampled together with them.

    Raises ValueError where a prompt and `max_new_tokens` together exceed the model's context."""
    mixture = mixture if isinstance(mixture, MixedPolicy) else Mixture([mixture])
    ends, pad = _special_ids(mixture, eos, pad)
    check_prompts(mixture, prompts, max_new_tokens, temperature)
    with evaluating(mixture), mixture.stacked():
        return _rollout(mixture, prompts, samples, max_new_tokens, temperature, seed, ends, pad, keep, skip)


def _rollout(mixture, prompts, samples, max_new_tokens, temperature, seed, ends, pad, keep, skip) -> Rollouts:
    device = mixture.get_input_embeddings().weight.device
    ends = torch.tensor(ends, device=device)
    distinct = {prompt: k for k, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    source = torch.tensor([distinct[tuple(p)] for p in prompts], device=device)

    # Prefill: every distinct prompt once, then one cache row a sample.
    ids, mask = (x.to(device) for x in pad_rows(list(distinct), pad, left=True))
    cache = mixture.new_cache()
    last = [h[:, -1] for h in mixture.hidden(ids, mask, positions(mask), cache)]
    expand = source.repeat_interleave(samples)
    last = [h[expand] for h in last]
    graph = device.type == "cuda" and GraphDecoder.fits(mixture, cache)
    decode = (GraphDecoder if graph else Decoder)(mixture, cache, mask, expand, max_new_tokens)
    compact = 0.5 if graph else 0.75  # share of rows still running at which the others leave: it copies the caches

    total = len(expand)
    # Uniform numbers are drawn at once and by row, so that a row's text does not depend on its neighbours' lengths.
    uniform = torch.from_numpy(np.random.default_rng(seed).random((skip + total, max_new_tokens))[skip:]).to(device)
    completions = torch.full((total, max_new_tokens), pad, device=device)
    logps = torch.zeros(total, max_new_tokens, device=device)
    lengths = torch.full((total,), max_new_tokens, device=device)
    kept = [h.new_zeros(total, max_new_tokens, h.shape[-1]) for h in frozen(mixture, last)] if keep else None
    alive = torch.arange(total, device=device)  # where the rows of the running batch belong in the result
    done = torch.zeros(total, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        if keep:
            for store, h in zip(kept, frozen(mixture, last), strict=True):
                store[alive, step] = h
        tokens, picked = sample(mixture.combine(last), temperature, uniform[alive, step])
        completions[alive, step] = torch.where(done, pad, tokens)
        logps[alive, step] = picked.masked_fill(done, 0).to(logps.dtype)
        ended = torch.isin(tokens, ends) & ~done
        lengths[alive[ended]] = step + 1
        done = done | ended
        running = int((~done).sum())
        if running == 0 or step + 1 == max_new_tokens:
            break
        if running <= compact * len(done):
            rows = (~done).nonzero().squeeze(-1)
            decode.select(rows)
            alive, tokens, done = alive[rows], tokens[rows], done[rows]
        last = decode(tokens)

    width = int(lengths.max())
    real = (torch.arange(width, device=device) < lengths[:, None]).long()
    completions = completions[:, :width]
    truncated = ~torch.isin(completions.gather(-1, lengths[:, None] - 1).squeeze(-1), ends)
    kept = kept and [store[:, :width] for store in kept]
    return Rollouts(ids[source], mask[source], completions, real, logps[:, :width], truncated, kept)


def frozen(mixture: Mixture, states: list[Tensor]) -> list[Tensor]:
    """Those of the states of the members in use that belong to members which are never trained: all but the first."""
    return [h for k, h in zip(mixture.running, states, strict=True) if k > 0]


def sample(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-prob, `[N]`, `[N]`, from logits `[N, V]`; `uniform` `[N]` in [0, 1) decides which.

    The token is where the cumulative distribution passes `uniform`; summed in float64, or rounding would shift it."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logp = (precise if temperature in (0, 1) else precise / temperature).log_softmax(-1)
    if temperature == 0:
        tokens = logp.argmax(-1)
    else:
        cumulative = logp.exp().double().cumsum_(-1)
        tokens = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens, logp.gather(-1, tokens[:, None]).squeeze(-1)


def completion_logprobs(
    mixture: Mixture,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completions: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    prompt_of: Tensor | None = None,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Log-probs of completions `[n, T]` under the mixture now, `[n, T]`.

    prompt_ids, prompt_mask: `[q, P]`. prompt_of: `[n]`, the prompt of each completion (default: q groups of equal size,
    as in Rollouts). This is the training pass: it gives the gradient to theta. Each prompt is run once for all of its
    completions; only completion tokens reach the output matrix. Padding gets 0. kept: `Rollouts.kept` of these
    completions; then theta alone is run."""
    total = len(completions)
    if prompt_of is None:
        prompt_of = torch.arange(total, device=mask.device) // (total // len(prompt_ids))
    prompt, width = int(prompt_mask.sum(-1).max()), int(mask.sum(-1).max())
    prompt_ids, prompt_mask = prompt_ids[:, -prompt:], prompt_mask[:, -prompt:]
    completions, trained = completions[:, :width], mask[:, :width].bool()
    cache, run = mixture.prompt_cache(), dict(frozen=kept is None)
    with evaluating(mixture):
        # the prompt's last state predicts the first token; the last token predicts nothing, so it need not be run
        states = [[h[:, -1:][prompt_of]] for h in mixture.hidden(prompt_ids, prompt_mask, cache=cache, **run)]
        if width > 1:
            seen = torch.cat([prompt_mask[prompt_of], mask[:, : width - 1]], -1)
            rest = mixture.hidden(completions[:, :-1], seen, cache=cache.share(prompt_of), **run)
            states = [[*first, h] for first, h in zip(states, rest, strict=True)]
    hidden = [torch.cat(parts, 1)[trained] for parts in states]
    hidden += [h[:, :width][trained] for h in kept or ()]
    logp = mixture.score(hidden, completions[trained], temperature or 1.0)
    return torch.zeros(mask.shape, dtype=logp.dtype, device=logp.device).masked_scatter(mask.bool(), logp)


def _special_ids(mixture: Mixture, eos, pad) -> tuple[list[int], int]:
    eos = mixture.generation_config.eos_token_id if eos is None else eos
    eos = mixture.config.eos_token_id if eos is None else eos
    eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pad = mixture.config.pad_token_id if pad is None else pad
    return eos, pad if pad is not None else eos[0] if eos else 0


def check_prompts(mixture: Mixture, prompts, max_new_tokens: int, temperature: float = 1.0) -> None:
    """Raise ValueError for what `rollout` cannot sample."""
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError("rollout needs at least one prompt, and every prompt at least one token")
    largest, size = max(map(max, prompts)), mixture.config.vocab_size
    if largest >= size:
        raise ValueError(f"a prompt holds token {largest}, and the model knows {size}: is this its tokenizer?")
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, got {temperature}")
    context, longest = mixture.config.max_position_embeddings, max(map(len, prompts))
    if longest + max_new_tokens > context:
        raise ValueError(
            f"the longest prompt has {longest} tokens; with {max_new_tokens} new ones it exceeds the model's context "
            f"of {context}: shorten the prompt or ask for fewer tokens"
        )
