"""Does the premise hold for two models? Told before training: who boxes, who reasons, what their mixture gets."""

from collections.abc import Sequence
from dataclasses import replace

from ..evaluate import Evaluation
from ..recipe import ALONE
from ..rollout import rollout
from ..stats import contingency, difference_interval, interval
from ..tasks import encode_prompt
from ..tasks.rewards import grade_all


def premise(mixture, tokenizer, task, problems: Sequence, lengths: Sequence[int]) -> dict[int, dict[str, Evaluation]]:
    """Greedy answers of theta alone, ref alone and the mixture of both to the same problems, for each of `lengths`, the
    longest completions in tokens. One decoding does: a lower limit only cuts a greedy answer.

    mixture: of theta and ref. task: its instruction follows each question."""
    prompts = [encode_prompt(tokenizer, p.question, task.instruction) for p in problems]
    found = {length: {} for length in lengths}
    for name, weights in (ALONE | {"mixture": mixture.weights}).items():
        with mixture.using(weights):
            drawn = rollout(mixture, prompts, max_new_tokens=max(lengths), temperature=0)
        for length in lengths:
            cut = replace(drawn, mask=drawn.mask[:, :length], completions=drawn.completions[:, :length])
            texts, tokens = cut.texts(tokenizer), cut.mask.sum(-1)
            ended = ~drawn.truncated & (drawn.mask.sum(-1) <= length)
            grades = grade_all(texts, [p.answer for p in problems])
            found[length][name] = Evaluation(list(problems), texts, grades, tokens.tolist(), (~ended).tolist())
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
