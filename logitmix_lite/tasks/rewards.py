r"""Completion text -> Grade. The reward of every run is `grade(...).correct`: right, and inside the last \boxed{...}.

When two answers are one is the subject of `equality`."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .equality import equal
from .formulas import HELPERS
from .readings import choices
from .spelling import normalise

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped \{ or \} matches the first half, and is skipped
NUMBER = re.compile(r"(?:(?<![\w)\]}])-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
LETTER = r"(?<![\w\\'])(?!A (?!(?:and|or|is|are)\b))(?!I )\(?[A-J]\)?(?![\w'])"  # no article
LETTERS = re.compile(rf"{LETTER}(?:\s*(?:[,、/&]|and|or|和|或)+\s*{LETTER})*")


@dataclass(frozen=True)
class Grade:
    """What one completion is worth. `correct` implies `formatted`, and `number`."""

    formatted: bool  # its last box is closed, and not empty
    correct: bool  # formatted, and the box holds the right answer
    number: bool  # the right answer was reached: in the box or, without one, as the last number or choice letter
    answer: str | None  # inside of the last box
    failed: bool = False  # the comparison ran out of time or crashed, so it counts as wrong


def grade(completion: str, answer: str | int | float) -> Grade:
    """Grade a completion against the right answer. No completion makes it raise."""
    gold, found = answer_text(answer), boxed(completion) or None  # models copy the empty \boxed{} of an instruction
    if found is None:
        last = last_choice(completion) if choices(normalise(gold)) else last_number(completion)
        return Grade(False, False, last is not None and bool(equal(gold, last)), None)
    same = equal(gold, found)
    return Grade(True, bool(same), bool(same), found, failed=same is None)


def grade_all(completions: Sequence[str], answers: Sequence[str | int | float]) -> list[Grade]:
    """`grade` of each completion with its answer, several at once."""
    with ThreadPoolExecutor(HELPERS) as pool:
        return list(pool.map(grade, completions, answers))


def as_bits(grades: Sequence[Grade], rates: Iterable[str]) -> dict[str, str]:
    """For each rate a string of "1" and "0", one a grade, as records hold who solves what."""
    return {rate: "".join(str(int(getattr(g, rate))) for g in grades) for rate in rates}


def boxed(text: str) -> str | None:
    r"""Inside of the last \boxed{...} or \fbox{...}, or of `\boxed 5`. None without one, or if it is never closed."""
    boxes = list(BOX.finditer(text))
    if not boxes:
        return None
    box = boxes[-1]
    if not text.startswith("{", box.end()):
        word = re.match(r"[^\s${}]*(?:\{[^\s${}]*\})*", text[box.end() :])[0].rstrip(".,;")
        return word or None
    depth = 0
    for brace in BRACE.finditer(text, box.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return text[box.end() + 1 : brace.start()].strip()
    return None


def last_number(text: str) -> str | None:
    """The last number in the text, without thousands commas. The minus of `20-4` is an operator, not a sign."""
    numbers = NUMBER.findall(text.replace("\u2212", "-"))
    return numbers[-1].replace(",", "") if numbers else None


def last_choice(text: str) -> str | None:
    """The last choice letter in the text, or the last that stand together: "A, B and D"."""
    found = [match[0] for match in LETTERS.finditer(text)]
    return found[-1] if found else None


def answer_text(answer: str | int | float) -> str:
    """A right answer as text: 91.0 is "91"."""
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer).strip()
