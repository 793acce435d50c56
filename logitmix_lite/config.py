"""Every number of a run in one place. Each field is also a flag of the command line; its help stands beside it."""

from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what follows is imported where it is used: `--help` needs neither problems nor `datasets`
    from .tasks.load import Task

CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"), "ratio": ("mixture", "theta"),
    "loss_type": ("grpo", "dapo", "dr_grpo"), "adv_estimator": ("grpo", "gae"),
}  # fmt: skip


def _number(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Preset:
    """What to train, on what, and how long. `load_preset("tiny", steps=10)` changes some of it."""

    name: str
    # models
    base: str = _number("tiny-base", "where theta starts when mixing: tiny-base, smol, a folder, or a model of the Hub")
    anchor: str = _number("tiny-anchor", "the reference: an SFT model or LoRA adapter made by `sft`, or `base`")
    lora_rank: int = _number(0, "rank of the LoRA adapters; 0 trains all weights")
    lora_alpha: int = _number(32, "LoRA scale is lora_alpha / lora_rank")
    lora_blocks: int = _number(0, "adapters on so many of the last blocks; 0: all. The others run once for both")
    dtype: str = _number("auto", "float32, bfloat16, float16, or auto: float32 on a CPU, else 16 bits that the GPU has")
    # problems
    task: str = _number("chain", "problems: chain, words, math, cn_k12, mmlu, gsm8k, or a file.jsonl")
    data: str | None = _number(None, "copy on disk of that benchmark, instead of the Hub: JSONL, Parquet or a folder")
    where: dict | None = _number(None, "rows of a JSONL task to use, as field=value,value")
    train_size: int = _number(4000, "training problems at most")
    validation_size: int = _number(64, "problems that set the adaptive alpha")
    test_size: int = _number(200, "held-out problems that measure accuracy")
    # rollouts
    prompts: int = _number(16, "prompts a step")
    samples: int = _number(8, "completions a prompt (G)")
    max_new_tokens: int = _number(64, "longest completion, tokens")
    temperature: float = _number(1.0, "sampling temperature")
    # learning
    steps: int = _number(60, "RL steps")
    lr: float = _number(2e-4, "learning rate of Adam, constant")
    epochs: int = _number(1, "optimiser steps on each batch of rollouts")
    microbatch_tokens: int = _number(8192, "tokens in one forward and backward pass; changes memory, not the result")
    keep_ref_states: bool = _number(True, "keep ref's hidden states from sampling: training then runs theta alone")
    checkpoint_activations: bool = _number(False, "recompute activations in the backward pass: less memory, more time")
    clip: float = _number(0.2, "the ratio is clipped to 1 - clip, 1 + clip")
    clip_high: float = _number(0.0, "the ratio is clipped to 1 - clip, 1 + clip_high (DAPO: 0.28); 0: as clip")
    ratio: str = _number("mixture", "policy in the ratio's numerator: mixture, or theta (Logit Fusion)")
    ratio_cap: float = _number(0.0, "in place of the clip, the ratio counts at most so much (Logit Fusion: 3); 0: clip")
    loss_type: str = _number("grpo", "tokens are averaged by completion (grpo), all alike (dapo), or summed (dr_grpo)")
    adv_estimator: str = _number("grpo", "advantages by comparing the completions of a prompt (grpo), or PPO's (gae)")
    scale_rewards: bool = _number(True, "advantages are divided by their group's standard deviation")
    mask_truncated_completions: bool = _number(False, "completions without an end get no advantage")
    overlong_cache: int = _number(0, "from so many tokens before the longest on, length costs reward (DAPO); 0: never")
    dynamic_sampling: int = _number(1, "sample so many times the prompts, keep groups of unequal rewards (DAPO: > 1)")
    max_grad_norm: float = _number(1.0, "gradients are scaled down to this norm")
    alpha: float = _number(0.5, "weight of the reference in the mixture (adaptive: the first step's)")
    beta: float = _number(0.04, "weight of the KL term of grpo-kl")
    decay_steps: int = _number(40, "steps over which a decaying alpha falls to 0")
    # adaptive alpha, equation 9
    offset: float = _number(0.5, "m0: the net gain at which alpha is 1/2")
    scale: float = _number(0.5, "tau: how fast alpha follows the net gain")
    smoothing: float = _number(1.0, "eta: share of the new value in alpha; 1 is the paper's case")
    # evaluation
    eval_every: int = _number(20, "steps between evaluations of the test problems (also first and last)")
    eval_batch: int = _number(200, "problems decoded at once")
    save_every: int = _number(1, "steps between checkpoints")
    # supervised fine-tuning of the anchor
    sft_task: str = _number("chain-easy", "problems whose worked solutions make the anchor")
    sft_demos: int = _number(200, "how many of them")
    sft_steps: int = _number(100, "optimiser steps")
    sft_batch: int = _number(32, "demonstrations a step")
    sft_lr: float = _number(8e-4, "learning rate of Adam, with a cosine decay to 0")

    def problems(self) -> "Task":
        """The task of RL: training, validation and test problems, the same for every method and seed."""
        from .tasks.load import load_task

        sizes = dict(train=self.train_size, validation=self.validation_size, test=self.test_size)
        return load_task(self.task, **sizes, where=self.where, data=self.data)

    def demonstrations(self) -> "Task":
        """The task of supervised fine-tuning: `train` holds the demonstrations, no test problem of RL among them."""
        from .tasks.load import load_task, normalised

        sizes = dict(train=self.sft_demos, validation=self.validation_size, test=self.test_size)
        same = dict(where=self.where, data=self.data) if self.sft_task == self.task else {}
        task, rl = load_task(self.sft_task, **sizes, **same), self.problems()
        held_out = {normalised(p.question) for p in rl.validation + rl.test}
        return replace(task, train=[p for p in task.train if normalised(p.question) not in held_out])


PRESETS = {
    "tiny": Preset("tiny", dtype="float32"),
    "smol": Preset(
        "smol", base="smol", anchor="smol-anchor", lora_rank=8, lora_alpha=16, lora_blocks=10, task="words",
        validation_size=16, prompts=4, samples=8, max_new_tokens=48, steps=30, lr=3e-4, microbatch_tokens=4096,
        eval_every=30, eval_batch=100, sft_task="words", sft_demos=960, sft_steps=60, sft_batch=16, sft_lr=1.5e-3,
    ),
}  # fmt: skip

# The paper's family at its smallest, on problems with human solutions: minutes a run on a large GPU.
PRESETS["qwen-0.5b"] = Preset(
    "qwen-0.5b", base="Qwen/Qwen2.5-0.5B-Instruct", anchor="runs/qwen-0.5b/anchor/final", lora_rank=16, lora_alpha=32,
    task="gsm8k", validation_size=32, prompts=8, samples=8, max_new_tokens=320, steps=40, lr=1e-4, eval_every=5,
    microbatch_tokens=32768, save_every=20, checkpoint_activations=True, sft_task="gsm8k", sft_demos=4000,
    sft_steps=125, sft_batch=32, sft_lr=2e-4,
)  # fmt: skip

# Qwen2.5-Instruct, the paper's models, with LoRA. The paper's text gives no learning rates and sizes: these are ours.
for size, rank, microbatch_tokens in (("1.5b", 64, 32768), ("3b", 64, 16384), ("7b", 32, 8192)):
    PRESETS[f"qwen-{size}"] = Preset(
        f"qwen-{size}", base=f"Qwen/Qwen2.5-{size.upper()}-Instruct", anchor=f"runs/qwen-{size}/anchor/final",
        lora_rank=rank, lora_alpha=rank, task="math", train_size=7000, test_size=500, prompts=16, samples=8,
        max_new_tokens=1024, steps=200, lr=2e-5, microbatch_tokens=microbatch_tokens, checkpoint_activations=True,
        eval_batch=128, save_every=10, sft_task="math", sft_demos=2000, sft_steps=125, sft_batch=32, sft_lr=1e-4,
    )  # fmt: skip


def load_preset(name: str, **changes) -> Preset:
    """A named preset, with some fields changed. Raises ValueError for an unknown name, field, or impossible value."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    known = [f.name for f in fields(Preset)]
    for field_ in changes:
        if field_ not in known:
            raise ValueError(f"a preset has no field {field_!r}: it has {', '.join(sorted(known))}")
    preset = replace(PRESETS[name], **changes)
    check(preset)
    return preset


def check(preset: Preset) -> None:
    """Raise ValueError, naming the field, where a value makes no sense."""
    for f in fields(preset):
        value, kind = getattr(preset, f.name), f.type
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"{f.name} must be {getattr(kind, '__name__', kind)}, got {value!r}")
    for name in ("alpha", "smoothing"):
        if not 0 <= getattr(preset, name) <= 1:
            raise ValueError(f"{name} lies in [0, 1], got {getattr(preset, name)}")
    for name in ("lr", "scale", "max_grad_norm", "sft_lr"):
        if not 0 < getattr(preset, name) < inf:
            raise ValueError(f"{name} must be positive and finite, got {getattr(preset, name)}")
    may_be_zero = ("lora_rank", "lora_blocks", "steps", "sft_steps", "overlong_cache")
    for name in ("beta", "clip", "clip_high", "ratio_cap", "temperature", *may_be_zero):
        if not getattr(preset, name) >= 0:
            raise ValueError(f"{name} must not be negative, got {getattr(preset, name)}")
    for f in fields(preset):
        if f.type is int and f.name not in may_be_zero and getattr(preset, f.name) < 1:
            raise ValueError(f"{f.name} must be at least 1, got {getattr(preset, f.name)}")
    for name, choices in CHOICES.items():
        if getattr(preset, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(preset, name)!r}")
    if preset.samples < 2:
        raise ValueError("samples must be at least 2: an advantage compares the completions of one prompt")
