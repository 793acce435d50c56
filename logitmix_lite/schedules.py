"""Who sets alpha between steps: nobody (algorithm 1), or the validation problems (algorithm 2)."""

from collections.abc import Sequence
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


@dataclass
class Adaptive:
    """Algorithm 2: alpha follows how much mixing gains over theta alone on held-out validation problems.

    offset, scale: m0 and tau of equation 9. smoothing: eta, the share of the new value; 1 is the paper's case."""

    alpha: float
    offset: float = 0.5
    scale: float = 0.5
    smoothing: float = 1.0

    @classmethod
    def of(cls, settings) -> "Adaptive":
        """The schedule that a run's settings ask for."""
        return cls(settings.alpha, settings.offset, settings.scale, settings.smoothing)

    def update(self, mixed: Sequence[bool], theta: Sequence[bool]) -> dict[str, float]:
        """Set alpha from the correctness of greedy decodes of the same problems by the mixture and by theta alone.

        Equation 8: gain, the share that only the mixture solves; forgetting, the share that only theta solves.
        Equation 9: `alpha = sigmoid((gain - forgetting - m0) / tau)`. Returns alpha, gain and forgetting."""
        pairs = list(zip(mixed, theta, strict=True))
        gain, forgetting = fmean(bool(m and not t) for m, t in pairs), fmean(bool(t and not m) for m, t in pairs)
        target = sigmoid((gain - forgetting - self.offset) / self.scale)
        self.alpha = (1 - self.smoothing) * self.alpha + self.smoothing * target
        return {"alpha": self.alpha, "gain": gain, "forgetting": forgetting}


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), of any size without overflow."""
    small = exp(-abs(x))
    return (1 if x >= 0 else small) / (1 + small)
