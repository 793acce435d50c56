"""What a run needs, worked out before a GPU is rented: memory by what holds it, and the time that hardware allows."""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ..models import add_lora

SAMPLING = 32  # bytes for each number in [rows, vocabulary] while a token is drawn: logits, log-probs, sums in float64

# Layers, width, heads, heads of keys and values, width of the MLP, vocabulary, and whether the head is the embedding.
SIZES = {
    "smol": ("llama", 30, 576, 9, 3, 1536, 49152, True),
    "qwen-0.5b": ("qwen2", 24, 896, 14, 2, 4864, 151936, True),
    "qwen-1.5b": ("qwen2", 28, 1536, 12, 2, 8960, 151936, True),
    "qwen-3b": ("qwen2", 36, 2048, 16, 2, 11008, 151936, True),
    "qwen-7b": ("qwen2", 28, 3584, 28, 4, 18944, 152064, False),
}


def shape(preset: str) -> PretrainedConfig:
    """The config of a preset's model, to plan with or to fill with random weights, without asking the Hub for it."""
    if preset not in SIZES:
        raise ValueError(f"no shape of {preset!r} is written down: choose one of {', '.join(SIZES)}")
    kind, layers, width, heads, kv, mlp, vocabulary, tied = SIZES[preset]
    return AutoConfig.for_model(
        kind, num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv,
        intermediate_size=mlp, vocab_size=vocabulary, tie_word_embeddings=tied, max_position_embeddings=8192,
    )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One RL step of a mixture of theta and ref. Sizes in tokens; memory in bytes on each GPU; times in seconds.

    config: the model's (`AutoConfig.from_pretrained`). rows: completions on one GPU. samples: completions of a prompt.
    prompt, new: tokens of a prompt and of a completion. microbatch_tokens: of completions, trained at once. rank: of
    two LoRA adapters on one backbone; 0 trains a whole model beside a whole frozen one. blocks: adapters on so many of
    the last blocks; 0: all. keep, checkpoint: the preset's `keep_ref_states` and `checkpoint_activations`."""

    config: PretrainedConfig
    rows: int = 128
    samples: int = 8
    prompt: int = 200
    new: int = 1024
    microbatch_tokens: int = 8192
    rank: int = 32
    blocks: int = 0
    dtype: torch.dtype = torch.bfloat16
    keep: bool = True
    checkpoint: bool = True

    @property
    def share(self) -> float:
        """Of the blocks, those from the first adapter on: gradients go no further down."""
        depth = self.config.num_hidden_layers
        return (self.blocks if self.rank and self.blocks else depth) / depth

    def memory(self) -> dict[str, float]:
        """Bytes by what holds them. What is never there at the same time is not added up: see `peak`."""
        c, size = self.config, self.dtype.itemsize
        total = parameters(c)
        trained = self.share * adapter_parameters(c, self.rank) if self.rank else total
        layers, tokens = self.share * c.num_hidden_layers, self.microbatch_tokens
        block, states = self.layer_activations() * tokens, tokens * c.hidden_size
        outside = states * (2 * size if self.rank else 3 * size + 4)  # the last norm, and what it returns
        # logits and softmax of a chunk; the states that the head is applied to, and their gradient
        scoring = 8 * min(tokens * c.vocab_size, 2**25) + 7 * states * size
        if not self.rank:  # two heads as one, and its gradient in float32
            scoring += c.vocab_size * c.hidden_size * (2 * size + 16)
        # recomputed: each block's input, and beside them whichever is larger, the scoring or one block's backward pass
        stored = layers * states * size + max(scoring, 1.5 * block) if self.checkpoint else layers * block + scoring
        return {
            "weights": total * size if self.rank else 2 * total * size,
            # float32 adapters or master weights, their gradient, and Adam's two averages
            "training theta": 16 * trained,
            "caches": 2 * self.rows * (self.prompt + self.new) * cache_bytes(c, self.dtype),
            "drawing tokens": self.rows * c.vocab_size * SAMPLING,
            "kept states": self.rows * self.new * c.hidden_size * size if self.keep else 0,
            "activations": stored + outside,
        }

    def layer_activations(self) -> float:
        """Bytes that the backward pass needs of one layer, for each token of a completion.

        Counted from the layer's code, as PyTorch keeps what an operation needs for its gradient. Prompts are read once
        for all their samples, but each completion keeps the keys and values of its prompt, repeated for all heads."""
        width, mlp, size = self.config.hidden_size, self.config.intermediate_size, self.dtype.itemsize
        kept = 2 * 4 * width  # what enters the two norms, in float32
        kept += 4 * width * size  # queries, keys and values, and what attention returns
        kept += 3 * mlp * size  # the gate before and after its activation, and what it multiplies
        if self.rank:  # seven float32 adapters: what enters them, each its own copy if that has 16 bits, and between
            kept += ((6 if size < 4 else 2) * width + mlp + 7 * self.rank) * 4
        else:  # what leaves the norms, before and after their weights, and what enters `down_proj`
            kept += (4 * width + mlp) * size
        ratio = self.prompt / self.new
        return kept * (1 + ratio / self.samples) + 2 * width * size * ratio

    def peak(self) -> float:
        """Bytes in the worst moment: sampling holds caches, training holds activations."""
        held = self.memory()
        always = held["weights"] + held["training theta"] + held["kept states"]
        return always + max(held["caches"] + held["drawing tokens"], held["activations"])

    def seconds(self, flops: float, bandwidth: float) -> dict[str, float]:
        """The least time on a GPU of `flops` a second (matrix products) and `bandwidth` bytes a second.

        A decoded token reads all weights once for both LoRA policies, and both caches, half full on average. Training
        takes 2 operations a weight and token forward; from the first adapter on 2 backward for the inputs, and 2 more
        where activations are recomputed; 2 for the weights if they are trained."""
        c, size, total = self.config, self.dtype.itemsize, parameters(self.config)
        weights = total * size * (1 if self.rank else 2)
        cache = 2 * self.rows * (self.prompt + self.new / 2) * cache_bytes(c, self.dtype)
        prompts, completions = self.rows / self.samples * self.prompt, self.rows * self.new
        passes = 2 + self.share * (4 if self.checkpoint else 2) + (0 if self.rank else 2) + (0 if self.keep else 2)
        return {
            "prefill": 2 * 2 * total * prompts / flops,
            "decoding": self.new * (weights + cache) / bandwidth,
            "training": passes * total * (prompts + completions) / flops,
        }


def parameters(config: PretrainedConfig) -> int:
    """Weights of a model, counted on one that holds no numbers."""
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def adapter_parameters(config: PretrainedConfig, rank: int) -> int:
    """Weights of one LoRA adapter on all linear layers of the blocks."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        adapted = add_lora(model, rank, rank)
    return sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)


def cache_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers of one policy."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head * dtype.itemsize
