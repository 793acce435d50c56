"""The GRPO pieces: advantages (equation 4), the clipped loss (equations 5 and 6), the k3 estimate of a KL."""

from math import log

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, eps: float = 1e-4, scale: bool = True) -> Tensor:
    """Equation 4: `(r - mean) / (std + eps)` within each group, `[Q, G]` to `[Q, G]`; population standard deviation.

    A group of equal rewards gets exact zeros: it teaches nothing, and its training compute can be skipped.
    scale False: `r - mean`, as Dr. GRPO has it (arXiv:2503.20783), so that no group counts more for being one-sided."""
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    centred = rewards - rewards.mean(-1, keepdim=True)
    advantages = centred / (rewards.std(-1, correction=0, keepdim=True) + eps) if scale else centred
    equal = (rewards == rewards[..., :1]).all(-1, keepdim=True)  # the mean of equal numbers may be off by a rounding
    return advantages.masked_fill(equal, 0)


def grpo_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """Equation 6, a scalar: minus the clipped surrogate, averaged over each completion's tokens, then over completions.

    logp, old_logp: `[N, T]` log-probs of the sampled tokens under the policy now and under the one that sampled them.
    advantages: `[N]`. mask: `[N, T]`, 1 on completion tokens up to and including the end token."""
    return -sequence_mean(surrogate(logp, old_logp, advantages, mask, clip), mask).mean()


def surrogate(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip: float, clip_high: float = 0, cap: float = 0
) -> Tensor:
    """Equations 5 and 6 at each token, `[N, T]`: ratio times advantage, clipped. advantages: `[N]`, or `[N, T]`.

    clip_high: the ratio may rise to 1 + clip_high (DAPO's clip-higher, arXiv:2503.14476); 0: as far as `clip` says.
    cap: instead of the clip, `min(rho, cap) * A` whatever the sign of A, as Logit Fusion has it; 0: none."""
    log_ratio = (logp - old_logp).masked_fill(mask == 0, 0)  # padding may hold anything, even -inf
    advantages = advantages.view(len(mask), -1)
    if cap:
        return log_ratio.clamp(max=log(cap)).exp() * advantages
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + (clip_high or clip)) * advantages)


def aggregate(values: Tensor, mask: Tensor, loss_type: str, completions: int, tokens: int, longest: int) -> Tensor:
    """What `[N, T]` values of some completions add to the loss of a batch of `completions`, with `tokens` in all.

    "grpo", equation 6: mean over each completion's tokens, then over completions, so tokens of short ones count more.
    "dapo": mean over all tokens of the batch. "dr_grpo": sum over `completions * longest`, the most there can be."""
    if loss_type == "grpo":
        return sequence_mean(values, mask).mean() * len(mask) / completions
    return values.masked_fill(mask == 0, 0).sum() / (tokens if loss_type == "dapo" else completions * longest)


def soft_overlong_punishment(lengths: Tensor, longest: int, cache: int) -> Tensor:
    """What a completion of each length adds to its reward: 0 up to `longest - cache` tokens, then down to -1 at
    `longest`, along a line. DAPO's equation 13 (arXiv:2503.14476)."""
    return ((longest - cache - lengths) / cache).clamp(-1, 0)


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Nonnegative estimate of KL(policy || reference) at each sampled token, nats, `[N, T]`: `exp(d) - d - 1` with
    `d = ref_logp - logp`. Its mean over the policy's own samples is the exact KL.

    Used as a plain loss term, as GRPO does (arXiv:2402.03300), its mean *gradient* is that of KL(reference || policy),
    because the samples are held fixed; weighted by the ratio policy / old policy it would be that of the KL above.
    Padding must be finite: a mask drops its value afterwards, but inf or nan there would still spoil the gradient."""
    difference = ref_logp - logp
    return difference.expm1() - difference  # exp(d) - 1 rounds to less than d where d is small


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's tokens where `mask` is 1, `[N, T]` to `[N]`; 0 for a row without tokens."""
    return values.masked_fill(mask == 0, 0).sum(-1) / mask.sum(-1).clamp(min=1)
