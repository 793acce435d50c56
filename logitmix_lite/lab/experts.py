"""n experts, the paper's outlook: three narrow specialists of the tiny world and products of one to four members.

Each is tiny-base fine-tuned on one thing: sums, differences, or the box. `python -m logitmix_lite.lab.experts --out
FOLDER` makes data/results/beyond/experts again."""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import load_preset
from ..evaluate import evaluate
from ..fast.rows import pad_rows
from ..fingerprints import problems_fingerprint
from ..hf import Mixture
from ..models import load_model, load_tokenizer
from ..relatives import start_from
from ..rollout import rollout, sample
from ..runs import Run
from ..stats import bootstrap_interval
from ..tasks.load import Task, distinct, encode_demo, encode_prompt, load_task, normalised
from ..tasks.rewards import as_bits
from .tables import RATES
from .tiny import fine_tuned, varied_ending

EXPERTS = {"plus": "chain-plus", "minus": "chain-minus", "box": "chain-easy"}  # what each is fine-tuned on
SFT = dict(demos=1000, steps=60, batch=16, lr=8e-4)  # of each: nearly every demonstration once
ALL = tuple(EXPERTS)
EQUAL = [("base",), ("anchor",), ("averaged weights",), ("all demos",), *combinations(ALL, 1), *combinations(ALL, 2)]
LEARNED = [("base", "anchor"), ALL, ("base", *ALL)]  # with equal and with learned weights
NEW = 24  # tokens of each completion that the cost is measured on


def specialist(names: Sequence[str], seed: int, task: Task, **changes) -> PreTrainedModel:
    """tiny-base after SFT on one expert's demonstrations, or on several experts' in as many steps as all of them take.

    Sums and differences end as base's do, so that the third expert alone learns the box. None of the task's held-out
    problems is among them. changes: to the numbers in SFT."""
    model, tokenizer, how = load_model("tiny-base", "float32"), load_tokenizer("tiny-base"), SFT | changes
    known, rng = {normalised(p.question) for p in task.validation + task.test}, random.Random(seed)
    demos, steps = [], how["steps"] * len(names)
    for name in names:
        drawn = load_task(EXPERTS[name], train=2 * how["demos"], validation=0, test=0, seed=seed).train
        for problem in islice(distinct(drawn, known), how["demos"]):
            ended = problem.solution if name == "box" else varied_ending(problem.solution, rng)
            demos.append(encode_demo(tokenizer, replace(problem, solution=ended)))
    return fine_tuned(model, demos, steps=steps, batch=how["batch"], lr=how["lr"], seed=seed)


@torch.no_grad()
def read(model: PreTrainedModel, demos: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """A model's log-probs `[N, V]` where each of the N completion tokens of some demonstrations is due, in float64."""
    logits = [model(input_ids=torch.tensor([p + c]), use_cache=False).logits[0, len(p) - 1 : -1] for p, c in demos]
    return torch.cat(logits).double().log_softmax(-1)


def log_likelihood(weights: Tensor, logps: Tensor, tokens: Tensor) -> Tensor:
    """Mean log-prob, nats, of `tokens` `[N]` under the product `softmax(sum_k w_k * logps_k)`; logps `[n, N, V]`."""
    return torch.einsum("k,ktv->tv", weights, logps).log_softmax(-1).gather(-1, tokens[:, None]).mean()


def learn_weights(logps: Tensor, tokens: Tensor) -> list[float]:
    """The n weights, of any sign and sum, that make `tokens` most likely under the product of n experts.

    Their likelihood, as accuracy climbs in steps that have no gradient, and this is concave: the product is log-linear
    in its weights, with gradient `logps[token] - E_product[logps]`. L-BFGS finds the one maximum."""
    weights = torch.full((len(logps),), 1 / len(logps), dtype=logps.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -log_likelihood(weights, logps, tokens)
        value.backward()
        return value

    optimizer.step(loss)
    return weights.tolist()


def judge(models: dict[str, PreTrainedModel], task: Task) -> list[dict]:
    """A row for each of EQUAL and LEARNED whose members are there: the log-likelihood of the validation problems'
    solutions, on which weights are learned, and for each rate a 0 or 1 a test problem, greedily."""
    tokenizer, rows = load_tokenizer("tiny-base"), []
    demos = [encode_demo(tokenizer, problem) for problem in task.validation]
    tokens = torch.tensor([token for _, completion in demos for token in completion])
    logps = {name: read(model, demos) for name, model in models.items()}
    for names in [names for names in EQUAL + LEARNED if set(names) <= models.keys()]:
        mine, weights = torch.stack([logps[name] for name in names]), {"equal": [1 / len(names)] * len(names)}
        if names in LEARNED:
            weights["learned"] = learn_weights(mine, tokens)
        for how, chosen in weights.items():
            row = {"members": names, "weights": chosen, "how": how}
            row["log_likelihood"] = log_likelihood(torch.tensor(chosen, dtype=mine.dtype), mine, tokens).item()
            said = evaluate(Mixture([models[name] for name in names], chosen), tokenizer, task.test, batch=200)
            rows.append(row | as_bits(said.grades, RATES))
    return rows


@torch.no_grad()
def cost(task: Task, most: int = 4, rounds: int = 4) -> list[dict]:
    """What products of 1 to `most` members take for the same tokens: seconds of this process, in turns, and bytes.

    The row of 0 members is the sampler, which they share."""
    tokenizer, models = load_tokenizer("tiny-base"), [load_model("tiny-base", "float32") for _ in range(most)]
    prompts = [encode_prompt(tokenizer, problem.question) for problem in task.test[:100]]
    ids, mask = pad_rows([prompt + [0] * NEW for prompt in prompts], 0, left=True)
    logits, uniform = torch.randn(len(prompts), len(tokenizer)), torch.rand(len(prompts)).double()
    mixtures = [Mixture(models[:n]) for n in range(1, most + 1)]
    work = [lambda: [sample(logits, 1.0, uniform) for _ in range(NEW)]]
    work += [lambda mixture=m: rollout(mixture, prompts, max_new_tokens=NEW, eos=[], pad=0) for m in mixtures]
    rows = [{"members": n, "seconds": [], "tokens": NEW * len(prompts)} for n in range(most + 1)]
    for _ in range(rounds + 1):
        for row, one in zip(rows, work, strict=True):
            began = time.process_time()
            one()
            row["seconds"].append(round(time.process_time() - began, 4))
    for row, mixture in zip(rows[1:], mixtures, strict=True):
        cache = mixture.new_cache()
        mixture.hidden(ids, mask, cache=cache)
        row["weight_bytes"] = sum(p.nbytes for p in mixture.parameters())
        row["cache_bytes"] = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return [row | {"seconds": row["seconds"][1:]} for row in rows]  # the first round warms up


def record(folder: Path, seed: int | None, task: Task, **changes) -> None:
    """Make one folder of records: of a seed's specialists and products, or (None) of what needs no training."""
    config = {"command": "experts", "seed": seed, "experts": EXPERTS} | SFT | changes
    config |= {"validation_size": len(task.validation), "test_size": len(task.test)}
    with Run(folder, config | {"problems": problems_fingerprint(task)}) as run:
        models = {"base": load_model("tiny-base", "float32")}
        if seed is None:
            models["anchor"], made = load_model("tiny-anchor", "float32"), {"cost": cost(task)}
        else:
            models = {name: specialist([name], seed, task, **changes) for name in ALL} | models
            models["averaged weights"] = start_from(Mixture([models[name] for name in ALL]), "average").eval()
            models["all demos"], made = specialist(ALL, seed, task, **changes), {}
        run.write("summary.json", {"policies": judge(models, task)} | made)


def load_products(folder: Path) -> pd.DataFrame:
    """The records as `tables.load_grades` gives those of training runs: a row a seed and product, of the arm "experts".

    What needs no training has a row for each seed too."""
    found = {path.parent.name: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*/summary.json"))}
    untrained, rows = found.pop("untrained")["policies"], []
    for seed, made in found.items():
        for row in made["policies"] + untrained:
            bits = {rate: np.array(list(row[rate]), int) for rate in RATES}
            name = " × ".join(row["members"]) + (", learned" if row["how"] == "learned" else "")
            rows.append({"arm": "experts", "seed": seed, "policy": name, "weights": np.array(row["weights"])} | bits)
    return pd.DataFrame(rows).drop_duplicates(["seed", "policy"])


def product_table(products: pd.DataFrame) -> pd.DataFrame:
    """A row a product, fewest models first: its weights (means over seeds), and percentages with 95 % intervals."""
    rows = {}
    for name, mine in products.groupby("policy", sort=False):
        weights = np.mean(mine["weights"].to_list(), axis=0)
        rows[name] = {"models": len(weights), "weights": ", ".join(f"{w:.2f}" for w in weights)}
        for label, rate in (("accuracy", "correct"), ("number", "number"), ("boxed", "formatted")):
            values = np.stack(mine[rate])
            low, high = bootstrap_interval(values)
            rows[name] |= {label: 100 * values.mean(), f"{label}_low": 100 * low, f"{label}_high": 100 * high}
    return pd.DataFrame.from_dict(rows, orient="index").sort_values(["models", "accuracy", "number"])


def cost_table(folder: Path) -> pd.DataFrame:
    """A row a number of members: time in that of one (median, least and most of the rounds) and by theory, which is one
    sampler and n times the rest; tokens a second, and bytes."""
    cost = json.loads((folder / "untrained" / "summary.json").read_text("utf-8"))["cost"]
    seconds = np.array([row["seconds"] for row in cost])
    ratios, middle = seconds / seconds[1], np.median(seconds, axis=1)
    table = pd.DataFrame({"times one": np.median(ratios, axis=1), "least": ratios.min(1), "most": ratios.max(1)})
    table["theory"] = (middle[0] + table.index * (middle[1] - middle[0])) / middle[1]
    table["tokens a second"] = [round(row["tokens"] / t) for row, t in zip(cost, middle, strict=True)]
    for name in ("weight", "cache"):
        table[f"MB of {name}s"] = [row.get(f"{name}_bytes", 0) / 1e6 for row in cost]
    return table.loc[1:].rename_axis("members")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of the records")
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7", help="separated by commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    problems = load_preset("tiny", validation_size=100).problems()
    record(args.out / "untrained", None, problems)
    for number in map(int, args.seeds.split(",")):
        record(args.out / f"seed{number}", number, problems)
