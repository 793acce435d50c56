"""Does the suite notice small mistakes? Makes one at a time in a copy of the package, and runs the tests that should.

    python tests/mutants.py --sample 40 --seed 0      (or `make mutants`)

A mutant is one changed place: a sign, a comparison, an off-by-one, swapped arguments, a dropped call, a constant, a
`not`. It is killed if a test fails, and survives if all pass: then a test is missing, or the change does no harm."""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The tests of each file, fastest first; the first failure ends the run.
REFERENCE = "test_reference.py::test_three_steps_of_every_method"
TESTS = {
    "mixing.py": ["test_mixing.py"],
    "grpo.py": ["test_grpo.py", "test_rollout.py -k training_pass"],
    "schedules.py": ["test_evaluate.py -k adaptive", f"{REFERENCE}[adaptive-pair]"],
    "mixture.py": ["test_lora.py", "test_mixture.py", "test_hf.py", "test_rollout.py"],
    "rollout.py": ["test_rollout.py"],
    "train.py": [
        "test_train.py -k 'equal_reward or clip_fraction or alpha_one or half_precision or nan or every_method'",
        f"{REFERENCE}[grpo-kl-pair]",
        f"{REFERENCE}[adaptive-pair]",
        "test_ranks.py -k two_ranks_make",
    ],
    "tasks/rewards.py": ["test_rewards.py", "test_benchmarks.py"],
    "tasks/equality.py": ["test_equality.py", "test_rewards.py"],
}
# Survivors that do no harm: a part of the line, the change, and why.
CHUNK = "the size of a chunk changes memory, not the result"
EXCUSED = [
    ("chunk = chunk or", "25 -> 26", CHUNK),
    ("2**24", "24 -> 25", CHUNK),
    ("masked_fill(mask == 0, 0).exp()", "0 -> 1", "what padding holds is dropped by the mean over tokens"),
    ("2**24 // self.config.vocab_size", "2 ** 24 * self.config.vocab_size", CHUNK),
    ("if width > 1", "width > 1 -> width >= 1", "a pass over no tokens adds nothing"),
    ("math.isclose", "math.isclose(1, sum(weights)", "a distance is the same from both ends"),
    ("torch.promote_types", "torch.promote_types(torch.float32, dtype)", "the same type, whichever is named first"),
    ("bit for bit", "1 -> 2", "a sum of one member times 1 is that member too, only slower"),
    ("if len(members) == 1", "1 -> 2", "a sum of one member times 1 is that member too, only slower"),
    ("2**24", "2 -> 3", "up to which size heads stand side by side decides the speed, not the result"),
    ("LONGEST", "300 -> 301", "one character more or less"),
    ("LONGEST", "> LONGEST -> len(answer) >= LONGEST", "one character more or less"),
    ("GraphDecoder.fits", "fits(cache, mixture)", "runs on a GPU alone, where tests/gpu/test_gpu.py holds it"),
    ("eos[0] if eos else 0", "0 -> 1", "where nothing ends, no completion has padding, and that of prompts is masked"),
]

COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult,
}  # fmt: skip
# Calls whose loss or swapped arguments would crash at once, or change nothing but a type.
UNTOUCHED = {"range", "zip", "getattr", "hasattr", "isinstance", "item", "tolist", "to", "float", "double", "max"}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What else could stand in this node's place."""
    new = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        new.ops[0] = COMPARE[type(node.ops[0])]()
        yield new
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        new.op = ARITHMETIC[type(node.op)]()
        yield new
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        if ast.unparse(node) != "-1":  # of a matrix, axis 1 is axis -1
            yield new.operand  # a `not` or a minus removed
    elif isinstance(node, ast.IfExp):
        yield new.body
        yield new.orelse
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] not in UNTOUCHED:
        places = [a for a in node.args if not isinstance(a, ast.Starred)]
        if len(places) == len(node.args) > 1:
            new.args[:2] = new.args[1::-1]
            yield new
        # a method dropped from a chain, as in `x.masked_fill(...)`: masks, clamps, means
        if isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name | ast.Call):
            yield copy.deepcopy(node.func.value)
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
            yield copy.deepcopy(node.func.value)


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, what changes, and the whole file with that one change. Docstrings, error texts and annotations stay."""
    tree = ast.parse(source)
    for parent in list(ast.walk(tree)):
        checked = isinstance(parent, ast.keyword) and parent.arg == "strict"  # zip's check of lengths
        if checked or isinstance(parent, ast.Raise | ast.JoinedStr | ast.arg):
            for inner in ast.walk(parent):
                inner.skip = True
        if isinstance(parent, ast.AnnAssign):
            for inner in ast.walk(parent.annotation):
                inner.skip = True
        if isinstance(parent, ast.FunctionDef):
            for inner in ast.walk(parent.returns) if parent.returns else ():
                inner.skip = True
    for parent in list(ast.walk(tree)):
        if getattr(parent, "skip", False):
            continue
        for name, value in ast.iter_fields(parent):
            for place, node in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(node, ast.AST) or getattr(node, "skip", False):
                    continue
                options = [ast.Pass()] if _droppable(node) else changes(node)
                for new in options:
                    before = ast.unparse(node)
                    _put(parent, name, place, new)
                    yield node.lineno, f"{before} -> {ast.unparse(new)}", ast.unparse(ast.fix_missing_locations(tree))
                    _put(parent, name, place, node)


def _droppable(node: ast.AST) -> bool:
    """Whether the node is a statement that is only a call."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _put(parent: ast.AST, name: str, place: int, node: ast.AST) -> None:
    value = getattr(parent, name)
    if isinstance(value, list):
        value[place] = node
    else:
        setattr(parent, name, node)


def killed(file: str, source: str, timeout: float) -> bool:
    """Whether a test fails where the package has this source in the file."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "logitmix_lite", root / "logitmix_lite", ignore=ignore)
        shutil.copytree(ROOT / "tests", root / "tests", ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", root)
        (root / "data").symlink_to(ROOT / "data")
        (root / "logitmix_lite" / file).write_text(source)
        environment = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        for tests in TESTS[file]:
            command = f'"{sys.executable}" -m pytest -x -q -p no:cacheprovider tests/{tests}'
            run = subprocess.Popen(
                command, shell=True, cwd=root, env=environment, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                if run.wait(timeout):
                    return True
            except subprocess.TimeoutExpired:  # an endless loop is noticed too
                os.killpg(run.pid, 9)
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=40, help="how many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--timeout", type=float, default=300, help="seconds a mutant's tests may take")
    args = parser.parse_args()
    pool = []
    for file in args.files:
        source = (ROOT / "logitmix_lite" / file).read_text()
        pool += [(file, *mutant) for mutant in mutants(source)]
    print(f"{len(pool)} mutants of {len(args.files)} files", flush=True)
    if 0 < args.sample < len(pool):
        pool = random.Random(args.seed).sample(pool, args.sample)
    survivors, counts = [], {file: [0, 0] for file in args.files}
    for file, line, what, source in pool:
        name, began = f"{file}:{line}: {what}", time.perf_counter()
        caught = killed(file, source, args.timeout)
        counts[file][0] += caught
        counts[file][1] += 1
        print(f"{'killed  ' if caught else 'SURVIVED'} {time.perf_counter() - began:5.0f} s  {name}", flush=True)
        if not caught:
            text = (ROOT / "logitmix_lite" / file).read_text().splitlines()[line - 1]
            why = next((why for part, change, why in EXCUSED if part in text and change == what), None)
            survivors.append((name, why))
    print("\nfile                 killed  of")
    for file, (caught, total) in counts.items():
        print(f"{file:20} {caught:6} {total:3}")
    open_ = [name for name, why in survivors if why is None]
    print(f"{len(pool) - len(survivors)} of {len(pool)} killed, {len(survivors) - len(open_)} excused")
    for name, why in survivors:
        print(f"survived: {name}" + (f"\n    harmless: {why}" if why else ""))
    sys.exit(bool(open_))


if __name__ == "__main__":
    main()
