"""KV caches: of all members of a mixture at once; in buffers for sampling; of shared prompts for training."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class MixtureCache(Cache):
    """The KV caches of all members. On a shared backbone they are one cache, whose rows stack the members' rows: those
    of `stacked` members from block `fork` on; before it the members are one."""

    def __init__(self, caches: list[Cache], stacked: int = 1, fork: int = 0):
        super().__init__(layers=[layer for cache in caches for layer in cache.layers])
        self.caches, self.stacked, self.fork = caches, stacked, fork

    def rows(self, rows: Tensor, place: int) -> Tensor:
        """The rows of layer number `place` that belong to these rows of the batch."""
        if place < self.fork:
            return rows
        batch = self.layers[place].keys.shape[0] // self.stacked
        return torch.cat([rows + member * batch for member in range(self.stacked)])

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (in this order, repeats allowed), for every member."""
        for place, layer in enumerate(self.layers):
            layer.batch_select_indices(self.rows(rows, place))

    batch_select_indices = reorder_cache = select  # the names that `generate` knows

    def preallocate(self, rows: Tensor, room: int) -> None:
        """Expand the cache of some prompts to these rows (repeats allowed), with room for `room` more tokens."""
        for cache in self.caches:
            for place, layer in enumerate(cache.layers):
                mine = self.rows(rows, place)
                if type(layer) is DynamicLayer:
                    cache.layers[place] = BufferLayer(layer, mine, room)
                else:  # a sliding window keeps its own, bounded, store
                    layer.batch_select_indices(mine)
        self.layers = [layer for cache in self.caches for layer in cache.layers]

    def share(self, rows: Tensor) -> "MixtureCache":
        """A cache of PromptLayers, expanded to these rows; this one stays as it is. Members not run stay empty."""
        return MixtureCache([Cache(layers=[layer.expanded(rows) for layer in cache.layers]) for cache in self.caches])


class BufferLayer(DynamicLayer):
    """One layer's keys and values in buffers of their final length, written in place: nothing is copied as they grow.

    Starts with rows `rows` of `layer`, and `room` free places. place: None, and attention sees what has been written;
    or a tensor that says where the next token is written, and attention sees the whole buffers, under a mask."""

    place: Tensor | None = None

    def __init__(self, layer: DynamicLayer, rows: Tensor, room: int):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
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
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.place is not None:
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer.index_copy_(2, self.place, states)
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
    recomputes a block finds the layer as the forward pass did."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        self.filled = keys is not None
        if self.filled:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values

    def expanded(self, rows: Tensor) -> "PromptLayer":
        """These rows of the layer (repeats allowed); the gradient of a row sums over its repeats."""
        return PromptLayer(self.keys[rows], self.values[rows]) if self.is_initialized else PromptLayer()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.filled:
            return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states
