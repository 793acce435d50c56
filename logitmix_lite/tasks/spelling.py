r"""One spelling for answers that mean the same, by one function for both sides of a comparison.

`3½` and `$3\dfrac12$` become one text; so do `x²` and `x^2`, `A、B` and `A, B`, `€18` and `18 euro`.

The rules are a table, applied from top to bottom until nothing changes."""

import re
import unicodedata
from functools import lru_cache

RAISED, LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉"
VULGAR = re.compile("[¼-¾⅐-⅞↉]")
CIRCLED = re.compile("[①-⑳](?:[、,，和 ]*[①-⑳])*")  # statements that are right: ①③ is a list
SIGNS = {
    **dict.fromkeys("−–‒—﹣", "-"), **dict.fromkeys("×✕⋅·∙•∗", "*"), **dict.fromkeys("÷∕⁄", "/"), "±": r"\pm ",
    **dict.fromkeys("≤⩽≦", r"\le "), **dict.fromkeys("≥⩾≧", r"\ge "), "≠": r"\ne ", "∞": r"\infty ", "∈": r"\in ",
    "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "→": r"\to ", "∠": r"\angle ", "º": "°", "˚": "°", "℃": "°C",
    "′": "'", "’": "'", "”": '"', "“": '"', "。": ".", "、": ",", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "∣": "|",
}  # fmt: skip
GREEK = {
    letter: rf"\{name} " for letter, name in zip(
        "αβγδεθλμπρστφωΓΔΘΛΠΣΦΩ",
        ("alpha beta gamma delta epsilon theta lambda mu pi rho sigma tau phi omega "
         "Gamma Delta Theta Lambda Pi Sigma Phi Omega").split(), strict=True)
}  # fmt: skip
TABLE = str.maketrans(SIGNS | GREEK)
COINS = {
    **dict.fromkeys([r"\$", "US$", "HK$", "NZ$", "A$", "C$", "S$", "USD"], "dollar"), "€": "euro", "EUR": "euro",
    "£": "pound", "GBP": "pound", "¥": "yuan", "CNY": "yuan", "RMB": "yuan", "₹": "rupee", "Rs": "rupee",
    "INR": "rupee", "₩": "won", "₽": "ruble", "฿": "baht", "₫": "dong", "₺": "lira", "¢": "cent", "CHF": "franc",
    "kr": "krona",
}  # fmt: skip
COIN = "|".join(re.escape(coin) for coin in sorted(COINS, key=len, reverse=True))
FUNCTIONS = "sqrt|sin|cos|tan|cot|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|pi|infty|alpha|beta|theta"
FACE = r"text\w{0,6}|math(?:rm|bf|it|sf|tt|bb|cal|normal)|operatorname\*?|boldsymbol|bm|[mhf]box|emph|underline|boxed"

RULES = [(re.compile(pattern), new) for pattern, new in [
    # what is there for looks
    (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
    (r"[,]\\!\s*|\{,\}", ","),
    (r"(?<!\\)\\!|`|\\(?:left|right|[bB]igg?[lrm]?|(?:display|text)style|limits|bf|rm|it|tt|sf)(?![A-Za-z])", ""),
    (r"\\q?quad(?![A-Za-z])|(?<!\\)\\[,;: ]|~", " "),
    (rf"\\(?:{FACE})\s*\{{([^{{}}]*)\}}", r" \1 "),
    (r"(?<=[\w)}])\*\*(?=[\w({-])", "^"),  # Python's power; other ** are bold
    (r"\*\*", ""),
    # money, before $ is taken away
    (rf"(?<![A-Za-z])({COIN})\.?\s*([-+]?\d[\d.,]*\d|[-+]?\d)(?![\d%])", lambda m: f"{m[2]} {COINS[m[1]]} "),
    (rf"(?<=\d)\s*({COIN})(?![A-Za-z])", lambda m: f" {COINS[m[1]]} "),
    (r"\\?\$|(?<!\\)\\[()\[\]]", ""),
    # one name for each sign
    (r"\\%", "%"), (r"(?<=\d)\s*per\s?cent(?![a-z])|(?<=\d)\s*percent(?![a-z])", "%"),
    (r"(?<=\d) ?x ?(?=10\^)", "*"), (r"(?<=\d)又(?=[\d\\])", " "), (r"(?<=\d)\s*sq\.? (?=[a-z])", " square "),
    (r"(?<=\d)\s*cu\.? (?=[a-z])", " cubic "),
    (r"\\(?:cdot|times|ast)(?![A-Za-z])", "*"), (r"\\div(?![A-Za-z])", "/"),
    (r"<=|\\leq(?:slant|q)?(?![A-Za-z])", r"\\le "), (r">=|\\geq(?:slant|q)?(?![A-Za-z])", r"\\ge "),
    (r"!=|\\neq(?![A-Za-z])|\\not\s*=", r"\\ne "), (r"\\lt(?![A-Za-z])", "<"), (r"\\gt(?![A-Za-z])", ">"),
    (r"\\(?:long)?rightarrow(?![A-Za-z])", r"\\to "), (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
    (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\}|°)|\\degree(?![A-Za-z])|(?<=\d)\s*degrees?(?=\s*$)", "°"),
    (r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])", "|"),
    (r"\\[lr]brace(?![A-Za-z])", lambda m: r"\{" if "l" in m[0] else r"\}"),
    (r"(^|[(\[,={])\s*\+\s*(?=\d|\\infty)", r"\1"),
    (rf"(?<![\\A-Za-z])({FUNCTIONS})(?![A-Za-z])", r"\\\1"), (r"(?<![\\A-Za-z])infinity(?![A-Za-z])", r"\\infty"),
    # braces around what is raised, lowered, under a root, above and below a line
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d|\{)", lambda m: rf"\frac{{{m[1]}}}" + (m[2] if m[2] == "{" else f"{{{m[2]}}}")),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"), (r"\\frac\s*\{", r"\\frac{"), (r"(?<=\})\s+(?=\{)", ""),
    (r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"), ("√", r"\\sqrt"), (r"\\sqrt\s+", r"\\sqrt"),
    (r"\\sqrt(\[\d+\])?(?:\(([^()]*)\)|(\w))", lambda m: rf"\sqrt{m[1] or ''}{{{m[2] or m[3] or ''}}}"),
    (r"\^\s*\(\s*(-?[\w/.]+)\s*\)|\^\s*([-+]?\d+|[A-Za-z])", lambda m: f"^{{{m[1] or m[2]}}}"),
    (r"(?<=[\w)])_\s*(?:\{\s*(?:\(|base)?\s*(\w+)\s*\)?\s*\}|(\w))", lambda m: f"_{{{m[1] or m[2]}}}"),
    (r"\(\s*([0-9A-F]+)\s*\)(?=_\{)", r"\1"),
    (r"(?<=\d)\s*\(?\s*(?:in\s+)?base\s*(\d+)\s*\)?$", r"_{\1}"),
    (r"^(-?[0-9.]+)_\{10\}$", r"\1"), (r"^(\d+)(?:st|nd|rd|th)$", r"\1"),
    # words around an answer, and the last period
    (r"(?i)^\W{0,2}(?:the\s+)?(?:(?:final|correct|right|best)\s+)?(?:(?:answer|option|choice)(?![a-z])|答案|选项|故选|应选|选)"
     r"\s*(?:is\b|are\b|为|是)?\s*[:=]?\s*(?=\S)", ""),
    (r"^\s*=\s*(?=\S)", ""), (r'^"(.*)"$', r"\1"), (r"^\*(.*[^\\*])\*$", r"\1"),
    (r"\s+", " "), (r"(?<=[({\[]) | (?=[)}\]^_])", ""), (r"(?<![.,;:])[.;:,] ?$", ""), (r"^\{([^{}]*)\}$", r"\1"),
    # thousands, unless in brackets, where a comma may part two numbers
    (r"^([^(\[]*?)(?<![\d,.])(\d{1,3})([, ])(\d{3})((?:\3\d{3})*)(?![\d,]| ?/|\.\d*,| \d)",
     lambda m: m[0] if r"\{" in m[1] else m[1] + m[2] + m[4] + re.sub("[, ]", "", m[5])),
]]  # fmt: skip


@lru_cache(maxsize=20_000)  # a gold answer comes once for each of its completions
def normalise(text: str) -> str:
    """The answer in the one spelling that `equal` compares. `normalise(normalise(x)) == normalise(x)`."""
    for _ in range(20):
        before = text
        text = re.sub(f"[{RAISED}]+", lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
        text = re.sub(f"[{LOWERED}]+", lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", text)
        text = CIRCLED.sub(lambda m: ", ".join(f"({ord(c) - 0x245F})" for c in re.findall("[①-⑳]", m[0])), text)
        text = VULGAR.sub(lambda m: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m[0]).split("⁄")), text)
        text = unicodedata.normalize("NFKC", text.translate(TABLE)).translate(TABLE)
        for pattern, new in RULES:
            text = pattern.sub(new, text)
        text = text.strip()
        if text == before:
            break
    return text
