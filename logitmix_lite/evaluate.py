"""Greedy accuracy on held-out problems, with intervals, and paired comparisons of two policies."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest
from tqdm import tqdm

from .models import load_policy, load_tokenizer, make_mixture
from .presets import Preset
from .rewards import Grade, grade
from .rollout import rollout
from .tasks import Problem, encode_prompt


@dataclass
class Evaluation:
    """One completion and its grade for each problem, in the order of the problems. Rates are shares in [0, 1]."""

    problems: list[Problem]
    completions: list[str]
    grades: list[Grade]
    truncated: list[bool]

    @property
    def accuracy(self) -> float:
        """Share that is right *and* boxed: what the reward asks for."""
        return self._share("correct")

    @property
    def format_rate(self) -> float:
        """Share that ends in a closed box."""
        return self._share("formatted")

    @property
    def number_rate(self) -> float:
        """Share that reaches the right answer, boxed or not."""
        return self._share("number")

    def _share(self, name: str) -> float:
        return sum(getattr(g, name) for g in self.grades) / len(self.grades)

    def summary(self) -> dict:
        """Counts, rates and 95 % intervals, ready for JSON."""
        report = {"problems": len(self.grades), "truncated": sum(self.truncated) / len(self.grades)}
        for rate, name in (("accuracy", "correct"), ("format_rate", "formatted"), ("number_rate", "number")):
            count = sum(getattr(g, name) for g in self.grades)
            report[rate] = count / len(self.grades)
            report[f"{rate}_95"] = [round(x, 4) for x in interval(count, len(self.grades))]
        return report

    def records(self) -> list[dict]:
        """One row a problem, ready for pandas or a JSON lines file."""
        rows = zip(self.problems, self.completions, self.grades, self.truncated, strict=True)
        return [
            {"question": p.question, "gold": p.answer, "completion": text, "answer": g.answer,
             "formatted": g.formatted, "correct": g.correct, "number": g.number, "truncated": cut}
            for p, text, g, cut in rows
        ]  # fmt: skip


def evaluate(
    policy,
    tokenizer,
    problems: Sequence[Problem],
    *,
    instruction="",
    max_new_tokens=64,
    batch=100,
    temperature=0.0,
    seed=0,
) -> Evaluation:
    """Decode each problem once with a Mixture or any causal language model (greedily by default) and grade it.

    Problems are decoded in order of length, `batch` at a time; the result is in the order given."""
    prompts = [encode_prompt(tokenizer, p.question, instruction) for p in problems]
    order = sorted(range(len(problems)), key=lambda k: len(prompts[k]))
    texts, truncated = [""] * len(problems), [False] * len(problems)
    chunks = [order[start : start + batch] for start in range(0, len(order), batch)]
    for number, chunk in enumerate(
        tqdm(chunks, desc="evaluate", unit="batch", leave=False, disable=len(chunks) < 2 or None)
    ):
        rollouts = rollout(
            policy, [prompts[k] for k in chunk], max_new_tokens=max_new_tokens, temperature=temperature,
            seed=[seed, number], eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id,
        )  # fmt: skip
        for k, text, cut in zip(chunk, rollouts.texts(tokenizer), rollouts.truncated.tolist(), strict=True):
            texts[k], truncated[k] = text, cut
    grades = [grade(text, p.answer) for text, p in zip(texts, problems, strict=True)]
    return Evaluation(list(problems), texts, grades, truncated)


def evaluate_model(
    source: str, preset: Preset, alpha: float | None = None, out: str | Path | None = None
) -> Evaluation:
    """Evaluate a model, adapter or mixture on the preset's test problems, and write what it said to `out` if given.

    alpha: mix it with `preset.anchor` (or, if it is a mixture, set its alpha)."""
    if out and Path(out).exists():
        raise ValueError(f"{out} is there already: choose another --out")
    policy = load_policy(source, preset.base, preset.dtype)
    if alpha is not None:
        if len(policy.weights) == 1:
            policy = make_mixture(source, preset.anchor, preset.base, alpha, rank=preset.lora_rank, dtype=preset.dtype)
        policy.alpha = alpha
    task = preset.problems()
    found = evaluate(
        policy, load_tokenizer(preset.base), task.test, instruction=task.instruction,
        max_new_tokens=preset.max_new_tokens, batch=preset.eval_batch,
    )  # fmt: skip
    if out:
        Path(out).mkdir(parents=True)
        with (Path(out) / "problems.jsonl").open("w") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found.records())
        summary = {"model": str(source), "alpha": alpha, "task": preset.task} | found.summary()
        (Path(out) / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return found


def interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of a share: unlike the textbook one, right for shares near 0 and 1."""
    found = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def contingency(first: Sequence[bool], second: Sequence[bool]) -> dict[str, int]:
    """On how many problems both, only the first, only the second, or neither succeeded."""
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    cells = {"both": (True, True), "first only": (True, False), "second only": (False, True), "neither": (False, False)}
    return {name: pairs.count(cell) for name, cell in cells.items()}


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact McNemar test: the p-value of "both succeed equally often" on the same problems; 1 if they never differ."""
    table = contingency(first, second)
    only = table["first only"], table["second only"]
    return float(binomtest(only[0], sum(only), 0.5).pvalue) if sum(only) else 1.0
