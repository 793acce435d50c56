"""Every method by its name: the one list that the command line, `train`, `sweep`, `report` and the tests read.

A new method is one entry here. A new rule is also a function of mixing.py, a new schedule a class of schedules.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .schedules import Adaptive, Decay, Difficulty, Fixed

# One cast with the same colours in all figures: base and theta, the anchor, their mixture, probability mixing.
BLUE, ORANGE, GREEN, MAGENTA = "#0b3c8c", "#f2a25c", "#2a9d6f", "#8f2d7d"


@dataclass(frozen=True)
class Method:
    """What tells one curve of a figure from another; `train` asks no further question about the method."""

    label: str  # in tables and legends
    style: tuple  # colour, line style and marker of its curve
    init: str = "base"  # where theta starts: base, anchor, or average (of their weights)
    mixes: bool = False  # sampled and trained through a mixture with ref
    rule: str = "logit"  # of the mixture
    schedule: type = Fixed  # who sets alpha after each step: a class of schedules.py with a classmethod `of(settings)`
    kl: bool = False  # pays beta * KL to ref
    settings: Mapping[str, object] = field(default_factory=dict)  # fields of the preset that the method fixes itself


# Curves of one figure also differ in lightness, line style and marker, so that they stay apart when printed in grey.
METHODS: dict[str, Method] = {
    "fixed": Method("fixed mixing", (GREEN, "-", "o"), mixes=True),
    "fixed-0.25": Method(
        "fixed mixing, alpha 0.25", ("#7fd0ae", (0, (4, 1)), "<"), mixes=True, settings={"alpha": 0.25}
    ),
    "fixed-0.75": Method(
        "fixed mixing, alpha 0.75", ("#1b6a4a", (0, (2, 1)), ">"), mixes=True, settings={"alpha": 0.75}
    ),
    "adaptive": Method("adaptive mixing", ("#14543b", "--", "s"), mixes=True, schedule=Adaptive),
    "adaptive-steep": Method(
        "adaptive mixing, offset 0, scale 0.1", ("#8fd9b6", (0, (2, 2)), "h"), mixes=True, schedule=Adaptive,
        settings={"offset": 0.0, "scale": 0.1},
    ),
    "prob": Method("probability mixing", (MAGENTA, "-.", "^"), mixes=True, rule="prob"),
    "base-anchor": Method(
        "fixed mixing, anchored by base", (BLUE, (0, (5, 1, 1, 1)), "P"), mixes=True, settings={"anchor": "base"}
    ),
    "grpo-kl": Method("KL-GRPO from the anchor", ("#7a4a24", (0, (5, 2, 1, 2)), "D"), init="anchor", kl=True),
    "grpo-kl-0.01": Method(
        "KL-GRPO, beta 0.01", ("#c49a6c", (0, (3, 1, 1, 1)), "d"), init="anchor", kl=True, settings={"beta": 0.01}
    ),
    "grpo-kl-0.1": Method(
        "KL-GRPO, beta 0.1", ("#4f2d12", (0, (1, 2)), "p"), init="anchor", kl=True, settings={"beta": 0.1}
    ),
    "grpo-anchor": Method("GRPO without KL, from the anchor", ("#4a4a4a", (0, (6, 2)), "X"), init="anchor"),
    "grpo": Method("GRPO without KL, from base", ("#a6a6a6", ":", "v"), init="base"),
    "wise-ft": Method("GRPO from averaged weights", ("#d9b99b", (0, (3, 2)), "*"), init="average"),
}  # fmt: skip

# Beyond the paper: its relatives, each by what it changes. `--methods all` leaves them out.
FUSED = {"ratio": "theta", "ratio_cap": 3.0}
DAPO = {"loss_type": "dapo", "clip_high": 0.28, "overlong_cache": 16, "dynamic_sampling": 2}
DR_GRPO = {"loss_type": "dr_grpo", "scale_rewards": False}
PPO = {"adv_estimator": "gae", "loss_type": "dapo"}
RELATIVES: dict[str, Method] = {
    "fusion": Method("Logit Fusion", ("#d1495b", "-", "o"), mixes=True, schedule=Decay, settings=FUSED),
    "fusion-difficulty": Method(
        "Logit Fusion, alpha follows difficulty", ("#e9a3ac", "--", "s"), mixes=True, schedule=Difficulty,
        settings=FUSED,
    ),
    "fusion-kept": Method("Logit Fusion's ratio, alpha 0.5", ("#8a2f3c", "-.", "^"), mixes=True, settings=FUSED),
    "decay": Method("mixing, alpha decays to 0", ("#5cc09a", (0, (4, 1)), "<"), mixes=True, schedule=Decay),
    "kl-budget": Method(
        "alpha by a budget of KL", ("#00798c", (0, (2, 1)), ">"), mixes=True, rule="kl-budget", settings={"alpha": 0.4}
    ),
    "dapo": Method("DAPO from the anchor", ("#6c757d", "-", "D"), init="anchor", settings=DAPO),
    "dapo-mixed": Method("DAPO through a mixture", ("#9acd32", (0, (3, 1, 1, 1)), "d"), mixes=True, settings=DAPO),
    "dr-grpo": Method("Dr. GRPO from the anchor", ("#b08968", ":", "v"), init="anchor", settings=DR_GRPO),
    "dr-grpo-mixed": Method(
        "Dr. GRPO through a mixture", ("#3f7d20", (0, (1, 2)), "p"), mixes=True, settings=DR_GRPO
    ),
    "ppo": Method("PPO from the anchor", ("#3a3a3a", (0, (6, 2)), "X"), init="anchor", settings=PPO),
    "ppo-mixed": Method("PPO through a mixture", ("#74c69d", (0, (5, 1, 1, 1)), "P"), mixes=True, settings=PPO),
}  # fmt: skip


def known() -> dict[str, Method]:
    """All methods by name."""
    return METHODS | RELATIVES


def named(name: str) -> Method:
    """The method of that name; ValueError if there is none."""
    if name not in known():
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(known())}")
    return known()[name]


def check_flags(name: str, **asked: object) -> Method:
    """The method of that name, if it makes use of the settings that were asked for (None: this one was not).

    Raises ValueError for an alpha or beta that it would ignore, and for a setting that it fixes itself."""
    method = named(name)
    given = {setting: value for setting, value in asked.items() if value is not None}
    if "alpha" in given and not method.mixes:
        raise ValueError(f"{name} does not mix, so alpha has no meaning for it")
    if "beta" in given and not method.kl:
        raise ValueError(f"{name} has no KL term, so beta has no meaning for it")
    for setting, value in method.settings.items():
        if given.get(setting, value) != value:
            raise ValueError(f"{name} has {setting} = {value!r} by itself: leave out --{setting}")
    return method
