"""The one door to transformers: a mixture as a Hugging Face causal language model."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .fast import lora
from .fast.cache import MixtureCache
from .mixture import MixedPolicy, evaluating

# Two names that transformers changed: of the config's class in 5.0, of the cache among a model's arguments in 5.24.
PreTrainedConfig = getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class MixtureConfig(PreTrainedConfig):
    """What `Mixture.save_pretrained` writes beside the members: weights, rule, and for LoRA members the backbone."""

    model_type = "logitmix"

    def __init__(self, weights=(1.0,), rule="logit", adapters=None, backbone=None, **kwargs):
        self.weights, self.rule = list(weights), rule
        self.adapters, self.backbone = adapters, backbone
        super().__init__(**kwargs)


class Mixture(MixedPolicy, PreTrainedModel, GenerationMixin):
    """`members` and a `rule` that combines their next-token logits; members of weight 0 are never run.

    members: causal language models of one tokenizer, the first of them trainable. Or one PEFT model, with `adapters`
        naming one of its LoRA adapters for each weight (None: the bare backbone); they share every other weight.
    weights: one number a member, default equal shares. For theta and ref they are `(1 - alpha, alpha)`; see `alpha`.
    rule: "logit" (weighted sum of logits; any weights), "prob" (mean of probabilities), or "contrastive" (two members,
        weights `(1, -gamma)`).

    It generates, saves, loads and goes through pipelines as any model does. Raises ValueError for members that can't
    be mixed: other tokenizers, heads that are more than a matrix, adapters that change what is shared."""

    config_class = MixtureConfig
    base_model_prefix = "mixture"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        members: Sequence[PreTrainedModel],
        weights: Sequence[float] | None = None,
        rule: str = "logit",
        adapters: Sequence[str | None] | None = None,
    ):
        if adapters and (len(members) != 1 or not lora.is_peft(members[0])):
            raise ValueError("adapters name the LoRA adapters of one PEFT model: pass exactly that one as member")
        if adapters:
            lora.check_adapters(members[0], adapters)
        models = [m.get_base_model() if lora.is_peft(m) else m for m in members]
        check_same_tokens(models)
        first, texts = models[0].config, [model.config.get_text_config(decoder=True) for model in models]
        super().__init__(MixtureConfig(
            rule=rule,
            adapters=list(adapters) if adapters else None,
            backbone=first.name_or_path if adapters else None,
            vocab_size=min(model.get_output_embeddings().weight.shape[0] for model in models),
            num_hidden_layers=getattr(texts[0], "num_hidden_layers", None),
            max_position_embeddings=min(getattr(text, "max_position_embeddings", None) or 2**31 for text in texts),
            **{name: getattr(first, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "dtype")},
        ))  # fmt: skip
        self.members = nn.ModuleList(members)
        self.adapters = list(adapters) if adapters else None
        self.models = models * (len(adapters) if adapters else 1)
        self.recompute, self.training = False, models[0].training
        self.generation_config = models[0].generation_config
        self._set(rule, [1 / len(self.models)] * len(self.models) if weights is None else weights)
        check_members(self)

    def body(self, k: int, input_ids, attention_mask, position_ids, cache) -> Tensor:
        """The k-th member's last hidden states, `[B, T, D_k]`."""
        inputs = dict(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
        return self.models[k].base_model(**inputs, **{CACHE: cache}, use_cache=cache is not None)[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Mixed logits `[B, T, V]`, as any causal language model gives its own."""
        cache = kwargs.pop("cache", None)
        cache = kwargs.pop("past_key_values", None) if cache is None else cache
        if torch.is_grad_enabled():
            if cache is not None:
                raise ValueError("a pass with gradients takes no cache: wrap it in torch.no_grad(), or pass none")
        elif cache is None and use_cache is not False:
            cache = self.new_cache()
        elif cache is not None and not isinstance(cache, MixtureCache):
            if cache.get_seq_length() > 0 or cache.is_compileable:
                raise ValueError("a Mixture keeps one cache a member: pass no cache, or the one it returned")
            cache = self.new_cache()
        if cache is not None:
            with self.stacked():
                hidden = self.hidden(input_ids, attention_mask, position_ids, cache)
        else:
            hidden = self.hidden(input_ids, attention_mask, position_ids)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits, loss = self.combine([h[:, keep] for h in hidden]), None
        if labels is not None:
            # a trainer that accumulates gradients counts the tokens of all its batches
            counted = {name: kwargs[name] for name in ("num_items_in_batch",) if name in kwargs}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **counted)
        out = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
        return out if kwargs.get("return_dict", True) else out.to_tuple()

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """From now on keep only each layer's input for the backward pass, which recomputes the rest: less memory, and
        about a third more time."""
        self.recompute = True

    def gradient_checkpointing_disable(self) -> None:
        self.recompute = False

    def get_input_embeddings(self):
        return self.models[0].get_input_embeddings()

    def save_pretrained(self, save_directory, **kwargs):
        """Write `config.json` and the members: whole models, or LoRA adapters beside the name of their backbone."""
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
            member.save_pretrained(directory / f"member_{k}", **kwargs)

    @classmethod
    def from_pretrained(cls, path, *args, config=None, backbone=None, **kwargs):
        """Load what `save_pretrained` wrote. kwargs (dtype, device_map, ...) go to the members' `from_pretrained`.

        backbone: where the LoRA members' backbone is now, if it is no longer where it was."""
        directory = Path(path)
        if not (directory / "config.json").exists():
            raise FileNotFoundError(f"{directory} holds no mixture (no config.json)")
        saved = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        if saved.get("model_type") != MixtureConfig.model_type:
            raise ValueError(f"{directory} holds a {saved.get('model_type')} model, not a mixture: load it as such")
        weights, rule, adapters = saved["weights"], saved["rule"], saved.get("adapters")
        kwargs = {"use_safetensors": True} | kwargs
        if adapters is None:
            folders = [directory / f"member_{k}" for k in range(len(weights))]
            members = [AutoModelForCausalLM.from_pretrained(folder, **kwargs) for folder in folders]
            return cls(members, weights, rule).eval()
        from peft import PeftModel

        model = AutoModelForCausalLM.from_pretrained(backbone or saved["backbone"], **kwargs)
        names = [name for name in dict.fromkeys(adapters) if name is not None]
        model = PeftModel.from_pretrained(model, directory / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(directory / name, adapter_name=name)
        return cls([model], weights, rule, adapters).eval()


@torch.no_grad()
def check_members(mixture: Mixture) -> None:
    """Raise ValueError where a member's logits are not its output matrix times its last hidden states, or where it
    remembers something else than keys and values: seen by running each on a few tokens."""
    if mixture.device.type == "meta":
        return
    ids = torch.arange(1, 4, device=mixture.get_input_embeddings().weight.device)[None] % mixture.config.vocab_size
    for k, model in enumerate(mixture.models):
        name = type(model).__name__
        member = lora.active(model, mixture.adapters[k]) if mixture.adapters else nullcontext()
        with evaluating(model), member:
            expected = model(input_ids=ids, use_cache=False).logits.float()
            cache = MixtureCache.empty([model.config])
            try:
                found = mixture.head(k)(mixture.body(k, ids, None, None, cache)).float()
            except (AttributeError, TypeError, RuntimeError, ValueError, IndexError) as error:
                raise ValueError(f"{name} can't be mixed: it does not run with a cache of keys and values") from error
        if not all(getattr(layer, "keys", None) is not None and layer.keys.dim() == 4 for layer in cache.layers):
            raise ValueError(f"{name} can't be mixed: it remembers other states than keys and values")
        scale = max(1.0, expected.abs().max().item())
        if (found - expected).abs().max().item() > (1e-5 if model.dtype == torch.float32 else 2e-2) * scale:
            raise ValueError(f"{name} can't be mixed: its logits are more than its output matrix times its last states")


def check_same_tokens(models: Sequence[PreTrainedModel]) -> None:
    """Raise ValueError where an id that all models know stands for different tokens, by their tokenizers on disk."""
    names = list(dict.fromkeys(model.config.name_or_path for model in models))
    tables = {name: table for name in names if len(names) > 1 and (table := _tokens(name))}
    for name, table in tables.items():
        first = next(iter(tables))
        for k in table.keys() & tables[first].keys():
            if table[k] != tables[first][k]:
                raise ValueError(
                    f"{first} and {name} have different tokenizers: id {k} is {tables[first][k]!r} and {table[k]!r}"
                )


@lru_cache(maxsize=16)
def _tokens(name: str) -> dict[int, str]:
    """Id to token of a tokenizer on disk; empty where there is none, as for a model made in memory."""
    if lacks_tokenizer(name):
        return {}
    try:
        return {k: token for token, k in AutoTokenizer.from_pretrained(name, local_files_only=True).get_vocab().items()}
    except Exception:  # transformers raises many kinds
        return {}


def lacks_tokenizer(name: str | Path) -> bool:
    """Whether this is a folder of a model saved without its tokenizer: transformers would make up an empty one."""
    return Path(name).is_dir() and not any(any(Path(name).glob(kind)) for kind in ("tokenizer*", "vocab*", "*.model"))


AutoConfig.register(MixtureConfig.model_type, MixtureConfig)
AutoModelForCausalLM.register(MixtureConfig, Mixture)
