r"""MATH, cn_k12, MMLU and GSM8K through `datasets`: from the Hub, or from a copy on disk.

A `Source` pins a data set to the fields it is made of and turns a row into a `Problem`, or says why it can't be one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .generated import Problem
from .rewards import answer_text, boxed

if TYPE_CHECKING:  # `datasets` loads pandas and much else: only who loads a benchmark should wait for it
    from datasets import Dataset, DatasetDict

BOX_IT = "Put the final answer in \\boxed{}."
BOX_THE_LETTER = "Put the letter of the right choice in \\boxed{}."


@dataclass(frozen=True)
class Source:
    """A data set of the Hub. `problem` turns a row into a Problem, or into the reason why the row is left out."""

    hub: str
    config: str
    fields: tuple[str, ...]
    problem: Callable[[dict], Problem | str]
    instruction: str = BOX_IT
    train: str = "train"
    test: str | None = "test"  # None: one split, from which test problems are drawn too
    kind: str | None = None  # a field whose values are counted among the rows that are kept


def math(row: dict) -> Problem | str:
    """The gold answer is the last box of the solution."""
    question, solution = _text(row["problem"]), _text(row["solution"])
    answer = boxed(solution)
    if not question or not solution:
        return "no question" if not question else "no solution"
    return Problem(question, answer, solution) if answer else "no box in the solution"


def cn_k12(row: dict) -> Problem | str:
    """Chinese school problems, multiple choice and open ones; proofs and what was found to be broken are left out."""
    if row["source"] != "cn_k12":
        return "another source"
    if _yes(row["synthetic"]):
        return "synthetic"
    if not _yes(row["problem_is_valid"]) or not _yes(row["solution_is_valid"]):
        return "marked as not valid"
    question, answer, solution = _text(row["problem"]), _text(row["answer"]).strip(), _text(row["solution"])
    if row["question_type"] == "proof" or answer.lower() in ("", "proof", "notfound", "nan"):
        return "a proof, or no answer"
    if not question or not solution:
        return "no question" if not question else "no solution"
    return Problem(question, answer, solution if boxed(solution) else f"{solution}\n\n{_the_answer(answer)}")


def mmlu(row: dict) -> Problem | str:
    """Four choices; the answer is the letter of one, which some copies count from 0 and others write."""
    question, choices, answer = _text(row["question"]).strip(), row["choices"], _text(row["answer"]).strip().upper()
    letter = answer if re.fullmatch("[A-D]", answer) else dict(zip("0123", "ABCD", strict=True)).get(answer)
    if not question:
        return "no question"
    if not isinstance(choices, list) or len(choices) != 4 or None in choices:
        return "not four choices"
    if letter is None:
        return "the answer is none of four choices"
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    return Problem(f"{question}\n{choices}\n", letter, _the_answer(letter))


def gsm8k(row: dict) -> Problem | str:
    """The gold answer follows ####, or is all there is; the calculator's notes, <<3*4=12>>, are left out."""
    question, text = _text(row["question"]), _text(row["answer"])
    working, mark, answer = text.rpartition("####")
    answer = answer.strip().replace(",", "")
    if not question:
        return "no question"
    if not answer or not mark and not re.fullmatch(r"-?\$?[0-9]*\.?[0-9]+", answer):
        return "no #### answer"
    working = re.sub(r"<<[^<>]*>>", "", working).strip()
    return Problem(question, answer, f"{working}\n{_the_answer(answer)}".lstrip())


SOURCES = {
    "math": Source("Maxwell-Jia/MATH", "default", ("problem", "solution"), math),
    "cn_k12": Source(
        "AI-MO/NuminaMath-1.5",
        "default",
        (
            "problem", "solution", "answer", "question_type", "problem_is_valid", "solution_is_valid", "source",
            "synthetic",
        ),
        cn_k12,
        test=None,
        kind="question_type",
    ),
    "mmlu": Source("cais/mmlu", "all", ("question", "choices", "answer"), mmlu, BOX_THE_LETTER, "auxiliary_train"),
    "gsm8k": Source("openai/gsm8k", "main", ("question", "answer"), gsm8k),
}  # fmt: skip


class Rows:
    """The problems in one split of a source, shuffled by `seed`; `counts`: rows kept, and left out by reason.

    Rows stay on disk, in Arrow's memory map, until they are asked for."""

    def __init__(self, source: Source, rows: Dataset, seed: int):
        missing = [field for field in source.fields if field not in rows.column_names]
        if missing:
            raise ValueError(f"{source.hub} should have the field {missing[0]!r}, has {', '.join(rows.column_names)}")
        rows = rows.select_columns(list(source.fields))
        verdicts = rows.map(partial(_verdict, source), remove_columns=rows.column_names, desc="checking problems")
        verdicts = verdicts["verdict"][:]
        self.counts = dict(sorted(Counter(verdicts).items()))
        self.rows = rows.select([k for k, verdict in enumerate(verdicts) if verdict.startswith("kept")]).shuffle(seed)
        self.problem = source.problem

    def __iter__(self) -> Iterator[Problem]:
        return map(self.problem, self.rows)


def _verdict(source: Source, row: dict) -> dict[str, str]:
    found = source.problem(row)
    if isinstance(found, str):
        return {"verdict": f"left out: {found}"}
    return {"verdict": f"kept: {row[source.kind]}" if source.kind else "kept"}


def load_rows(name: str, data: str | Path | None = None, seed: int = 0) -> tuple[Rows, Rows | None]:
    """The training rows of a benchmark and its test rows (None where it has one split).

    data: a copy on disk in place of the Hub: a JSONL or Parquet file, or a folder that `datasets` can read.
    Raises ValueError, saying how to point at a copy, where the data can't be had."""
    source = SOURCES[name]
    splits = _from_disk(Path(data)) if data else _from_hub(name, source)
    if source.test and source.test in splits and source.train in splits:
        return Rows(source, splits[source.train], seed), Rows(source, splits[source.test], seed)
    if len(splits) > 1 and source.train not in splits:
        raise ValueError(f"{data} has the splits {', '.join(splits)}, none of them named {source.train}")
    return Rows(source, splits.get(source.train, next(iter(splits.values()))), seed), None


def _from_hub(name: str, source: Source) -> DatasetDict:
    from datasets import DatasetDict, load_dataset

    try:
        wanted = [split for split in (source.train, source.test) if split]
        return DatasetDict(zip(wanted, load_dataset(source.hub, source.config, split=wanted), strict=True))
    except (OSError, ValueError) as error:  # no connection, no such data set, no such split
        raise ValueError(
            f"{name} could not be had from the Hub as {source.hub} ({str(error).strip().splitlines()[0]}): "
            "check the connection, or give a copy of it with --data (JSONL, Parquet, or a `datasets` folder)"
        ) from None


def _from_disk(path: Path) -> DatasetDict:
    from datasets import DatasetDict, load_dataset, load_from_disk

    if not path.exists():
        raise ValueError(f"no copy of the data at {path}")
    try:
        if path.is_file():
            kind = "parquet" if path.suffix == ".parquet" else "json"
            found = load_dataset(kind, data_files={"train": str(path)})
        elif (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
            found = load_from_disk(path)
        else:
            found = load_dataset(str(path))
    except Exception as error:  # datasets raises many kinds, most of them for a file that is not what its name says
        raise ValueError(f"can't read {path}: {str(error).strip().splitlines()[0]}") from None
    return found if isinstance(found, DatasetDict) else DatasetDict(train=found)


def _text(value) -> str:
    """A field as text: "" of what is missing or blank, 3 of 3.0."""
    return "" if value is None or not str(value).strip() else value if isinstance(value, str) else answer_text(value)


def _the_answer(answer: str) -> str:
    return f"The answer is \\boxed{{{answer}}}."


def _yes(value) -> bool:
    """The Hub's validity marks are strings in some versions of the data, booleans in others."""
    return str(value).strip().lower() in ("yes", "true", "1")
