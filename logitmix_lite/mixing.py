"""Combine next-token logits of several models into one distribution. Tensors in, tensor out, nothing else.

Three conventions hold for every function here:

* Logits are `[..., V]` in any floating dtype; half precision is computed in float32 and returned in its own dtype.
* A logit of `-inf` is a *masked* token. A token that any member with a nonzero weight masks stays masked (for
  probability mixing: that every such member masks), and never turns into nan.
* Members of one family may pad their output matrix to different sizes (Qwen2.5: 151,936 up to 3B, 152,064 from 7B).
  The result covers the tokens they share: the first `min(V)` of them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mix_logits(theta: Tensor, ref: Tensor, alpha: float) -> Tensor:
    """Equation 1: `(1 - alpha) * theta + alpha * ref`, `[..., V]`, not normalised. `alpha` is the weight on `ref`."""
    return product_of_experts([theta, ref], pair_weights(alpha))


def mix_probs(theta: Tensor, ref: Tensor, alpha: float) -> Tensor:
    """Log of `(1 - alpha) * softmax(theta) + alpha * softmax(ref)`, `[..., V]`, computed in log space.

    The alternative that section 5 of the paper compares with: an arithmetic instead of a geometric mean."""
    return mean_of_probs([theta, ref], pair_weights(alpha))


def product_of_experts(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Section 6: `sum_k w_k * l_k`, the unnormalised log of the product of `softmax(l_k) ** w_k`, `[..., V]`.

    Weights may have any sign and any sum. Source: Hinton 2002; equation 10 is the case of two."""
    members, dtype = _active(logits, weights)
    if len(members) == 1 and members[0][1] == 1:
        return members[0][0].to(dtype)  # bit for bit the only member
    mixed = sum(weight * logit for logit, weight in members)
    if any(weight < 0 for _, weight in members):  # -inf times a negative weight would be +inf, or nan after the sum
        mixed = mixed.masked_fill(_masked(logit for logit, _ in members), -math.inf)
    return mixed.to(dtype)


def mean_of_probs(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Log of `sum_k w_k * softmax(l_k)`, `[..., V]`. Weights must be nonnegative and sum to 1."""
    if min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError(f"probability mixing needs nonnegative weights that sum to 1, got {list(weights)}")
    members, dtype = _active(logits, weights)
    terms = torch.stack([math.log(weight) + logit.log_softmax(-1) for logit, weight in members])
    # logsumexp of nothing but -inf has a nan gradient, so tokens that every member masks take a detour around it
    nowhere = (terms == -math.inf).all(0)
    return terms.masked_fill(nowhere, 0).logsumexp(0).masked_fill(nowhere, -math.inf).to(dtype)


def dexperts(base: Tensor, expert: Tensor, anti: Tensor, gamma: float) -> Tensor:
    """`base + gamma * (expert - anti)`, `[..., V]`: DExperts (arXiv:2105.03023) and proxy tuning (arXiv:2401.08565)."""
    return product_of_experts([base, expert, anti], [1.0, gamma, -gamma])


def contrastive(expert: Tensor, amateur: Tensor, gamma: float = 1.0, plausibility: float = 0.1) -> Tensor:
    """`log p_expert - gamma * log p_amateur` where `p_expert >= plausibility * max p_expert`, else `-inf`; `[..., V]`.

    Contrastive decoding (arXiv:2210.15097)."""
    if not 0 <= plausibility <= 1:
        raise ValueError(f"plausibility is a share of the largest probability, in [0, 1], got {plausibility}")
    ((expert, _), (amateur, _)), dtype = _active([expert, amateur], [1.0, 1.0])
    amateur = amateur if gamma else expert  # of weight 0: what it masks must not matter
    masked = _masked([expert, amateur])
    log_expert, log_amateur = (x.masked_fill(masked, -math.inf).log_softmax(-1) for x in (expert, amateur))
    score = log_expert - gamma * log_amateur.masked_fill(masked, 0)
    if plausibility > 0:
        masked = masked | (log_expert < log_expert.amax(-1, keepdim=True) + math.log(plausibility))
    return score.masked_fill(masked, -math.inf).to(dtype)


def budget_alpha(theta: Tensor, ref: Tensor, budget: float, halvings: int = 30) -> Tensor:
    """The largest alpha in [0, 1] at which the mixture stays within `budget` nats of theta, at every prefix, `[...]`.

    TRB (arXiv:2605.31159): among policies with KL(pi || pi_theta) <= budget, the nearest to ref is one of equation 10's
    family, and that KL grows with alpha, so bisection finds it. Differentiable: alpha moves with theta, and a Newton
    step from the detached solution gives autograd the implicit function's derivative `-(dKL/dtheta) / (dKL/dalpha)`."""
    ((theta, _), (ref, _)), _ = _active([theta, ref], [1.0, 1.0])
    masked = _masked([theta, ref])
    log_theta = theta.log_softmax(-1)
    apart = (ref.log_softmax(-1) - log_theta).masked_fill(masked, 0)

    def spent(alpha):  # KL(pi_alpha || pi_theta), and the variance of `apart` under pi_alpha: dKL / dalpha = alpha * it
        log_pi = (log_theta + alpha[..., None] * apart).masked_fill(masked, -math.inf).log_softmax(-1)
        pi, excess = log_pi.exp(), (log_pi - log_theta).masked_fill(masked, 0)
        return (pi * excess).sum(-1), (pi * apart.square()).sum(-1) - (pi * apart).sum(-1).square()

    with torch.no_grad():
        low, high = torch.zeros_like(theta[..., 0]), torch.ones_like(theta[..., 0])
        free = spent(high)[0] <= budget  # ref itself is near enough: alpha is 1 and does not depend on theta
        for _ in range(halvings):
            middle = (low + high) / 2
            within = spent(middle)[0] <= budget
            low, high = torch.where(within, middle, low), torch.where(within, high, middle)
        binding = ~free & (low > 0)
    kl, variance = spent(torch.where(binding, low, 0))
    newton = (kl - budget) / torch.where(binding, low * variance, 1).detach()
    return torch.where(free, 1, low) - torch.where(binding, newton - newton.detach(), 0)


def barycenter_objective(log_pi: Tensor, theta: Tensor, ref: Tensor, alpha: float) -> Tensor:
    """Equation 10's objective `(1 - alpha) KL(pi || pi_theta) + alpha KL(pi || pi_ref)`, in nats, `[...]`.

    `log_pi` `[..., V]` are log-probs; its minimum over pi is `softmax(mix_logits(...))`, with value `-log_z(...)`."""
    ((log_pi, _), *members), dtype = _active([log_pi, theta, ref], [1.0, *pair_weights(alpha)])
    pi = log_pi.exp()
    terms = (w * (pi * (log_pi - x.log_softmax(-1)).masked_fill(pi == 0, 0)).sum(-1) for x, w in members)
    return sum(terms).to(dtype)


def log_z(theta: Tensor, ref: Tensor, alpha: float) -> Tensor:
    """Equation 10: `log sum_a pi_theta(a)^(1-alpha) pi_ref(a)^alpha`, `[...]`; 0 where the two agree, else negative."""
    members, dtype = _active([theta, ref], pair_weights(alpha))
    return sum(weight * logit.log_softmax(-1) for logit, weight in members).logsumexp(-1).to(dtype)


def pair_weights(alpha: float) -> tuple[float, float]:
    """`(1 - alpha, alpha)`: the weights of theta and ref."""
    alpha = float(alpha)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the reference's weight and lies in [0, 1], got {alpha}")
    return 1 - alpha, alpha


def _contrast(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if len(weights) != 2 or weights[0] != 1 or weights[1] > 0:
        raise ValueError(f"the contrastive rule takes an expert and an amateur of weights (1, -gamma), got {weights}")
    return contrastive(*logits, gamma=-weights[1])


def _within_budget(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Logit mixing with an alpha of its own at every prefix; ref's weight is the budget in nats, and 1 is ref alone."""
    if len(weights) != 2 or not 0 <= weights[1] <= 1:
        raise ValueError(f"the kl-budget rule takes theta and ref of weights (1 - budget, budget), got {list(weights)}")
    if weights[1] in (0, 1):
        return product_of_experts(logits, weights)
    ((theta, _), (ref, _)), dtype = _active(logits, [1.0, 1.0])
    alpha = budget_alpha(theta, ref, weights[1])[..., None]
    mixed = theta + alpha * (ref - theta).masked_fill(_masked([theta, ref]), 0)
    return mixed.masked_fill((ref == -math.inf) & (alpha > 0), -math.inf).to(dtype)


RULES = {"logit": product_of_experts, "prob": mean_of_probs, "contrastive": _contrast, "kl-budget": _within_budget}


def _active(logits: Sequence[Tensor], weights: Sequence[float]) -> tuple[list[tuple[Tensor, float]], torch.dtype]:
    """Members of nonzero weight (0 * -inf would be nan), cut to the shared vocabulary, in at least float32."""
    if len(logits) != len(weights):
        raise ValueError(f"{len(logits)} members need as many weights, got {len(weights)}")
    size = min(logit.shape[-1] for logit in logits)
    dtype = logits[0].dtype
    for logit in logits[1:]:
        dtype = torch.promote_types(dtype, logit.dtype)
    compute = torch.promote_types(dtype, torch.float32)
    members = [
        (logit[..., :size].to(compute), float(weight))
        for logit, weight in zip(logits, weights, strict=True)
        if weight != 0
    ]
    if not members:
        raise ValueError("every weight is 0: give at least one member a weight")
    return members, dtype


def _masked(logits) -> Tensor:
    """Tokens that at least one member masks, `[..., V]`."""
    return torch.stack([logit == -math.inf for logit in logits]).any(0)
