r"""Completion text -> Grade. The reward of every run is `grade(...).correct`: right, and inside the last \boxed{...}.

Equality of formulas is math-verify's. sympy, which it rests on, can be made to compute for hours (`9^{9^{9^9}}`), and
math-verify's own time limit works in the main thread only. So it runs in helper processes that may be stopped: this
same file, started as a program."""

import faulthandler
import json
import os
import queue
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

LONGEST = 300  # characters; a longer answer is no answer
SECONDS = 2.5  # for one comparison of formulas; then the completion counts as wrong, and as failed
HELPERS = min(4, os.cpu_count() or 1)  # comparisons at once

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped \{ or \} matches the first half, and is skipped
NUMBER = re.compile(r"(?:(?<![\w)\]}])-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
UNITS = r"\s*%|\s*percent|\s+(?:cm|mm|km|kg|ft|m|[A-Za-z]{3,})(?:\s+[A-Za-z]{2,}){0,3}(?:\s?\^\{?[23]\}?)?"
DECIMAL = r"-?\s?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|-?\s?\.[0-9]+"
QUANTITY = re.compile(rf"({DECIMAL})(?:\s?\\times 10\^\{{(-?[0-9]{{1,3}})\}})?(?:{UNITS})?")
POWER = re.compile(r"[a-z]\s?\^\{?([23])\}?$")
POWER_OF_TEN = re.compile(r"[×*]\s*10\s*\^\s*(-?[0-9]+)")  # math-verify reads 10^-3 as 10
SCALE = re.compile("hundred|thousand|million|billion|trillion|dozen", re.IGNORECASE)
CHOICE = re.compile(r"\(?([A-J])(?:[).:].*|、(?!\s*[A-J]\b).*)?", re.DOTALL)  # "C", "(C)", "C. 12 apples"; not "A、B"
UNDONE = re.compile(r"[0-9)}]\s*(?:[-+*×]|\\times|\\cdot)")
RELATION = re.compile(r"[<>≤≥≠]|\\(?:[lg]eq?|neq?|[lg]t)(?![A-Za-z])")
WORD = re.compile(r"(?<![\\A-Za-z])(?!sqrt|frac|arc|sinh|cosh|tanh|infinity)[A-Za-z]{4,}")
CHINESE = re.compile("[\u4e00-\u9fff]")
NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {ord("。"): "."}  # full-width letters and marks


@dataclass(frozen=True)
class Grade:
    """What one completion is worth. `correct` implies `formatted`, and `number`."""

    formatted: bool  # its last box is closed, and not empty
    correct: bool  # formatted, and the box holds the right answer
    number: bool  # the right answer was reached: in the box or, without one, as the last number (not a bare letter)
    answer: str | None  # inside of the last box
    failed: bool = False  # the comparison ran out of time or crashed, so it counts as wrong


def grade(completion: str, answer: str | int | float) -> Grade:
    """Grade a completion against the right answer. No completion makes it raise."""
    gold, found = answer_text(answer), boxed(completion) or None  # models copy the empty \boxed{} of an instruction
    if found is None:
        last = last_number(completion)
        return Grade(False, False, last is not None and bool(equal(gold, last)), None)
    same = equal(gold, found)
    return Grade(True, bool(same), bool(same), found, failed=same is None)


def grade_all(completions: Sequence[str], answers: Sequence[str | int | float]) -> list[Grade]:
    """`grade` of each completion with its answer, several at once."""
    with ThreadPoolExecutor(HELPERS) as pool:
        return list(pool.map(grade, completions, answers))


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


def answer_text(answer: str | int | float) -> str:
    """A right answer as text: 91.0 is "91"."""
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer).strip()


def equal(gold: str, answer: str) -> bool | None:
    """Whether the answer means the same as `gold`: as text, choice letter or number, or else as a formula.

    None where math-verify ran out of time or crashed over it."""
    if not answer.strip() or len(answer) > LONGEST:
        return False
    gold, answer = (POWER_OF_TEN.sub(r"\\times 10^{\1}", text.translate(NARROW)) for text in (gold, answer))
    right, given = _plain(gold), _plain(answer)
    if _squeeze(right) == _squeeze(given):
        return True
    if re.fullmatch(r"\(?[A-J]\)?", right):
        choice = CHOICE.fullmatch(given)
        return choice is not None and choice[1] == right.strip("()")
    if _prose(right):  # as products of letters, "east" and "seat" would be equal formulas
        return right.casefold() == given.casefold() and (right == given or WORD.search(right) is not None)
    if bool(SCALE.search(gold)) != bool(SCALE.search(answer)):  # "10 million" is not 10
        return False
    x, y = _number(right), _number(given)
    if x is not None and y is not None:
        powers = {found[1] for found in map(POWER.search, (right, given)) if found}
        if len(powers) == 2:  # cm^2 and cm^3; a unit on one side only is not compared
            return False
        if abs(x - y) <= Fraction(1, 10**6) * min(1, abs(x)):  # six digits are enough: 1.8333333333 is 1.833333
            return True
        if "%" not in gold + answer:  # math-verify knows that 0.25 is 25%
            return False
    if x is not None and RELATION.search(given):  # "x > 3" is not 3
        return False
    if x is not None and "^" not in given and UNDONE.search(given.split("=")[-1]):
        return False  # `13+7-4` does not answer `13+7-4?`: RL would find that copying the question pays
    if CHINESE.search(gold):  # math-verify would compare the numbers in a sentence and nothing else
        return False
    # Between $ an answer is one formula; without them math-verify would pick any number out of "5 or 7".
    formulas = [f"${text}$" for text in (re.sub(r"\\?\$|\\[()]", "", text) for text in (gold, answer))]
    return _same_formula(*formulas)


def _plain(text: str) -> str:
    r"""The text without what is there for looks: $, \text, \left, wide or narrow spaces, bold, the final period."""
    text = re.sub(r",\\!\s*|\{,\}", ",", text).replace("\u2212", "-")  # 10,\!080
    text = re.sub(r"\\(?:text|textbf|textit|mbox|mathrm|mathbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\!|\\?\$|\\[()\[\]]|\\(?:left|right|displaystyle)(?![A-Za-z])|\\(?=%)", "", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    return re.sub(r"(?:\\[,;: ]|[~\s])+", " ", text).strip(" *").rstrip(". ")


def _prose(text: str) -> bool:
    """Whether the text is words rather than a formula, to which at most a short unit is added."""
    if "→" in text or re.fullmatch(r"[A-Za-z]{4,}|[A-Za-z]+(?: [A-Za-z]+)+", text):
        return True
    text = re.sub(r"\\(?:begin|end)\{[a-z]+\}", r"\\", text)
    word = WORD.search(text)
    if word is None:
        return False
    before, after = text[: word.start()], text[word.end() :]
    return not re.search(r"[0-9\\]", before) or bool(re.search(r"[0-9\\]", after)) or len(after.split()) > 3


def _squeeze(text: str) -> str:
    """Without spaces, but `3 5` is not `35`."""
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", text)


def _number(text: str) -> Fraction | None:
    r"""The number in `1,234.5`, `18 apples`, `2 \times 10^{3}` or `25%` (25); None for anything else."""
    found = QUANTITY.fullmatch(text)
    return found and Fraction(re.sub(r"[,\s]", "", found[1])) * Fraction(10) ** int(found[2] or 0)


@lru_cache(maxsize=10_000)  # the completions of one group often agree
def _same_formula(gold: str, answer: str) -> bool | None:
    helpers = _helpers(os.getpid())
    helper = helpers.get()
    try:
        return helper.ask([gold, answer, SECONDS])
    finally:
        helpers.put(helper)


class _Helper:
    """This file as a program: one JSON line in, one out. It ends itself when a comparison takes too long."""

    def __init__(self):
        self.process = None

    def start(self) -> None:
        command = [sys.executable, "-P", __file__]  # -P: our train.py and others must not pass for modules
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.process, self.ready = subprocess.Popen(command, **pipes), False

    def ask(self, request: list) -> bool | None:
        try:
            if self.process is None or self.process.poll() is not None:
                self.start()
            if not self.ready and not self.process.stdout.readline():
                raise RuntimeError("the helper of rewards.py did not start: is math-verify installed?")
            self.ready = True
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline().strip()
        except BrokenPipeError:
            reply = ""
        except BaseException:  # after an interrupt its late answer must not pass for the next one's
            if self.process:
                self.process.kill()
            raise
        if not reply:  # it ended, out of time or memory: have the next one ready
            self.process.wait()
            self.start()
        return {"true": True, "false": False}.get(reply)


@lru_cache
def _helpers(process_id: int) -> queue.LifoQueue:
    """A pool for each process: a forked process must not share its parent's pipes. The last used is used first."""
    pool = queue.LifoQueue()
    for _ in range(HELPERS):
        pool.put(_Helper())
    return pool


def _serve() -> None:
    """The helper's side. faulthandler's clock also ends a computation inside sympy's C code, where signals wait."""
    import math_verify

    out, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            parsed = [math_verify.parse(text, parsing_timeout=None) for text in (gold, answer)]
            same = all(parsed) and math_verify.verify(*parsed, timeout_seconds=None)
        except Exception:
            same = None
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(same if same is None else bool(same)), file=out, flush=True)


if __name__ == "__main__":
    _serve()
