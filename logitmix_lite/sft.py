"""Supervised fine-tuning on worked solutions: makes the anchor, and the base of the tiny world."""

from collections.abc import Sequence
from math import cos, pi
from pathlib import Path

import torch
from tqdm import tqdm

from .config import Preset, load_preset
from .fast.precision import clip_gradients, loss_scale, trainable
from .fast.rows import pad_rows, token_batches
from .fingerprints import contents
from .hf import Mixture
from .models import add_lora, check_precision, load_model, load_tokenizer, save_policy
from .ranks import Ranks
from .rollout import completion_logprobs
from .runs import Run, batch_indices
from .tasks.load import encode_demo, end_tokens
from .watch import Watch


def sft(preset: Preset | str, out: str | Path, seed: int = 0, resume: bool = False) -> Path:
    """Fine-tune `preset.base` on `preset.sft_demos` worked solutions of `preset.sft_task`; returns the model's folder.

    Full weights, or a LoRA adapter where `preset.lora_rank` is not 0. ValueError for settings that cannot work."""
    preset = load_preset(preset) if isinstance(preset, str) else preset
    if Ranks().count > 1:
        raise ValueError("sft runs as one process: start it without `accelerate launch`")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    tokenizer = load_tokenizer(preset.base)
    task = preset.demonstrations()
    torch.manual_seed(seed)  # the adapter's random start
    model = load_model(preset.base, preset.dtype)
    end = next(iter(end_tokens(tokenizer, model.generation_config.eos_token_id)), None)
    demos = [encode_demo(tokenizer, problem, task.instruction, end) for problem in task.train]
    if preset.lora_rank:
        model = add_lora(model, preset.lora_rank, preset.lora_alpha, preset.lora_blocks, name="default")
        mixture = Mixture([model], [1.0], adapters=["default"])
    else:
        mixture = Mixture([model], [1.0])
    if preset.checkpoint_activations:
        mixture.gradient_checkpointing_enable()
    check_precision(mixture)
    # the task of RL counts too: its test problems are never among the demonstrations
    decides = ("sft_", "base", "lora", "dtype", "task", "data", "where", "validation_size", "test_size")
    settings = {name: value for name, value in vars(preset).items() if name.startswith(decides)}
    config = {"command": "sft", "preset": preset.name, "seed": seed} | settings | contents(mixture, task)
    with Run(out, config, resume) as run:
        fit(
            mixture, demos, run, steps=preset.sft_steps, batch=preset.sft_batch, lr=preset.sft_lr, seed=seed,
            microbatch_tokens=preset.microbatch_tokens, pad=tokenizer.pad_token_id, save_every=preset.save_every,
        )  # fmt: skip
        run.finish(lambda folder: save_policy(model, folder, preset.base), tokenizer.save_pretrained)
    return run.final


def fit(
    mixture: Mixture, demos: Sequence[tuple[list[int], list[int]]], run: Run, *, steps: int, batch: int, lr: float,
    seed: int, microbatch_tokens: int, pad: int, save_every: int = 1,
) -> None:  # fmt: skip
    """Minimise the mean negative log-likelihood of the demos' completion tokens (prompts are read, not trained).

    demos: pairs of prompt and completion token ids. The learning rate rises over the first tenth of the steps,
    then falls to 0 along a cosine. Raises Diverged where NaN or infinite numbers would spoil the weights."""
    parameters, scale = trainable(mixture), loss_scale(mixture)
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, betas=(0.9, 0.95), weight_decay=0)
    state = run.restore(parameters, optimizer)
    watch, first = Watch(state["lines"]), max(0, state["step"]) + 1
    for step in tqdm(range(first, steps + 1), initial=first - 1, total=steps, desc="sft", unit="step"):
        chosen = [demos[k] for k in batch_indices(step, batch, len(demos), seed)]
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, 10 * step / steps) * 0.5 * (1 + cos(pi * (step - 1) / steps))
        tokens, loss = sum(len(completion) for _, completion in chosen), 0.0
        lengths = [len(prompt) + len(completion) for prompt, completion in chosen]
        for rows in token_batches(lengths, microbatch_tokens):
            prompts, completions = zip(*(chosen[k] for k in rows), strict=True)
            batch_ids = (*pad_rows(prompts, pad, left=True), *pad_rows(completions, pad))
            logp = completion_logprobs(mixture, *(x.to(mixture.device) for x in batch_ids))
            part = -logp.sum() / tokens
            (scale * part).backward()
            loss += part.item()
        norm = clip_gradients(parameters.values(), 1.0, scale).item()
        line = {"step": step, "loss": loss, "grad_norm": norm, "tokens": tokens}
        if watch.finite(loss, norm):
            optimizer.step()
        else:
            line["skipped"] = watch.skipped
        optimizer.zero_grad()
        run.log(line)
        watch.notice(line)
        if step % save_every == 0 or step == steps:
            run.save(step, parameters, optimizer)
