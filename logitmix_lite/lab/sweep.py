"""The grid of experiments: methods times seeds, each run in a folder and a process of its own."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event

from tqdm import tqdm

from ..config import Preset, check
from ..disk import own
from ..methods import named
from ..records import read_config, read_metrics
from ..runs import FREE

SETTINGS = "settings.json"  # in the folder of a grid: the fields of the preset that all its runs start from


def sweep(preset: Preset, methods: list[str], seeds: list[int], out: str | Path, jobs: int = 1) -> None:
    """Train with every method and seed, `jobs` runs at a time, each in a process of its own: `out/METHOD-seedN`.

    Runs that are finished are kept, runs that were cut short go on. A run that fails does not stop the others.
    Raises ValueError for an unknown method, a run there that was made with other settings, or another sweep there,
    before anything starts, and OSError where runs failed."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    # seed by seed: a grid that is stopped halfway has compared every method
    grid = {Path(out) / f"{name}-seed{seed}": (name, seed) for seed in seeds for name in methods}
    for folder, (name, _) in grid.items():
        check_same(preset, name, folder)
    todo = [folder for folder in grid if not (folder / "final").exists()]
    logs, stopped = Path(out) / "logs", Event()
    Path(out).mkdir(parents=True, exist_ok=True)
    _lock = own(Path(out))  # until this function ends
    logs.mkdir(exist_ok=True)
    settings = {field: value for field, value in asdict(preset).items() if field != "name"}
    (Path(out) / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), "TQDM_DISABLE": "1"}

    def work(folder: Path) -> int:
        if stopped.is_set():
            return 0
        words = command(preset.name, *grid[folder], folder)
        with (logs / f"{folder.name}.log").open("a", encoding="utf-8") as log:
            return subprocess.run(words, env=threads | dict(os.environ), stdout=log, stderr=log).returncode

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(grid) * (preset.steps + 1), unit="step") as bar:
        running = {folder: pool.submit(work, folder) for folder in todo}
        try:
            while True:
                over = all(run.done() for run in running.values())
                bar.n = sum(len(read_metrics(folder)) for folder in grid)
                done = sum((folder / "final").exists() for folder in grid)
                bar.set_postfix_str(f"{done} of {len(grid)} runs")
                if over:
                    break
                stopped.wait(2)
        except KeyboardInterrupt:  # the runs were interrupted too, and have kept their steps
            stopped.set()
            raise
    failed = [folder for folder, run in running.items() if run.result()]
    if failed:
        last = (logs / f"{failed[0].name}.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise OSError(f"{len(failed)} of {len(grid)} runs failed, first {failed[0].name}: {' '.join(last)}")


def command(preset: str, method: str, seed: int, folder: Path) -> list[str]:
    """The command line of one run of the grid."""
    words = [sys.executable, "-m", "logitmix_lite", "train", "--preset", preset, "--method", method]
    words += ["--settings", str(folder.parent / SETTINGS), "--seed", str(seed), "--out", str(folder)]
    return words + (["--resume"] if (folder / "config.json").exists() else [])


def check_same(preset: Preset, method: str, folder: Path) -> None:
    """Raise ValueError where the folder holds a run of other settings than the method would now have.

    A finished run must also be as long; one that was cut short may be made longer."""
    wanted, made = replace(preset, **named(method).settings), read_config(folder)
    check(wanted)
    free = {"name", *FREE} - ({"steps"} if (folder / "final").exists() else set())
    for name, value in asdict(wanted).items():
        if name not in free and made.get(name, value) != value:
            raise ValueError(f"{folder} was made with {name} = {made[name]!r}, not {value!r}: choose another --out")
