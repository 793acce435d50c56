"""Whole models that fill a GPU: FSDP spreads weights, gradients and Adam's averages over the processes.

Sampling needs all weights at every token, so every process gathers them for its duration, in the precision of the
computation. Training gathers one block at a time. What is kept is in float32, an equal share on each process."""

from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from .mixture import Mixture


class Body(nn.Module):
    """A model up to its last hidden states, as one call: FSDP acts when a module is called. The model is a part of it,
    so that the output matrix, which the loss uses by itself, is gathered with the rest."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **inputs) -> tuple[Tensor]:
        return (self.model.base_model(**inputs)[0],)


def shard(mixture: Mixture, dtype: torch.dtype) -> None:
    """Spread the members over the processes, from now on. dtype: that of the computation.

    Raises ValueError for a single process."""
    if not dist.is_initialized():
        raise ValueError("--shard needs several processes: start it by `accelerate launch -m logitmix_lite ...`")
    mesh = init_device_mesh(mixture.device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    mixture.float()
    for k, model in enumerate(mixture.models):
        for block in model.modules():
            if isinstance(block, GradientCheckpointingLayer):
                fully_shard(block, mesh=mesh, mp_policy=policy)
        mixture.bodies[k] = fully_shard(Body(model), mesh=mesh, mp_policy=policy)


def sharded(mixture: Mixture) -> bool:
    return isinstance(mixture.bodies[0], FSDPModule)


@contextmanager
def gathered(mixture: Mixture):
    """Within the block every process holds all weights, and may run the members as often as it likes: outside of it,
    all processes must run them equally often. Without shards, nothing happens.

    The blocks are spread again afterwards. The embeddings and the head stay: the loss needs the head of a member whose
    states were kept. FSDP spreads theta's again after its backward pass, and ref's never change."""
    bodies = [body for body in mixture.bodies if isinstance(body, FSDPModule)]
    parts = [part for body in bodies for part in body.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            if part not in bodies:
                part.reshard()
                part.set_reshard_after_forward(True, recurse=False)


def whole(thing):
    """The same with every shard replaced by the whole tensor, on the CPU; dicts and lists are looked into.

    All processes must call this together."""
    if isinstance(thing, DTensor):
        return thing.full_tensor().cpu()
    if isinstance(thing, dict):
        return {name: whole(value) for name, value in thing.items()}
    if isinstance(thing, list):
        return [whole(value) for value in thing]
    return thing.detach() if isinstance(thing, Tensor) else thing


def like(saved: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as this process holds `parameter`: its shard of it, or all of it."""
    if isinstance(parameter, DTensor) and saved.shape == parameter.shape:
        return distribute_tensor(saved.to(parameter.device), parameter.device_mesh, parameter.placements)
    return saved


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
