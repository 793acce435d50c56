"""The helper processes that compare formulas: what hangs is stopped, what is killed comes back, scripts just work."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from logitmix_lite.tasks import formulas
from logitmix_lite.tasks.equality import equal
from logitmix_lite.tasks.rewards import grade, grade_all


def test_sympy_is_stopped_when_it_hangs_and_works_afterwards(monkeypatch):
    equal("2x+4", "2(x+2)")  # start the helper
    monkeypatch.setattr(formulas, "SECONDS", 0.5)
    start = time.monotonic()
    assert not equal("7", "9^{9^{9^9}}")
    assert time.monotonic() - start < 5
    monkeypatch.undo()
    assert equal("3x+6", "3(x+2)")


def test_other_threads_grade_too():
    found = []
    work = [threading.Thread(target=lambda k=k: found.append(equal(f"{k}x+{2 * k}", f"{k}(x+2)"))) for k in range(2, 8)]
    [thread.start() for thread in work]
    [thread.join(60) for thread in work]
    assert found == [True] * len(work)


def test_a_comparison_that_fails_is_counted_and_never_right(monkeypatch):
    monkeypatch.setattr(formulas, "SECONDS", 0.5)
    found = grade(r"\boxed{10^{10^{10^{10}}}}", "11")
    assert found.failed and found.formatted and not found.correct
    monkeypatch.undo()  # half a second may be too short for an easy one on a busy machine
    assert not grade(r"\boxed{2(x+3)}", "2x+6").failed and not grade(r"\boxed{2(x+3)}", "2x+7").failed


def test_a_killed_helper_is_replaced():
    equal("2x+5", "5+x+x")
    pool = formulas._helpers(os.getpid())
    running = [helper for helper in pool.queue if helper.process]
    assert running
    for helper in running:
        helper.process.kill()
    found = [equal(f"2x+{k}", f"{k}+x+x") for k in range(100, 100 + 2 * formulas.HELPERS)]
    assert found.count(True) >= formulas.HELPERS
    assert equal("2x+7", "7+x+x")


def test_many_at_once_are_the_same_as_one_by_one():
    texts = [rf"\boxed{{{k % 7}x+{k}}}" for k in range(60)] + ["the answer is 5", "", r"\boxed{5"]
    golds = [f"{k}+{(k + k % 2) % 7}x" for k in range(60)] + ["5", "5", "5"]
    assert grade_all(texts, golds) == [grade(text, gold) for text, gold in zip(texts, golds, strict=True)]


def test_a_helper_that_cannot_start_is_an_error_not_a_zero(monkeypatch):
    monkeypatch.setattr(formulas, "__file__", "/nowhere/formulas.py")
    with pytest.raises(RuntimeError, match="math-verify"):
        formulas._Helper().ask(["$x$", "$x$", 1.0])


STUB = """
import sys, types
package = types.ModuleType("logitmix_lite")  # without what the package itself imports
package.__path__ = [{path!r}]
sys.modules["logitmix_lite"] = package
"""


def run(tmp_path, code):
    """A script without `if __name__ == "__main__"`, started as a user would."""
    path = str(Path(formulas.__file__).parents[1])
    (tmp_path / "script.py").write_text(STUB.format(path=path) + code, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "script.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.split()


def test_a_plain_script_can_grade_a_formula(tmp_path):
    code = "from logitmix_lite.tasks.rewards import grade\nprint(grade(r'\\boxed{2(x+2)}', '2x+4').correct)\n"
    assert run(tmp_path, code) == ["True"]


def test_tasks_load_nothing_heavy_and_numbers_start_no_helper(tmp_path):
    code = (
        "import logitmix_lite.tasks\nfrom logitmix_lite.tasks import formulas, rewards\n"
        "formulas._helpers = None\n"
        "assert rewards.grade(r'\\boxed{\\$1,234.50}', '1234.5').correct\n"
        "assert not rewards.grade(r'\\boxed{13+7-4}', '16').correct\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'datasets', 'pandas', 'scipy', 'math_verify', 'sympy', 'transformers'}), 'end')\n"
    )
    assert run(tmp_path, code) == ["end"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_helpers_of_its_own(tmp_path):
    code = (
        "import os\nfrom logitmix_lite.tasks.equality import equal\nassert equal('2x+4', '2(x+2)')\n"
        "child = os.fork()\n"
        "if child == 0:\n    os._exit(0 if equal('2x+6', '2(x+3)') and not equal('2x+6', '2(x+4)') else 1)\n"
        "print(os.waitpid(child, 0)[1], equal('2x+8', '2(x+4)'))\n"
    )
    assert run(tmp_path, code) == ["0", "True"]
