"""The grid of experiments: arms (a method with its settings) times seeds, each run in a folder of its own."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Event

from tqdm import tqdm

from ..config import PRESETS, Preset, load_preset
from ..runs import FREE, read_config, read_metrics
from ..train import METHODS, check_flags


@dataclass(frozen=True)
class Arm:
    """One curve of a figure. settings: fields of the preset that it changes."""

    method: str
    label: str
    init: str | None = None
    settings: dict = field(default_factory=dict)


ARMS = {
    "fixed": Arm("fixed", "fixed mixing"),
    "fixed-0.25": Arm("fixed", "fixed mixing, alpha 0.25", settings={"alpha": 0.25}),
    "fixed-0.75": Arm("fixed", "fixed mixing, alpha 0.75", settings={"alpha": 0.75}),
    "adaptive": Arm("adaptive", "adaptive mixing"),
    "adaptive-steep": Arm("adaptive", "adaptive mixing, offset 0, scale 0.1", settings={"offset": 0.0, "scale": 0.1}),
    "prob": Arm("prob", "probability mixing"),
    "base-anchor": Arm("fixed", "fixed mixing, anchored by base", settings={"anchor": "base"}),
    "grpo-kl": Arm("grpo-kl", "KL-GRPO from the anchor"),
    "grpo-kl-0.01": Arm("grpo-kl", "KL-GRPO, beta 0.01", settings={"beta": 0.01}),
    "grpo-kl-0.1": Arm("grpo-kl", "KL-GRPO, beta 0.1", settings={"beta": 0.1}),
    "grpo-anchor": Arm("grpo", "GRPO without KL, from the anchor", init="anchor"),
    "grpo": Arm("grpo", "GRPO without KL, from base"),
    "wise-ft": Arm("grpo", "GRPO from averaged weights", init="average"),
}


def sweep(preset: Preset, arms: list[str], seeds: list[int], out: str | Path, jobs: int = 1) -> None:
    """Train every arm with every seed, `jobs` runs at a time, each in a process of its own: `out/ARM-seedN`.

    Runs that are finished are kept, runs that were cut short go on. A run that fails does not stop the others.
    Raises ValueError for an arm that does not exist, or a run there that was made with other settings, before anything
    starts, and OSError where runs failed."""
    for name in arms:
        if name not in ARMS:
            raise ValueError(f"unknown arm {name!r}: choose of {', '.join(ARMS)}, or `all`")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    # seed by seed: a grid that is stopped halfway has compared every arm
    grid = {Path(out) / f"{name}-seed{seed}": (name, seed) for seed in seeds for name in arms}
    commands = {folder: command(preset, *grid[folder], folder) for folder in grid}
    todo = [folder for folder in grid if not (folder / "final").exists()]
    logs, stopped = Path(out) / "logs", Event()
    logs.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), "TQDM_DISABLE": "1"}

    def work(folder: Path) -> int:
        if stopped.is_set():
            return 0
        with (logs / f"{folder.name}.log").open("a") as log:
            return subprocess.run(commands[folder], env=threads | dict(os.environ), stdout=log, stderr=log).returncode

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
        last = (logs / f"{failed[0].name}.log").read_text().strip().splitlines()[-1:]
        raise OSError(f"{len(failed)} of {len(grid)} runs failed, first {failed[0].name}: {' '.join(last)}")


def command(preset: Preset, name: str, seed: int, folder: Path) -> list[str]:
    """The command line that makes one run of the grid. A setting of the arm counts before one of the preset."""
    arm, default = ARMS[name], PRESETS[preset.name]
    chosen = {f.name: getattr(preset, f.name) for f in fields(Preset)[1:]}
    chosen = {field: value for field, value in chosen.items() if value != getattr(default, field)} | arm.settings
    how = METHODS[arm.method]
    for field_, used in (("alpha", how.mixes), ("beta", how.kl)):
        if not used:
            chosen.pop(field_, None)
    wanted, made = vars(load_preset(preset.name, **chosen)), read_config(folder)
    free = {"name", *FREE} - ({"steps"} if (folder / "final").exists() else set())
    for field_, value in wanted.items():
        if field_ not in free and made.get(field_, value) != value:
            raise ValueError(f"{folder} was made with {field_} = {made[field_]!r}, not {value!r}: choose another --out")
    check_flags(arm.method, chosen.get("alpha"), chosen.get("beta"))
    words = [sys.executable, "-m", "logitmix_lite", "train", "--preset", preset.name, "--method", arm.method]
    words += ["--seed", str(seed), "--out", str(folder)] + (["--init", arm.init] if arm.init else [])
    words += ["--resume"] if (folder / "config.json").exists() else []
    for field_, value in chosen.items():
        flag = field_.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict):
            words.append(f"--{flag}=" + "".join(f"{key}={','.join(values)}" for key, values in value.items()))
        else:
            words.append(f"--{flag}={value}")
    return words
