"""What is trained, and gradients that survive half precision."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def loss_scale(model: nn.Module) -> float:
    """What to multiply a loss by before its backward pass. In float16 small gradients would round to 0."""
    return 2.0**12 if model.config.dtype == torch.float16 else 1.0


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, scale: float = 1.0) -> Tensor:
    """Divide gradients by the loss's scale, then shorten them together to `max_norm`; returns the norm before that."""
    parameters = [p for p in parameters if p.grad is not None]
    for p in parameters if scale != 1 else ():
        p.grad /= scale
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
