"""A mixture: several language models (members), one number each (weights), and a rule that combines their logits.

Everything in the paper is one of these: theta and ref under the rule "logit" are its method, under "prob" its
comparison, theta alone is GRPO. `hf.Mixture` is this, as a Hugging Face model."""

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .fast import lora
from .fast.cache import MixtureCache
from .fast.logprobs import in_chunks, mixed_logprobs
from .mixing import RULES, pair_weights

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ONE_PRODUCT = 2**24  # numbers in the members' output matrices together, up to which one product is faster than several


class MixedPolicy:
    """Members, weights and a rule. Only the first member is trained; members of weight 0 are never run.

    models: the causal language model behind each member; on a shared backbone all are the same, and `adapters` names
    each one's LoRA adapter (None: the bare backbone). config: keeps weights and rule."""

    # ---- weights ----------------------------------------------------------------------------------------------------

    @property
    def rule(self) -> str:
        """How the members' logits are combined: a name in `mixing.RULES`."""
        return self.config.rule

    @rule.setter
    def rule(self, rule: str):
        self._set(rule, self.weights)

    @property
    def weights(self) -> tuple[float, ...]:
        """One number a member. Assigning checks them against the members and the rule."""
        return tuple(self.config.weights)

    @weights.setter
    def weights(self, weights: Sequence[float]):
        self._set(self.rule, weights)

    def _set(self, rule: str, weights: Sequence[float]) -> None:
        weights = [float(w) for w in weights]
        if len(weights) != len(self.models):
            raise ValueError(f"{len(self.models)} members need as many weights, got {len(weights)}")
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(RULES)}")
        RULES[rule]([torch.zeros(2)] * len(weights), weights)  # raises where the rule does not take these weights
        self.config.rule, self.config.weights = rule, weights

    @property
    def alpha(self) -> float:
        """The reference's weight, for a mixture of theta and ref. Assign to change it."""
        return self.weights[1]

    @alpha.setter
    def alpha(self, alpha: float):
        self.weights = pair_weights(alpha)

    @contextmanager
    def using(self, weights: Sequence[float]):
        """Within the block, mix with these weights: `(1, 0)` is theta alone, `(0, 1)` is ref alone."""
        before, self.weights = self.weights, weights
        try:
            yield self
        finally:
            self.weights = before

    @property
    def running(self) -> list[int]:
        """The members in use: those of nonzero weight."""
        return [k for k, weight in enumerate(self.weights) if weight != 0]

    # ---- from tokens to mixed logits --------------------------------------------------------------------------------

    def hidden(self, input_ids, attention_mask=None, position_ids=None, cache: MixtureCache | None = None, frozen=True):
        """Last hidden states of the members in use: a list of `[B, T, D_k]`. Only the first member gets a gradient.

        frozen False: run the first member only, if it is in use. A stacked cache needs `with mixture.stacked():`."""
        if position_ids is None and attention_mask is not None:
            position_ids = positions(attention_mask)[:, -input_ids.shape[1] :]
        if cache is not None and cache.stacked > 1:  # one pass over the weights for all policies
            copies = cache.stacked
            inputs = [x if x is None else torch.cat([x] * copies) for x in (input_ids, attention_mask, position_ids)]
            return list(self.body(0, *inputs, cache.caches[0]).chunk(copies))
        states = []
        for place, k in enumerate(self.running):
            if k > 0 and not frozen:
                break
            with torch.set_grad_enabled(torch.is_grad_enabled() and k == 0), self._member(k):
                states.append(self.body(k, input_ids, attention_mask, position_ids, cache and cache.caches[place]))
        return states

    @contextmanager
    def _member(self, k: int):
        """Within the block, the k-th member's model is the k-th policy, as it must be for a gradient."""
        with ExitStack() as stack:
            stack.enter_context(self._policy(k))
            if self.recompute and torch.is_grad_enabled():
                stack.enter_context(lora.recomputed(self.models[k], partial(self._policy, k)))
            yield

    @contextmanager
    def _policy(self, k: int):
        with ExitStack() as stack:
            if self.adapters:
                stack.enter_context(lora.active(self.models[k], self.adapters[k]))
            if self.models[k].device.type == "cuda":  # cuDNN's gradient is nan where padding sees nothing at all
                stack.enter_context(sdpa_kernel(ATTENTION))
            yield

    @contextmanager
    def stacked(self):
        """Within the block, LoRA policies in use run as one batch, without gradient; see `fast.lora.stacked`."""
        with ExitStack() as stack, torch.no_grad():
            if self.adapters:
                stack.enter_context(lora.stacked(self.models[0], [self.adapters[k] for k in self.running]))
            yield

    def new_cache(self) -> MixtureCache:
        """Empty KV caches for the members in use, to sample with: stacked, if they share a backbone."""
        if self.adapters:
            return MixtureCache.empty([self.models[0].config], stacked=len(self.running))
        return MixtureCache.empty([self.models[k].config for k in self.running])

    def prompt_cache(self) -> MixtureCache:
        """Empty caches that keep their gradient, for prompts which several completions share in training."""
        return MixtureCache.of_prompts([len(lora.decoder_layers(self.models[k])) for k in self.running])

    # ---- from hidden states to the mixed policy ---------------------------------------------------------------------

    def combine(self, hidden: list[Tensor]) -> Tensor:
        """Mixed logits `[..., V]` from the members' hidden states `[..., D_k]`.

        A linear rule mixes hidden states before the output matrix, where the members share it (one product for all):
        `(1 - a) W h_theta + a W h_ref = W ((1 - a) h_theta + a h_ref)`."""
        if self.linear and self.shared_head:
            [(state, weight)] = self._weighted(hidden)
            return state @ weight.T
        logits = [(k, self.head(k)(h)) for k, h in zip(self.running, hidden, strict=True)]
        logits = [x if k == 0 else x.detach() for k, x in logits]  # only theta is trained
        return RULES[self.rule](logits, [self.weights[k] for k in self.running])

    def score(self, hidden: list[Tensor], tokens: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probs of `tokens` `[N]` under the mixed policy, from hidden states `[N, D_k]`; float32 or better.

        The full `[N, V]` is never held: a linear rule goes through `mixed_logprobs`, others in chunks."""
        if self.linear:
            return mixed_logprobs([(h / temperature, weight) for h, weight in self._weighted(hidden)], tokens)
        size = max(1, 2**24 // self.config.vocab_size)
        return torch.cat(in_chunks(partial(self._score_chunk, temperature), (tokens, *hidden), size))

    def _score_chunk(self, temperature, tokens, *hidden):
        logits = self.combine(list(hidden))
        logps = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
        return logps.gather(-1, tokens[:, None]).squeeze(-1)

    def head(self, k: int):
        """The k-th member's output layer, `[D_k]` to `[V_k]`."""
        return self.models[k].get_output_embeddings()

    @property
    def linear(self) -> bool:
        """Whether the mixed logits are a linear function of the hidden states."""
        heads = [self.head(k) for k in self.running]
        return (self.rule == "logit" or len(heads) == 1) and all(getattr(h, "bias", None) is None for h in heads)

    @property
    def shared_head(self) -> bool:
        """Whether the members in use have one output matrix, so that mixing hidden states is mixing logits."""
        return len({self.head(k).weight.data_ptr() for k in self.running}) == 1

    def _weighted(self, hidden: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a state `[..., D]` and an output matrix `[V, D]` whose products sum to the mixed logits.

        Members that share their matrix are one pair. So are small matrices side by side:
        `w_1 W_1 h_1 + w_2 W_2 h_2 = [W_1 W_2] [w_1 h_1; w_2 h_2]`."""
        states = [
            h if w == 1 else (w * h.float()).to(h.dtype) if h.element_size() < 4 else w * h
            for w, h in zip([self.weights[k] for k in self.running], hidden, strict=True)
        ]
        heads = [(k, self.head(k).weight[: self.config.vocab_size]) for k in self.running]
        heads = [head if k == 0 else head.detach() for k, head in heads]  # only theta is trained
        if self.shared_head:
            return [(sum(states[1:], start=states[0]), heads[0])]
        if sum(head.numel() for head in heads) <= ONE_PRODUCT:
            return [(torch.cat(states, -1), torch.cat(heads, -1))]
        return list(zip(states, heads, strict=True))


@contextmanager
def evaluating(model: torch.nn.Module):
    """Within the block, without dropout: a policy scores its samples with the same function that drew them."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def positions(mask: Tensor) -> Tensor:
    """Position ids of a padded batch, `[B, T]`: count from the first real token, wherever the padding is."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
