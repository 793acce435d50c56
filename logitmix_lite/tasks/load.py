r"""Named problem sets, split into train, validation and test, and how a problem becomes tokens.

`chain` and `words` are generated, so there is no end of them and nothing to download; `math`, `cn_k12`, `mmlu` and
`gsm8k` are data sets of the Hub; a path to a .jsonl file loads your own problems. No two sets share a question."""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from .generated import CHAINS, GENERATED, Problem
from .hub import BOX_IT, SOURCES, load_rows
from .rewards import answer_text


@dataclass(frozen=True)
class Task:
    """Three disjoint lists of problems. `instruction` follows each question in the prompt.

    counts: of a data set, how many of its rows were kept and how many left out, by reason."""

    name: str
    train: list[Problem]
    validation: list[Problem]
    test: list[Problem]
    instruction: str
    counts: dict[str, int] = field(default_factory=dict)


def load_task(
    name: str,
    *,
    train: int = 4000,
    validation: int = 100,
    test: int = 500,
    seed: int = 0,
    where: dict | None = None,
    data: str | Path | None = None,
) -> Task:
    """A generated task (chain, words, ...), a benchmark (math, cn_k12, mmlu, gsm8k), or a .jsonl file with the fields
    question, answer and, optionally, solution.

    train, validation, test: how many problems; there may be fewer for train, except of generated ones. A larger train
    changes neither of the others. where: rows of a file to use, as {field: [values]}. data: a copy on disk of a
    benchmark (JSONL, Parquet or a `datasets` folder), in place of the Hub.
    Raises ValueError for a name that is not known and for data that can't be used."""
    if min(train, validation, test) < 0:
        raise ValueError(f"the sizes of a task can't be negative: train {train}, validation {validation}, test {test}")
    file = str(name).endswith(".jsonl")
    if not file and name not in GENERATED and name not in SOURCES:
        raise ValueError(f"no task {name!r}: use {', '.join([*GENERATED, *SOURCES])} or the path of a .jsonl file")
    if where and not file:
        raise ValueError(f"where picks rows of a .jsonl file, and {name} is none")
    if data and name not in SOURCES:
        raise ValueError(f"data is a copy of one of {', '.join(SOURCES)}, and {name} is none of them")
    rng, counts = random.Random(f"{Path(name).name} {seed}"), {}
    instruction = SOURCES[name].instruction if name in SOURCES else "" if name in CHAINS else BOX_IT
    if file:
        problems = read_jsonl(name, where)
        rng.shuffle(problems)
    elif name in GENERATED:
        problems = _draw(name, rng, test + validation + train)
    else:
        problems, counts = _benchmark(name, test, validation + train, seed, data)
    least = test + validation + min(train, 1)
    if len(problems) < least:
        raise ValueError(
            f"{name} has {len(problems)} different questions{' where you want them' if where else ''}, "
            f"fewer than {test} for test, {validation} for validation and 1 for training: ask for less"
        )
    test_set, others = problems[:test], problems[test:]
    return Task(str(name), others[validation : validation + train], others[:validation], test_set, instruction, counts)


def _benchmark(name: str, test: int, others: int, seed: int, data) -> tuple[list[Problem], dict[str, int]]:
    """`test` problems, of the test split where there is one, then at most `others` that are in none; counts."""
    rows, test_rows = load_rows(name, data, seed)
    if test_rows is None:
        return list(islice(distinct(rows), test + others)), rows.counts
    known: set[str] = set()
    reserved = list(distinct(test_rows, known))  # all of them: none may be trained on, used here or not
    if len(reserved) < test:
        raise ValueError(f"the test split of {name} has {len(reserved)} different questions, fewer than {test}")
    counts = {
        f"{split}, {verdict}": n
        for split, r in (("train", rows), ("test", test_rows))
        for verdict, n in r.counts.items()
    }
    return reserved[:test] + list(islice(distinct(rows, known), others)), counts


def distinct(problems: Iterable[Problem], known: set[str] | None = None) -> Iterator[Problem]:
    """Each question once, and none that is in `known`, to which they are added."""
    known = set() if known is None else known
    for problem in problems:
        question = normalised(problem.question)
        if question not in known:
            known.add(question)
            yield problem


def _draw(name: str, rng: random.Random, count: int) -> list[Problem]:
    found: dict[str, Problem] = {}
    for _ in range(20 * count + 1000):
        if len(found) == count:
            return list(found.values())
        problem = GENERATED[name](rng)
        found.setdefault(normalised(problem.question), problem)
    raise ValueError(f"{name} has hardly more than {len(found)} different problems: ask for fewer than {count}")


def normalised(question: str) -> str:
    """What two copies of a question share: lower case, single spaces."""
    return " ".join(question.lower().split())


def read_jsonl(path: str | Path, where: dict | None = None) -> list[Problem]:
    """Problems of a JSONL file, each question once. Raises ValueError with file, line and what is wrong there."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"can't read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append((row := json.loads(line), _problem(row)))
            except ValueError as error:  # json.JSONDecodeError is one too
                what = f"not JSON ({error})" if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"{path} line {number}: {what}") from None
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
    return list(distinct(problem for _, problem in rows))


def _problem(row: dict) -> Problem:
    if not isinstance(row, dict):
        raise ValueError("not an object with fields")
    for name in ("question", "answer"):
        if row.get(name) in (None, ""):
            raise ValueError(f"no {name!r}")
    question, answer, solution = row["question"], row["answer"], row.get("solution")
    if not isinstance(question, str) or isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError("question must be text, and answer text or a number")
    if not isinstance(solution, str | None):
        raise ValueError("solution must be text")
    return Problem(question, answer_text(answer), solution)


def encode_prompt(tokenizer, question: str, instruction: str = "") -> list[int]:
    """Token ids of the prompt: a user's turn where the tokenizer has a chat template, else the plain text."""
    text = f"{question} {instruction}" if instruction else question
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": text}]
        return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_demo(tokenizer, problem: Problem, instruction: str = "") -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the completion to learn: the solution (or just the box), then the end token."""
    text = problem.solution or f"\\boxed{{{problem.answer}}}"
    completion = tokenizer(text, add_special_tokens=False)["input_ids"]
    return encode_prompt(tokenizer, problem.question, instruction), [*completion, tokenizer.eos_token_id]
