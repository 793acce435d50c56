"""What both sides of a row work on, and how they are timed."""

import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...hf import Mixture
from ...models import add_lora, default_device, locate
from ...rollout import Rollouts, completion_logprobs, rollout
from ...tasks import encode_prompt, load_task
from .. import budget
from . import Work

RANK = 16


def load(work: Work, vocabulary: int | None = None):
    """A fresh model, float32 on a CPU and bfloat16 on a GPU. vocabulary: random weights, with that many tokens."""
    dtype = torch.bfloat16 if default_device() == "cuda" else torch.float32
    torch.manual_seed(0)
    if is_real(work) and vocabulary is None:
        return AutoModelForCausalLM.from_pretrained(locate("smol"), dtype=dtype).to(default_device()).eval()
    config = budget.shape(work.shape)
    config.vocab_size = vocabulary or config.vocab_size
    with torch.device(default_device()):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def is_real(work: Work) -> bool:
    """Whether the model is SmolLM2 itself, and not random weights."""
    try:
        return work.shape == "smol" and bool(locate("smol"))
    except FileNotFoundError:
        return False


def policies(work: Work, members: int = 2, blocks: int = 0, vocabulary: int | None = None) -> Mixture:
    """LoRA adapters of rank 16 on one backbone, none of them zero, mixed in equal shares; the first is trained.

    blocks: adapters on that many of the last blocks only; 0: on all."""
    names = [f"policy{k}" for k in range(members)]
    model = add_lora(load(work, vocabulary), RANK, 2 * RANK, blocks, names[0])
    for name in names[1:]:
        model.add_adapter(name, model.peft_config[names[0]])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
        parameter.requires_grad_(f".{names[0]}." in name)
    return Mixture([model], adapters=names).eval()


def prompts(work: Work) -> list[list[int]]:
    """Token ids of word problems; of random tokens where there is no tokenizer."""
    if is_real(work):
        tokenizer, task = AutoTokenizer.from_pretrained(locate("smol")), load_task("words", train=work.prompts)
        return [encode_prompt(tokenizer, problem.question, task.instruction) for problem in task.train]
    return torch.randint(100, 8000, (work.prompts, 60), generator=torch.Generator().manual_seed(0)).tolist()


def sample(mixture: Mixture, work: Work, keep=False):
    """A rollout in which nothing ends early."""
    rows = [[token % mixture.config.vocab_size for token in row] for row in prompts(work)]  # a small vocabulary's too
    return rollout(mixture, rows, samples=work.samples, max_new_tokens=work.new, eos=[], pad=0, keep=keep)


def learn(mixture: Mixture, r: Rollouts, tokens: int = 4096, kept: bool = True) -> None:
    """A training pass, whole groups of about `tokens` tokens at a time."""
    size = r.samples * r.completions.shape[1]
    for prompts in torch.arange(len(r.prompt_ids)).split(max(1, tokens // size)):
        rows = slice(int(prompts[0]) * r.samples, (int(prompts[-1]) + 1) * r.samples)
        states = [s[rows] for s in r.kept] if kept else None
        completion_logprobs(
            mixture, r.prompt_ids[prompts], r.prompt_mask[prompts], r.completions[rows], r.mask[rows], kept=states
        ).sum().backward()
    mixture.zero_grad()


def clock(work) -> float:
    """Seconds that `work()` takes, the GPU's queue included."""
    if default_device() == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if default_device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rounds(sides: dict[str, Callable], runs: int) -> dict[str, list[float]]:
    """Seconds of each side in each of `runs` rounds, in turns, after one round that does not count."""
    for side in sides.values():
        side()
    times = [{name: clock(side) for name, side in sides.items()} for _ in range(runs)]
    return {name: [turn[name] for turn in times] for name in sides}


def compare(name: str, ours: list[float], peer: list[float], unit: str = "s") -> dict:
    """A line of the table from measurements of both sides, in pairs. range: least and largest ratio of a pair."""
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    row = result(name, statistics.median(ours), statistics.median(peer), statistics.median(ratios), unit)
    return row | {"range": [round(min(ratios), 2), round(max(ratios), 2)]}


def result(name: str, ours: float, peer: float, ratio: float, unit: str = "s") -> dict:
    """A line of the table; ratio: peer / ours, so that more is better for us."""
    return {"row": name, "ours": float(f"{ours:.4g}"), "peer": float(f"{peer:.4g}"), "unit": unit,
            "ratio": round(ratio, 2)}  # fmt: skip
