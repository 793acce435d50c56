"""How good a policy is on held-out problems: what it says, how that is graded, and rates with intervals."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from .config import Preset
from .hf import Mixture
from .models import load_policy, load_tokenizer, make_mixture
from .records import check_new, read_config
from .rollout import rollout
from .stats import interval, mean_interval, pass_at
from .tasks.generated import Problem
from .tasks.hub import SOURCES
from .tasks.load import encode_prompt, end_tokens
from .tasks.rewards import Grade, equal, grade_all


@dataclass
class Evaluation:
    """`samples` completions of each problem with their grades; completion `i` answers problem `i // samples`.

    lengths: tokens. truncated: no end token came. Rates are shares in [0, 1] of all completions."""

    problems: list[Problem]
    completions: list[str]
    grades: list[Grade]
    lengths: list[int]
    truncated: list[bool]

    @property
    def samples(self) -> int:
        return len(self.grades) // len(self.problems)

    @property
    def accuracy(self) -> float:
        """Share that is right *and* boxed: what the reward asks for."""
        return fmean(g.correct for g in self.grades)

    @property
    def format_rate(self) -> float:
        """Share that ends in a closed box."""
        return fmean(g.formatted for g in self.grades)

    @property
    def number_rate(self) -> float:
        """Share that reaches the right answer, boxed or not."""
        return fmean(g.number for g in self.grades)

    def groups(self) -> list[list[Grade]]:
        """The grades of each problem."""
        return [self.grades[i : i + self.samples] for i in range(0, len(self.grades), self.samples)]

    def summary(self) -> dict:
        """Counts, rates and 95 % intervals, ready for JSON."""
        report = {
            "problems": len(self.problems), "samples": self.samples, "truncated": fmean(self.truncated),
            "length": fmean(self.lengths), "failed_comparisons": sum(g.failed for g in self.grades),
        }  # fmt: skip
        for rate, name in (("accuracy", "correct"), ("format_rate", "formatted"), ("number_rate", "number")):
            shares = [fmean(getattr(g, name) for g in group) for group in self.groups()]
            # the completions of one problem resemble each other, so it is the problems that are counted
            bounds = interval(round(sum(shares)), len(shares)) if self.samples == 1 else mean_interval(shares)
            report[rate], report[f"{rate}_95"] = fmean(shares), [round(x, 4) for x in bounds]
        if self.samples > 1:  # also: is one of k right, and is the most frequent boxed answer
            right = [sum(g.correct for g in group) for group in self.groups()]
            powers = [2**n for n in range(self.samples.bit_length())]
            report["pass_at"] = {str(k): fmean(pass_at(k, self.samples, r) for r in right) for k in powers}
            report["majority"] = fmean(map(majority_vote, self.groups()))
        return report

    def records(self) -> list[dict]:
        """One row a completion, ready for pandas or a JSON lines file."""
        rows = zip(self.completions, self.grades, self.lengths, self.truncated, strict=True)
        return [
            {"question": self.problems[i // self.samples].question, "gold": self.problems[i // self.samples].answer,
             "completion": text, "answer": g.answer, "formatted": g.formatted, "correct": g.correct,
             "number": g.number, "failed": g.failed, "length": length, "truncated": cut}
            for i, (text, g, length, cut) in enumerate(rows)
        ]  # fmt: skip


def majority_vote(group: Sequence[Grade]) -> bool:
    """Whether the most frequent of a problem's boxed answers is right (of equally frequent ones, the first).

    Answers that mean the same count together."""
    votes: dict[str, list[Grade]] = {}
    for g in group:
        if g.formatted:
            known = next((text for text in votes if equal(text, g.answer)), g.answer)
            votes.setdefault(known, []).append(g)
    return bool(votes) and max(votes.values(), key=len)[0].correct


def evaluate(
    policy, tokenizer, problems: Sequence[Problem], *, instruction="", max_new_tokens=64, batch=100, temperature=0.0,
    samples=1, seed=0, prompts: Sequence[Sequence[int]] | None = None, ends: Sequence[int] | None = None,
) -> Evaluation:  # fmt: skip
    """Decode each problem with a Mixture or any causal language model (once and greedily by default) and grade it.

    prompts: token ids of the problems, where they are known already. ends: ids that end an answer, default those of the
    tokenizer, its template and the model. Problems are decoded in order of length, `batch` completions at a time; the
    result is in the order given."""
    if not problems:
        raise ValueError("no problems to evaluate")
    if samples > 1 and temperature == 0:
        raise ValueError("several samples of greedy decoding are all the same: set a temperature above 0")
    prompts = prompts or [encode_prompt(tokenizer, p.question, instruction) for p in problems]
    ends = ends or end_tokens(tokenizer, policy.generation_config.eos_token_id)
    order = sorted(range(len(problems)), key=lambda k: len(prompts[k]))
    found, size = {}, max(1, batch // samples)
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    bar = tqdm(chunks, desc="evaluate", unit="batch", leave=False, disable=len(chunks) < 2 or None)
    for number, chunk in enumerate(bar):
        rollouts = rollout(
            policy, [prompts[k] for k in chunk], samples=samples, max_new_tokens=max_new_tokens,
            temperature=temperature, seed=[seed, number], eos=ends, pad=tokenizer.pad_token_id,
        )  # fmt: skip
        rows = zip(rollouts.texts(tokenizer), rollouts.mask.sum(-1).tolist(), rollouts.truncated.tolist(), strict=True)
        found |= {chunk[i // samples] * samples + i % samples: row for i, row in enumerate(rows)}
    texts, lengths, truncated = map(list, zip(*(found[i] for i in range(len(problems) * samples)), strict=True))
    grades = grade_all(texts, [p.answer for p in problems for _ in range(samples)])
    return Evaluation(list(problems), texts, grades, lengths, truncated)


def evaluate_model(
    source: str, preset: Preset, alpha: float | None = None, out: str | Path | None = None, samples: int | None = None
) -> Evaluation:
    """Evaluate a model, adapter or mixture on the preset's test problems, and write what it said to `out` if given.

    alpha: mix it with `preset.anchor` (or, if it is a mixture, set its alpha). samples: that many completions of each
    problem at `preset.temperature`, in place of greedy decoding.
    Raises ValueError for test problems that the model may have been trained on, as a larger test set than its run's."""
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    run = read_config(Path(source).parent)
    one_pool = preset.task not in SOURCES or SOURCES[preset.task].test is None
    if one_pool and run.get("task") == preset.task and run.get("test_size", 0) < preset.test_size:
        raise ValueError(f"{source} kept {run['test_size']} test problems apart, so that is the largest --test-size")
    if out:
        check_new(out)
    policy, task = load_mixed(source, preset, alpha), preset.problems()
    found = evaluate(
        policy, tokenizer_of(source, preset.base), task.test, instruction=task.instruction,
        max_new_tokens=preset.max_new_tokens, batch=preset.eval_batch,
        samples=samples or 1, temperature=preset.temperature if samples else 0.0,
    )  # fmt: skip
    if out:
        Path(out).mkdir(parents=True)
        with (Path(out) / "problems.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found.records())
        summary = {"model": str(source), "alpha": alpha, "task": preset.task} | found.summary()
        (Path(out) / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return found


def load_mixed(source: str, preset: Preset, alpha: float | None = None) -> Mixture:
    """A model, adapter or mixture; with alpha mixed with `preset.anchor` (or, if it is a mixture, at that alpha)."""
    policy = load_policy(source, preset.base, preset.dtype)
    if alpha is not None:
        if len(policy.weights) == 1:
            policy = make_mixture(source, preset.anchor, preset.base, alpha, rank=preset.lora_rank, dtype=preset.dtype)
        policy.alpha = alpha
    return policy


def tokenizer_of(source: str, base: str):
    """The model's own tokenizer, or that of `base` where it was saved without one."""
    try:
        return load_tokenizer(source)
    except FileNotFoundError:
        return load_tokenizer(base)
