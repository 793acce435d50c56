"""LoRA policies on one backbone: what PEFT's model does by itself stays as it was, and nothing is shared in silence."""

import pytest
import torch
from conftest import make_lora_pair, make_mixture, make_model
from peft import LoraConfig, get_peft_model

from logitmix_lite.hf import Mixture
from logitmix_lite.rollout import completion_logprobs, rollout

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
PROMPTS = [[5, 6, 7], [8, 9]]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_the_peft_model_stays_the_users():
    """Its adapters switch, and can be disabled, after mixtures were made of it and have run."""
    model = make_lora_pair()
    expected = {}
    for name in ("theta", "ref"):
        model.set_adapter(name)
        expected[name] = logits(model)
    with model.disable_adapter():
        bare = logits(model)
    model.set_adapter("ref")
    mixture = Mixture([model], adapters=["theta", "ref"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".theta." in name)
    rollout(mixture, PROMPTS, samples=2, max_new_tokens=4)
    mixture(input_ids=IDS).logits.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".theta." in name)
    assert model.active_adapters == ["ref"] and torch.equal(logits(model), expected["ref"])
    for name in ("theta", "ref"):
        model.set_adapter(name)
        assert torch.equal(logits(model), expected[name])
    with model.disable_adapter():
        assert torch.equal(logits(model), bare)
    assert not any("forward" in vars(module) for module in model.modules())


def test_two_mixtures_on_one_model_do_not_disturb_each_other():
    model = make_lora_pair()
    kinds = [dict(weights=[0.3, 0.7], adapters=["theta", "ref"]), dict(adapters=["ref"])]
    together = [Mixture([model], **kind) for kind in kinds]
    apart = [Mixture([make_lora_pair()], **kind) for kind in kinds]
    for _ in range(2):
        for mixture, alone in zip(together, apart, strict=True):
            with torch.no_grad():
                torch.testing.assert_close(mixture(input_ids=IDS).logits, alone(input_ids=IDS).logits)
            drawn = [rollout(m, PROMPTS, samples=2, max_new_tokens=5, seed=3).completions for m in (mixture, alone)]
            assert torch.equal(*drawn)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_other_passes_between_forward_and_a_recomputing_backward(arch):
    """A rollout, a pass of ref and another mixture's pass come between; the gradient is that without recomputation."""

    def gradient(recompute: bool):
        mixture = make_mixture("lora", arch=arch)
        for name, parameter in mixture.named_parameters():
            parameter.requires_grad_(".theta." in name)
        sampled = rollout(mixture, PROMPTS, samples=2, max_new_tokens=5, seed=3)
        args = sampled.prompt_ids, sampled.prompt_mask, sampled.completions, sampled.mask
        if recompute:
            mixture.gradient_checkpointing_enable()
        logp = completion_logprobs(mixture, *args)
        if recompute:
            rollout(mixture, PROMPTS, samples=2, max_new_tokens=5)
            with mixture.using((0, 1)):
                completion_logprobs(mixture, *args)
            logits(Mixture([mixture.members[0]], adapters=["ref"]))
        logp.sum().backward()
        return {name: p.grad for name, p in mixture.named_parameters() if ".theta." in name}

    plain, recomputed = gradient(False), gradient(True)
    assert any(grad.abs().sum() > 0 for grad in plain.values())
    for name, grad in plain.items():
        torch.testing.assert_close(recomputed[name], grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_asked_for_by_its_hugging_face_name_keeps_the_prompts(use_reentrant):
    mixture = make_mixture("pair")
    sampled = rollout(mixture, PROMPTS, samples=2, max_new_tokens=5, seed=3)
    args = sampled.prompt_ids, sampled.prompt_mask, sampled.completions, sampled.mask
    mixture.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for model in mixture.models:
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    mixture.train()
    logp = completion_logprobs(mixture, *args)
    torch.testing.assert_close(logp, sampled.logps, atol=1e-5, rtol=1e-5)
    assert mixture.training  # as it was


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (dict(target_modules=["embed_tokens"]), "embed_tokens is not a plain linear layer"),
        (dict(target_modules=["lm_head"]), "lm_head is outside"),
        (dict(target_modules=["q_proj", "lm_head"]), "lm_head is outside"),
        (dict(target_modules=["q_proj"], modules_to_save=["lm_head"]), "lm_head is trained beside LoRA"),
        (dict(target_modules=["q_proj"], trainable_token_indices=[3]), "embed_tokens is trained beside LoRA"),
        (dict(target_modules=["q_proj"], bias="all"), "bias 'all'"),
        (dict(target_modules=["q_proj"], lora_bias=True), "q_proj is not a plain linear layer"),
        (dict(target_modules=["q_proj"], use_dora=True), "q_proj is not a plain linear layer"),
        (dict(target_modules=["q_proj"], target_parameters=["mlp.gate_proj.weight"]), "not a plain linear layer"),
    ],
)  # fmt: skip
def test_what_policies_would_share_is_refused(config, match):
    model = get_peft_model(make_model(), LoraConfig(r=2, task_type="CAUSAL_LM", **config), "theta")
    with pytest.raises(ValueError, match=match):
        Mixture([model], adapters=["theta", None])


def test_fused_experts_are_refused():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=30, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    experts = [name for name, _ in model.named_parameters() if "experts" in name and name.endswith("gate_up_proj")]
    if not experts:
        pytest.skip("this transformers keeps experts apart, as plain linear layers")
    names = [name.split("layers.0.")[1] for name in experts if "layers.0." in name]
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], target_parameters=names), "theta")
    with pytest.raises(ValueError, match="not a plain linear layer"):
        Mixture([model], adapters=["theta", None])
