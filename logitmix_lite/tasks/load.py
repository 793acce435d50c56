r"""Named problem sets, split into train, validation and test, and how a problem becomes tokens.

`chain` and `words` are generated, so there is no end of them and nothing to download; `math`, `cn_k12`, `mmlu` and
`gsm8k` are data sets of the Hub; the path of a .jsonl or .json file loads your own problems. No two sets share a
question."""

import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from .files import SUFFIXES, read_problems
from .generated import CHAINS, GENERATED, Problem
from .hub import BOX_IT, SOURCES, load_rows


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
    """A generated task (chain, words, ...), a benchmark (math, cn_k12, mmlu, gsm8k), or a .jsonl or .json file with the
    fields question, answer and, optionally, solution.

    train, validation, test: how many problems; there may be fewer for train, except of generated ones. A larger train
    changes neither of the others. where: rows of a file to use, as {field: [values]}. data: a copy on disk of a
    benchmark (JSONL, Parquet or a `datasets` folder), in place of the Hub.
    Raises ValueError for a name that is not known and for data that can't be used."""
    if min(train, validation, test) < 0:
        raise ValueError(f"the sizes of a task can't be negative: train {train}, validation {validation}, test {test}")
    file = str(name).endswith(SUFFIXES)
    if not file and name not in GENERATED and name not in SOURCES:
        raise ValueError(f"no task {name!r}: use {', '.join([*GENERATED, *SOURCES])} or the path of a .jsonl file")
    if where and not file:
        raise ValueError(f"where picks rows of a .jsonl file, and {name} is none")
    if data and name not in SOURCES:
        raise ValueError(f"data is a copy of one of {', '.join(SOURCES)}, and {name} is none of them")
    rng, counts = random.Random(f"{Path(name).name} {seed}"), {}
    if file:
        problems = list(distinct(read_problems(name, where)))
        rng.shuffle(problems)
    elif name in GENERATED:
        problems = _draw(name, rng, test + validation + train)
    else:
        problems, counts = _benchmark(name, test, validation + train, seed, data)
    least = test + validation + min(train, 1)
    if len(problems) < least:
        lost = "; ".join(f"{why}, {count} rows" for why, count in counts.items() if "left out" in why)
        raise ValueError(
            f"{name} has {len(problems)} different questions{' where you want them' if where else ''}"
            f"{f' ({lost})' if lost else ''}, "
            f"fewer than {test} for test, {validation} for validation and 1 for training: ask for less"
        )
    test_set, others = problems[:test], problems[test:]
    train_set, validation_set = others[validation : validation + train], others[:validation]
    return Task(str(name), train_set, validation_set, test_set, instruction_of(name), counts)


def instruction_of(name: str) -> str:
    """What follows each question of a task in the prompt."""
    return SOURCES[name].instruction if name in SOURCES else "" if name in CHAINS else BOX_IT


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


def encode_prompt(tokenizer, question: str, instruction: str = "") -> list[int]:
    """Token ids of the prompt: a user's turn where the tokenizer has a chat template, else the plain text, after the
    beginning token where the tokenizer adds one (Gemma, Llama, Mistral).

    Raises ValueError, naming them, if characters of the question would be lost."""
    text = f"{question} {instruction}" if instruction else question
    plain = _encode(tokenizer, text, question)
    if not tokenizer.chat_template:
        begins = tokenizer.bos_token_id is not None and tokenizer(text)["input_ids"][:1] == [tokenizer.bos_token_id]
        return [tokenizer.bos_token_id, *plain] if begins else plain
    turn = [{"role": "user", "content": text}]
    shown = _render(tokenizer, turn, add_generation_prompt=True)
    if _letters(question) - _letters(shown):
        raise ValueError(f"the chat template loses the question {question[:60]!r}: does it want a list of parts?")
    return tokenizer(shown, add_special_tokens=False)["input_ids"]


def encode_demo(
    tokenizer, problem: Problem, instruction: str = "", end: int | None = None
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the completion to learn: the solution (or just the box), then the end token.

    end: the id that ends a turn, the first of `end_tokens`; the tokenizer's own without it. Raises ValueError if there
    is none, or if characters would be lost."""
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise ValueError("the tokenizer has no end token, so a demonstration would never end: give `end`, a token's id")
    text = problem.solution or f"\\boxed{{{problem.answer}}}"
    completion = _encode(tokenizer, text, text)
    return encode_prompt(tokenizer, problem.question, instruction), [*completion, end]


def end_tokens(tokenizer, generation_eos: int | list[int] | None = None) -> list[int]:
    """All ids that end a turn; a demonstration should end with the first. Empty if none is known.

    They are the one that the chat template writes after an answer, the tokenizer's, and those of a generation_config,
    which often knows more (Gemma, Phi and Qwen end turns and texts with different tokens)."""
    others = generation_eos if isinstance(generation_eos, list | tuple) else [generation_eos]
    found = [tokenizer.eos_token_id, *others]
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": (answer := "two,2,zwei")}]
        _, _, after = _render(tokenizer, turns).rpartition(answer)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        found = [k for k in tokenizer(after, add_special_tokens=False)["input_ids"] if k in special][:1] + found
    return list(dict.fromkeys(k for k in found if k is not None))


def _encode(tokenizer, text: str, needed: str) -> list[int]:
    """Token ids of the text. Refuses to lose characters of what is needed; an instruction may be read with gaps."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    read = tokenizer.decode([k for k in ids if k != tokenizer.unk_token_id], clean_up_tokenization_spaces=False)
    lost = (_letters(text) - _letters(read)) & _letters(needed)
    if lost:
        names = " ".join(dict.fromkeys(c for c in needed if _letters(c) & lost))
        raise ValueError(f"the tokenizer has no token for {names}: {text[:60]!r} would be read as {read[:60]!r}")
    return ids


def _letters(text: str) -> Counter:
    """Its characters without case, accents, spaces and what can't be seen: what tokenizers may normalise away."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return Counter(c for c in plain if unicodedata.category(c) != "Mn" and unicodedata.category(c)[0] not in "CZ")


def _render(tokenizer, turns: list[dict], **options) -> str:
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # jinja2 raises many kinds
        raise ValueError(f"the tokenizer's chat template can't be used: {str(error).strip() or error!r}") from None
