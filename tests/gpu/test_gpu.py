"""What a GPU must show before anything is measured on it: seconds each, on small random models."""

import pytest
import torch
from conftest import make_mixture
from transformers import AutoConfig, AutoModelForCausalLM

from logitmix_lite.fast.decode import GraphDecoder
from logitmix_lite.grpo import group_advantages, grpo_loss
from logitmix_lite.hf import Mixture
from logitmix_lite.rollout import completion_logprobs, rollout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("kind", ["pair", "lora", "bare", "late"])
@pytest.mark.parametrize("rule", ["logit", "prob"])
def test_a_recorded_step_gives_the_rollouts_of_plain_steps(kind, arch, rule, monkeypatch):
    mixture = make_mixture(kind, rule=rule, arch=arch).cuda()
    settings = dict(samples=6, max_new_tokens=12, seed=3, eos=[1, 4], keep=True)
    replayed = rollout(mixture, PROMPTS, **settings)
    monkeypatch.setattr(GraphDecoder, "fits", lambda *_: False)
    usual = rollout(mixture, PROMPTS, **settings)
    assert torch.equal(replayed.completions, usual.completions)
    torch.testing.assert_close(replayed.logps, usual.logps, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["pair", "lora", "bare"])
def test_bfloat16_samples_and_scores_alike(kind):
    """The trainer's log-probs are the sampler's up to rounding of bfloat16, and finite."""
    mixture = make_mixture(kind, dtype="bfloat16", width=64).cuda()
    sampled = rollout(mixture, PROMPTS, samples=8, max_new_tokens=12, seed=3)
    args = sampled.prompt_ids, sampled.prompt_mask, sampled.completions, sampled.mask
    with torch.no_grad():
        gap = (completion_logprobs(mixture, *args) - sampled.logps).abs()
    assert gap.isfinite().all() and gap.mean() < 0.05  # single tokens of these wild weights may differ by more than 1


@pytest.mark.parametrize("recompute", [False, True])
def test_padding_gives_no_nan_gradient(recompute):
    """With heads of 64 numbers and a prompt half as long as another, cuDNN's attention gives nan: it is not used."""
    config = AutoConfig.for_model(
        "qwen2", vocab_size=300, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    mixture = Mixture([AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda().eval()])
    if recompute:
        mixture.gradient_checkpointing_enable()
    lengths = [81, 74, 64, 83, 82, 65, 77, 89, 155, 93]
    prompts = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device="cuda")
    seen = torch.arange(max(lengths), device="cuda") >= max(lengths) - torch.tensor(lengths, device="cuda")[:, None]
    completions = torch.randint(300, (len(lengths), 166), device="cuda")
    real = torch.arange(166, device="cuda") < torch.randint(39, 166, (len(lengths), 1), device="cuda")
    completion_logprobs(mixture, prompts, seen.long(), completions, real.long()).sum().backward()
    assert all(p.grad.isfinite().all() for p in mixture.parameters())


@pytest.mark.parametrize("recompute", [False, True])
def test_a_lora_step_in_bfloat16_raises_the_reward(recompute):
    """Ten steps that pay for one token make it likelier; only theta's adapter moves."""
    mixture = make_mixture("lora", dtype="bfloat16", width=64).cuda()
    theta = {name: p for name, p in mixture.named_parameters() if ".theta." in name}
    for name, p in mixture.named_parameters():
        p.requires_grad_(name in theta)
        if "lora_" in name:
            p.data = p.data.float()
    before = {name: p.detach().clone() for name, p in mixture.named_parameters()}
    if recompute:
        mixture.gradient_checkpointing_enable()
    optimizer, shares = torch.optim.AdamW(theta.values(), lr=1e-2), []
    for step in range(12):
        r = rollout(mixture, PROMPTS, samples=32, max_new_tokens=6, seed=step, eos=[])
        rewards = (r.completions == 7).float().mean(-1)
        shares.append(rewards.mean().item())
        advantages = group_advantages(rewards.view(-1, 32)).flatten()
        logp = completion_logprobs(mixture, r.prompt_ids, r.prompt_mask, r.completions, r.mask)
        grpo_loss(logp, r.logps, advantages, r.mask).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(shares[-3:]) > sum(shares[:3]) + 0.1
    for name, p in mixture.named_parameters():
        assert torch.equal(p, before[name]) != (name in theta), name
