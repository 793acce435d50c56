"""Watches a run: no step is taken on NaN, and what goes wrong in silence is said once, in plain words."""

import math
from collections.abc import Iterable

IN_A_ROW = 3  # steps skipped before a run is stopped


class Diverged(ArithmeticError, ValueError):
    """The numbers of a run are no longer finite. As a ValueError, it is one sentence on the command line."""


class Watch:
    """Looks at each step of a run. `past`: the metrics of steps before a resume, so that nothing is said twice."""

    def __init__(self, past: Iterable[dict] = ()):
        self.skipped = 0  # steps so far
        self.lasting: dict[str, int] = {}  # for how many steps each trouble has lasted
        self.said: set[str] = set()
        self.first_entropy: float | None = None
        for line in past:
            self.skipped = line.get("skipped", self.skipped)
            self.notice(line)

    def finite(self, *numbers: float | None) -> bool:
        """Whether loss and gradient norm are numbers to step on (None: there was none). If not, skip the step; it is
        counted in `skipped`, which belongs into the step's metrics: by them `notice` stops the run."""
        fine = all(number is None or math.isfinite(number) for number in numbers)
        self.skipped += not fine
        return fine

    def notice(self, metrics: dict) -> str | None:
        """What the newest metrics call for, in words, the first time; else None. Call it once they are written.

        Raises Diverged after three steps in a row that were skipped, or whose entropy is no number: of NaN weights no
        completion is right, so that there is no loss to tell."""
        reward, entropy = metrics.get("reward"), metrics.get("entropy", math.inf)
        nan = entropy is None or math.isnan(entropy)  # None: read back from JSON
        if self._lasts("skipped", bool(metrics.get("skipped")) or nan) >= IN_A_ROW:
            raise Diverged(
                f"stopped: loss, gradient or entropy was NaN or infinite {IN_A_ROW} steps in a row, last at step "
                f"{metrics['step']}. None of these steps was taken; the last checkpoint is good. Try a lower learning "
                "rate, or --dtype float32; if it happened from the start, look for NaN in the weights themselves"
            )
        if self.first_entropy is None and "entropy" in metrics:
            self.first_entropy = entropy
        collapsed = not nan and entropy < 0.1 * (self.first_entropy or 0)
        why = (
            "no completion was right, so there is nothing to learn from. Try easier problems, more --samples, or a "
            "policy that is right now and then: a larger --alpha or a better anchor"
        ) if reward == 0 else (
            "all completions of a prompt had the same reward, so there is nothing to learn from. Try harder problems, "
            "more --samples, or a higher --temperature; if nearly all are right, the run is done"
        )  # fmt: skip
        found = [
            self._once("equal rewards", metrics.get("frac_reward_zero_std") == 1, 20, why),
            self._once("collapse", collapsed, 5, (
                "the entropy is below a tenth of what it was: the policy says nearly always the same, and samples that "
                "agree teach nothing. Try a lower learning rate, a higher --temperature, or a KL term (grpo-kl)"
            )),
            self._once("endless", metrics.get("truncated") == 1, 3, (
                "no completion came to its end. Try more --max-new-tokens; if they ramble on after the answer, the "
                "model does not know the end token: start from an anchor made by `sft`"
            )),
        ]  # fmt: skip
        return " ".join(f"Step {metrics['step']}: {words}." for words in filter(None, found)) or None

    def _lasts(self, name: str, so: bool) -> int:
        self.lasting[name] = self.lasting.get(name, 0) + 1 if so else 0
        return self.lasting[name]

    def _once(self, name: str, so: bool, steps: int, words: str) -> str | None:
        if self._lasts(name, so) < steps or name in self.said:
            return None
        self.said.add(name)
        return f"for {steps} steps {words}"
