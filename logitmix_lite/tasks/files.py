"""Problems of your own: a JSONL file, or a JSON list. What can never be graded right is refused, with its line."""

import gzip
import json
import math
import re
import zlib
from pathlib import Path

from .generated import Problem
from .rewards import answer_text

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
# In JSON a single backslash before b, f, n, r or t makes another character: "\frac" is a form feed and "rac".
LOST = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\t(?=ext|imes|heta|frac|au\b|an\b)|\r(?=ight|ho\b|angle)")
ESCAPES = {"\b": r"\b", "\t": r"\t", "\f": r"\f", "\r": r"\r"}


class Written(str):
    """A number as it is written in the file: 1e-5 is not 1e-05."""


def read_problems(path: str | Path, where: dict | None = None) -> list[Problem]:
    """The problems of a .jsonl or .json file (a list of objects, or an object with one list), packed by gzip or not.

    where: rows to use, as {field: [values]}. Raises ValueError with file, line and what is wrong there."""
    rows = []
    for place, row in _rows(path, _text(path)):
        try:
            row = json.loads(row, parse_float=Written) if isinstance(row, str) else row
            rows.append((row, _problem(row)))
        except (ValueError, RecursionError) as error:  # json.JSONDecodeError is a ValueError too
            what = error if type(error) is ValueError else f"not JSON ({error})"
            raise ValueError(f"{path} {place}: {what}") from None
    if not rows:
        raise ValueError(f"{path} is empty")
    for name, values in (where or {}).items():
        values = [str(value) for value in ([values] if isinstance(values, str) else values)]
        have = sorted({str(row[name]) for row, _ in rows if name in row})
        if not have:
            raise ValueError(f"no row of {path} has the field {name!r}")
        rows = [(row, problem) for row, problem in rows if name in row and str(row[name]) in values]
        if not rows:
            raise ValueError(f"no row of {path} has {name} {' or '.join(values)}; there is {', '.join(have[:10])}")
    return [problem for _, problem in rows]


def _text(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
        data = gzip.decompress(data) if str(path).endswith(".gz") else data
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "it is no whole gzip file"
        raise ValueError(f"can't read {path}: {getattr(error, 'strerror', None) or reason}") from None


def _rows(path: str | Path, text: str) -> list[tuple[str, str | dict]]:
    """Each row with its place: lines, or the items of a JSON list."""
    if ".json" in Path(path).suffixes:
        try:
            found = json.loads(text, parse_float=Written)
        except (ValueError, RecursionError):
            found = None  # lines under another name, or broken: reading it by lines says where
        if isinstance(found, dict):
            lists = [value for value in found.values() if isinstance(value, list)]
            if len(lists) != 1:
                raise ValueError(f"{path} is an object with {len(lists)} lists: give a list of objects, or JSON lines")
            found = lists[0]
        if isinstance(found, list):
            return [(f"item {number}", item) for number, item in enumerate(found, 1)]
    return [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _problem(row: dict) -> Problem:
    if not isinstance(row, dict):
        raise ValueError("not an object with fields")
    question, answer, solution = row.get("question"), row.get("answer"), row.get("solution")
    if isinstance(row.get("choices"), list):  # without them the question could only be answered by luck
        raise ValueError("a question with choices is one of MMLU's kind: use --task mmlu --data with this file")
    for name, value in (("question", question), ("answer", answer)):
        if value is None or isinstance(value, str) and not any(map(_visible, value)):
            raise ValueError(f"no {name!r}")
    if not _is_text(question) or isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError("question must be text, and answer text or a number")
    if solution is not None and not _is_text(solution):
        raise ValueError("solution must be text")
    if isinstance(answer, float) and not math.isfinite(answer) or str(answer).strip().lower() == "nan":
        raise ValueError(f"the answer is {answer}, which no completion can reach")
    for name, value in (("question", question), ("answer", answer), ("solution", solution)):
        if found := LOST.search(str(value)):
            raise ValueError(f"{name} has {_escape(str(value), found)}")
    if isinstance(answer, Written):
        answer = re.sub(r"\.0+$", "", answer)
    return Problem(question, answer_text(answer), solution)


def _is_text(value) -> bool:
    return isinstance(value, str) and not isinstance(value, Written)


def _visible(character: str) -> bool:
    return character.isprintable() and not character.isspace()


def _escape(text: str, found: re.Match) -> str:
    if found[0] not in ESCAPES:
        return f"the control character {found[0]!r}"
    command = ESCAPES[found[0]] + re.match("[A-Za-z]*", text[found.end() :])[0]
    return f"the control character {found[0]!r}, as {command} is read in JSON: write \\{command}"
