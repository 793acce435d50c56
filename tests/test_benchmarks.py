"""The data sets of the Hub, on small copies with exactly their fields: what is kept, what is left out, and no leak."""

import json

import pytest
from datasets import Dataset, DatasetDict

from logitmix_lite.tasks.hub import SOURCES, cn_k12, gsm8k, math, mmlu
from logitmix_lite.tasks.load import load_task, normalised
from logitmix_lite.tasks.rewards import grade

MATH = {"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."}
K12 = {
    "problem": "What is 2 of 3?", "solution": "So it is B.", "answer": "B", "problem_type": "Algebra",
    "question_type": "MCQ", "problem_is_valid": "Yes", "solution_is_valid": "Yes", "source": "cn_k12",
    "synthetic": False,
}  # fmt: skip
MMLU = {"question": "Which is even?", "subject": "arithmetic", "choices": ["1", "3", "4", "5"], "answer": 2}
GSM = {"question": "How many?", "answer": "He has 2*600=<<2*600=1200>>1200.\n#### 1,200"}
ROWS = {"math": MATH, "cn_k12": K12, "mmlu": MMLU, "gsm8k": GSM}


def many(name, count, start=0):
    """Rows with questions of their own."""
    field = "problem" if "problem" in ROWS[name] else "question"
    return [ROWS[name] | {field: f"{ROWS[name][field]} ({k})"} for k in range(start, start + count)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", SOURCES)
def test_a_row_becomes_a_problem_with_a_demonstration_that_is_right(name):
    assert set(SOURCES[name].fields) <= set(ROWS[name])
    problem = SOURCES[name].problem(ROWS[name])
    assert problem.answer == {"math": "2", "cn_k12": "B", "mmlu": "C", "gsm8k": "1200"}[name]
    assert grade(problem.solution, problem.answer).correct


def test_what_the_questions_and_solutions_look_like():
    assert mmlu(MMLU).question == "Which is even?\nA. 1\nB. 3\nC. 4\nD. 5\n"
    assert gsm8k(GSM).solution == "He has 2*600=1200.\nThe answer is \\boxed{1200}."
    assert math(MATH).solution == MATH["solution"]
    assert cn_k12(K12).solution == "So it is B.\n\nThe answer is \\boxed{B}."
    assert cn_k12(K12 | {"solution": "$\\boxed{B}$"}).solution == "$\\boxed{B}$"


@pytest.mark.parametrize(
    "row, reason",
    [
        (K12 | {"source": "olympiads"}, "another source"),
        (K12 | {"synthetic": True}, "synthetic"),
        (K12 | {"problem_is_valid": "Incomplete"}, "not valid"),
        (K12 | {"solution_is_valid": "Problem not solved"}, "not valid"),
        (K12 | {"answer": "notfound"}, "no answer"),
        (K12 | {"answer": ""}, "no answer"),
        (K12 | {"answer": None}, "no answer"),
        (K12 | {"answer": "proof", "question_type": "proof"}, "proof"),
    ],
)
def test_unanswerable_rows_of_cn_k12_say_why(row, reason):
    assert reason in cn_k12(row)


def test_other_rows_that_cannot_be_problems():
    assert "no box" in math(MATH | {"solution": "It is 2."})
    assert "no box" in math(MATH | {"solution": r"It is \boxed{2"})
    assert "####" in gsm8k(GSM | {"answer": "two"})
    assert "four choices" in mmlu(MMLU | {"choices": ["1", "2"]})
    assert "four choices" in mmlu(MMLU | {"choices": None}) and "four choices" in mmlu(MMLU | {"answer": "E"})
    assert "none of four" in mmlu(MMLU | {"answer": None}) and "none of four" in mmlu(MMLU | {"answer": 4})
    assert "####" in gsm8k(GSM | {"answer": None}) and "no solution" in math(MATH | {"solution": None})
    assert "no solution" in cn_k12(K12 | {"solution": None})
    for name, field in (("math", "problem"), ("cn_k12", "problem"), ("mmlu", "question"), ("gsm8k", "question")):
        assert SOURCES[name].problem(ROWS[name] | {field: None}) == "no question"
        assert SOURCES[name].problem(ROWS[name] | {field: " \n"}) == "no question"


def test_answers_of_copies_in_another_type_are_read():
    for answer in (2, 2.0, "C", "c", "2"):
        assert mmlu(MMLU | {"answer": answer}) == mmlu(MMLU)
    for answer in (1200, 1200.0, "1,200", "#### 1,200"):
        problem = gsm8k(GSM | {"answer": answer})
        assert problem.answer == "1200" and problem.solution == "The answer is \\boxed{1200}."
    assert cn_k12(K12 | {"answer": 5.0}).answer == "5"


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path):
    rows = many("math", 6) + [row | {"solution": None} for row in many("math", 3, 20)]
    rows += [row | {"problem": None} for row in many("math", 2, 40)]
    task = load_task("math", validation=1, test=2, data=write_jsonl(tmp_path / "math.jsonl", rows))
    assert task.counts == {"kept": 6, "left out: no question": 2, "left out: no solution": 3}


def test_one_file_of_choices_is_split_and_a_file_without_any_says_what_is_wrong(tmp_path):
    rows = [MMLU | {"question": f"Which is even ({k})?"} for k in range(12)]
    task = load_task("mmlu", validation=2, test=4, data=write_jsonl(tmp_path / "mmlu.jsonl", rows))
    assert [len(task.train), len(task.validation), len(task.test)] == [6, 2, 4] and task.counts == {"kept": 12}
    assert task.test[0].question.endswith("?\nA. 1\nB. 3\nC. 4\nD. 5\n") and task.test[0].answer == "C"
    file = write_jsonl(tmp_path / "two.jsonl", [row | {"choices": ["1", "2"]} for row in rows])
    with pytest.raises(ValueError, match=r"has 0 .* \(left out: not four choices, 12 rows\), fewer than 4"):
        load_task("mmlu", validation=2, test=4, data=file)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "folder"])
def test_copies_on_disk(tmp_path, kind):
    rows = Dataset.from_list(many("gsm8k", 30))
    path = tmp_path / {"jsonl": "copy.jsonl", "parquet": "copy.parquet"}.get(kind, "copy")
    if kind == "jsonl":
        rows.to_json(path)
    elif kind == "parquet":
        rows.to_parquet(path)
    elif kind == "saved":
        DatasetDict(train=rows, test=Dataset.from_list(many("gsm8k", 10, 30))).save_to_disk(path)
    else:
        path.mkdir()
        rows.to_json(path / "train.jsonl")
        Dataset.from_list(many("gsm8k", 10, 30)).to_json(path / "test.jsonl")
    task = load_task("gsm8k", train=100, validation=3, test=8, data=path)
    assert [len(task.validation), len(task.test)] == [3, 8]
    if kind in ("jsonl", "parquet"):  # one split: the test problems come out of it
        assert len(task.train) == 30 - 11 and task.counts == {"kept": 30}
    else:
        assert len(task.train) == 27 and task.counts == {"train, kept": 30, "test, kept": 10}
        assert all(int(p.question.split("(")[1][:-1]) >= 30 for p in task.test)
    assert task == load_task("gsm8k", train=100, validation=3, test=8, data=path)
    assert task.test != load_task("gsm8k", train=100, validation=3, test=8, seed=1, data=path).test


def test_a_test_question_is_never_trained_on_even_if_it_is_not_used(tmp_path):
    """The train split repeats half of the test split's questions, in other spacing."""
    test = many("math", 20)
    leaked = [row | {"problem": row["problem"].replace(" ", "  ").upper()} for row in test[:10]]
    copy = DatasetDict(train=Dataset.from_list(leaked + many("math", 15, 100)), test=Dataset.from_list(test))
    copy.save_to_disk(tmp_path / "copy")
    task = load_task("math", train=100, validation=5, test=6, data=tmp_path / "copy")
    assert len(task.train) == 10
    reserved = {normalised(row["problem"]) for row in test}
    assert not reserved & {normalised(p.question) for p in task.train + task.validation}
    questions = [normalised(p.question) for p in task.train + task.validation + task.test]
    assert len(set(questions)) == len(questions)


def test_what_is_kept_and_left_out_is_counted_by_kind_and_reason(tmp_path):
    rows = many("cn_k12", 9) + [row | {"question_type": "math-word-problem"} for row in many("cn_k12", 4, 20)]
    rows += [row | {"answer": "proof"} for row in many("cn_k12", 2, 40)]
    rows += [row | {"source": "amc_aime"} for row in many("cn_k12", 5, 60)]
    task = load_task("cn_k12", validation=1, test=2, data=write_jsonl(tmp_path / "k12.jsonl", rows))
    kept = {"kept: MCQ": 9, "kept: math-word-problem": 4}
    assert task.counts == kept | {"left out: a proof, or no answer": 2, "left out: another source": 5}
    assert len(task.train) + 3 == 13


def test_mmlu_asks_for_a_letter_and_trains_on_its_auxiliary_split(tmp_path):
    copy = DatasetDict(
        auxiliary_train=Dataset.from_list(many("mmlu", 9)), test=Dataset.from_list(many("mmlu", 5, 20)),
        dev=Dataset.from_list(many("mmlu", 5, 40)),
    )  # fmt: skip
    copy.save_to_disk(tmp_path / "mmlu")
    task = load_task("mmlu", validation=2, test=5, data=tmp_path / "mmlu")
    assert "letter" in task.instruction and len(task.train) == 7
    assert {p.question.split("(")[1].split(")")[0] for p in task.test} == {"20", "21", "22", "23", "24"}


def test_bad_copies_say_what_is_wrong(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "a"\n')
    unnamed = write_jsonl(tmp_path / "unnamed.jsonl", [{"prompt": "a", "answer": "#### 1"}])
    DatasetDict(here=Dataset.from_list(many("gsm8k", 3)), there=Dataset.from_list(many("gsm8k", 3))).save_to_disk(
        tmp_path / "splits"
    )
    for path, message in (
        (tmp_path / "nowhere", "no copy of the data at"),
        (broken, "can't read"),
        (unnamed, "openai/gsm8k should have the field 'question', has prompt, answer"),
        (tmp_path / "splits", "splits here, there, none of them named train"),
    ):
        with pytest.raises(ValueError, match=message):
            load_task("gsm8k", validation=0, test=0, data=path)
    with pytest.raises(ValueError, match="data is a copy of one of math"):
        load_task("words", data=tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_sentence():
    with pytest.raises(ValueError, match=r"gsm8k could not be had from the Hub as openai/gsm8k .*--data"):
        load_task("gsm8k")


def test_real_problems(shared_data):
    """MATH-500 and GSM8K as they are; every demonstration earns the reward."""
    for name, file, count in (("math", "math500.jsonl", 500), ("gsm8k", "gsm8k_test_300.jsonl", 300)):
        task = load_task(name, validation=50, test=100, data=shared_data / file)
        assert sum(task.counts.values()) == count and task.counts["kept"] == count
        assert all(grade(p.solution, p.answer).correct for p in task.train)
    task = load_task("mmlu", validation=50, test=100, data=shared_data / "mmlu_stem_500.jsonl")
    assert set(p.answer for p in task.train) == set("ABCD")
