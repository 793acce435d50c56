"""Does the premise hold for two models? Told before training: who boxes, who reasons, what their mixture gets."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from ..config import Preset
from ..evaluate import Evaluation
from ..fingerprints import PACKAGES, hardware
from ..models import load_tokenizer, make_mixture
from ..recipe import ALONE
from ..records import check_new
from ..rollout import rollout
from ..stats import contingency, difference_interval, interval
from ..tasks import encode_prompt
from ..tasks.rewards import grade_all


def premise(
    mixture, tokenizer, task, problems: Sequence, lengths: Sequence[int], batch: int = 200
) -> dict[int, dict[str, Evaluation]]:
    """Greedy answers of theta alone, ref alone and the mixture of both to the same problems, for each of `lengths`, the
    longest completions in tokens. One decoding does: a lower limit only cuts a greedy answer.

    mixture: of theta and ref. task: its instruction follows each question. batch: problems decoded at once, in order of
    length."""
    prompts = [encode_prompt(tokenizer, p.question, task.instruction) for p in problems]
    order = sorted(range(len(problems)), key=lambda k: len(prompts[k]))
    chunks = [order[start : start + batch] for start in range(0, len(order), batch)]
    found = {length: {} for length in lengths}
    for name, weights in (ALONE | {"mixture": mixture.weights}).items():
        answers = {length: {} for length in lengths}
        with mixture.using(weights):
            for chunk in tqdm(chunks, desc=name, unit="batch", leave=False, disable=len(chunks) < 2 or None):
                drawn = rollout(mixture, [prompts[k] for k in chunk], max_new_tokens=max(lengths), temperature=0)
                tokens = drawn.mask.sum(-1)
                for length in lengths:
                    cut = replace(drawn, mask=drawn.mask[:, :length], completions=drawn.completions[:, :length])
                    ends = tokens.clamp(max=length).tolist(), (drawn.truncated | (tokens > length)).tolist()
                    answers[length] |= dict(zip(chunk, zip(cut.texts(tokenizer), *ends, strict=True), strict=True))
        for length, rows in answers.items():
            texts, counts, truncated = map(list, zip(*(rows[k] for k in range(len(problems))), strict=True))
            grades = grade_all(texts, [p.answer for p in problems])
            found[length][name] = Evaluation(list(problems), texts, grades, counts, truncated)
    return found


def premise_table(found: dict[str, Evaluation]) -> list[dict]:
    """A row a policy: shares with 95 % intervals (Wilson's), mean length in tokens, share cut off."""
    rows = []
    for name, e in found.items():
        row = {"policy": name, "problems": len(e.problems)}
        for rate in ("formatted", "correct", "number"):
            count = sum(getattr(g, rate) for g in e.grades)
            row |= {rate: count / len(e.grades), f"{rate}_95": [round(x, 4) for x in interval(count, len(e.grades))]}
        rows.append(row | {"length": sum(e.lengths) / len(e.lengths), "truncated": sum(e.truncated) / len(e.truncated)})
    return rows


def expectation(found: dict[str, Evaluation]) -> dict:
    """What to expect of mixing: the format gap (ref boxes, theta does not), the reasoning gap (theta reaches the right
    number, boxed or not, ref does not), each with its 95 % interval, who alone solves what, and whether both gaps are
    above zero beyond doubt: the method's premise."""
    theta, ref = found["theta"].grades, found["ref"].grades
    boxed = [[g.formatted for g in grades] for grades in (theta, ref)]
    right = [[g.number for g in grades] for grades in (theta, ref)]
    form, reason = difference_interval(*boxed), difference_interval(*reversed(right))
    return {
        "format_gap": sum(boxed[1]) / len(ref) - sum(boxed[0]) / len(theta),
        "format_gap_95": [round(x, 4) for x in form],
        "reasoning_gap": sum(right[0]) / len(theta) - sum(right[1]) / len(ref),
        "reasoning_gap_95": [round(x, 4) for x in reason],
        "holds": form[0] > 0 and reason[0] > 0,
        **{f"theta and ref: {cell}": count for cell, count in contingency(*right).items()},
    }


def premise_of(preset: Preset, lengths: Sequence[str | int], out: str | Path) -> dict:
    """Measure a preset's base and anchor, alone and mixed at its alpha, on its validation and on its test problems.

    out: a JSON file, with table and expectation of "test-64" (64 tokens) and so on, what `choose` chooses, settings,
    versions and hardware. All answers go beside it, a file a policy, which `compare` reads.
    Raises ValueError for lengths that are none, or a file that exists."""
    if not all(str(length).isdecimal() and int(length) for length in lengths):
        raise ValueError(f"lengths are numbers of tokens separated by commas, got {','.join(map(str, lengths))!r}")
    out, lengths = check_new(out), sorted({int(length) for length in lengths})
    task, tokenizer = preset.problems(), load_tokenizer(preset.base)
    weights = dict(rank=preset.lora_rank, dtype=preset.dtype)
    mixture = make_mixture("base", preset.anchor, preset.base, preset.alpha, **weights)
    found = {}
    for split in ("validation", "test"):
        answers = premise(mixture, tokenizer, task, getattr(task, split), lengths, preset.eval_batch)
        for length, policies in answers.items():
            found[f"{split}-{length}"] = {"policies": premise_table(policies), **expectation(policies)}
            for policy, e in policies.items():
                with out.with_name(f"{out.stem}-{split}-{length}-{policy}.jsonl").open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in e.records())
    decides = ("base", "anchor", "lora", "dtype", "task", "data", "where", "train_s", "validation_s", "test_s", "alpha")
    config = {name: value for name, value in asdict(preset).items() if name.startswith(decides)}
    config |= {"versions": {name: version(name) for name in PACKAGES}, "hardware": hardware()}
    found = {"config": config, "chosen": choose({preset.anchor: found}), **found}
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def choose(measured: dict[str, dict]) -> dict:
    """The anchor and the longest completion to train with, by the validation problems alone: of those with which the
    anchor boxes more often and theta reaches more right answers, those whose mixture is right and boxed most often.
    Where there are none (the smaller of the two gaps is not above 0), those that come nearest.

    measured: what `premise_of` found, by the anchor's name."""
    rows = []
    for anchor, found in measured.items():
        for where, what in found.items():
            if where.startswith("validation-"):
                gap, right = min(what["format_gap"], what["reasoning_gap"]), what["policies"][2]["correct"]
                length = int(where.removeprefix("validation-"))
                row = {"anchor": anchor, "max_new_tokens": length, "smaller_gap": gap, "mixture": right}
                rows.append(((gap > 0, right if gap > 0 else gap), row))
    return max(rows, key=lambda pair: pair[0])[1]
