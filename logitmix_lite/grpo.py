"""The GRPO pieces: advantages (equation 4), token log-probs, the clipped loss (equations 5 and 6), the k3 estimate."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


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


def token_logprobs(hidden: Tensor, weight: Tensor, tokens: Tensor, chunk: int | None = None) -> Tensor:
    """`log_softmax(hidden @ weight.T)` at `tokens`, in float32 or better, without ever holding `[N, V]`.

    hidden `[N, D]`, weight `[V, D]`, tokens `[N]` to `[N]`; exact gradients to `hidden` and, where it is trainable, to
    `weight`. `chunk` rows of logits exist at a time (default: as many as make 128 MiB)."""
    return mixed_logprobs([(hidden, weight)], tokens, chunk)


def mixed_logprobs(pairs: Sequence[tuple[Tensor, Tensor]], tokens: Tensor, chunk: int | None = None) -> Tensor:
    """`token_logprobs` of logits that are a sum of products: `sum_k hidden_k @ weight_k.T` over pairs of `[N, D_k]` and
    `[V, D_k]`.

    The trick: the gradient of a row's log-prob with respect to its hidden state, `W[token] - softmax @ W`, does not
    depend on what comes after, so the forward pass computes it while the logits of the chunk are still at hand."""
    chunk = chunk or max(1, 2**25 // pairs[0][1].shape[0])
    return _TokenLogprobs.apply(tokens, chunk, *(x for pair in pairs for x in pair))


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, chunk, *pairs):
        hidden, weights = pairs[::2], pairs[1::2]
        precision = torch.promote_types(hidden[0].dtype, torch.float32)
        logps = torch.empty(len(tokens), dtype=precision, device=tokens.device)
        wanted = ctx.needs_input_grad[2::2]
        jacobians = [torch.empty_like(h) if want else None for h, want in zip(hidden, wanted, strict=True)]
        for start in range(0, len(tokens), chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden, weights, rows).to(precision)
            log_normaliser = logits.logsumexp(-1, keepdim=True)
            logps[rows] = (logits.gather(-1, tokens[rows, None]) - log_normaliser).squeeze(-1)
            if any(wanted):
                probs = logits.sub_(log_normaliser).exp_()  # in place: the logits are not needed any more
                for jacobian, weight in zip(jacobians, weights, strict=True):
                    if jacobian is not None:
                        jacobian[rows] = weight[tokens[rows]] - probs.to(weight.dtype) @ weight
        ctx.save_for_backward(tokens, *pairs, *jacobians)
        ctx.chunk = chunk
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        tokens, *saved = ctx.saved_tensors
        count = len(saved) // 3
        hidden, weights, jacobians = saved[: 2 * count : 2], saved[1 : 2 * count : 2], saved[2 * count :]
        grads = []
        for k, (h, weight, jacobian) in enumerate(zip(hidden, weights, jacobians, strict=True)):
            scaled = grad.to(h.dtype).unsqueeze(-1)
            grads.append(None if jacobian is None else scaled * jacobian)
            if not ctx.needs_input_grad[3 + 2 * k]:
                grads.append(None)
                continue
            # this one does depend on what comes after, so the logits are made once more; it is summed in float32 or
            # better: in half precision, small terms would vanish beside the sum
            scaled = scaled * h
            total = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            total.index_add_(0, tokens, scaled.to(total.dtype))
            for start in range(0, len(tokens), ctx.chunk):
                rows = slice(start, start + ctx.chunk)
                total -= _logits(hidden, weights, rows).softmax(-1).T @ scaled[rows]
            grads.append(total.to(weight.dtype))
        return None, None, *grads


def _logits(hidden: Sequence[Tensor], weights: Sequence[Tensor], rows: slice) -> Tensor:
    total = hidden[0][rows] @ weights[0].T
    for h, weight in zip(hidden[1:], weights[1:], strict=True):
        total += h[rows] @ weight.T
    return total


def token_distributions(
    hidden: Tensor, weight: Tensor, tokens: Tensor, ref_hidden: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of `tokens`, entropy, exact KL(policy || reference): each `[N]`, nats, without ever holding `[N, V]`.

    hidden, ref_hidden `[N, D]`: what policy and reference find at each token; weight `[V, D]` is the output matrix of
    both. Exact gradients to all of them: the backward pass makes the logits of each chunk once more."""

    def distributions(hidden, ref_hidden, tokens):
        precision = torch.promote_types(hidden.dtype, torch.float32)
        logp, ref_logp = ((h @ weight.T).to(precision).log_softmax(-1) for h in (hidden, ref_hidden))
        probs = logp.exp()
        picked = logp.gather(-1, tokens[:, None]).squeeze(-1)
        return picked, -(probs * logp).sum(-1), (probs * (logp - ref_logp)).sum(-1)

    found = in_chunks(distributions, (hidden, ref_hidden, tokens), chunk or max(1, 2**24 // weight.shape[0]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def in_chunks(function: Callable, rows: Sequence[Tensor], chunk: int) -> list:
    """What `function` returns for each `chunk` rows of all tensors. Nothing that it makes on the way is kept: the
    backward pass makes it once more."""
    pieces = zip(*(x.split(chunk) for x in rows), strict=True)
    return [checkpoint(function, *piece, use_reentrant=False) for piece in pieces]
