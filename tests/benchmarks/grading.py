"""Grading speed, and a fuzz: `python tests/benchmarks/grading.py [--count 10000] [--fuzz 20000] [--seed 0]`.

Speed: completions such as models write, a third of them with answers that only math-verify can compare, graded by
`grade_all` and, as the peer, by math-verify alone in the same process; then answers that are numbers, which no helper
process sees, one by one. The fuzz grades mutated answers and random
strings, and reports the slowest and whatever raised."""

import argparse
import random
import time

import math_verify
from tqdm import tqdm

from logitmix_lite.tasks.rewards import grade, grade_all

ANSWERS = [
    "18",
    "-7",
    "3.5",
    "1/2",
    "1,234",
    r"\frac{3}{4}",
    r"2\sqrt{3}",
    "x+2",
    "(1,2)",
    "C",
    "x=5",
    r"\frac{\pi}{2}",
]
FORMULAS = [r"\frac{%d}{7}x+1", r"%d\sqrt{3}", r"(%d, \frac{\pi}{4})", r"x^2+%dx"]
TEXTS = ["The answer is \\boxed{%s}.", "So $x = 3 + 4 = 7$ and then \\[\\boxed{%s}\\]", "I think it is %s."]
NUMBERS = ["%d", "%d", "%d.0", r"\$%d", "%d apples", "12 + %d"]
PIECES = [
    r"\boxed{",
    r"\frac{",
    r"\sqrt{",
    "}",
    "{",
    "^",
    "9",
    "(",
    ")",
    "[",
    "]",
    "-",
    ".",
    ",",
    "%",
    r"\pi",
    "x",
    "=",
    "$",
    "是",
    "\\",
]


def ordinary(count: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """Completions and gold answers; half of the answers are right."""
    texts, golds = [], []
    for _ in range(count):
        gold = rng.choice(FORMULAS) % rng.randrange(2, 500) if rng.random() < 1 / 3 else str(rng.randrange(1000))
        other = gold if rng.random() < 0.5 else str(rng.randrange(1000))
        texts.append(rng.choice(TEXTS) % other)
        golds.append(gold)
    return texts, golds


def mutated(rng: random.Random) -> str:
    """An answer with some pieces put in, taken out or repeated, or pieces alone."""
    text = list(rng.choice(ANSWERS)) if rng.random() < 0.7 else rng.choices(PIECES, k=rng.randrange(40))
    for _ in range(rng.randrange(6)):
        place = rng.randrange(len(text) + 1)
        text[place : place + rng.randrange(2)] = rng.choices(PIECES, k=rng.randrange(3))
    return "".join(text) * rng.choice([1, 1, 1, 1, 2, 50])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--fuzz", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    texts, golds = ordinary(args.count, rng)
    grade_all([r"\boxed{2x}"] * 8, ["x+x"] * 8)  # start the helpers
    start = time.perf_counter()
    grades = grade_all(texts, golds)
    ours = time.perf_counter() - start
    share = min(300, args.count)
    start = time.perf_counter()
    for text, gold in zip(texts[:share], golds[:share], strict=True):
        math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(text))
    peer = (time.perf_counter() - start) * args.count / share
    print(f"{args.count} completions: {ours:.1f} s, {args.count / ours:.0f} a second; math-verify alone {peer:.1f} s; "
          f"ratio {peer / ours:.1f}; failed comparisons: {sum(g.failed for g in grades)}")  # fmt: skip

    texts = [f"13+7=20;20-4=16; \\boxed{{{box % rng.randrange(-50, 99)}}}" for box in NUMBERS for _ in range(1000)]
    start = time.perf_counter()
    for text in texts:
        grade(text, "16")
    print(f"{len(texts)} boxed numbers: {(time.perf_counter() - start) / len(texts) * 1e6:.0f} microseconds each")

    slowest, failed, raised = (0.0, ""), 0, []
    for _ in tqdm(range(args.fuzz), desc="fuzz"):
        text, gold = mutated(rng), rng.choice(ANSWERS)
        text = text if rng.random() < 0.3 else f"\\boxed{{{text}}}"
        start = time.perf_counter()
        try:
            failed += grade(text, gold).failed
        except Exception as error:
            raised.append((text, gold, error))
        slowest = max(slowest, (time.perf_counter() - start, f"{text[:80]!r} for {gold!r}"))
    if args.fuzz:
        print(f"fuzz of {args.fuzz}: raised {len(raised)} {raised[:3]}; slowest {slowest[0]:.2f} s, {slowest[1]}; "
              f"failed comparisons: {failed}")  # fmt: skip


if __name__ == "__main__":
    main()
