"""A run is a folder: config.json, metrics.jsonl, checkpoint.pt, at the end grades.json and final/ with the model."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# These may change when a run goes on: how long it is, how often it looks and saves, and what its computation takes of
# memory and processes (the results then agree up to rounding).
FREE = (
    "steps", "eval_every", "save_every", "microbatch_tokens", "eval_batch", "keep_ref_states",
    "checkpoint_activations",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "peft", "numpy")


class Run:
    """Writes a run so that it can be killed at any moment and resumed: what is on disk is always a whole step.

    main: of several processes, whether this is the one that writes.
    config: everything that decides the result; resuming with another one is refused, up to what is `FREE`.
    Raises ValueError where the folder holds another run, or none to resume."""

    def __init__(self, out: str | Path, config: dict, resume: bool = False, main: bool = True):
        self.folder, self.main = Path(out), main
        self.checkpoint, self.final = self.folder / "checkpoint.pt", self.folder / "final"
        self.metrics = self.folder / "metrics.jsonl"
        path = self.folder / "config.json"
        if not main:
            return
        made_by = {"versions": {name: version(name) for name in PACKAGES}, "hardware": hardware()}
        if resume:
            made_by = self._check_same(path, config)
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder} is not empty: choose another --out, or go on with that run by --resume")
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(path, lambda tmp: tmp.write_text(json.dumps(config | made_by, indent=2) + "\n"))

    def _check_same(self, path: Path, config: dict) -> dict:
        """Refuse another config than the saved one, and fewer steps than were done; return what is saved beside it."""
        if not path.exists():
            raise ValueError(f"{self.folder} holds no run to resume (no config.json)")
        saved = json.loads(path.read_text())
        for name, value in json.loads(json.dumps(config)).items():  # as JSON gives them back
            if name not in FREE and saved.get(name) != value:
                raise ValueError(f"{self.folder} was started with {name} = {saved.get(name)!r}, not {value!r}")
        done = max((line["step"] for line in read_metrics(self.folder)), default=0)
        if config.get("steps", done) < done:
            raise ValueError(f"{self.folder} has done {done} steps already, more than {config['steps']}")
        return {name: value for name, value in saved.items() if name not in config}

    def restore(self, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict:
        """Put back the last checkpoint and return its `step` and what else was saved; step -1 where there is none.

        Later lines of the metrics, of steps that died before their checkpoint, are dropped."""
        if not self.checkpoint.exists():
            self._keep_metrics(-1)
            return {"step": -1}
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state["parameters"][name])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self._keep_metrics(state["step"])
        return state

    def save(self, step: int, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, **more) -> None:
        """Replace the checkpoint. If that fails, the old one stays whole."""
        if not self.main:
            return
        tensors = {name: parameter.detach() for name, parameter in parameters.items()}
        state = {"step": step, "parameters": tensors, "optimizer": optimizer.state_dict(), **more}
        state["random"] = torch.get_rng_state()
        _replace(self.checkpoint, lambda tmp: torch.save(state, tmp))

    def log(self, line: dict) -> None:
        """Append one step's metrics."""
        if not self.main:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write(self, name: str, content: dict) -> None:
        """Write a JSON file of the run, whole or not at all."""
        if self.main:
            _replace(self.folder / name, lambda tmp: tmp.write_text(json.dumps(content) + "\n"))

    def finish(self, *savers: Callable[[Path], object]) -> None:
        """Write final/ by calling each of `savers` with a folder, all or nothing."""
        if not self.main:
            return
        unfinished = self.folder / "final.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for saver in savers:
            saver(unfinished)
        shutil.rmtree(self.final, ignore_errors=True)
        unfinished.rename(self.final)

    def _keep_metrics(self, last_step: int) -> None:
        if not self.main:
            return
        lines = [line for line in read_metrics(self.folder) if line["step"] <= last_step]
        _replace(self.metrics, lambda tmp: tmp.write_text("".join(json.dumps(line) + "\n" for line in lines)))


def hardware() -> str:
    """What computes: the GPU's name, or the kind of CPU and its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    kind = torch.backends.cpu.get_cpu_capability()
    return f"CPU, {platform.machine()} with {kind}, {torch.get_num_threads()} threads"


def read_config(folder: str | Path) -> dict:
    """A run's config.json; empty where there is none."""
    path = Path(folder) / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def read_metrics(folder: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl; a last line that was cut short by a crash is left out."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError:
        return [json.loads(line) for line in lines[:-1]]


def batch_indices(step: int, size: int, total: int, seed: int) -> list[int]:
    """Which of `total` items step number `step` (from 1) uses: each epoch is a fresh shuffle.

    A function of step and seed alone, so a resumed run sees the same data."""
    places = range((step - 1) * size, step * size)
    shuffles = {
        epoch: np.random.default_rng([seed, epoch]).permutation(total) for epoch in {p // total for p in places}
    }
    return [int(shuffles[p // total][p % total]) for p in places]


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors: tells whether a reference is still the one that the run started with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never half of one."""
    tmp = path.with_suffix(path.suffix + ".tmp")
    try:
        write(tmp)
        with tmp.open("rb") as file:
            os.fsync(file.fileno())
        tmp.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        tmp.unlink(missing_ok=True)
        raise OSError(
            f"could not write {path} ({error}); what was there before is untouched, free some space"
        ) from None
