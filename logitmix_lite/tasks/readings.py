r"""What an answer in the spelling of `normalise` says: `choices`, the `number`, and its unit by `split_unit`."""

import re
from dataclasses import dataclass
from fractions import Fraction

CLOSE = Fraction(1, 10**6)  # six digits are enough: 1.8333333333 is 1.833333
DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
SCALES = dict(hundred=2, thousand=3, million=6, billion=9, trillion=12, 百=2, 千=3, 万=4, 百万=6, 千万=7, 亿=8)
NUMBER = re.compile(
    rf"([-+]?) ?(?:(?:([0-9]+)[ ]?)??(?:\\frac\{{(-?[0-9]+)\}}\{{(-?[0-9]+)\}}|([0-9]+) ?[/:] ?([0-9]+))"
    rf"|({DECIMAL})|(?=10\^))(?:(?:(?<=[0-9.]) ?\* ?)?10\^\{{([-+]?[0-9]{{1,3}})\}}|[eE]([-+]?[0-9]{{1,3}}))?"
    rf" ?({'|'.join(sorted(SCALES, key=len, reverse=True))}|dozen)?s? ?(%)?"
)

CHOICE = re.compile(r"\(?([A-J])(?:\)|(?=[.:,]))[.:)]?(.*)|([A-J])", re.DOTALL)  # "(C)", "C. 12 apples", "C"
CHOICES = re.compile(r"\(?[A-J]\)?(?:(?: ?(?:, ?and\b|[,;&]|\band\b|和) ?| ?)\(?[A-J]\)?)++")  # "A, B and D", "ABD"
HEDGE = re.compile(  # another choice among the words after "C.": "or D", ", (D)", "D. 13", "D) 13"
    r"(?:^(?:and\b|[/&和])|\b(?:or|maybe|perhaps|possibly|not)\b|或) ?\(?[A-J]\)? ?(?:[.),:;]|$)"
    r"|(?:^|[ ,;])\([A-J]\)|(?:^|[.,;] ?|\d )[A-J](?::|\.(?! ?$))|[,;] ?[A-J]$|^[^(]*\b[A-J]\)"
)

# The first of each line is how the others are written. Two units that are known and differ are two answers.
UNITS = {name: line.split()[0] for line in """
    km kilometer kilometre 千米 公里|m meter metre 米|cm centimeter centimetre 厘米|mm millimeter millimetre 毫米
    dm 分米|ft foot feet|in inch inche|mi mile|yd yard|kg kilogram 千克 公斤|g gram 克|mg milligram 毫克|ton tonne 吨
    lb|oz ounce|s sec second 秒|min minute 分 分钟|h hr hour 时 小时|day 天 日|week 周 星期|month 月 个月|year yr 年 岁
    L l liter litre 升|mL ml milliliter millilitre 毫升|dollar buck 美元|cent|euro 欧元|yuan 元 块|角|pound 英镑
    yen 日元|rupee|franc|krona|won|ruble|baht|dong|lira|° deg degree 度|N newton|J joule|W watt 瓦|kW 千瓦|V volt
    Hz hertz|Pa|rad radian|K|A|kWh|MB|GB|kB|mph|rpm|°C|°F|mol
""".replace("\n", "|").split("|") if line.strip() for name in line.split()}  # fmt: skip
LATIN = [name for name in UNITS if name.isascii()]
GLUED = "|".join(sorted((name for name in LATIN if len(name) > 1), key=len, reverse=True))
LETTER = "|".join(name for name in LATIN if len(name) == 1)
STOP = """plus minus times multiplied divided over by squared cubed power factorial root point half halves third thirds
fourth fourths fifth fifths sixths eighths tenths mod modulo or and not nor but than if else either neither maybe both
also zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion dozen
infinity sqrt remainder with where when approximately undefined wrong incorrect false unless mean add added subtract
subtracted multiply divide equal equals raised doubled tripled twice inverse recurring repeating negative positive
perhaps possibly probably""".split()
RAISE = r"(?:\s?\^\{-?[123]\})?"
NOUN = rf"(?!(?i:{'|'.join(STOP)})\b)[A-Za-z]"
LATIN_UNIT = (
    rf"(?:(?:\s*(?:{GLUED}|°C|°F|°)|\s+(?:{LETTER}))(?![A-Za-z])|\s+{NOUN}[A-Za-z]{{2,}}){RAISE}"
    rf"(?:(?:\s?[/*]\s?(?:{LETTER})(?![A-Za-z])|(?:\s?[/*]\s?|\s){NOUN}[A-Za-z]+){RAISE}){{0,4}}"
    r"(?:\s(?:squared|cubed))?\.?"
)
# Not a unit: numerals, "more than", "or" and such; 千 and 分 begin one only in 千米, 千克, 分钟...
NO_UNIT = "零一二三四五六七八九十百千万亿半几多余约以上下大小于之间至到或和与且不非无负分成折左右的又加减乘除"
HAN = f"(?:千[米克瓦]|分[钟米]?|(?![{NO_UNIT}])[\u4e00-\u9fff])"
UNIT = re.compile(rf"(?<=[\w}})!°])(?:{LATIN_UNIT}|\s?小?{HAN}{{1,6}}(?:/{HAN}{{1,4}})?(?<!方))$")


@dataclass(frozen=True)
class Number:
    value: Fraction
    percent: bool
    undone: bool  # a quotient that can be worked out, such as 96/8

    def equals(self, other: "Number") -> bool:
        """25% is 25 and 0.25, but if both are in percent they are compared as they are."""
        values = [self.value], [other.value]
        if self.percent != other.percent:
            values[0 if self.percent else 1].append((self if self.percent else other).value / 100)
        return any(abs(x - y) <= CLOSE * min(1, max(abs(x), abs(y))) for x in values[0] for y in values[1])


def number(text: str) -> Number | None:
    r"""The number in `1234.5`, `\frac{3}{4}`, `3 1/2`, `2 * 10^{3}`, `1e-5`, `25%` or `10 million`; else None."""
    found = NUMBER.fullmatch(text)
    if not found:
        return None
    sign, whole, above, below, over, under, decimal, power, exponent, scale, percent = found.groups()
    if decimal or power and not (above or over):
        value, undone = Fraction(decimal or 1), False
    else:
        above, below = int(above or over or 0), int(below or under or 0)
        if below == 0 or whole and not 0 < above < below:
            return None
        value = Fraction(above, below)
        undone = value.denominator == 1
        value += int(whole or 0)
    value *= Fraction(10) ** int(power or exponent or 0) * (12 if scale == "dozen" else 10 ** SCALES.get(scale, 0))
    return Number(-value if sign == "-" else value, bool(percent), undone)


def split_unit(text: str) -> tuple[str, str]:
    """`18 apples` as ("18", "apples"), `25 square meters` as ("25", "m^{2}"); the unit is "" where there is none."""
    found = UNIT.search(text)
    if not found or not re.search(r"\d|\\[a-z]", text[: found.start()]):
        return text, ""
    unit = found[0].strip().rstrip(".").replace(" ^", "^").replace("mph", "mi/h")
    unit = re.sub(r"(?:square|sq|平方) ?([^\s/]+)|([^\s/]+) squared", r"\1\2^{2}", unit)
    unit = re.sub(r"(?:cubic|cu|立方) ?([^\s/]+)|([^\s/]+) cubed", r"\1\2^{3}", unit)
    unit = re.sub(r"\s*(?:/|\bper\b)\s*", "/", unit)
    return text[: found.start()], re.sub(r"[^\W\d_]+|°C?F?", lambda m: _one_name(m[0]), unit)


def known_unit(unit: str) -> bool:
    return all(word in UNITS.values() for word in re.findall(r"[^\W\d_]+|°[CF]?", unit))


def _one_name(word: str) -> str:
    lower = word.lower()
    return next((UNITS[name] for name in (word, lower, lower.rstrip("s")) if name in UNITS), word)


def choices(text: str) -> frozenset[str] | None:
    """The letters of a choice: {C} of `C. 12 apples`, {A, B, D} of `A, B and D` and `ABD`; None of a hedge."""
    if CHOICES.fullmatch(text):
        letters = re.findall(r"[A-J]", text)
        return frozenset(letters) if len(set(letters)) == len(letters) else None
    found = CHOICE.fullmatch(text)
    if not found or HEDGE.search((found[2] or "").strip()):
        return None
    return frozenset(found[1] or found[3])
