"""Logit averaging inside GRPO (arXiv:2605.20555): a frozen SFT policy and a trainable one, mixed token by token.

The method, in the order to read it: mixing, grpo, schedules, mixture, rollout, train.
The recipe around it: hf (the door to transformers), config, methods, models, sft, evaluate, runs.
What may wait: fast/ (two policies at nearly the price of one), tasks/ (problems and their grading), lab/ (experiments).

Names are imported when they are first used, so that importing the package costs nothing and changes nothing."""

import importlib
import sys
from types import ModuleType

HOMES = {  # of the public names: the module that defines them
    "config": ["load_preset"],
    "evaluate": ["evaluate"],
    "fast.logprobs": ["token_distributions", "token_logprobs"],
    "grpo": ["group_advantages", "grpo_loss", "kl_k3"],
    "hf": ["Mixture"],
    "mixing": ["contrastive", "dexperts", "mix_logits", "mix_probs", "product_of_experts"],
    "models": ["load_model", "load_policy", "load_tokenizer"],
    "rollout": ["rollout"],
    "tasks.load": ["load_task"],
    "tasks.rewards": ["boxed", "grade"],
    "recipe": ["train"],
}
HOME = {name: module for module, names in HOMES.items() for name in names}
__all__ = sorted(HOME)


def __getattr__(name: str):
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The functions rollout, train and evaluate share their names with submodules, and importing a submodule makes it
    an attribute of its package. Here the function stays what the name means."""

    def __setattr__(self, name: str, value) -> None:
        if not (name in HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
