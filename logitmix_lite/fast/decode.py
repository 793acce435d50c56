"""One token at a time through all members of a mixture: step by step on a CPU, as a recorded CUDA graph on a GPU."""

import torch
from torch import Tensor

from .cache import MixtureCache


class Decoder:
    """Feeds a mixture one token a row, and gives its members' last hidden states back, `[N, D_k]` each.

    Goes on where a pass over some prompts ended: `cache` holds them, `mask` `[Q, P]` tells their padding, `rows` `[N]`
    says which of them each row continues. At most `room` tokens follow."""

    def __init__(self, mixture, cache: MixtureCache, mask: Tensor, rows: Tensor, room: int):
        cache.preallocate(rows, room)
        self.mixture, self.cache = mixture, cache
        self.seen, self.position = mask[rows], mask.sum(-1)[rows]

    def __call__(self, tokens: Tensor) -> list[Tensor]:
        """tokens: `[N]`, the next of each row."""
        self.seen = torch.cat([self.seen, self.seen.new_ones(len(self.seen), 1)], -1)
        hidden = self.mixture.hidden(tokens[:, None], self.seen, self.position[:, None], self.cache)
        self.position = self.position + 1
        return [h[:, -1] for h in hidden]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.select(rows)
        self.seen, self.position = self.seen[rows], self.position[rows]


class GraphDecoder(Decoder):
    """The same with equal shapes at every step, so that a GPU can replay one recorded step: a small model's step is a
    thousand kernels, and starting them one by one takes longer than running them.

    Attention reads the buffers to their end, and a mask hides what is not written yet. Everything that changes lives in
    tensors that stay where they are. record False: run the same step without recording it, as a CPU must."""

    def __init__(self, mixture, cache: MixtureCache, mask: Tensor, rows: Tensor, room: int, record: bool = True):
        super().__init__(mixture, cache, mask, rows, room)
        self.seen = torch.nn.functional.pad(self.seen, (0, room))
        self.write_at = torch.tensor([mask.shape[1]], device=mask.device)  # where in the buffers the next token belongs
        self.tokens, self.record, self.graph = self.position.clone(), record, None
        for layer in cache.layers:
            layer.write_at = self.write_at

    @staticmethod
    def fits(mixture, cache: MixtureCache) -> bool:
        """Whether all members keep everything they see (a sliding window does not), and attend under such a mask."""
        return cache.keeps_all and all(model.config._attn_implementation == "sdpa" for model in mixture.models)

    def __call__(self, tokens: Tensor) -> list[Tensor]:
        self.tokens.copy_(tokens)
        if not self.record:
            self.step()
        else:
            if self.graph is None:
                self.capture()
            self.graph.replay()
        return self.states

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.tokens, self.graph = self.tokens[rows], None  # other shapes, another graph

    def step(self) -> None:
        self.seen.index_fill_(1, self.write_at, 1)
        hidden = self.mixture.hidden(
            self.tokens[:, None], self.seen[:, None, None].bool(), self.position[:, None], self.cache
        )
        self.states = [h[:, -1] for h in hidden]
        self.write_at += 1
        self.position += 1

    def capture(self) -> None:
        """Record `step`. The runs before it, which a recording needs, write where the next real step writes again."""
        state = self.write_at, self.position, self.seen
        before = [x.clone() for x in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.step()
                for x, old in zip(state, before, strict=True):
                    x.copy_(old)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()
