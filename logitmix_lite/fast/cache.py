"""KV caches: of all members of a mixture at once; in buffers for sampling; of shared prompts for training."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class MixtureCache(Cache):
    """The KV caches of all members in use. Policies on one backbone have one cache, whose rows stack those of `stacked`
    policies."""

    def __init__(self, caches: Sequence[Cache], stacked: int = 1):
        super().__init__(layers=[layer for cache in caches for layer in cache.layers])
        self.caches, self.stacked = list(caches), stacked

    @classmethod
    def empty(cls, configs: Sequence, stacked: int = 1) -> "MixtureCache":
        """For models of these configs."""
        return cls([DynamicCache(config=config) for config in configs], stacked)

    @classmethod
    def of_prompts(cls, depths: Sequence[int]) -> "MixtureCache":
        """That keeps its gradient, for prompts which several completions share in training; layers of each member."""
        return cls([Cache(layers=[PromptLayer() for _ in range(depth)]) for depth in depths])

    @property
    def keeps_all(self) -> bool:
        """Whether every layer keeps all keys and values it was given: a sliding window does not."""
        return all(type(layer) is DynamicLayer for layer in self.layers)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (in this order, repeats allowed), for every member."""
        for layer in self.layers:
            layer.batch_select_indices(self._rows(layer, rows))

    batch_select_indices = reorder_cache = select  # the names that `generate` knows

    def preallocate(self, rows: Tensor, room: int) -> None:
        """Expand the cache of some prompts to these rows (repeats allowed), with room for `room` more tokens."""
        for cache in self.caches:
            for k, layer in enumerate(cache.layers):
                mine = self._rows(layer, rows)
                if type(layer) is DynamicLayer:
                    cache.layers[k] = BufferLayer(layer, mine, room)
                else:  # a sliding window keeps its own, bounded, store
                    layer.batch_select_indices(mine)
        self.layers = [layer for cache in self.caches for layer in cache.layers]

    def share(self, rows: Tensor) -> "MixtureCache":
        """A cache of PromptLayers, expanded to these rows; this one stays as it is. Members not run stay empty."""
        return MixtureCache([Cache(layers=[layer.expanded(rows) for layer in cache.layers]) for cache in self.caches])

    def _rows(self, layer: DynamicLayer, rows: Tensor) -> Tensor:
        batch = layer.keys.shape[0] // self.stacked
        return torch.cat([rows + policy * batch for policy in range(self.stacked)])


class BufferLayer(DynamicLayer):
    """One layer's keys and values in buffers of their final length, written in place: nothing is copied as they grow.

    Starts with rows `rows` of `layer`, and `room` free places. write_at: None, and attention sees what has been
    written; or a tensor that says where the next token goes, and attention sees the whole buffers, under a mask."""

    write_at: Tensor | None = None

    def __init__(self, layer: DynamicLayer, rows: Tensor, room: int):
        super().__init__()
        self.length = layer.keys.shape[-2]
        self.buffers = [self._grown(x, rows, room) for x in (layer.keys, layer.values)]
        self._view()

    @staticmethod
    def _grown(states: Tensor, rows: Tensor, room: int) -> Tensor:
        _, heads, length, size = states.shape
        buffer = states.new_zeros(len(rows), heads, length + room, size)
        buffer[:, :, :length] = states[rows]
        return buffer

    def _view(self):
        _hold(self, *(buffer[:, :, : self.length] for buffer in self.buffers))

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.write_at is not None:
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer.index_copy_(2, self.write_at, states)
            return tuple(self.buffers)
        end = self.length + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self.length = end
        self._view()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self._view()


class PromptLayer(DynamicLayer):
    """One layer's keys and values of the prompts, with their gradient, for training passes over their completions.

    Empty, it remembers what it is given. Filled, it forgets what comes after the prompts: a backward pass that
    recomputes a layer finds its cache as the forward pass did."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        self.filled = keys is not None
        if self.filled:
            _hold(self, keys, values)

    def expanded(self, rows: Tensor) -> "PromptLayer":
        """These rows of the layer (repeats allowed); the gradient of a row sums over its repeats."""
        return PromptLayer() if self.keys is None else PromptLayer(self.keys[rows], self.values[rows])

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.filled:
            return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)
        _hold(self, key_states, value_states)
        return key_states, value_states


def _hold(layer: DynamicLayer, keys: Tensor, values: Tensor) -> None:
    """Give a layer its keys and values; transformers' own way to start one differs between its versions."""
    layer.keys, layer.values, layer.dtype, layer.device = keys, values, keys.dtype, keys.device
    layer.is_initialized = True
