"""Grades: boxes, numbers, equality, and what must never happen (a hang, an exception, a reward for nothing)."""

import json
import random
import time
from pathlib import Path

import pytest

from logitmix_lite.tasks.equality import equal
from logitmix_lite.tasks.rewards import Grade, answer_text, boxed, grade, grade_all, last_number


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "text, inside",
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{1} no, \boxed{2", None),  # truncated: the last box counts
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{\{1,2\}} and {more}", r"\{1,2\}"),
        (r"\boxed{\{1\}", None),
        (r"\boxed{a \\}", r"a \\"),  # a line break, then the end
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"$\boxed 5$", "5"),
        (r"is \boxed 5.", "5"),
        (r"$\boxed \frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed{}", ""),
        (r"\boxed", None),
        (r"\boxedanswer{5}", None),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_boxed(text, inside):
    assert boxed(text) == inside


@pytest.mark.parametrize(
    "text, number",
    [
        ("it costs $1,234.50.", "1234.50"),
        ("13+7=20;20-4=16", "16"),
        ("20-4", "4"),
        ("x = -4.", "-4"),
        ("(\u22123)", "-3"),
        ("from 3 to 12, 15", "15"),
        ("about .5", ".5"),
        ("1,000,000 people", "1000000"),
        (r"\boxed{16", "16"),
        ("none", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    "completion, gold",
    [
        ("**Final answer:** \\[ \\boxed{\\dfrac{3}{4}} \\]", "0.75"),
        ("Tom has $12+7=19$ apples, so \\(\\boxed{19 \\text{ apples}}\\).", 19.0),
        ("### Answer\n$$\n\\boxed{\\$1,234.50}\n$$\n", "1234.5"),
        ("The correct option is \\(\\boxed{\\text{(B) } 7}\\)", "B"),
        ("First \\boxed{3}. Wait, I forgot one. \\boxed{4}", 4),
        ("13+7=20;20-4=16; \\boxed{16}", "16"),
    ],
)
def test_styles_of_real_models(completion, gold):
    found = grade(completion, gold)
    assert found.formatted and found.correct and found.number and found.answer == boxed(completion)


def test_completions_of_smollm2_get_the_grades_a_reader_gave_them():
    """391 samples of SmolLM2-135M, of its anchor mixed in at 0 to 0.5, on word problems, arithmetic and MATH. Each
    was read and labelled as boxed or not, rewarded or not, right or not: no false positive among 357 that earn nothing
    (95 % bound 1.1 %), no false negative among 34 that earn the reward (bound 10 %)."""
    read = rows(Path(__file__).parent / "completions.jsonl")
    assert len(read) == 391 and sum(row["correct"] for row in read) == 34
    found = grade_all([row["completion"] for row in read], [row["gold"] for row in read])
    for row, ours in zip(read, found, strict=True):
        labels = row["formatted"], row["correct"], row["number"]
        assert (ours.formatted, ours.correct, ours.number) == labels, row


def test_what_each_field_says():
    assert grade("so 16", "16") == Grade(formatted=False, correct=False, number=True, answer=None)
    assert grade(r"so \boxed{16", "16") == Grade(False, False, True, None)
    assert grade(r"so 16, \boxed{17}", "16") == Grade(True, False, False, "17")  # the box is the answer
    assert grade(r"\boxed{\frac{1}{16}}", "16") == Grade(True, False, False, r"\frac{1}{16}")
    assert grade(r"in \boxed{}: it is 16", "16") == Grade(False, False, True, None)  # an empty box is no box
    assert grade("", 16.0) == Grade(False, False, False, None)
    assert [answer_text(a) for a in (91.0, 91, "91.0", 0.5, " 3 ")] == ["91", "91", "91.0", "0.5", "3"]


@pytest.mark.parametrize(
    "completion, gold, number",
    [
        ("The answer is C.", "C", True), ("so I choose (B)", "B", True), ("It is (B), a bag", "B", True),
        ("A bag of apples", "A", False), ("C or D", "C", False), ("C or D", "D", False), ("Cats", "C", False),
        ("first B, then C", "B", False), ("A, B and D are right", "ABD", True), ("所以选 C。", "C", True),
        ("so A is right", "A", True),
    ],
)  # fmt: skip
def test_a_choice_letter_without_a_box_counts_as_reached(completion, gold, number):
    assert grade(completion, gold) == Grade(False, False, number, None)


def test_any_text_gets_a_grade_and_correct_implies_formatted_and_number():
    rng = random.Random(0)
    pieces = [r"\boxed", r"\fbox", "{", "}", r"\{", "\\", "$", " ", "7", "-", ".", ",", "%", "^", "C", "\ud800", "是"]
    seen = set()
    for _ in range(3000):
        # no longer answers: "7^7^7^7..." would take the helper its time, which is another test's subject
        found = grade("".join(rng.choices(pieces, k=rng.randrange(9))), rng.choice(["7", "C", 7.0]))
        assert found.formatted == (found.answer is not None)
        assert found.formatted and found.number or not found.correct
        seen.add((found.formatted, found.correct, found.number))
    assert seen == {(False, False, False), (False, False, True), (True, False, False), (True, True, True)}


def test_long_adversarial_text_takes_linear_time():
    start = time.monotonic()
    for text in (r"\boxed{", r"\boxed ", "{", r"\boxed{}" + "}", "1,234", "1", "-", ".", "\\", " ", r"\boxed{7}"):
        for end in ("", r"\boxed{", r"\boxed{7}"):
            grade(text * 20_000 + end, "7")
    assert time.monotonic() - start < 10


def test_math500(shared_data):
    problems, start = rows(shared_data / "math500.jsonl"), time.monotonic()
    right = sum(grade(row["solution"], row["answer"]).correct for row in problems)
    print(f"math500: {right} of {len(problems)} solutions right")
    assert right >= 0.99 * len(problems)
    # each answer in another spelling, and against the next problem's answer
    answers = [row["answer"] for row in problems]
    spelled = [f"$\\displaystyle {answer}$".replace("\\frac", "\\dfrac") for answer in answers]
    same = sum(equal(*pair) for pair in zip(answers, spelled, strict=True))
    confused = [pair for pair in zip(answers, answers[1:], strict=False) if equal(*pair)]
    print(f"math500: {same} in another spelling; equal neighbours: {confused}")
    assert same >= 0.99 * len(problems)
    assert confused == [("5", "x=5"), ("7", "7"), ("3", "3")]
    assert time.monotonic() - start < 120


def test_gsm8k(shared_data):
    problems = rows(shared_data / "gsm8k_test_300.jsonl")
    for row in problems:
        work, gold = row["answer"].split("####")
        assert grade(row["answer"], gold).number and not grade(row["answer"], gold).formatted
        gold = gold.strip()
        for box in (gold, f"\\${gold}", f"{gold} \\text{{ dollars}}", f"{gold}.00", f"{gold} miles per hour"):
            assert grade(f"{work} \\boxed{{{box}}}.", gold).correct, box
        assert not grade(f"{work} \\boxed{{1{gold}}}", gold).correct


def test_chinese_school_problems(shared_data):
    for row in rows(shared_data / "cn_middle_school.jsonl"):
        assert grade(f"所以选\\boxed{{{row['answer']}}}。", row["answer"]).correct, row["answer"]
        if row["choice_answer"]:
            assert grade(f"故选 \\boxed{{\\text{{{row['choice_answer']}}}}}", row["choice_answer"]).correct


def test_mmlu_letters(shared_data):
    for row in rows(shared_data / "mmlu_stem_500.jsonl"):
        gold, text = "ABCD"[row["answer"]], row["choices"][row["answer"]]
        for box in (gold, f"({gold})", f"\\text{{{gold}}}", f"{gold}. {text[:200]}".replace("{", "").replace("}", "")):
            assert grade(f"\\boxed{{{box}}}", gold).correct, box
        for wrong in set("ABCD") - {gold}:
            assert not grade(f"\\boxed{{{wrong}}}", gold).correct
