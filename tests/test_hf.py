"""A Mixture as a Hugging Face model: its loss, its arguments, and the members that it refuses."""

import json
import shutil

import pytest
import torch
from conftest import make_lora_pair, make_mixture, make_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import logitmix_lite.mixture
from logitmix_lite import hf
from logitmix_lite.hf import CACHE, Mixture
from logitmix_lite.models import locate
from logitmix_lite.rollout import completion_logprobs, rollout

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
PROMPTS = [[5, 6, 7], [8, 9]]


def test_labels_give_the_mean_cross_entropy_and_count_the_batch_of_a_trainer():
    """num_items_in_batch: a trainer that accumulates gradients divides by the tokens of all its batches."""
    mixture, labels = make_mixture(), IDS.clone()
    labels[0, :2] = -100
    out = mixture(input_ids=IDS, labels=labels)
    logp = out.logits[:, :-1].double().log_softmax(-1).gather(-1, IDS[:, 1:, None]).squeeze(-1)
    counted = labels[:, 1:] != -100
    assert out.loss.item() == pytest.approx(-logp[counted].mean().item(), rel=1e-5)
    shared = mixture(input_ids=IDS, labels=labels, num_items_in_batch=40).loss
    assert shared.item() == pytest.approx(-logp[counted].sum().item() / 40, rel=1e-5)
    shared.backward()
    assert all(p.grad is not None for p in mixture.models[0].parameters())
    assert all(p.grad is None for p in mixture.models[1].parameters())  # only theta is trained
    mixture = make_mixture(rule="prob")
    mixture(input_ids=IDS, labels=labels).loss.backward()
    assert all(p.grad is not None for p in mixture.models[0].parameters())
    assert all(p.grad is None for p in mixture.models[1].parameters())


def test_arguments_are_heeded_or_refused():
    mixture = make_mixture()
    with torch.no_grad():
        out = mixture(input_ids=IDS)
        logits = mixture(input_ids=IDS, return_dict=False)[0]
    assert torch.equal(out.logits, logits)
    with pytest.raises(ValueError, match="no_grad"):
        mixture(input_ids=IDS[:, :1], **{CACHE: getattr(out, CACHE)})


def test_a_rule_that_cannot_be_is_refused_at_once():
    mixture = make_mixture()
    with pytest.raises(ValueError, match="unknown rule 'nonsense'"):
        mixture.rule = "nonsense"
    with pytest.raises(ValueError, match="contrastive rule takes"):
        mixture.rule = "contrastive"  # not with these weights
    assert mixture.rule == "logit" and mixture.weights == (0.6, 0.4)


class Largest(TorchDispatchMode):
    """The sizes of all tensors of two dimensions that are made."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dim() == 2 and "t.default" not in str(operation):
            self.shapes.add(tuple(out.shape))
        return out


def test_large_separate_heads_are_never_put_side_by_side(monkeypatch):
    """Same log-probs and gradients as side by side, without a matrix as wide as both."""
    found = {}
    for limit in (2**24, 0):
        monkeypatch.setattr(logitmix_lite.mixture, "ONE_PRODUCT", limit)
        mixture = make_mixture("pair")
        sampled = rollout(mixture, PROMPTS, samples=3, max_new_tokens=5)
        with Largest() as seen:
            logp = completion_logprobs(
                mixture, sampled.prompt_ids, sampled.prompt_mask, sampled.completions, sampled.mask
            )  # fmt: skip
            logp.sum().backward()
        found[limit] = [logp.detach(), *(p.grad for p in mixture.models[0].parameters())]
        assert ((30, 32) in seen.shapes) == (limit > 0)
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def copies(tmp_path, change) -> list[str]:
    """Two copies of tiny-base, the second with its tokenizer changed."""
    for name in ("one", "two"):
        shutil.copytree(locate("tiny-base"), tmp_path / name)
    path = tmp_path / "two" / "tokenizer.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    change(table)
    path.write_text(json.dumps(table), encoding="utf-8")
    return [str(tmp_path / name) for name in ("one", "two")]


def test_one_more_special_token_does_no_harm(tmp_path):
    def change(table):
        special = dict(content="<extra>", single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        table["added_tokens"].append(special | {"id": len(table["model"]["vocab"])})

    folders = copies(tmp_path, change)
    assert len(AutoTokenizer.from_pretrained(folders[1])) == len(AutoTokenizer.from_pretrained(folders[0])) + 1
    Mixture([AutoModelForCausalLM.from_pretrained(folder) for folder in folders])


def test_an_id_with_two_meanings_is_refused(tmp_path):
    def change(table):
        vocab = table["model"]["vocab"]
        vocab["1"], vocab["2"] = vocab["2"], vocab["1"]

    folders = copies(tmp_path, change)
    with pytest.raises(ValueError, match="different tokenizers: id .* is '[12]' and '[12]'"):
        Mixture([AutoModelForCausalLM.from_pretrained(folder) for folder in folders])


def test_tokenizers_are_read_once(monkeypatch):
    hf._tokens.cache_clear()
    members = [AutoModelForCausalLM.from_pretrained(locate(name)) for name in ("tiny-base", "tiny-anchor")]
    read, load = [], AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: read.append(a) or load(*a, **k))
    for _ in range(3):
        Mixture(members)
    Mixture(members[:1])
    assert len(read) == 2


@pytest.mark.parametrize("arch", ["falcon_h1", "modernbert-decoder", "gemma2", "cohere", "mamba"])
def test_heads_and_caches_of_another_kind_are_refused_when_the_mixture_is_made(arch):
    size = dict(vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    if arch not in ("modernbert-decoder", "mamba"):
        size |= dict(num_key_value_heads=1, head_dim=8)
    if arch == "falcon_h1":
        size |= dict(mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8, mamba_d_state=8, lm_head_multiplier=0.5)
    special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    try:
        config = AutoConfig.for_model(arch, **size, **special, initializer_range=0.4)
    except ValueError:
        pytest.skip(f"this transformers has no {arch}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="can't be mixed|can't be used"):
        Mixture([model])


def test_a_model_that_also_sees_is_mixed_by_its_text_part():
    """The sizes stand in the text's part of its config."""
    text = dict(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, pad_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    config.image_token_index = config.image_token_id = 39
    from transformers import Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    if model.base_model is model:
        with pytest.raises(ValueError, match="can't be mixed"):
            Mixture([model])
        pytest.skip("this transformers gives such a model no body of its own: refused")
    mixture = Mixture([model])
    assert mixture.config.num_hidden_layers == 2 and mixture.config.max_position_embeddings == 64
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        torch.testing.assert_close(mixture(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert rollout(mixture, PROMPTS, samples=2, max_new_tokens=4).completions.shape[0] == 4


def test_an_adapter_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no adapter named 'other': it has ref, theta"):
        Mixture([make_lora_pair()], adapters=["theta", "other"])
    with pytest.raises(ValueError, match="one PEFT model"):
        Mixture([make_model()], adapters=["theta"])
