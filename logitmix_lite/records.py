"""What a run's folder says about it, read with the standard library alone; `runs.Run` writes it."""

import json
import math
from pathlib import Path


def read_config(folder: str | Path) -> dict:
    """A run's config.json; empty where there is none. ValueError where it is no JSON object."""
    path = Path(folder) / "config.json"
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not the JSON object that a run writes there")
    return config


def read_metrics(folder: str | Path, name: str = "metrics.jsonl") -> list[dict]:
    """The lines of a run's metrics.jsonl or completions.jsonl; a last one that was cut short by a crash is left out.

    Raises ValueError where another line is no JSON object with a step."""
    path = Path(folder) / name
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    found = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
        elif number < len(texts):
            raise ValueError(f"{path}: line {number} is no metrics of a step: --resume writes the file anew")
    return found


def to_json(content: dict, **options) -> str:
    """JSON that every reader takes, on one line: NaN and infinities, which JSON has no words for, become null.

    Their names are listed under "not_finite"."""
    lost: list[str] = []
    cleaned = _finite(content, "", lost)
    return json.dumps(cleaned | ({"not_finite": lost} if lost else {}), allow_nan=False, **options)


def _finite(value, name: str, lost: list[str]):
    if isinstance(value, dict):
        return {key: _finite(item, f"{name}.{key}" if name else str(key), lost) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{name}.{k}", lost) for k, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        lost.append(name)
        return None
    return value


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
