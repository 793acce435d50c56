"""Settings and fixtures for all tests: offline, without progress bars."""

import os
import tempfile
from pathlib import Path

import pytest
from browser import Browser, find_chromium

# Before anything imports transformers, datasets or tqdm, which read these once.
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets-")
os.environ["OMP_NUM_THREADS"] = "1"  # models this small are fastest so, above all beside other work


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger problem sets that may lie beside the checkout; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data beside the checkout")
    return folder


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, for modules that skip where there is none."""
    browser = Browser(find_chromium())
    yield browser
    browser.close()


ARCHITECTURES = ["llama", "qwen2", "qwen3", "gpt2"]


def make_model(arch="llama", seed=0, vocab=30, layers=2, dtype="float32", eos=1, pad=0, context=64, width=16):
    """A random model, small, whose weights are large enough that its predictions are far from flat."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    size = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=context)
    if arch != "gpt2":
        size |= dict(intermediate_size=24, num_key_value_heads=1, head_dim=8, tie_word_embeddings=arch == "qwen2")
    config = AutoConfig.for_model(
        arch, vocab_size=vocab, bos_token_id=None, eos_token_id=eos, pad_token_id=pad, initializer_range=0.4, **size
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def make_lora_pair(base=None, seed=0, blocks=None, **model):
    """A PEFT model with the adapters "theta" (rank 3) and "ref" (rank 2), neither of them zero, on these blocks."""
    import torch
    from peft import LoraConfig, get_peft_model


    gpt2 = model.get("arch") == "gpt2"
    llama = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    layers = ["c_attn", "c_proj", "c_fc"] if gpt2 else llama
    config = dict(target_modules=layers, layers_to_transform=blocks, task_type="CAUSAL_LM", fan_in_fan_out=gpt2)
    model = get_peft_model(base or make_model(seed=seed, **model), LoraConfig(r=3, lora_alpha=6, **config), "theta")
    model.add_adapter("ref", LoraConfig(r=2, lora_alpha=2, **config))
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model.eval()


def make_mixture(kind="pair", weights=(0.6, 0.4), rule="logit", **model):
    """A Mixture of two separate models ("pair"), of two adapters on all blocks ("lora") or on the last of two ("late"),
    or of one adapter and its backbone ("bare")."""
    from logitmix_lite.hf import Mixture

    if kind == "pair":
        return Mixture([make_model(seed=seed, **model) for seed in (0, 1)], weights, rule).eval()
    if kind == "late":
        model["blocks"] = [1]
    return Mixture([make_lora_pair(**model)], weights, rule, ["theta", None if kind == "bare" else "ref"]).eval()
