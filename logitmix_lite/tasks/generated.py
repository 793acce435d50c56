"""What a problem is, and the problems that are generated: arithmetic chains and word problems."""

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Problem:
    """A question and its right answer; `solution` is worked, and ends in the answer in a box."""

    question: str
    answer: str
    solution: str | None = None


@dataclass(frozen=True)
class Chain:
    """Sums and differences of `terms` (fewest, most) numbers, each in [1, below)."""

    terms: tuple[int, int]
    below: int
    signs: str = "+-"


CHAINS = {
    "chain": Chain(terms=(4, 5), below=30),  # what is trained and tested
    "chain-common": Chain(terms=(4, 5), below=15),  # most of what the tiny base has seen
    "chain-easy": Chain(terms=(3, 4), below=10),  # the anchor's demonstrations
    "chain-plus": Chain(terms=(4, 5), below=30, signs="+"),  # those of two specialists, `lab/experts.py`
    "chain-minus": Chain(terms=(4, 5), below=30, signs="-"),
}


def chain(kind: Chain, rng: random.Random) -> Problem:
    r"""`13+7-4?`, solved as `13+7=20;20-4=16; \boxed{16}`."""
    total = rng.randrange(1, kind.below)
    question, steps = str(total), []
    for _ in range(rng.randint(*kind.terms) - 1):
        sign, term = rng.choice(kind.signs), rng.randrange(1, kind.below)
        result = total + term if sign == "+" else total - term
        question += f"{sign}{term}"
        steps.append(f"{total}{sign}{term}={result}")
        total = result
    return Problem(question + "?", str(total), f"{';'.join(steps)}; \\boxed{{{total}}}")


@dataclass(frozen=True)
class Words:
    """Word problems of so many steps. In + and - the first number is in [least, below), and all are below `below`.

    The two kinds can't meet: `words` starts where `words-easy` ends, so demonstrations never give its test away."""

    steps: tuple[int, ...]
    operations: str
    least: int
    below: int


WORDS = {
    "words": Words(steps=(1, 2), operations="+-*/", least=20, below=100),
    "words-easy": Words(steps=(1,), operations="+-", least=2, below=20),
}

HE = dict.fromkeys(["Tom", "Omar", "Ben", "Luis", "Jack", "Ravi", "Noah", "Chen"], "he")
PEOPLE = HE | dict.fromkeys(["Anna", "Mia", "Fatima", "Grace", "Lucy", "Priya", "Emma", "Zoe"], "she")
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
THINGS = "marble sticker pencil shell card apple cookie book button stamp crayon bead coin orange pen".split()
BOXES = "bag basket jar crate tray packet".split()

# A story that starts with an opening leaves {name} with {c} {thing}s, so any of NEXT can follow it.
OPENINGS = {
    "+": [
        "{name} has {a} {thing}s. {other} gives {name} {b} more.",
        "{name} buys {a} {thing}s on Monday and {b} more on Friday.",
        "{name} keeps {a} {thing}s in a drawer and {b} {thing}s on a shelf.",
    ],
    "-": [
        "{name} has {a} {thing}s. {name} gives {b} of them to {other}.",
        "{name} brings {a} {thing}s to school but loses {b} of them on the way.",
        "There are {a} {thing}s on the table. {other} takes {b} of them and {name} takes the rest.",
    ],
    "*": [
        "{name} buys {a} {box}s of {thing}s. There are {b} {thing}s in each {box}.",
        "{name} gets {b} {thing}s a day from {other} for {a} days.",
    ],
    "/": [
        "{a} {thing}s are shared equally among {b} children. {name} is one of them.",
        "{other} sorts {a} {thing}s into {b} equal piles and gives one pile to {name}.",
    ],
}
# (story with its question, working). {c} is what there was before, {d} the new number, {e} the answer.
NEXT = {
    "+": [
        (
            "Then {name} finds {d} more. How many {thing}s does {name} have now?",
            "Now {name} has {c} + {d} = {e} {thing}s.",
        ),
        (
            "{third} has {d} {thing}s. How many {thing}s do {name} and {third} have together?",
            "Together they have {c} + {d} = {e} {thing}s.",
        ),
    ],
    "-": [
        (
            "Then {name} sells {d} {thing}s. How many {thing}s does {name} have left?",
            "{name} has {c} - {d} = {e} {thing}s left.",
        ),
        (
            "{third} has only {d} {thing}s. How many more {thing}s does {name} have than {third}?",
            "{name} has {c} - {d} = {e} more {thing}s than {third}.",
        ),
    ],
    "*": [
        (
            "{third} has {d} times as many {thing}s as {name}. How many {thing}s does {third} have?",
            "{third} has {c} * {d} = {e} {thing}s.",
        ),
        (
            "{name} sells the {thing}s {he} has for {d} dollars each. How many dollars does {name} get?",
            "{name} gets {c} * {d} = {e} dollars.",
        ),
    ],
    "/": [
        (
            "{name} packs the {thing}s {he} has into {pack}s, {d} in each. How many {pack}s does {he} fill?",
            "{name} fills {c} / {d} = {e} {pack}s.",
        ),
        (
            "{name} shares the {thing}s {he} has equally among {d} friends. How many {thing}s does each get?",
            "Each friend gets {c} / {d} = {e} {thing}s.",
        ),
    ],
}
START = "{name} has {c} {thing}s. "  # for a story of one step that is told by NEXT
NOW = "How many {thing}s does {name} have now?"  # for a story of one step that is told by an opening
ENDING = " The answer is \\boxed{{{answer}}}."


def words(kind: Words, rng: random.Random) -> Problem:
    """A word problem of one or two steps. No number is below 2, so every plural is right."""
    steps = rng.choices(kind.operations, k=rng.choice(kind.steps))
    # 30, 12, 42, 6, 7 stands for 30 + 12 = 42 and 42 / 6 = 7
    numbers = [rng.randrange(kind.least if steps[0] in "+-" else 2, kind.below)]
    for step in steps:
        operands = _operands(step, numbers[-1], kind.below)
        if not operands:
            return words(kind, rng)
        operand = rng.choice(operands)
        numbers += [operand, APPLY[step](numbers[-1], operand)]
    name, other, third = rng.sample(sorted(PEOPLE), 3)
    facts = dict(name=name, other=other, third=third, he=PEOPLE[name])
    box, pack = rng.sample(BOXES, 2)
    facts |= dict(thing=rng.choice(THINGS), box=box, pack=pack, answer=numbers[-1])
    story, working = rng.choice(NEXT[steps[-1]])
    if len(steps) == 1 and rng.random() < 0.5:
        story = START + story
        facts |= zip("cde", numbers, strict=True)
    else:
        working = f"{{name}} has {{a}} {steps[0]} {{b}} = {{c}} {{thing}}s." + (f" {working}" if len(steps) > 1 else "")
        story = f"{rng.choice(OPENINGS[steps[0]])} {story if len(steps) > 1 else NOW}"
        facts |= zip("abcde", numbers, strict=False)
    return Problem(story.format(**facts), str(numbers[-1]), (working + ENDING).format(**facts))


def _operands(step: str, number: int, below: int) -> Sequence[int]:
    """What may follow the number and the sign: results are whole, from 2 on, and of products at most 200."""
    if step == "/":
        return [d for d in range(2, 13) if number % d == 0 and number // d > 1]
    return range(2, {"+": below, "-": min(number - 1, below), "*": min(12, 200 // number) + 1}[step])


# Each draws one problem.
GENERATED: dict[str, Callable[[random.Random], Problem]] = {
    **{name: partial(chain, kind) for name, kind in CHAINS.items()},
    **{name: partial(words, kind) for name, kind in WORDS.items()},
}
