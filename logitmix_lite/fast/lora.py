"""Several LoRA policies on one set of weights: a batch that stacks the policies' rows, each with its own adapter."""

from functools import partial

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer as Block


class Route:
    """Says which adapter serves which share of the batch: `names[k]` serves the k-th of `len(names)` equal parts.

    A name of None is the bare backbone. Every LoRA layer of the model reads the same Route. fork: the first block with
    an adapter; up to there all policies are one, so it is there that the batch becomes one part a policy."""

    def __init__(self, fork: int):
        self.names: tuple[str | None, ...] = (None,)
        self.fork = fork


def route_adapters(model: PeftModel) -> Route:
    """Make `model`'s LoRA layers follow a Route instead of PEFT's single active adapter, and return that Route.

    PEFT serves several adapters in one batch too, in evaluation only and by gathering rows; equal parts in a fixed
    order need no gathering and keep their gradient. LoRA dropout is not applied: a policy must score its samples with
    the same function that drew them."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    adapted = [any(isinstance(layer, LoraLinear) for layer in block.modules()) for block in blocks]
    if not any(adapted):
        raise ValueError("no block of this model has a plain LoRA layer: adapt some of its linear layers")
    route = Route(adapted.index(True))
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            if layer.lora_variant:
                raise ValueError(f"only plain LoRA can share a backbone, got a variant: {layer.lora_variant}")
            layer.forward = partial(_routed_forward, layer, route)
    hooks = vars(model).setdefault("_route_hooks", [])
    while hooks:  # of an earlier Route
        hooks.pop().remove()
    for place, block in enumerate(blocks[route.fork :]):
        hooks.append(block.register_forward_pre_hook(partial(_stack, route, place == 0), with_kwargs=True))
    return route


def _stack(route: Route, first: bool, block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Repeat what a block is given once for each policy: the states at the first block, mask and positions at all."""
    copies, states = len(route.names), args[0]
    rows = len(states) if first else len(states) // copies

    def repeat(x):
        if isinstance(x, tuple):
            return tuple(map(repeat, x))
        return torch.cat([x] * copies) if isinstance(x, Tensor) and len(x) == rows else x

    if copies == 1:
        return args, kwargs
    return (repeat(states) if first else states, *map(repeat, args[1:])), {k: repeat(v) for k, v in kwargs.items()}


def _routed_forward(layer: nn.Module, route: Route, x: Tensor) -> Tensor:
    out, size = layer.base_layer(x), len(x) // len(route.names)
    for k, name in enumerate(route.names):
        if name in layer.lora_A:
            if len(route.names) == 1:
                return out + _update(layer, name, x)
            rows = slice(k * size, (k + 1) * size)
            out[rows].add_(_update(layer, name, x[rows]))  # in place: copying all parts would cost more than the update
    return out


def _update(layer: nn.Module, name: str, x: Tensor) -> Tensor:
    down, up = layer.lora_A[name], layer.lora_B[name]
    return (up(down(x.to(down.weight.dtype))) * layer.scaling[name]).to(x.dtype)
