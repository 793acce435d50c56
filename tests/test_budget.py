"""The calculator against what a run really allocates."""

import pytest
import torch
from torch.profiler import profile
from transformers import AutoConfig, AutoModelForCausalLM

from logitmix_lite import Mixture, rollout
from logitmix_lite.hf import CACHE
from logitmix_lite.lab.budget import Plan, adapter_parameters, cache_bytes, parameters
from logitmix_lite.models import add_lora
from logitmix_lite.rollout import completion_logprobs

SIZES = dict(hidden_size=192, num_hidden_layers=6, num_attention_heads=6, vocab_size=3000, tie_word_embeddings=True)
CONFIGS = {
    "llama": AutoConfig.for_model("llama", **SIZES, intermediate_size=512, num_key_value_heads=3),
    "qwen2": AutoConfig.for_model("qwen2", **SIZES, intermediate_size=1024, num_key_value_heads=2),
}
ROWS, SAMPLES, PROMPT, NEW = 48, 8, 20, 40


def peak(work) -> int:
    """Largest sum of what `work` allocates and has not freed yet, in bytes."""
    with profile(profile_memory=True) as record:
        work()
    live = top = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            top = max(top, live)
    return top


def pair(config, rank, blocks=0) -> Mixture:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    if not rank:
        ref = AutoModelForCausalLM.from_config(config).requires_grad_(False)
        return Mixture([base, ref], [0.5, 0.5])
    model = add_lora(base, rank, 32, blocks)
    model.add_adapter("ref", model.peft_config["theta"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".theta." in name)
    return Mixture([model], [0.5, 0.5], adapters=["theta", "ref"])


@pytest.mark.parametrize(
    "kind, rank, blocks, checkpoint",
    [("llama", 8, 0, False), ("llama", 0, 0, True), ("qwen2", 8, 0, True), ("qwen2", 0, 0, False),
     ("llama", 8, 2, False), ("qwen2", 8, 2, True)],
)  # fmt: skip
def test_memory_is_right_within_15_percent(kind, rank, blocks, checkpoint):
    mixture = pair(CONFIGS[kind], rank, blocks)
    plan = Plan(
        CONFIGS[kind], ROWS, SAMPLES, PROMPT, NEW, ROWS * NEW, rank, blocks, torch.float32, checkpoint=checkpoint
    )
    held = plan.memory()
    weights = sum(p.numel() * 4 for name, p in mixture.named_parameters() if "lora_" not in name)
    assert weights == held["weights"]
    prompts, made = torch.randint(1, 3000, (ROWS // SAMPLES, PROMPT)).tolist(), []

    def sample():
        made.append(rollout(mixture, prompts, samples=SAMPLES, max_new_tokens=NEW, eos=[], pad=0, keep=True))

    sampling = held["caches"] + held["drawing tokens"] + held["kept states"]
    assert peak(sample) == pytest.approx(sampling, rel=0.15)
    if checkpoint:
        mixture.gradient_checkpointing_enable()
    [r] = made
    place = torch.arange(ROWS) // SAMPLES

    def learn():
        logp = completion_logprobs(
            mixture, r.prompt_ids, r.prompt_mask, r.completions, r.mask, prompt_of=place, kept=r.kept
        )  # fmt: skip
        logp.sum().backward()

    learn()  # the gradients stay; they count under training theta
    assert peak(learn) == pytest.approx(held["activations"], rel=0.15)


def kept_for_backward(config, rank: int, dtype: torch.dtype, rows: int = 2, length: int = 64) -> float:
    """Bytes a token that autograd keeps of a model without its head, in a pass over rows with a padded token each."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    body = (add_lora(model, rank, rank) if rank else model).get_decoder()
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def count(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    mask = torch.ones(rows, length, dtype=torch.long)
    mask[:, 0] = 0  # with a mask, keys and values are repeated for all heads, as they are beside a prompt's
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        out = body(torch.ones_like(mask), attention_mask=mask, use_cache=False)  # what is kept must stay alive
    assert out.last_hidden_state.requires_grad
    return sum(size for place, size in kept.items() if place not in weights) / mask.numel()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_a_layer_keeps_for_its_backward_pass(kind, rank, dtype):
    sizes = dict(SIZES, num_key_value_heads=2, intermediate_size=640)
    one, two = (
        kept_for_backward(AutoConfig.for_model(kind, **sizes | {"num_hidden_layers": layers}), rank, dtype)
        for layers in (2, 3)
    )
    plan = Plan(AutoConfig.for_model(kind, **sizes), prompt=0, rank=rank, dtype=dtype)
    assert plan.layer_activations() == pytest.approx(two - one, rel=0.02)


def test_prompts_are_read_once_for_all_their_samples_and_kept_by_each():
    config = CONFIGS["qwen2"]
    alone, beside = (Plan(config, prompt=prompt, new=100, samples=4, rank=0).layer_activations() for prompt in (0, 50))
    assert beside == alone * (1 + 50 / 400) + 2 * config.hidden_size * 2 * 0.5


@pytest.mark.parametrize("kind", CONFIGS)
def test_counts_of_weights_and_caches(kind):
    config = CONFIGS[kind]
    mixture = pair(config, 8)
    assert adapter_parameters(config, 8) == sum(p.numel() for p in mixture.parameters() if p.requires_grad)
    plain = AutoModelForCausalLM.from_config(config)
    assert parameters(config) == sum(p.numel() for p in plain.parameters())
    out = plain(torch.zeros(1, 1, dtype=torch.long), use_cache=True)
    stored = sum(x.nbytes for layer in out[CACHE].layers for x in (layer.keys, layer.values))
    assert cache_bytes(config, torch.float32) == stored
