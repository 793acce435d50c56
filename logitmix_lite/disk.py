"""Files that are written whole or not at all, and folders that one process writes at a time."""

import os
import platform
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

LOCK = "run.lock"
_held: WeakValueDictionary[Path, FileLock] = WeakValueDictionary()  # the locks of this process


def write_whole(path: Path, content: str | Callable[[Path], object], keep: Path | None = None) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never half of one.

    content: a text, or what writes the file whose path it is given. keep: where the old file goes."""
    tmp = path.with_suffix(path.suffix + ".tmp")
    write = content if callable(content) else lambda tmp: tmp.write_text(content, encoding="utf-8")
    with told(path):
        try:
            tmp.unlink(missing_ok=True)  # it could be a link to anywhere
            write(tmp)
            sync(tmp)
            if keep:
                path.replace(keep)
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what a full disk raises into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter two are torch's and safetensors'
        said = str(error).partition("\n")[0] or type(error).__name__
        raise OSError(f"could not write {path} ({said}); what was there before is untouched, free some space") from None


def own(folder: Path) -> FileLock:
    """Lock a folder until this process dies or calls `release`; ValueError where another process has it.

    In one process the newer owner wins: in a notebook, the run whose cell was interrupted never let go."""
    path = folder.resolve() / LOCK
    if path in _held:
        _held.pop(path).release(force=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = "another process"
        with suppress(OSError):  # Windows lets nobody read a locked file
            owner = path.read_text(encoding="utf-8", errors="replace")[:100].strip() or owner
        raise ValueError(f"{folder} is being written by {owner}: wait for it, or stop it and then --resume") from None
    with suppress(OSError):
        path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
    _held[path] = lock
    return lock


def load_whole(path: Path, parameters: dict[str, Tensor]) -> dict:
    """A checkpoint that is whole and of these parameters; else an exception. Nothing in the file is run as code."""
    with zipfile.ZipFile(path) as archive:  # what torch.save writes; torch.load itself checks no sums
        if archive.testzip():
            raise ValueError("its check sums are wrong")
    state = torch.load(path, map_location="cpu", weights_only=True)
    shapes, wanted = ({name: t.shape for name, t in kind.items()} for kind in (state["parameters"], parameters))
    if shapes != wanted or not isinstance(state["step"], int):
        raise ValueError("it holds other parameters")
    return state
