"""SDPO's example in the tiny world: what a hint is, what its records hold, and that a student learns from it."""

import json
from pathlib import Path

import pytest
import torch

from logitmix_lite import load_model, load_preset, load_tokenizer
from logitmix_lite.lab.hints import READER, hinted, judge, make_reader, reader_demos, study
from logitmix_lite.records import read_metrics
from logitmix_lite.tasks.generated import Problem
from logitmix_lite.tasks.load import encode_prompt

RECORDED = Path(__file__).resolve().parents[1] / "data" / "results" / "beyond" / "sdpo"


def test_a_hint_is_what_each_step_comes_to():
    problem = Problem("18-19-4?", "-5", r"18-19=-1;-1-4=-5; \boxed{-5}")
    assert hinted(problem).question == "-1;-5;18-19-4?" and hinted(problem).solution == problem.solution


def test_half_of_the_readers_problems_have_a_hint_and_a_box():
    problems, tokenizer = load_preset("tiny", train_size=400).problems().train, load_tokenizer("tiny-base")
    texts = [tuple(map(tokenizer.decode, demo)) for demo in reader_demos(problems, seed=0)]
    told = [completion for prompt, completion in texts if ";" in prompt]
    plain = [completion for prompt, completion in texts if ";" not in prompt]
    assert len(told) == len(plain) == 200 and all("boxed" in text for text in told)
    assert sum("boxed" in text for text in plain) < 20


def test_records_of_a_small_run(tmp_path):
    task = load_preset("tiny", train_size=READER["demos"] + 8, test_size=4).problems()
    reader = make_reader(tmp_path / "reader", task, demos=8, steps=1, batch=4)
    found = json.loads((tmp_path / "reader" / "summary.json").read_text(encoding="utf-8"))
    assert set(found) == {"base", "anchor", "reader"} and len(found["reader"]["told"]["correct"]) == 4
    assert next(load_model(str(reader), "auto").parameters()).dtype == torch.bfloat16
    study(tmp_path / "seed0", str(reader), task, seed=0, steps=2, batch=4)
    assert set(json.loads((tmp_path / "seed0" / "summary.json").read_text(encoding="utf-8"))) == {
        "SDPO", "SDPO, lam 0.5", "SFT",
    }  # fmt: skip
    assert [line["step"] for line in read_metrics(tmp_path / "seed0")] == [1, 2, 1, 2]


def test_the_recorded_reader_reads_and_is_what_the_record_says():
    found = json.loads((RECORDED / "reader" / "summary.json").read_text(encoding="utf-8"))
    right = {(name, way): bits["number"].count("1") for name, ways in found.items() for way, bits in ways.items()}
    assert right["base", "told"] + right["anchor", "told"] < 10  # neither can read a hint
    right = {key: found[key[0]][key[1]]["correct"].count("1") for key in right}
    assert right["reader", "told"] > right["reader", "plain"] + 100  # it knows by a hint that it should box
    task = load_preset("tiny", test_size=200).problems()
    again = judge(load_model(str(RECORDED / "reader" / "final"), "float32"), task, told=True)
    assert sum(a != b for a, b in zip(again["correct"], found["reader"]["told"]["correct"], strict=True)) <= 4


@pytest.mark.parametrize("folder", sorted(RECORDED.glob("seed*")), ids=lambda path: path.name)
def test_recorded_students_were_not_told_and_come_from_new_problems(folder):
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.jsonl", "summary.json"}
    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert {len(bits) for ways in found.values() for bits in ways.values()} == {200}
    task, tokenizer = load_preset("tiny").problems(), load_tokenizer("tiny-base")
    assert len(encode_prompt(tokenizer, max((hinted(p).question for p in task.train), key=len))) + 64 <= 128
    assert not {p.question for p in task.train[READER["demos"] :]} & {p.question for p in task.train[: READER["demos"]]}
