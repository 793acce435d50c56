r"""When two answers are one: as text, choice letters, list, number or, for the rest, as formula.

A box is right only if all of it was read, so each reading takes the whole text or nothing. One rule is not symmetric:
a sum, difference, product or quotient that was left undone does not answer a problem whose answer is a number. RL would
find that copying the question pays."""

import re
from itertools import pairwise

from .formulas import same_formula
from .readings import choices, known_unit, number, split_unit
from .spelling import normalise

LONGEST = 300  # characters; a longer answer is no answer

INTEGER = re.compile(r"-?[0-9]{1,40}")
GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|omega|Gamma|Delta|Theta|Lambda|Sigma|Omega"
CALLS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|binom|[lr]floor|[lr]ceil"
MATRIX = r"\\(?:begin|end)\{(?:[pbvBV]?matrix|array|cases)\}(?:\{[lcr|]+\})?"
FORMULA = re.compile(  # known signs; never tried in another way once they are read, so long texts take no longer
    rf"(?:{MATRIX}|\\\\|\\[{{}}]|\\(?:frac|sqrt|pi|infty|pm|mp|cup|cap|in|le|ge|ne|emptyset|{CALLS}|{GREEK})(?![A-Za-z])"
    r"|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|(?<![A-Za-z])[A-Za-z]{1,3}(?![A-Za-z])|(?<=[A-Za-z])_\{\w+\}"
    r"|[-+*/^=<>()\[\]{}|!,&:%°]| )++"
)
DANGLING = re.compile(
    r"^(?:[*/^=<>,:&!]|\\(?:cup|cap|in|le|ge|ne)\b)|(?:[-+*/^=<>,:]|\\(?:pm|mp|cup|cap|in|le|ge|ne|sqrt|frac|binom))$"
    r"|[-+*/^=<>,:({\[][*/^=<>,:)}\]!]|[*/^][-+]?$|[-+][-+]")  # fmt: skip
LEAD = re.compile(r"((?:\\angle ?)?(?:[A-Za-z]{1,3}|\\[a-z]+ ?)(?:_\{\w+\})?'?(?:\(\w+\))?) ?(?:=|\\in\b) ?(?=\S)")
RELATION = re.compile(r" ?(<|>|\\le\b|\\ge\b|\\ne\b) ?")
LETTER = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
SUM = re.compile(r"[\w)}!%°] ?(?:[-+]|\\pm|\\mp)")
PRODUCT = re.compile(r"[0-9)}] ?\* ?[0-9(]|[0-9)] ?\(|\) ?[0-9]")
FACTORS = re.compile(r"\*|[0-9)] ?[(\\]|[)}] ?[0-9]|\} ?\\")
QUOTIENT = re.compile(r"\.[0-9]+ ?[/:]|[/:] ?[0-9]*\.")
MARK = re.compile(r"\\[{}]|[,;] ?(?:or|and)\b |[(\[{)\]},;]|(?<=[\w)}°%]) ?\b(?:or|and)\b |[或和且]")
OPEN, SHUT = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")
BRACKETED = re.compile(r"[(\[].*,.*[)\]]")


def equal(gold: str, answer: str) -> bool | None:
    """Whether the answer means the same as `gold`. None where math-verify ran out of time or crashed over it."""
    if len(answer) > LONGEST or not answer.strip():
        return False
    if INTEGER.fullmatch(gold) and INTEGER.fullmatch(answer):  # most answers: no need to look closer
        return int(gold) == int(answer)
    return _equal(normalise(gold), normalise(answer))


def _equal(gold: str, answer: str) -> bool | None:
    if not answer:
        return False
    if _squeeze(gold) == _squeeze(answer):
        return True
    letters = choices(gold)
    if letters:
        return choices(answer) == letters
    if _words(gold) or _words(answer):  # as products of letters, "east" and "seat" would be equal formulas
        return _fold(gold) == _fold(answer)
    gold, answer = _same_form(gold, answer)
    (gold, unit), (answer, other) = split_unit(gold), split_unit(answer)
    if unit != other and unit and other and known_unit(unit) and known_unit(other):
        return False  # a unit on one side only is not compared
    right, given = _elements(gold), _elements(answer)
    if right or given:
        return bool(right and given) and _same_elements(right, given)
    gold, answer = _open(gold), _open(answer)
    if ("=" in gold) != ("=" in answer):
        gold, answer = _last_side(gold), _last_side(answer)
    x, y = number(gold), number(answer)
    if x and y:
        return not y.undone and x.equals(y)
    if not readable(gold) or not readable(answer) or _letters(gold) != _letters(answer):
        return False
    if _undone(gold, answer) or x and RELATION.search(answer):
        return False
    return same_formula(gold, answer)


def readable(text: str) -> bool:
    """Whether all of it is formula: known signs, no operator without its operands, brackets that close, no base as in
    `4210_5`, which math-verify would not see."""
    bare = re.sub(r" (?![A-Za-z0-9])", "", text)
    return (
        FORMULA.fullmatch(text) is not None
        and not DANGLING.search(bare)
        and all(sum(map(text.count, a)) == sum(map(text.count, b)) for a, b in ("{}", ("([", ")]")))
        and not re.search(r"[0-9] [0-9]|\^(?!\{)|![0-9A-Za-z]|[0-9)]_", text)
    )


def _open(text: str) -> str:
    """Without one pair of brackets around all of it."""
    return text[1:-1].strip() if text.startswith("(") and text.endswith(")") and _enclosed(text) else text


def _squeeze(text: str) -> str:
    """Without spaces, but `3 5` is not `35`."""
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", text)


def _words(text: str) -> bool:
    """Whether it is words rather than a formula, to which at most a unit is added."""
    if r"\to" in text or re.fullmatch(r"(?![xyz]+$)[A-Za-z]{2,}(?:[ ,'-]+[A-Za-z]+)*", text):
        return True
    items = [item for item, _ in map(split_unit, _split(text)) if not number(item)]
    text = re.sub(rf"{MATRIX}|\\[A-Za-z]+", r"\\", " ".join(items))
    return re.search("[A-Za-z]{4,}|[\u4e00-\u9fff]", text) is not None


def _fold(text: str) -> str:
    """Words in small letters; but BB is not Bb, and CO is not Co."""
    return re.sub(r"[A-Za-z]+", lambda m: m[0].lower() if _plain(m[0]) else m[0], text)


def _plain(word: str) -> bool:
    mixed = not (word.islower() or word.istitle() or word.isupper())
    return not mixed if len(word) > 2 else word.istitle() and word[1:] not in ("", word[0].lower())


def _split(text: str) -> list[str]:
    """Its parts between commas, semicolons, `and` and `or` that are in no brackets."""
    parts, depth, start = [], 0, 0
    for mark in MARK.finditer(text):
        if mark[0] in OPEN:
            depth += 1
        elif mark[0] in SHUT:
            depth -= 1
        elif depth == 0:
            parts.append(text[start : mark.start()].strip())
            start = mark.end()
    return [*parts, text[start:].strip()]


def _enclosed(text: str) -> bool:
    """Whether the first bracket closes at the very end."""
    depth = 0
    for mark in MARK.finditer(text):
        depth += (mark[0] in OPEN) - (mark[0] in SHUT)
        if depth == 0:
            return mark.end() == len(text)
    return False


def _elements(text: str) -> tuple[str, list[str]] | None:
    r"""`(1,2]` as ("(]", [1, 2]), `\{1,2\}`, `1 or 2` and `\pm 2` as ("", [...]), whose order is free; else None."""
    inside = re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text)
    if inside and _enclosed(text):
        items = _split(inside[2])
        if inside[1] == r"\{":
            return "", _both_signs(items)
        return (inside[1] + inside[3], items) if len(items) > 1 else None
    items = _both_signs(_split(text))
    if ";" in text and all(re.fullmatch(r"[-+*/0-9. ]+=[-0-9. ]+", item) for item in items):
        return None  # steps of a working, not a list
    return ("", items) if len(items) > 1 else None


def _both_signs(items: list[str]) -> list[str]:
    return [re.sub(r"\\pm ?", sign, item).lstrip("+") for item in items
            for sign in (("+", "-") if item.count(r"\pm") == 1 and r"\mp" not in item else (r"\\pm ",))]  # fmt: skip


def _same_elements(right: tuple[str, list[str]], given: tuple[str, list[str]]) -> bool | None:
    (kind, golds), (other, answers) = right, given
    if kind != other or len(golds) != len(answers) or not all(golds + answers):
        return False
    for gold in golds:
        for answer in answers[:1] if kind else answers:
            same = _equal(gold, answer)
            if same is None:  # one that hangs is enough
                return None
            if same:
                answers.remove(answer)
                break
        else:
            return False
    return True


def _same_form(gold: str, answer: str) -> tuple[str, str]:
    """Without the `x =` that one side has or both have, and an interval where the other side is one."""
    one, two = LEAD.match(gold), LEAD.match(answer)
    if one and two and _squeeze(one[1]) == _squeeze(two[1]) or one and not two and "=" not in answer:
        gold = gold[one.end() :]
    if two and (one and _squeeze(one[1]) == _squeeze(two[1]) or not one and "=" not in gold):
        answer = answer[two.end() :]
    one, two = _interval(gold), _interval(answer)
    if one and two:
        return (one[1], two[1]) if one[0] == two[0] else (gold, answer)
    if two and BRACKETED.fullmatch(gold) or one and BRACKETED.fullmatch(answer):
        return (one[1] if one else gold), (two[1] if two else answer)
    return gold, answer


def _interval(text: str) -> tuple[str, str] | None:
    r"""`2<x\le 5` as ("x", "(2,5]"), `x>3` as ("x", "(3,\infty)"); None for anything else."""
    parts = RELATION.split(text)
    if len(parts) == 3:
        parts = ["", "", *parts] if re.fullmatch("[A-Za-z]", parts[0]) else [*parts, "", ""]
    if len(parts) != 5 or not re.fullmatch("[A-Za-z]", parts[2]) or "," in text:
        return None
    low, first, name, second, high = parts
    if (first or second) in (">", r"\ge"):
        low, first, second, high = high, second, first, low
    signs = {first, second} - {""}
    if not (signs <= {"<", r"\le"} or signs <= {">", r"\ge"}):
        return None
    opened, closed = "[" if first in (r"\le", r"\ge") else "(", "]" if second in (r"\le", r"\ge") else ")"
    return name, rf"{opened}{low or '-INF'},{high or 'INF'}{closed}".replace("INF", r"\infty")


def _last_side(text: str) -> str:
    """`24-4=20` stands for 20, and `13+7=20;20-4=16` for 16; what does not hold, such as `3=5`, for nothing."""
    steps = text.split(";")
    if any(not step.strip().startswith(before.split("=")[-1].strip()) for before, step in pairwise(steps)):
        return ""
    *sides, last = (side.strip() for side in steps[-1].split("="))
    return last if all(_holds(side, last) for side in sides) else ""


def _holds(side: str, last: str) -> bool | None:
    x, y = number(side), number(last)
    if x and y:
        return x.equals(y)
    return _letters(side) == _letters(last) and readable(side) and readable(last) and same_formula(side, last)


def _letters(text: str) -> set[str]:
    """Variables, and i; of `e`, which is \\exp too, math-verify knows better."""
    text = re.sub(rf"{MATRIX}|_\{{\w+\}}", " ", text)
    return {found for found in LETTER.findall(text) if len(found) == 1 or found[1:] in GREEK.split("|")} - {"e"}


def _undone(gold: str, answer: str) -> bool:
    """Whether the answer leaves something to be worked out that the gold answer, a number, does not."""
    value, answer = number(gold), re.sub(r"\\log_\{\w+\}", r"\\log", answer)
    if value:
        bars = len(re.findall(r"\\frac|[/:]", answer))
        whole = value.value.denominator == 1
        more = "|" in answer and not re.fullmatch(r"-?\|[^|]*\|", answer)
        return more or any(sign.search(answer) for sign in (SUM, FACTORS, QUOTIENT)) or bars > (0 if whole else 1)
    if _letters(gold) - {"i"}:
        return False
    return any(sign.search(answer) and not sign.search(gold) for sign in (SUM, PRODUCT))
