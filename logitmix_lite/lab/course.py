"""What the notebooks of the course share: how each begins, and how an exercise is checked."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers.utils import logging

from ..models import DATA
from .plots import use_style


def start_notebook() -> Path:
    """Set one thread (recorded numbers must not depend on the machine's cores) and the figures' style, hide progress
    bars and warnings of what other packages will change, and return the folder of recorded results.

    Raises FileNotFoundError where the repository's data is missing."""
    results = DATA / "results"
    if not results.is_dir() or not (DATA / "tiny").is_dir():
        raise FileNotFoundError(
            f"the course's data (models and recorded runs) is not in {DATA}: it is part of the repository and not of "
            "the installed package, so clone the repository and run `pip install -e .` in it"
        )
    torch.set_num_threads(1)
    use_style()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    return results


def exercise(number: int, right, wrong: Mapping[str, object], otherwise: str) -> Callable[[object], str]:
    """A check of an exercise: a function from an answer (a tensor, a number, or None: not yet) to what to say of it.

    wrong: what the likely mistakes give, by what to say of each. otherwise: said of any other answer."""

    def check(answer) -> str:
        if answer is None:
            return f"exercise {number}: not solved yet"
        answer = torch.as_tensor(answer).double()
        for words, value in {"right": right, **wrong}.items():
            value = torch.as_tensor(value).double()
            if answer.shape == value.shape and torch.allclose(answer, value, atol=1e-4):
                return f"exercise {number}: {words}"
        return f"exercise {number}: {otherwise}"

    return check
