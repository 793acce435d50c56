"""SDPO in the tiny world: a model that has read a hint teaches itself, as it answers without one.

A hint is what a worked solution comes to, step by step, in front of the question: `20;16;13+7-4?`. Neither tiny model
can read one, so a *reader* that can is made first. `python -m logitmix_lite.lab.hints --out FOLDER` makes
data/results/beyond/sdpo again."""

import argparse
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..config import load_preset
from ..evaluate import evaluate
from ..fingerprints import problems_fingerprint
from ..hf import Mixture
from ..models import load_model, load_tokenizer
from ..relatives import distil
from ..runs import Run
from ..tasks.generated import Problem
from ..tasks.load import Task, encode_demo, encode_prompt
from ..tasks.rewards import as_bits
from .tables import RATES
from .tiny import fine_tuned, varied_ending

READER = dict(demos=3000, steps=300, batch=32, lr=1.5e-3)
STUDENT = dict(steps=20, batch=32, lr=5e-4)  # of each way to learn
TEACHERS = {"SDPO": 1.0, "SDPO, lam 0.5": 0.5}  # lam of equation 11: how much of the teacher has read the hint


def hinted(problem: Problem) -> Problem:
    """The problem with a hint in front of its question: the number that each step of its solution comes to."""
    return replace(problem, question=";".join([*re.findall(r"=(-?\d+)", problem.solution), problem.question]))


def reader_demos(problems: Sequence[Problem], seed: int) -> list[tuple[list[int], list[int]]]:
    """Half of the problems hinted, with boxed solutions; half as they are, ending as base's chains do."""
    rng, tokenizer = random.Random(seed), load_tokenizer("tiny-base")
    plain = [replace(problem, solution=varied_ending(problem.solution, rng)) for problem in problems[::2]]
    return [encode_demo(tokenizer, problem) for problem in plain + list(map(hinted, problems[1::2]))]


def judge(policy: PreTrainedModel, task: Task, told: bool = False) -> dict:
    """For each rate a 0 or 1 a test problem, answered greedily; told: with its hint."""
    tokenizer = load_tokenizer("tiny-base")
    prompts = [encode_prompt(tokenizer, (hinted(p) if told else p).question) for p in task.test]
    said = evaluate(policy, tokenizer, task.test, prompts=prompts, batch=200)
    return as_bits(said.grades, RATES)


def make_reader(folder: Path, task: Task, seed: int = 0, **changes) -> Path:
    """Fine-tune tiny-base until it reads hints; returns the folder of weights, and records what who makes of a hint."""
    how, models = READER | changes, {name: load_model(f"tiny-{name}", "float32") for name in ("base", "anchor")}
    config = {"command": "hints", "what": "reader", "seed": seed, "test_size": len(task.test)} | how
    with Run(folder, config | {"problems": problems_fingerprint(task)}) as run:
        demos = reader_demos(task.train[: how.pop("demos")], seed)
        models["reader"] = fine_tuned(load_model("tiny-base", "float32"), demos, seed=seed, **how).to(torch.bfloat16)
        run.finish(models["reader"].save_pretrained, load_tokenizer("tiny-base").save_pretrained)
        models["reader"] = load_model(str(run.final), "float32")  # as whoever loads it gets it
        found = {name: {way: judge(m, task, way == "told") for way in ("plain", "told")} for name, m in models.items()}
    (folder / "summary.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    return run.final


def study(folder: Path, reader: str, task: Task, seed: int, **changes) -> None:
    """Teach copies of the reader, on problems that it was not made with, and record what each then solves untold."""
    how, tokenizer, found = STUDENT | changes, load_tokenizer("tiny-base"), {}
    problems = task.train[READER["demos"] :]
    prompts = [encode_prompt(tokenizer, problem.question) for problem in problems]
    hints = [encode_prompt(tokenizer, hinted(problem).question) for problem in problems]
    config = {"command": "hints", "what": "students", "seed": seed, "test_size": len(task.test)} | how
    with Run(folder, config | {"problems": problems_fingerprint(task)}) as run:
        for arm, lam in TEACHERS.items():
            student, ref = load_model(reader, "float32"), load_model(reader, "float32")
            distil(
                Mixture([student, ref], [lam, 1 - lam]), student, tokenizer, prompts, hints=hints, seed=seed,
                log=lambda line, arm=arm: run.log({"arm": arm} | line), **how,
            )  # fmt: skip
            found[arm] = judge(student, task)
        demos = [encode_demo(tokenizer, problem) for problem in problems]
        found["SFT"] = judge(fine_tuned(load_model(reader, "float32"), demos, seed=seed, **how), task)
        run.write("summary.json", found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of the records")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tiny = load_preset("tiny").problems()
    made = make_reader(args.out / "reader", tiny)
    for number in map(int, args.seeds.split(",")):
        study(args.out / f"seed{number}", str(made), tiny, number)
