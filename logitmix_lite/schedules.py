"""Who sets alpha between steps: nobody (algorithm 1), or the validation problems (algorithm 2).

A schedule is any class with an `alpha`, a classmethod `of(settings)`, and `after_step(step, solved)`, which may set
alpha for the next step. methods.py gives it a name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean


@dataclass
class Fixed:
    """Algorithm 1: alpha stays what it is."""

    alpha: float

    @classmethod
    def of(cls, settings) -> "Fixed":
        """The schedule that a run's settings ask for."""
        return cls(settings.alpha)

    def after_step(self, step: int, solved: Callable[[str], Sequence[bool]]) -> dict[str, float]:
        """Set alpha for step `step` + 1; returns what goes into the metrics of step `step` (from 1).

        solved("mixture"), solved("theta"): which validation problems each solves now, by greedy decodes, if asked."""
        return {}


@dataclass
class Adaptive:
    """Algorithm 2: alpha follows how much mixing gains over theta alone on held-out validation problems.

    offset, scale: m0 and tau of equation 9. smoothing: eta, the share of the new value. The paper's text has lost their
    values: these are our reading, and eta = 1 is its case without smoothing."""

    alpha: float
    offset: float = 0.5
    scale: float = 0.5
    smoothing: float = 1.0

    @classmethod
    def of(cls, settings) -> "Adaptive":
        """The schedule that a run's settings ask for."""
        return cls(settings.alpha, settings.offset, settings.scale, settings.smoothing)

    def after_step(self, step: int, solved: Callable[[str], Sequence[bool]]) -> dict[str, float]:
        """Equations 7 to 9, on the policies as they are after the step."""
        return self.update(solved("mixture"), solved("theta"))

    def update(self, mixed: Sequence[bool], theta: Sequence[bool]) -> dict[str, float]:
        """Set alpha from the correctness of greedy decodes of the same problems by the mixture and by theta alone.

        Equation 8: gain, the share that only the mixture solves; forgetting, the share that only theta solves.
        Equation 9, as we read it: `alpha = sigmoid((gain - forgetting - m0) / tau)`. Returns gain and forgetting."""
        pairs = list(zip(mixed, theta, strict=True))
        gain, forgetting = fmean(bool(m and not t) for m, t in pairs), fmean(bool(t and not m) for m, t in pairs)
        target = sigmoid((gain - forgetting - self.offset) / self.scale)
        self.alpha = (1 - self.smoothing) * self.alpha + self.smoothing * target
        return {"gain": gain, "forgetting": forgetting}


@dataclass
class Decay:
    """Logit Fusion's (Zhang et al. 2026): alpha falls along a line, to 0 after `over` steps: the anchor is let go."""

    alpha: float
    over: int

    @classmethod
    def of(cls, settings) -> "Decay":
        """The schedule that a run's settings ask for."""
        return cls(settings.alpha, settings.decay_steps)

    def __post_init__(self):
        self.start = self.alpha

    def after_step(self, step: int, solved: Callable[[str], Sequence[bool]]) -> dict[str, float]:
        """Alpha of step `step` + 1, from what it was at first."""
        self.alpha = self.start * max(0.0, 1 - step / self.over)
        return {}


@dataclass
class Difficulty(Decay):
    """The same line, times the share of validation problems that theta can't solve alone yet.

    Logit Fusion scales alpha by a difficulty that its data set gives each problem; this one is measured instead."""

    def after_step(self, step: int, solved: Callable[[str], Sequence[bool]]) -> dict[str, float]:
        """Alpha of step `step` + 1, and the share that it follows."""
        super().after_step(step, solved)
        unsolved = 1 - fmean(map(bool, solved("theta")))
        self.alpha *= unsolved
        return {"unsolved": unsolved}


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), of any size without overflow."""
    small = exp(-abs(x))
    return (1 if x >= 0 else small) / (1 + small)
