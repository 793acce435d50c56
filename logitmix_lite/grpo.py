"""The GRPO pieces: advantages (equation 4), the clipped loss (equations 5 and 6), the k3 estimate of a KL."""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """Equation 4: `(r - mean) / (std + eps)` within each group, `[Q, G]` to `[Q, G]`; population standard deviation.

    A group of equal rewards gets exact zeros: it teaches nothing, and its training compute can be skipped."""
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    centred = rewards - rewards.mean(-1, keepdim=True)
    advantages = centred / (rewards.std(-1, correction=0, keepdim=True) + eps)
    equal = (rewards == rewards[..., :1]).all(-1, keepdim=True)  # the mean of equal numbers may be off by a rounding
    return advantages.masked_fill(equal, 0)


def grpo_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """Equation 6, a scalar: minus the clipped surrogate, averaged over each completion's tokens, then over completions.

    logp, old_logp: `[N, T]` log-probs of the sampled tokens under the policy now and under the one that sampled them.
    advantages: `[N]`. mask: `[N, T]`, 1 on completion tokens up to and including the end token."""
    ratio = (logp - old_logp).masked_fill(mask == 0, 0).exp()  # equation 5; padding may hold anything, even -inf
    advantages = advantages.unsqueeze(-1)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -sequence_mean(surrogate, mask).mean()


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
