"""Several LoRA policies on one set of weights: a batch that stacks the policies' rows, each with its own adapter."""

from functools import partial

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


class Route:
    """Says which adapter serves which share of the batch: `names[k]` serves the k-th of `len(names)` equal parts.

    A name of None is the bare backbone. Every LoRA layer of the model reads the same Route."""

    def __init__(self):
        self.names: tuple[str | None, ...] = (None,)


def route_adapters(model: PeftModel) -> Route:
    """Make `model`'s LoRA layers follow a Route instead of PEFT's single active adapter, and return that Route.

    PEFT serves several adapters in one batch too, in evaluation only and by gathering rows; equal parts in a fixed
    order need no gathering and keep their gradient. LoRA dropout is not applied: a policy must score its samples with
    the same function that drew them."""
    route = Route()
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            if layer.lora_variant:
                raise ValueError(f"only plain LoRA can share a backbone, got a variant: {layer.lora_variant}")
            layer.forward = partial(_routed_forward, layer, route)
    return route


def _routed_forward(layer: nn.Module, route: Route, x: Tensor) -> Tensor:
    out = layer.base_layer(x)
    if route.names == (None,):
        return out
    parts = zip(route.names, x.chunk(len(route.names)), out.chunk(len(route.names)), strict=True)
    parts = [base if name is None else base + _update(layer, name, part) for name, part, base in parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _update(layer: nn.Module, name: str, x: Tensor) -> Tensor:
    down, up = layer.lora_A[name], layer.lora_B[name]
    return (up(down(x.to(down.weight.dtype))) * layer.scaling[name]).to(x.dtype)
