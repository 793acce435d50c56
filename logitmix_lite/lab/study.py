"""Two policies side by side: the mixing table, and who solves which problems."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd
from tqdm import tqdm

from ..config import Preset
from ..evaluate import evaluate
from ..mixing import pair_weights
from ..models import load_tokenizer, make_mixture
from ..records import check_new
from ..stats import contingency, difference_interval, mcnemar


def mixing_table(
    mixture, tokenizer, problems, alphas: Sequence[float], rules: Sequence[str] = ("logit", "prob"), **decoding
) -> pd.DataFrame:
    """The paper's table 4: a row for each rule and alpha, with rates and their 95 % intervals.

    mixture: of theta and ref. decoding: further arguments of `evaluate`. At alpha 0 and 1 one policy is alone, whatever
    the rule: those are decoded once."""
    before, rows, alone = (mixture.rule, mixture.weights), [], {}
    try:
        pairs = [(rule, alpha) for rule in rules for alpha in alphas]
        for rule, alpha in tqdm(pairs, desc="mixing", unit="alpha", disable=None):  # None: no bar outside a terminal
            mixture.rule, mixture.alpha = rule, alpha
            if alpha not in alone:
                found = evaluate(mixture, tokenizer, problems, **decoding).summary()
                if alpha in (0, 1):
                    alone[alpha] = found
            row, values = {"rule": rule, "alpha": alpha}, alone.get(alpha, found)
            for rate in ("accuracy", "format_rate", "number_rate"):
                low, high = values[f"{rate}_95"]
                row |= {rate: values[rate], f"{rate}_low": low, f"{rate}_high": high}
            rows.append(row)
    finally:
        mixture.rule, mixture.weights = before
    return pd.DataFrame(rows)


def mixing_table_of(preset: Preset, alphas: Sequence[str | float], sampled: bool, out: str | Path) -> pd.DataFrame:
    """The mixing table of a preset's base and anchor on its test problems, also written to the CSV file `out`.

    sampled: at the preset's temperature, not greedily. ValueError for alphas outside [0, 1] or a file that exists."""
    try:
        alphas = [pair_weights(float(alpha))[1] for alpha in alphas]
    except ValueError as error:
        raise ValueError(f"alphas are numbers in [0, 1] separated by commas: {error}") from None
    out = check_new(out)
    task, tokenizer = preset.problems(), load_tokenizer(preset.base)
    mixture = make_mixture("base", preset.anchor, preset.base, 0.5, rank=preset.lora_rank, dtype=preset.dtype)
    table = mixing_table(
        mixture, tokenizer, task.test, alphas, instruction=task.instruction, batch=preset.eval_batch,
        max_new_tokens=preset.max_new_tokens, temperature=preset.temperature if sampled else 0.0,
    )  # fmt: skip
    table.to_csv(out, index=False)
    return table


def compare(first: str | Path, second: str | Path, rate: str = "correct") -> dict:
    """Two files of records on the same problems: shares, their difference with a 95 % interval, and McNemar's test.

    Raises ValueError where the files do not hold one record of each of the same problems."""
    tables = []
    for path in (first, second):
        try:
            rows = list(map(json.loads, Path(path).read_text(encoding="utf-8").splitlines()))
            tables.append({(row["question"], row["gold"]): bool(row[rate]) for row in rows})
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not a problems.jsonl of `evaluate`") from None
        if len(tables[-1]) < len(rows):
            raise ValueError(f"{path} has several completions of one problem: compare greedy evaluations")
    if tables[0].keys() != tables[1].keys():
        raise ValueError(f"{first} and {second} are not about the same problems")
    one, two = ([table[problem] for problem in tables[0]] for table in tables)
    shares = {"first": fmean(one), "second": fmean(two), "difference": fmean(two) - fmean(one)}
    sure = {"difference_95": [round(x, 4) for x in difference_interval(one, two)], "p_value": mcnemar(one, two)}
    return {"problems": len(one)} | shares | sure | contingency(one, two)
