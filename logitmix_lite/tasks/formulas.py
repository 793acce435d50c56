r"""Whether two formulas are equal: math-verify's word, from helper processes that may be stopped.

sympy, which math-verify rests on, can be made to compute for hours (`9^{9^{9^9}}`), and math-verify's own time limit
works in the main thread only. A library's pool (pebble, loky) would start its workers with multiprocessing: a fork of a
process that holds torch and its threads may hang, and a spawn imports the user's script once more, which asks for
`if __name__ == "__main__"` in every script. So a helper is this same file, started as a program of its own."""

import faulthandler
import json
import os
import queue
import subprocess
import sys
from functools import lru_cache

SECONDS = 2.5  # for one comparison; then the completion counts as wrong, and as failed
HELPERS = min(4, os.cpu_count() or 1)  # comparisons at once


@lru_cache(maxsize=10_000)  # the completions of one group often agree
def same_formula(gold: str, answer: str) -> bool | None:
    """Whether math-verify finds the formulas equal; None where it ran out of time or crashed over them."""
    helpers = _helpers(os.getpid())
    helper = helpers.get()
    try:
        return helper.ask([gold, answer, SECONDS])
    finally:
        helpers.put(helper)


class _Helper:
    """This file as a program: one JSON line in, one out. It ends itself when a comparison takes too long."""

    def __init__(self):
        self.process = None

    def start(self) -> None:
        command = [sys.executable, "-P", __file__]  # -P: files beside this one must not pass for modules
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.process, self.ready = subprocess.Popen(command, **pipes), False

    def ask(self, request: list) -> bool | None:
        try:
            if self.process is None or self.process.poll() is not None:
                self.start()
            if not self.ready and not self.process.stdout.readline():
                raise RuntimeError("the helper of formulas.py did not start: is math-verify installed?")
            self.ready = True
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline().strip()
        except BrokenPipeError:
            reply = ""
        except BaseException:  # after an interrupt its late answer must not pass for the next one's
            if self.process:
                self.process.kill()
            raise
        if not reply:  # it ended, out of time or memory: have the next one ready
            self.process.wait()
            self.start()
        return {"true": True, "false": False}.get(reply)


@lru_cache
def _helpers(process_id: int) -> queue.LifoQueue:
    """A pool for each process: a forked process must not share its parent's pipes. The last used is used first."""
    pool = queue.LifoQueue()
    for _ in range(HELPERS):
        pool.put(_Helper())
    return pool


def _close(x, y) -> bool:
    """verify looks at six digits after the point, to which the square root of 2 times 10^-20 and 10^-21 are one."""
    if not all(getattr(value, "is_number", False) and value.is_finite for value in (x, y)):
        return True
    return bool(abs((x - y).evalf()) <= 1e-6 * abs(x.evalf()) + 1e-60)


def _serve() -> None:
    """The helper's side. faulthandler's clock also ends a computation inside sympy's C code, where signals wait."""
    from math_verify import LatexExtractionConfig, parse, verify

    # LaTeX or nothing: math-verify's other readings pick any number out of a text
    latex = dict(extraction_config=[LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    out, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            # a text that is not parsed gives an empty list, which is no answer
            parsed = [parse(f"${text}$", **latex) for text in (gold, answer)]
            same = all(parsed) and bool(verify(*parsed, timeout_seconds=None)) and _close(*(p[0] for p in parsed))
        except Exception:
            same = None
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(same), file=out, flush=True)


if __name__ == "__main__":
    _serve()
