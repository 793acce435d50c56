"""Several LoRA policies on one backbone. Nothing is patched outside of a `with`: the PEFT model stays the user's."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def is_peft(model: nn.Module) -> bool:
    """Whether this is a `peft.PeftModel`, told without importing peft."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


@contextmanager
def stacked(model: nn.Module, names: Sequence[str | None]):
    """Within the block, the k-th of `len(names)` equal parts of a batch goes through adapter `names[k]`, or through the
    bare backbone where that is None. For passes without gradient.

    The adapters' matrices are stacked once, in the backbone's precision, so that a layer needs two batched products
    for all policies together. LoRA dropout is not applied."""
    with _forwards(_lora_layers(model), lambda layer, _: partial(_stacked_forward, layer, *_stack(layer, names))):
        yield


@contextmanager
def active(model: nn.Module, name: str | None):
    """Within the block, PEFT's own forward pass serves adapter `name` (None: the backbone), with its gradient."""
    layers = _lora_layers(model)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter, layer._disable_adapters = [name] if name is not None else [], name is None
    try:
        yield
    finally:
        for layer, (adapter, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = adapter, disabled


@contextmanager
def recomputed(model: nn.Module, around: Callable):
    """Within the block, a forward pass keeps only each layer's input, and the backward pass makes the rest once more.

    around: makes the context that the recomputation needs, such as `active`: by then this block has been left."""

    def forward(layer, usual):
        return partial(checkpoint, partial(_within, around, usual), use_reentrant=False, preserve_rng_state=False)

    with _forwards(decoder_layers(model), forward):
        yield


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The model's transformer layers. ValueError where they can't be told."""
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"{type(model).__name__} has no list of its {depth} layers: it can't be used here")


def check_adapters(model: nn.Module, names: Sequence[str | None]) -> None:
    """Raise ValueError where an adapter changes more than plain linear layers inside the transformer's layers.

    Whatever else it changed (embeddings, the head, biases, fused experts) would be changed for every policy."""
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    known = sorted(model.peft_config)
    for name in filter(None, names):
        if name not in known:
            raise ValueError(f"the model has no adapter named {name!r}: it has {', '.join(known)}")
    for name, config in model.peft_config.items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA" or getattr(config, "bias", "none") != "none":
            raise ValueError(f"adapter {name!r} is not plain LoRA ({kind}, bias {getattr(config, 'bias', 'none')!r})")
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    adapted = 0
    for path, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise ValueError(f"{path} is trained beside LoRA, so all policies would share it: adapt linear layers only")
        if isinstance(module, BaseTunerLayer) and hasattr(module, "lora_A"):
            adapted += 1
            plain = type(module) is Linear and not getattr(module, "lora_variant", None)
            plain = plain and not any(getattr(up, "bias", None) is not None for up in module.lora_B.values())
            if not plain or id(module) not in inside:
                what = "outside of the transformer's layers" if plain else "not a plain linear layer"
                raise ValueError(f"the adapter on {path} is {what}: policies that share a backbone can't have it")
    if not adapted:
        raise ValueError("no layer of this model has a LoRA adapter: adapt some of its linear layers")


@contextmanager
def _forwards(modules: Sequence[nn.Module], forward: Callable):
    """Within the block, the modules run `forward(module, its usual forward)`."""
    modules, own = list(modules), []
    try:
        for module in modules:
            own.append(vars(module).get("forward"))
            module.forward = forward(module, module.forward)
        yield
    finally:
        for module, before in zip(modules, own, strict=False):
            del module.forward
            if before is not None:  # somebody else's, such as accelerate's
                module.forward = before


def _within(around: Callable, forward: Callable, *args, **kwargs):
    with around():
        return forward(*args, **kwargs)


def _lora_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def _stack(layer: nn.Module, names: Sequence[str | None]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """`[K, in, r]` and `[K, r, out]`, scaled: zeros where a policy has no adapter here or one of lower rank."""
    mine = [name if name in layer.lora_A else None for name in names]
    rank = max((layer.r[name] for name in mine if name), default=0)
    if not rank:
        return None, None
    like = layer.base_layer.weight
    some = next(name for name in mine if name)
    wide, tall = layer.lora_A[some].in_features, layer.lora_B[some].out_features
    down = torch.zeros(len(mine), wide, rank, dtype=like.dtype, device=like.device)
    up = torch.zeros(len(mine), rank, tall, dtype=like.dtype, device=like.device)
    for k, name in enumerate(mine):
        if name:
            down[k, :, : layer.r[name]] = layer.lora_A[name].weight.T
            up[k, : layer.r[name]] = layer.lora_B[name].weight.T * layer.scaling[name]
    return down, up


def _stacked_forward(layer: nn.Module, down: Tensor | None, up: Tensor | None, x: Tensor) -> Tensor:
    out = layer.base_layer(x)
    if down is None:
        return out
    parts = x.reshape(len(down), -1, x.shape[-1])
    out.view(len(down), -1, out.shape[-1]).baddbmm_(parts @ down, up)  # in place: `out` is fresh, and large
    return out
