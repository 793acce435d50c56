"""When two answers are one: tables of spellings, what must not be paid for, symmetry, and properties of any text."""

import json
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitmix_lite.tasks.equality import equal, normalise
from logitmix_lite.tasks.rewards import boxed, grade

SAME = [
    ("18", r"18 \text{ apples}"), ("18", "18 apples"), ("18", r"\$18"), ("18", "18 dollars"), ("18", "18.00"),
    ("91", "91.0"), ("1234", "1,234"), ("10080", r"10,\!080"), ("10080", "10{,}080"), ("-3", "\u22123"),
    (r"\frac{1}{2}", "0.5"), (r"\frac{3}{4}", r"\dfrac{3}{4}"), ("0.5", "1/2"), ("1.8333333333", r"\frac{11}{6}"),
    ("25", r"25\%"), ("0.25", r"25\%"), ("90^\\circ", "90"), ("5", "x = 5"), ("x=5", "5"), ("20", "24-4=20"),
    ("C", "(C)"), ("C", r"\text{C}"), ("C", "C. 12 apples"), (r"\text{(C)}", "C"), ("E", r"\textbf{(E)}"),
    (r"\text{Evelyn}", "evelyn"), ("1,-2", "-2, 1"), (r"(3, \frac{\pi}{2})", r"\left(3, \dfrac{\pi}{2}\right)"),
    ("2.7×10^9", r"2.7 \times 10^{9}"), ("2x+4", "2(x+2)"), ("第一象限", "第一象限"), ("1000000", "10^6"),
    ("-5", "x = -5"), ("25", "25 cm^2"), ("25", r"25\text{ cm}^2"), ("60", r"60 \text{ degrees}"),
    ("125°", "125^\\circ"), ("(1,2]", r"\left(1, 2\right]"), (r"\{1,2,3\}", r"\{3,2,1\}"), (r"x\in[1,2)", "[1,2)"),
    ("1<x<2", "(1,2)"),
    (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\begin{bmatrix}0.5\\3\end{bmatrix}"), (r"\pm 2", "-2, 2"),
    (r"3\frac{1}{2}", "3.5"), (r"3\sqrt{2}", r"\sqrt{18}"), ("3+4i", "4i+3"), ("3.84 \\times 10^{5}", "384,000"),
    ("(3,4)", "（3，4）"), ("B", "（Ｂ）"), ("5", "５。"), ("3:4", "3：4"), ("10%", "10％"), ("C", "C、12"),
    ("18", "18元"), (r"\frac{3}{4}\text{ cups}", r"\frac34"), ("True, False", "true, false"), ("sqrt(8)", r"2\sqrt{2}"),
    ("2.0 × 10^-3", "0.002"), ("2.5 * 10^-23 kg", r"2.5 \times 10^{-23} \text{ kg}"), ("high and low", "High and low."),
    # mixed numbers, thousands, Unicode
    ("3.5", "3 1/2"), ("3.5", "3½"), ("3.5", "3又1/2"), ("-3.5", "−3 1/2"), ("3.5", r"3\frac12"), ("12345", r"12\,345"),
    ("12345", "12 345"),
    ("1000000", "1 000 000"), (r"\sqrt{5}", "√5"), (r"2\sqrt{3}", "2√3"), ("x^2+1", "x²+1"), ("x^{10}", "x¹⁰"),
    ("x_1", "x₁"), (r"\frac{1}{2}", "½"), (r"\infty", "∞"), ("-3", "–3"), (r"\frac{\pi}{3}", "π/3"),
    ("1500", "1.5 × 10³"),
    (r"\mathbb{R}", "ℝ"), (r"\emptyset", "∅"), ("1,2", "1、2"), ("1,2", "1和2"), ("(3,4)", "（3， 4）"), ("7/2", "3½"),
    # looks
    ("13", r"\boldsymbol{13}"), ("13", r"\underline{\mathbf{13}}"), ("13", r"\textcolor{red}{13}"), ("13", "**13**"),
    ("C", "Option C"), ("C", "Answer: (C)"), ("C", "选C"), ("C", r"\boldsymbol{C}"), ("5", "The answer is 5."),
    ("5", "(5)"),
    # several choices
    ("ABD", "A, B, D"), ("ABD", "A、B、D"), ("ABD", "A, B and D"), ("ABD", "B, A, D"), ("BD", "(B), (D)"),
    # units, money, scales, percent
    ("18", "18 km/h"), ("18", "18km/h"), ("18", "18 m/s²"), ("18", "€18"), ("18", "18 €"), ("18", "£18"), ("18", "¥18"),
    ("18", "US$18"), ("18", "18 USD"), ("18", "HK$18"), ("18元", "18"), ("18", "18千米/时"), ("18", "18平方米"),
    ("18", "18℃"),
    ("18", "18 个苹果"), ("5 meters", "5 m"), ("25 cm^2", "25 square centimeters"), ("10000000", "10 million"),
    ("50000", "5万"), ("24", "2 dozen"), ("50%", "50 percent"), ("50%", "1/2"), ("5", "5 more apples"),
    ("18¢", "18 cents"),
    ("5", "5th"), ("①③", "①、③"),
    # intervals, names, lists
    ("(2,5)", "2<x<5"), ("[2,5)", "5>x≥2"), (r"(2,\infty)", "x>2"), (r"(-\infty,5]", r"x\leq5"), ("3<m<4", "(3,4)"),
    ("(2,5]", "2<x≤5"), ("[2,5]", "5≥x≥2"),
    ("18", "AB = 18"), ("18", "S_{10}=18"), ("18", "f(3)=18"), ("1,2", "x=1 or x=2"), ("1,2,3", "1, 2, and 3"),
    ("1,2", "x_1=1, x_2=2"), ("x=5", "x = 5.0 cm"), ("y=2x+1", "y=1+2x"), ("2<x<5", "5>x>2"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"), ("16", "13+7=20;20-4=16"),
    # fractions stay fractions; powers, roots and factorials are no sums or products
    ("0.5", "1/2"), ("0.75", r"\frac{3}{4}"), ("0.75", "6/8"), ("3/4", "3:4"), (r"\frac{1}{1024}", r"\frac{1}{2^{10}}"),
    ("8", "2^3"), ("4", r"\sqrt{16}"), ("6", "3!"), ("3", r"\log_2 8"), ("1e-5", "0.00001"), ("1e-5", "10^{-5}"),
    ("1e-5", r"1\times10^{-5}"), ("4210_6", "4210_{6}"), ("4210_6", "4210 base 6"), ("4210_6", "4210₆"),
    ("5", "5_{10}"),
    ("2i", r"2\mathrm{i}"), ("1+2i", "2i+1"), ("No", "no"), ("on", "On"), ("e^2", r"\exp(2)"), (r"\sin x", "sin x"),
]  # fmt: skip
DIFFERENT = [
    ("18", "19"), ("18", "-18"), ("18", ""), ("18", "18x"), ("7", "5 or 7"), ("7", "5, 7"), ("2", r"2\pi"),
    ("35", "3 5"), ("35", "3*5"), ("16", "13+7-4"), ("16", r"4 \times 4"), ("16", "16=13+7-4"), ("10", "10 million"),
    ("12345678", "12345679"), ("0.00001", "0.00002"), ("C", "D"), ("C", "A, B, C"), ("C", "c"), ("east", "seat"),
    ("(1,2]", "(1,2)"), ("(1,2)", "(2,1)"), (r"\{1,2\}", r"\{1,2,3\}"), ("25 cm^2", "25 cm^3"), ("A", "A、B"),
    ("1:2", "2:1"), (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\4&3\end{pmatrix}"),
    (r"\sqrt{2}", "1.41"),
    ("True, False", "False, True"), ("high and low", "low and high"), ("Bb Bb", "BB Bb"), ("0", r"x \geq -3, x \neq 0"),
    ("2.0 × 10^-3", "5.0 × 10^-3"), ("2.5 * 10^-23 kg", "5.0 * 10^-21 kg"), ("ratio of 1 to V", "ratio of V to 1"),
    ("2 Na(s) + O2(g) → Na2O2(s)", "C(s) + CO2(g) → 2 CO(g)"), ("3", "x > 3"),
    ("2 times as many items can be uniquely identified", "2 more items can be uniquely identified"),
    ("x>2", "x<2"), ("10和11之间", "10"), ("18", "1" * 400), ("1/2", "1/0"), ("3", r"\frac{"),
    # a partial reading
    ("18", "18 plus two"), ("3", "3 squared"), ("9", "3 squared"), ("5", "5²"), ("5", "5→6"), ("6", "5→6"),
    ("5", "5 => 6"),
    ("5", r"5\sqrt(3)"), ("5", "5/"), ("5", "5+"), ("5", "5*"), ("5", "*5"), ("5", "5^"), ("5", "5="), ("5", "5'"),
    ("5", "5!"),
    ("5", "5₂"), ("5", "5_3"), ("5", "5⁻¹"), ("5", "±5"), ("5", "5 ± 1"), ("5", "5?"), ("5", "≈5"), ("5", "<5"),
    ("5", "5 five"),
    ("5", "5 factorial"), ("5", "5 Squared"), ("5", "5的平方"), ("5", "5 repeating"), ("5", "5 and a half"),
    ("5", "5 halves"),
    ("5", "5 mod 7"), ("5", "5 dozen"), ("5", "5..."),
    ("5", "5}"), ("5", "(5"), ("5", "[5,6]"), ("5", "5 6"), ("5", "5万"), ("5", "5多"), ("5", "5以上"),
    ("5", "5左右"), ("5", "约5"),
    ("5", r"5\%\%"), ("5", r"5 \equiv 0 \pmod 5"), ("x+1", "x+1/"), (r"\pi", r"\pi+"), ("5", "at least 5"), ("5", "{5"),
    # left undone
    ("12", "96 / 8"), ("12", "24÷4"), ("12", "96÷8"), ("12", r"\frac{96}{8}"), ("12", "96:8"), ("12", "3(4)"),
    ("12", "3·4"),
    ("12", "6 plus 6"), ("12", "13 − 1"), ("12", r"2\sqrt{36}"), ("12", r"\sqrt{144}+0"), ("12", "12/1"),
    ("12", "|6|+|-6|"),
    ("0.5", "3.5/7"),
    ("3/4", "1/2+1/4"), ("3/4", r"\frac12+\frac14"), ("1/2", "1/2/1"), ("3.5", "3+1/2"), ("25%", "20%+5%"),
    ("-3", "2-5"),
    (r"2\sqrt3", r"\sqrt3+\sqrt3"), (r"12\pi", r"3\cdot 4\pi"), ("16", "13+7=21;20-4=16"), ("16", "12+3=16"),
    # imaginary units, bases, exponents
    ("2", r"2\mathrm{i}"), ("2", "2i"), ("2i", "2"), ("3-4i", "3+4i"), ("4210_6", "4210_5"), ("4210_6", "4210"),
    ("101_2", "5"),
    ("1A_{16}", "1A_{12}"), ("10^{-21}", "10^{-20}"), ("1e-9", "1e-8"), ("0", "1e-9"), ("(10^{-21},0)", "(10^{-20},0)"),
    ("10^{-21}x", "10^{-20}x"),
    ("0.0000001x", "0.0000002x"), (r"10^{-21}\sqrt{2}", r"10^{-20}\sqrt{2}"),
    (r"\frac{\pi}{10^{21}}", r"\frac{\pi}{10^{22}}"),
    ("①②", "①③"), ("12", "①②"),
    # words at any length, and what is counted
    ("on", "no"), ("is", "si"), ("saw", "was"), ("Bb", "BB"), ("no", "not"), ("yes", "yes or no"), ("18 km", "18 kg"),
    ("5 m", "5 cm"), ("18 euros", r"\$18"), ("18 minutes", "18 hours"), ("18元", "18角"), ("18 dollars", "18 cents"),
    # hedges
    ("C", "C. or D."), ("D", "C. or D."), ("C", "C/D"), ("C", "C., D."), ("C", "C or D"), ("C", "C、D"),
    ("C", "C. 5 or D. 6"),
    ("C", "CD"),
    ("ABD", "A, B or D"), ("3", "3 or 5"), ("5", "3 or 5"), ("5", "3=5"), ("3", "3=5"), ("5", "5或6"), ("5", "5 to 6"),
    ("5", "5~6"), ("5", "5 apples or 6"), ("5", "5|6"), ("x=5", "x=5 or x=6"),
]  # fmt: skip


@pytest.mark.parametrize("gold, answer", SAME)
def test_equal(gold, answer):
    assert equal(gold, answer) and equal(answer, gold)


@pytest.mark.parametrize("gold, answer", DIFFERENT)
def test_not_equal(gold, answer):
    assert not equal(gold, answer)


UNDONE = re.compile(r"[-+*/:÷·−]|\\frac|\\cdot|\\times|\\sqrt|\(")


@pytest.mark.parametrize("gold, answer", DIFFERENT)
def test_different_is_different_from_both_sides_unless_something_was_left_undone(gold, answer):
    if answer and not UNDONE.search(answer):
        assert not equal(answer, gold)


HEDGES = [
    "{} or {}", "{}, {}", "{} and {}", "{}/{}", "{} ({})", "{}; {}", "{} = {}", "either {} or {}", "{}、{}", "{}或{}",
    r"{} \text{{ or }} {}", "{} maybe {}", "{} {}", r"{} \\ {}", "{}? {}?", "{} but {}", "{} to {}", "{} | {}",
    r"{} \lor {}", "{}. or {}.", "{}\n{}", "{} → {}", "{} (or {})", "{} or maybe {}", r"\{{{}, {}\}}", "[{},{}]",
]  # fmt: skip
RIVALS = [
    ("3", "5"), ("-1", "1"), ("0.5", "5"), ("C", "D"), ("A", "B"), (r"\frac{1}{2}", "2"), ("x+1", "x-1"), ("yes", "no"),
    ("18 km", "18 m"), (r"\sqrt{2}", "2"), ("east", "west"),
]  # fmt: skip


@pytest.mark.parametrize("hedge", HEDGES)
def test_a_hedge_is_wrong_for_both(hedge):
    for one, two in RIVALS:
        box = hedge.format(one, two)
        assert not equal(one, box) and not equal(two, box), box


def test_golds_of_different_problems_do_not_agree_and_the_order_does_not_matter(shared_data):
    """2,000 pairs of MATH-500 and of Chinese school problems: 36 is 36°, and nothing else is by accident."""
    golds = []
    for name in ("math500", "cn_middle_school"):
        lines = (shared_data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        golds += [json.loads(line)["answer"] for line in lines]
    rng = random.Random(0)
    pairs = [(a, b) for a, b in (rng.sample(golds, 2) for _ in range(2000)) if a != b]
    assert all(bool(equal(a, b)) == bool(equal(b, a)) for a, b in pairs)
    assert {(a, b) for a, b in pairs if equal(a, b)} == {("36", "36^\\circ")}


PIECES = r"""\boxed{ } { \frac \ $ \text{ \, \! ^ _ ( ) [ ] , 3 12 345 x no / ½ ² ₂ √ π 、 或 元 € ° % ** = - – +
or A C e {,}""".split()
TEXT = st.text(max_size=30) | st.lists(st.sampled_from([*PIECES, " ", "\u0301", "base 5"]), max_size=12).map("".join)


def test_no_text_takes_long_to_read():
    """Repeated pieces are what makes careless patterns take exponential time."""
    start = time.monotonic()
    for piece in [*PIECES, "1 ", "A ", "A, ", "(1", "ab ", "km/", "1,234", "1.", "x=", "1;", "{1}", "或", "①", "$1"]:
        for end in ("@", "", "?!", "C"):
            for gold in ("7", "C", "ABD"):
                equal(gold, (piece * 300)[: 300 - len(end)] + end)
    assert time.monotonic() - start < 20


@settings(max_examples=1500, deadline=None)
@given(TEXT)
def test_normalise_is_done_once(text):
    assert normalise(normalise(text)) == normalise(text)


@settings(max_examples=500, deadline=None)
@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{}", "{:,}", r"\${}", "{}.0", "{} apples", "x = {}", r"\text{{{}}}"]),
)
def test_an_integer_is_itself_in_any_dress_and_not_the_next(number, dress):
    box = dress.format(number)
    assert equal(str(number), box) and not equal(str(number + 1), box)


@settings(max_examples=300, deadline=None)
@given(st.integers(-99, 99), st.integers(-99, 99), st.sampled_from("+-*/"))
def test_no_computation_is_an_answer(a, b, sign):
    value = {"+": a + b, "-": a - b, "*": a * b}.get(sign, a // b if b and a % b == 0 else None)
    if value is not None:
        assert not equal(str(value), f"{a}{sign}{b}") and not equal(str(value), f"{a} {sign} ({b})")


@settings(max_examples=500, deadline=None)
@given(TEXT, TEXT, st.sampled_from(["7", "C", "x+1", r"\frac{1}{2}", "on"]))
def test_any_text_gets_a_grade(before, inside, gold):
    found = grade(f"{before}\\boxed{{{inside}}}", gold)
    assert found.formatted == bool(found.answer) and (found.formatted and found.number or not found.correct)


@settings(max_examples=500, deadline=None)
@given(st.recursive(st.text("ab1 ", min_size=1), lambda t: t.map(lambda x: f"{{{x}}}") | st.tuples(t, t).map("".join)))
def test_boxed_finds_whatever_is_balanced(inside):
    assert boxed(f"so \\boxed{{1}}, or \\boxed{{{inside}}}.") == inside.strip()
    assert boxed(f"so \\boxed{{1}}, or \\boxed{{{inside}") is None
