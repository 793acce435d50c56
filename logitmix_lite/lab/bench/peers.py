"""Rows against other packages' ways: TRL's whole GRPO step and its sampler of mixtures, and a full log-softmax."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from random import Random
from unittest.mock import patch

import torch
from peft import LoraConfig
from transformers import GenerationConfig

from ...config import load_preset
from ...fast.logprobs import token_logprobs
from ...fast.rows import pad_rows
from ...hf import Mixture
from ...models import default_device, locate
from ...recipe import train
from ...records import read_metrics
from ...tasks import load_task
from ...tasks.rewards import grade_all
from . import Work
from .rows import generate
from .work import RANK, compare, is_real, load, prompts, result, rounds, sample


def row_step(work: Work) -> list[dict]:
    """One GRPO step through the mixture against TRL's GRPOTrainer with KL: 64 completions, LoRA of the same rank.

    Both go through their own whole step (sampling, rewards, loss, optimiser); medians over steps, not in turns. Rewards
    are graded and then drawn at random, or we would skip the training of groups that are all wrong."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    random = Random(0)

    def drawn(grade):
        return replace(grade, correct=random.random() < 0.5)

    if not is_real(work):
        raise ValueError("the row `step` needs SmolLM2: python -m logitmix_lite fetch smol")
    task = load_task("words", train=work.prompts * (work.runs + 1))
    with tempfile.TemporaryDirectory() as folder:
        # the untrained model hardly ever ends within 48 tokens; with one test problem, the time is that of the steps
        preset = load_preset(
            "smol", anchor="base", lora_rank=RANK, lora_alpha=2 * RANK, lora_blocks=0, prompts=work.prompts,
            samples=work.samples, max_new_tokens=work.new, steps=work.runs + 2, test_size=1, eval_every=10**6,
        )  # fmt: skip
        with patch("logitmix_lite.train.grade_all", lambda *args: list(map(drawn, grade_all(*args)))):
            train(preset, "fixed", f"{folder}/ours")
        # without the first step, which warms up, and the last, which also evaluates
        ours = [line["seconds"] for line in read_metrics(f"{folder}/ours")[2:-1]]

        ends = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                ends.append(time.perf_counter())

            on_train_end = on_step_begin

        rows = [{"prompt": [{"role": "user", "content": f"{p.question} {task.instruction}"}], "answer": p.answer}
                for p in task.train]  # fmt: skip
        config = GRPOConfig(
            output_dir=f"{folder}/trl", per_device_train_batch_size=32, gradient_accumulation_steps=2,
            num_generations=work.samples, max_completion_length=work.new, beta=0.04, max_steps=work.runs + 1,
            learning_rate=1e-4,
            use_cpu=default_device() == "cpu", report_to=[], save_strategy="no", logging_steps=1000, bf16=False,
            gradient_checkpointing=False, disable_tqdm=True,
        )  # fmt: skip

        def reward(completions, answer, **kwargs):
            texts = [completion[0]["content"] for completion in completions]
            return [float(drawn(grade).correct) for grade in grade_all(texts, answer)]

        trainer = GRPOTrainer(
            locate("smol"), reward, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
            peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        trainer.train()
    peer = [b - a for a, b in zip(ends[1:], ends[2:], strict=False)]
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return [result("GRPO step, mixing / TRL GRPOTrainer, KL", mine, theirs, theirs / mine)]


def row_nash(work: Work) -> list[dict]:
    """Mixed rollout against TRL's sampler for the same rule, both of the same two models, without adapters.

    TRL's runs the whole text through both models for every token, so the ratio grows with their number; and it makes
    logits for all of the text, so it needs gigabytes for each 10,000 tokens in a batch."""
    theta, ref = load(work), load(work)
    mixture, trl = Mixture([theta, ref]).eval(), nash_mixture(theta, ref, 0.5)
    ids, mask = (x.repeat_interleave(work.samples, 0).to(theta.device) for x in pad_rows(prompts(work), 0, left=True))
    times = rounds({
        "mixed": lambda: sample(mixture, work),
        "trl": lambda: generate(trl, ids, mask, work.new),
    }, work.runs)  # fmt: skip
    return [compare("mixed rollout / TRL's GeometricMixtureWrapper", times["mixed"], times["trl"])]


def nash_mixture(theta, ref, alpha: float):
    """TRL's sampler for Nash-MD (arXiv:2312.00886), which calls alpha `mixture_coef`; TRL has it up to version 1.13.

    It must go without a KV cache: it would give both models the same one, and tokens would come from mixed-up keys."""
    from trl.experimental.nash_md.nash_md_trainer import GeometricMixtureWrapper

    return GeometricMixtureWrapper(theta, ref, GenerationConfig(use_cache=False), alpha, theta.device)


def row_logprobs(work: Work) -> list[dict]:
    """`token_logprobs` forward and backward against the full log-softmax: 2,048 tokens, D 1,536, V 151,936, float32.

    Time is the process's own, on all cores together: other work on the machine does not count."""

    def child(kind: str) -> tuple[float, float]:
        command = [sys.executable, "-c", f"from {__name__} import logprobs_child as child; child({kind!r})"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return tuple(json.loads(out))

    pairs = [(child("chunked"), child("full")) for _ in range(work.runs)]
    ours, peer = (list(zip(*side, strict=True)) for side in zip(*pairs, strict=True))
    return [
        compare(f"token_logprobs / full log-softmax, {what}", ours[k], peer[k], unit)
        for k, (what, unit) in enumerate((("processor time", "s"), ("extra peak memory", "MiB")))
    ]


def logprobs_child(kind: str) -> None:
    """In a process of its own, so that its peak memory is its own: prints seconds and extra MiB."""
    torch.manual_seed(0)
    hidden = torch.randn(2048, 1536, requires_grad=True)
    # made in place: a peak before the work would hide what the work needs
    weight, tokens = torch.randn(151936, 1536).div_(40), torch.randint(151936, (2048,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    if kind == "chunked":
        token_logprobs(hidden, weight, tokens).sum().backward()
    else:
        (hidden @ weight.T).log_softmax(-1).gather(-1, tokens[:, None]).sum().backward()
    seconds = time.process_time() - start
    print(json.dumps([seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
