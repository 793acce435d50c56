"""Mixture: several causal language models and a rule, as one Hugging Face causal language model."""

import json
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .fast.cache import MixtureCache, PromptLayer
from .fast.lora import route_adapters
from .grpo import in_chunks, token_logprobs
from .mixing import RULES, pair_weights
from .vocabulary import check_same_tokenizer, vocab_sizes

# Models that reshape their logits after the output matrix: mixing hidden states or chunking would miss that.
NONLINEAR_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class MixtureConfig(PreTrainedConfig):
    """What `Mixture.save_pretrained` writes beside the members: weights, rule, and for LoRA members the backbone."""

    model_type = "logitmix"

    def __init__(self, weights=(1.0,), rule="logit", adapters=None, backbone=None, **kwargs):
        self.weights, self.rule = list(weights), rule
        self.adapters, self.backbone = adapters, backbone
        super().__init__(**kwargs)


class Mixture(PreTrainedModel, GenerationMixin):
    """`members` and a `rule` that combines their next-token logits; members of weight 0 are never run.

    members: causal language models of one tokenizer, the first of them trainable. Or one PEFT model, with `adapters`
        naming one of its LoRA adapters for each weight (None: the bare backbone); they share every other weight.
    weights: one number a member, default equal shares. For theta and ref they are `(1 - alpha, alpha)`; see `alpha`.
    rule: "logit" (weighted sum of logits; any weights), "prob" (mean of probabilities), or "contrastive" (two members,
        weights `(1, -gamma)`).

    It generates, saves, loads and goes through pipelines as any model does."""

    config_class = MixtureConfig
    base_model_prefix = "mixture"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        members: Sequence[PreTrainedModel | PeftModel],
        weights: Sequence[float] | None = None,
        rule: str = "logit",
        adapters: Sequence[str | None] | None = None,
    ):
        count = len(adapters or members)
        weights = [1 / count] * count if weights is None else weights
        first = members[0].config
        config = MixtureConfig(weights, rule, adapters and list(adapters), vocab_size=min(vocab_sizes(members)))
        config.num_hidden_layers = first.num_hidden_layers
        config.max_position_embeddings = min(m.config.max_position_embeddings for m in members)
        config.bos_token_id, config.eos_token_id = first.bos_token_id, first.eos_token_id
        config.pad_token_id, config.dtype = first.pad_token_id, first.dtype
        if adapters:
            if len(members) != 1 or not isinstance(members[0], PeftModel):
                raise ValueError("adapters name the LoRA adapters of one PEFT model: pass exactly that one as member")
            unknown = {name for name in adapters if name is not None} - set(members[0].peft_config)
            if unknown:
                raise ValueError(f"the model has no adapter named {sorted(unknown)}: {sorted(members[0].peft_config)}")
            config.backbone = first.name_or_path
        check_same_tokenizer(members)
        super().__init__(config)
        self.members = nn.ModuleList(members)
        self.adapters = list(adapters) if adapters else None
        self.route = route_adapters(members[0]) if adapters else None
        self.generation_config = members[0].generation_config
        self.models = [m.get_base_model() if isinstance(m, PeftModel) else m for m in members] * (
            count if adapters else 1
        )
        self.bodies = [model.base_model for model in self.models]  # what `shard` replaces
        for model in self.models:
            if any(getattr(model.config, name, None) for name in NONLINEAR_HEADS):
                raise ValueError(f"{type(model).__name__} changes its logits after the output matrix: not supported")
        self.rule, self.weights = rule, weights

    # ---- weights ----------------------------------------------------------------------------------------------------

    @property
    def rule(self) -> str:
        """How the members' logits are combined."""
        return self.config.rule

    @rule.setter
    def rule(self, rule: str):
        self.config.rule = rule

    @property
    def weights(self) -> tuple[float, ...]:
        """One number a member. Assigning checks them against the members and the rule."""
        return tuple(self.config.weights)

    @weights.setter
    def weights(self, weights: Sequence[float]):
        weights = [float(w) for w in weights]
        if len(weights) != len(self.models):
            raise ValueError(f"{len(self.models)} members need as many weights, got {len(weights)}")
        if self.rule not in RULES:
            raise ValueError(f"unknown rule {self.rule!r}: choose one of {', '.join(RULES)}")
        RULES[self.rule]([torch.zeros(2)] * len(weights), weights)  # raises where the rule does not take these weights
        self.config.weights = weights
        self.active = [k for k, weight in enumerate(weights) if weight != 0]

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

    # ---- from tokens to mixed logits --------------------------------------------------------------------------------

    def hidden(self, input_ids, attention_mask=None, position_ids=None, cache: MixtureCache | None = None, frozen=True):
        """Last hidden states of the members in use: a list of `[B, T, D_k]`. Only the first member gets a gradient.

        frozen False: run the first member only, if it is in use."""
        if position_ids is None and attention_mask is not None:
            position_ids = positions(attention_mask)[:, -input_ids.shape[1] :]
        inputs = dict(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
        if cache is not None and cache.stacked > 1:  # one pass over the weights for all members
            self.route.names = tuple(self.adapters[k] for k in self.active)
            return list(self._body(0, inputs, cache.caches[0]).chunk(len(self.active)))
        states = []
        # Theta comes last: where the backward pass recomputes its blocks, the route must still be theirs.
        for place in reversed(range(len(self.active))):
            k = self.active[place]
            if k > 0 and not frozen:
                continue
            if self.adapters:
                self.route.names = (self.adapters[k],)
            with torch.set_grad_enabled(torch.is_grad_enabled() and k == 0):
                states.insert(0, self._body(k, inputs, cache and cache.caches[place]))
        return states

    def checkpoint_activations(self) -> None:
        """From now on keep only each block's input for the backward pass, which recomputes the rest: less memory, and
        about a third more time."""
        for block in self.models[0].modules():
            if isinstance(block, GradientCheckpointingLayer):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)

    def _body(self, k: int, inputs: dict, cache: Cache | None) -> Tensor:
        return self.bodies[k](**inputs, cache=cache, use_cache=cache is not None)[0]

    def combine(self, hidden: list[Tensor]) -> Tensor:
        """Mixed logits `[..., V]` from the members' hidden states. Equal heads are applied once, to the mixed state."""
        if self.linear and self.shared_head:
            state, weight = self._one_head(hidden)
            return state @ weight.T
        logits = [self.models[k].get_output_embeddings()(h) for k, h in zip(self.active, hidden, strict=True)]
        return RULES[self.rule](logits, [self.weights[k] for k in self.active])

    def score(self, hidden: list[Tensor], tokens: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probs of `tokens` `[N]` under the mixed policy, from hidden states `[N, D_k]`; float32 or better.

        The full `[N, V]` is never held: a linear rule is one linear head (`token_logprobs`), others go in chunks."""
        if self.linear:
            state, weight = self._one_head(hidden)
            return token_logprobs(state / temperature, weight, tokens)
        size = max(1, 2**24 // self.config.vocab_size)
        return torch.cat(in_chunks(partial(self._score_piece, temperature), (tokens, *hidden), size))

    def _score_piece(self, temperature, tokens, *hidden):
        logits = self.combine(list(hidden))
        logps = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
        return logps.gather(-1, tokens[:, None]).squeeze(-1)

    @property
    def linear(self) -> bool:
        """Whether the mixed logits are a linear function of the hidden states."""
        heads = [self.models[k].get_output_embeddings() for k in self.active]
        return (self.rule == "logit" or len(heads) == 1) and all(getattr(h, "bias", None) is None for h in heads)

    @property
    def shared_head(self) -> bool:
        """Whether the members in use have one output matrix, so that mixing hidden states is mixing logits."""
        return len({self.models[k].get_output_embeddings().weight.data_ptr() for k in self.active}) == 1

    def _one_head(self, hidden: list[Tensor]) -> tuple[Tensor, Tensor]:
        """State and output matrix whose product are the mixed logits. Separate heads become one by concatenation:
        `w_1 W_1 h_1 + w_2 W_2 h_2 = [W_1 W_2] [w_1 h_1; w_2 h_2]`."""
        weighted = [(self.weights[k], h) for k, h in zip(self.active, hidden, strict=True)]
        weighted = [
            h if w == 1 else (w * h.float()).to(h.dtype) if h.element_size() < 4 else w * h for w, h in weighted
        ]
        heads = [self.models[k].get_output_embeddings().weight for k in self.active]
        if self.shared_head:
            return sum(weighted[1:], start=weighted[0]), heads[0][: self.config.vocab_size]
        return torch.cat(weighted, -1), torch.cat([head[: self.config.vocab_size] for head in heads], -1)

    # ---- the Hugging Face interface ---------------------------------------------------------------------------------

    def new_cache(self) -> MixtureCache:
        """Empty KV caches for the members in use."""
        if self.adapters:
            return MixtureCache([DynamicCache(config=self.models[0].config)], len(self.active), self.route.fork)
        return MixtureCache([DynamicCache(config=self.models[k].config) for k in self.active])

    def prompt_cache(self) -> MixtureCache:
        """Empty KV caches that keep their gradient, for prompts which several completions share in training."""
        depths = [self.models[k].config.num_hidden_layers for k in self.active]
        return MixtureCache([Cache(layers=[PromptLayer() for _ in range(depth)]) for depth in depths])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Mixed logits `[B, T, V]`, as any causal language model gives its own."""
        use_cache = (not torch.is_grad_enabled()) if use_cache is None else use_cache
        cache = kwargs.get("past_key_values", cache)  # its name before transformers 5.24
        cache = cache if use_cache else None
        if use_cache and not isinstance(cache, MixtureCache):
            if cache is not None and (cache.get_seq_length() > 0 or cache.is_compileable):
                raise ValueError("a Mixture keeps one cache a member: pass no cache, or the one it returned")
            cache = self.new_cache()
        hidden = self.hidden(input_ids, attention_mask, position_ids, cache)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.combine([h[:, keep] for h in hidden])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)

    def get_input_embeddings(self):
        return self.models[0].get_input_embeddings()

    def save_pretrained(self, save_directory, states: list[dict] | None = None, **kwargs):
        """Write `config.json` and the members: whole models, or LoRA adapters beside the name of their backbone.

        states: the members' weights, where they are not at hand in the members themselves."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(directory)
        self.generation_config.save_pretrained(directory)
        if self.adapters:
            names = [name for name in self.adapters if name is not None]
            kwargs = {"save_embedding_layers": False} | kwargs  # LoRA leaves them alone: no need to look them up
            self.members[0].save_pretrained(directory, selected_adapters=names, **kwargs)
            return
        for k, member in enumerate(self.members):
            member.save_pretrained(directory / f"member_{k}", state_dict=states and states[k], **kwargs)

    @classmethod
    def from_pretrained(cls, path, *args, config=None, backbone=None, **kwargs):
        """Load what `save_pretrained` wrote. kwargs (dtype, device_map, ...) go to the members' `from_pretrained`.

        backbone: where the LoRA members' backbone is now, if it is no longer where it was."""
        directory = Path(path)
        if not (directory / "config.json").exists():
            raise FileNotFoundError(f"{directory} holds no mixture (no config.json)")
        saved = json.loads((directory / "config.json").read_text())
        if saved.get("model_type") != MixtureConfig.model_type:
            raise ValueError(f"{directory} holds a {saved.get('model_type')} model, not a mixture: load it as such")
        weights, rule, adapters = saved["weights"], saved["rule"], saved.get("adapters")
        if adapters is None:
            folders = [directory / f"member_{k}" for k in range(len(weights))]
            members = [AutoModelForCausalLM.from_pretrained(folder, **kwargs) for folder in folders]
            return cls(members, weights, rule).eval()
        model = AutoModelForCausalLM.from_pretrained(backbone or saved["backbone"], **kwargs)
        names = [name for name in dict.fromkeys(adapters) if name is not None]
        model = PeftModel.from_pretrained(model, directory / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(directory / name, adapter_name=name)
        return cls([model], weights, rule, adapters).eval()


def positions(mask: Tensor) -> Tensor:
    """Position ids of a padded batch, `[B, T]`: count from the first real token, wherever the padding is."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


AutoConfig.register(MixtureConfig.model_type, MixtureConfig)
AutoModelForCausalLM.register(MixtureConfig, Mixture)
