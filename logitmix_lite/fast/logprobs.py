"""Log-probs of tokens over a large vocabulary, in chunks: logits of all positions are what fills a memory first."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


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
