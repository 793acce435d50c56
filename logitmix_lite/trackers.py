"""Metrics to where people look at them, through accelerate's trackers: TensorBoard, Weights & Biases, or Trackio."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

TRACKERS = ("tensorboard", "wandb", "trackio")


def check_tracker(name: str | None) -> None:
    """Raise ValueError for a tracker that is not known, or whose package is not installed. None: no tracker."""
    if name is not None and name not in TRACKERS:
        raise ValueError(f"unknown tracker {name!r}: --report-to takes one of {', '.join(TRACKERS)}")
    if name is not None and name not in map(str, get_available_trackers()):
        raise ValueError(f"--report-to {name} needs a package that is not installed: pip install {name}")


@contextmanager
def reporting(name: str | None, folder: Path, config: dict) -> Iterator[Callable[[dict], None]]:
    """Within the block, a function that passes a step's metrics on to the tracker.

    TensorBoard's files go to the run's folder; in the other two the run has the folder's name, in the project
    logitmix_lite. A run that goes on is to report its earlier steps again: what was seen of them is then replaced."""
    if name is None:
        yield lambda line: None
        return
    if name == "tensorboard":  # 0: forget what an earlier writer of these files said from step 0 on
        tracker = LOGGER_TYPE_TO_CLASS[name]("tensorboard", str(folder), purge_step=0)
    else:
        tracker = LOGGER_TYPE_TO_CLASS[name]("logitmix_lite", name=str(folder), config=config)
    tracker.start()
    try:
        yield lambda line: tracker.log(numbers(line), step=line["step"])
    finally:
        tracker.finish()


def numbers(line: dict) -> dict[str, float]:
    """What of a step's metrics can be drawn."""
    return {name: value for name, value in line.items() if isinstance(value, int | float) and name != "step"}
