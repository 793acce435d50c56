"""A run of RL: algorithm 1, algorithm 2 and the baselines differ only in the `Method` that they run under."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from .config import Preset, check, load_preset
from .methods import named
from .models import average_with_base, check_precision, frozen_fingerprint, load_tokenizer, make_mixture
from .ranks import Ranks
from .rollout import check_prompts
from .runs import Run
from .schedules import Fixed
from .tasks.load import encode_prompt
from .trainer import Trainer


def train(
    preset: Preset | str, method: str, out: str | Path, *, seed: int = 0, init: str | None = None, resume: bool = False
) -> dict:
    """Train theta on `preset.task` and write a run to `out`; returns the last line of its metrics.

    method: one of METHODS. init: where theta starts, if not where the method has it: "base", "anchor", "average" (of
    their weights), or a path.
    resume: go on from the checkpoint in `out`; the result is, on a CPU bit for bit, that of a run never interrupted.
    Raises ValueError for settings that cannot work, before anything is written."""
    how = named(method)
    preset = replace(load_preset(preset) if isinstance(preset, str) else preset, **how.settings)
    check(preset)
    if preset.temperature == 0:
        raise ValueError("GRPO learns from differences between samples: temperature must be positive")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    ranks = Ranks()
    schedule, beta = how.schedule.of(preset) if how.mixes else Fixed(0.0), preset.beta if how.kl else 0.0
    ranks.share(range(preset.prompts))  # can they be shared evenly?
    task, tokenizer = preset.problems(), load_tokenizer(preset.base)
    torch.manual_seed(seed)  # a LoRA adapter's random start
    init = init or how.init
    mixture = make_mixture(
        preset.anchor if init in ("anchor", "average") else init,
        preset.anchor if how.mixes or how.kl else None,
        preset.base,
        schedule.alpha,
        how.rule,
        rank=preset.lora_rank,
        scale=preset.lora_alpha,
        blocks=preset.lora_blocks,
        dtype=preset.dtype,
    )
    if init == "average":
        average_with_base(mixture, preset.base)
    if preset.checkpoint_activations:
        mixture.gradient_checkpointing_enable()
    frozen = frozen_fingerprint(mixture)
    check_precision(mixture)
    prompts = [encode_prompt(tokenizer, p.question, task.instruction) for p in task.train + task.validation + task.test]
    check_prompts(mixture, prompts, preset.max_new_tokens)
    settings = asdict(preset)
    config = {"command": "train", "preset": settings.pop("name"), "method": method, "seed": seed, "init": init}
    config |= settings | {"frozen": frozen} | ({"rows": task.counts} if task.counts else {})
    run = Run(out, config, resume, ranks.main)
    ranks.wait()
    try:
        return Trainer(mixture, tokenizer, task, preset, schedule, beta, seed, run, ranks).run()
    except KeyboardInterrupt:
        ranks.print(f"\nStopped. {out} has all steps to its last checkpoint: --resume, in the same command, goes on.")
        raise
