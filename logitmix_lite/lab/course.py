"""What every notebook of the course begins with."""

import warnings
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
