"""A run is a folder: config.json, metrics.jsonl, checkpoint.pt, at the end grades.json and final/ with the model; on
request also completions.jsonl."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .disk import LOCK, load_whole, own, sync, told, write_whole
from .fingerprints import PACKAGES, hardware
from .records import read_config, read_metrics, to_json
from .watch import Diverged

# These may change when a run goes on: how long it is, how often it looks and saves, and what its computation takes of
# memory and processes (the results then agree up to rounding).
FREE = (
    "steps", "eval_every", "save_every", "microbatch_tokens", "eval_batch", "keep_ref_states",
    "checkpoint_activations",
)  # fmt: skip
COMPLETIONS = "completions.jsonl"
PATHS = ("base", "anchor", "init", "task", "data", "sft_task")  # what is there may move; it is known by its contents:
CONTENTS = {
    "problems": "problems (task, data)",
    "start": "weights that theta starts from (base, init)",
    "frozen": "frozen weights (anchor, and under LoRA base)",
}


class Run:
    """Writes a run so that it can be killed at any moment and resumed: what is on disk is always a whole step.

    main: of several processes, whether this is the one that writes.
    config: everything that decides the result; resuming with another one is refused, up to what is `FREE`, and where
    the config has `contents` also up to the `PATHS`.
    `with Run(...) as run:` lets go of the folder when the run ends, however it ends.
    Raises ValueError where the folder holds another run, or none to resume, or where another process writes it."""

    def __init__(self, out: str | Path, config: dict, resume: bool = False, main: bool = True):
        self.folder, self.main = Path(out), main
        self.checkpoint, self.before = self.folder / "checkpoint.pt", self.folder / "checkpoint-before.pt"
        self.metrics, self.final = self.folder / "metrics.jsonl", self.folder / "final"
        self.completions = self.folder / COMPLETIONS
        self.lines: list[str] = []  # of the metrics, as they stand in the file; each checkpoint holds them too
        self.newest: Path | None = None  # whole checkpoint
        if not main:
            return
        path = self.folder / "config.json"
        if resume and not path.exists():
            raise ValueError(f"{self.folder} holds no run to resume (no config.json)")
        if not resume and self.folder.exists():
            leftovers = {LOCK, "config.json.tmp"}  # of a run that died before it had begun
            if not self.folder.is_dir() or {file.name for file in self.folder.iterdir()} - leftovers:
                raise ValueError(f"{self.folder} is not empty: choose another --out, or go on with it by --resume")
        made_by = {"versions": {name: version(name) for name in PACKAGES}, "hardware": hardware()}
        if resume:
            made_by = self._check_same(config)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = own(self.folder)
        write_whole(path, to_json(config | made_by, indent=2) + "\n")

    def _check_same(self, config: dict) -> dict:
        """Refuse another config than the saved one, and fewer steps than were done; return what is saved beside it."""
        saved = read_config(self.folder)
        known = CONTENTS.keys() <= saved.keys() & config.keys()  # a run of an older version is known by its paths
        for name, value in json.loads(to_json(config)).items():  # as JSON gives them back
            if name in FREE or (name in PATHS and known) or (name in CONTENTS and name not in saved):
                continue
            if saved.get(name) != value and name in CONTENTS:
                raise ValueError(
                    f"{self.folder} was started with other {CONTENTS[name]}, {name} in its config: "
                    "give it those it had, or choose another --out"
                )
            if saved.get(name) != value:
                raise ValueError(f"{self.folder} was started with {name} = {saved.get(name)!r}, not {value!r}")
        done = 0
        with suppress(ValueError):  # broken metrics are written anew from the checkpoint
            done = max((line["step"] for line in read_metrics(self.folder)), default=0)
        if config.get("steps", done) < done:
            raise ValueError(f"{self.folder} has done {done} steps already, more than {config['steps']}")
        return {name: value for name, value in saved.items() if name not in config}

    def restore(self, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict:
        """Put back the last whole checkpoint and return its `step`, its `lines` of metrics and what else was saved;
        step -1 where there is none. The metrics become those that it holds."""
        state = {"step": -1, "lines": []}
        for path in (self.checkpoint, self.before):
            if not path.exists():
                continue
            try:
                state = load_whole(path, parameters)
                self.newest = path
                break
            except (OSError, MemoryError):  # it could not be read: that tells nothing about it
                raise
            except Exception as error:  # each way of being cut short raises its own kind
                if self.main:
                    why = str(error).partition("\n")[0] or type(error).__name__
                    print(f"{path} is not whole ({why}): going on from what was saved before it")
        if self.newest:
            optimizer.load_state_dict(state["optimizer"])
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(state["parameters"][name])
            torch.set_rng_state(state["random"])
        if "lines" not in state:  # an older version's
            state["lines"] = [to_json(line) for line in read_metrics(self.folder) if line["step"] <= state["step"]]
        self.lines = state["lines"]
        if self._writes():
            write_whole(self.metrics, "".join(line + "\n" for line in self.lines))
            if self.completions.exists():  # without those of steps that are now taken again
                kept = [row for row in read_metrics(self.folder, COMPLETIONS) if row["step"] <= state["step"]]
                write_whole(self.completions, "".join(to_json(row, ensure_ascii=False) + "\n" for row in kept))
        spent = ("parameters", "optimizer", "random")  # as large as the model: not to be held for the whole run
        return {k: v for k, v in state.items() if k not in spent} | {"lines": [json.loads(x) for x in self.lines]}

    def save(self, step: int, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, **more) -> None:
        """Write a checkpoint; the last one stays beside it. If that fails, both that were there stay whole.

        Raises Diverged where a parameter is not finite: no checkpoint ever holds NaN."""
        if not self._writes():
            return
        tensors = {name: parameter.detach() for name, parameter in parameters.items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            good = f"{self.newest} is the last good checkpoint" if self.newest else "no checkpoint was written"
            raise Diverged(f"stopped: weights are NaN or infinite after step {step}; {good}. Try a lower learning rate")
        state = {"step": step, "parameters": tensors, "optimizer": optimizer.state_dict(), **more}
        state |= {"lines": self.lines, "random": torch.get_rng_state()}
        keep = self.before if self.newest == self.checkpoint else None  # else it is no whole one, or none
        write_whole(self.checkpoint, lambda tmp: torch.save(state, tmp), keep)
        self.newest = self.checkpoint

    def log(self, line: dict) -> None:
        """Append one step's metrics."""
        if not self._writes():
            return
        self.lines.append(to_json(line))
        with told(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(self.lines[-1] + "\n")

    def log_completions(self, rows: list[dict]) -> None:
        """Append some of one step's completions."""
        if self._writes():
            with told(self.completions), self.completions.open("a", encoding="utf-8") as file:
                file.writelines(to_json(row, ensure_ascii=False) + "\n" for row in rows)

    def write(self, name: str, content: dict) -> None:
        """Write a JSON file of the run, whole or not at all."""
        if self._writes():
            write_whole(self.folder / name, to_json(content) + "\n")

    def finish(self, *savers: Callable[[Path], object]) -> None:
        """Write final/ by calling each of `savers` with a folder, all or nothing. Nothing more can be written then."""
        if not self._writes():
            return
        unfinished = self.folder / "final.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        with told(self.final):
            unfinished.mkdir()
            for saver in savers:
                saver(unfinished)
            for file in unfinished.rglob("*"):
                sync(file)
            shutil.rmtree(self.final, ignore_errors=True)
            unfinished.rename(self.final)
            sync(self.folder)
        self.lock.release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        """However it ends, the folder then has no owner: a notebook that goes on does not keep it."""
        if self.main:
            self.lock.release()

    def _writes(self) -> bool:
        if self.main and not self.lock.is_locked:
            raise ValueError(f"{self.folder} is finished, or was opened by a later Run of this process: open it again")
        return self.main


def batch_indices(step: int, size: int, total: int, seed: int) -> list[int]:
    """Which of `total` items step number `step` (from 1) uses: each epoch is a fresh shuffle.

    A function of step and seed alone, so a resumed run sees the same data."""
    places = range((step - 1) * size, step * size)
    shuffles = {
        epoch: np.random.default_rng([seed, epoch]).permutation(total) for epoch in {p // total for p in places}
    }
    return [int(shuffles[p // total][p % total]) for p in places]
