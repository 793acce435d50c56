"""What a run is known by: the contents of its problems and weights, wherever they lie, and what computed it."""

import hashlib
import json
import platform

import torch
from torch import Tensor, nn

PACKAGES = ("torch", "transformers", "peft", "numpy")  # whose versions a run records


def contents(model: nn.Module, task) -> dict[str, str]:
    """What the paths of a run stand for, for its config: fingerprints of problems, of theta's start and of the rest."""
    start = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p for name, p in start.items() if "lora_A" not in name}  # random, so the seed stands for it
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return {"problems": problems_fingerprint(task), "start": fingerprint(start), "frozen": fingerprint(frozen)}


def problems_fingerprint(task) -> str:
    """SHA-256 of a task's problems, in order, and of their instruction."""
    splits = [[(p.question, p.answer, p.solution) for p in split] for split in (task.train, task.validation, task.test)]
    return hashlib.sha256(json.dumps([task.instruction, splits]).encode()).hexdigest()


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors: tells whether a reference is still the one that the run started with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def hardware() -> str:
    """What computes: the GPU's name, or the kind of CPU and its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    kind = torch.backends.cpu.get_cpu_capability()
    return f"CPU, {platform.machine()} with {kind}, {torch.get_num_threads()} threads"
