"""Adapters on any architecture, models that moved, and files that do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_lora_pair, make_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from logitmix_lite.fast.lora import decoder_layers
from logitmix_lite.hf import Mixture
from logitmix_lite.models import add_lora, load_policy, locate, make_mixture
from logitmix_lite.rollout import rollout

SIZE = dict(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)
GATED = SIZE | dict(intermediate_size=24, num_key_value_heads=1, pad_token_id=0)


def small(arch: str):
    sizes = {
        "gpt2": SIZE, "gpt_neox": SIZE | dict(intermediate_size=24),
        "opt": SIZE | dict(ffn_dim=24, word_embed_proj_dim=8),
        "phi": GATED, "phi3": GATED, "glm": GATED | dict(head_dim=8), "llama": GATED, "mixtral": GATED,
    }  # fmt: skip
    config = AutoConfig.for_model(arch, **sizes[arch], initializer_range=0.4)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox", "opt", "phi", "phi3", "glm", "llama", "mixtral"])
def test_every_linear_layer_inside_the_layers_is_adapted(arch, blocks):
    model = small(arch)
    layers = decoder_layers(model)[-blocks:]
    linear = sum(isinstance(module, nn.Linear | Conv1D) for layer in layers for module in layer.modules())
    adapted = add_lora(model, 2, 4, blocks)
    found = [path for path, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert len(found) == linear > 0 and "lm_head" not in " ".join(found)
    mixture = Mixture([adapted], adapters=["theta", None])
    assert rollout(mixture, [[5, 6, 7]], samples=2, max_new_tokens=3).completions.shape[0] == 2


def test_an_adapter_finds_its_backbone_after_both_have_moved(tmp_path, monkeypatch):
    """Trained with a relative path; evaluated from elsewhere, and where the backbone is somewhere else now."""
    shutil.copytree(locate("tiny-base"), tmp_path / "one" / "base")
    monkeypatch.chdir(tmp_path / "one")
    mixture = make_mixture("base", "base", "base", 0.5, rank=2)
    mixture.save_pretrained(tmp_path / "final")
    monkeypatch.chdir("/")
    ids = torch.tensor([[3, 4, 5]])
    expected = load_policy(tmp_path / "final")(ids).logits
    (tmp_path / "one").rename(tmp_path / "two")
    assert torch.equal(load_policy(tmp_path / "final", base=str(tmp_path / "two" / "base"))(ids).logits, expected)
    for folder, name in ((tmp_path / "final", "config.json"), (tmp_path / "final" / "theta", "adapter_config.json")):
        text = (folder / name).read_text(encoding="utf-8").replace(str(tmp_path / "one" / "base"), "one/base")
        (folder / name).write_text(text, encoding="utf-8")  # as older versions wrote it
    assert torch.equal(load_policy(tmp_path / "final", base=str(tmp_path / "two" / "base"))(ids).logits, expected)


def test_an_adapter_without_a_base_asks_for_it(tmp_path):
    make_lora_pair().save_pretrained(tmp_path, selected_adapters=["theta"])
    path = tmp_path / "theta" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="does not say what it was trained on: name it by --base"):
        load_policy(tmp_path / "theta")


def test_an_adapter_of_another_width_is_refused_in_a_sentence(tmp_path):
    make_lora_pair(width=32).save_pretrained(tmp_path, selected_adapters=["theta"])
    with pytest.raises(ValueError, match="does not fit this model"):
        make_mixture(str(tmp_path / "theta"), "base", locate("tiny-base"), 0.5, rank=3)


def test_weights_that_were_cut_short_are_refused_in_a_sentence(tmp_path):
    shutil.copytree(locate("tiny-base"), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises((ValueError, OSError), match=str(Path("model"))) as found:
        load_policy(tmp_path / "model")
    assert "\n" not in str(found.value)


def test_weights_that_could_run_code_are_refused(tmp_path):
    shutil.copytree(locate("tiny-base"), tmp_path / "model")
    state = load_policy(tmp_path / "model").models[0].state_dict()
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="holds no ModelForCausalLM that loads"):
        load_policy(tmp_path / "model")


def test_a_tokenizer_larger_than_the_model_is_refused():
    with pytest.raises(ValueError, match="token 30, and the model knows 30"):
        rollout(make_model(vocab=30), [[5, 30]], max_new_tokens=2)
