"""What a run's folder says about it, read with the standard library alone; `runs.Run` writes it."""

import json
from pathlib import Path


def read_config(folder: str | Path) -> dict:
    """A run's config.json; empty where there is none."""
    path = Path(folder) / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_metrics(folder: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl; a last line that was cut short by a crash is left out."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError:
        return [json.loads(line) for line in lines[:-1]]


def check_new(path: str | Path) -> Path:
    """The path of a file or folder to be written, known to be possible before hours of work and not only after them.

    Raises ValueError where something is there already, OSError where nothing can be written."""
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} is there already: choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(exist_ok=False)
    path.unlink()
    return path
