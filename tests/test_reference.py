"""The package against tests/reference.py, which shares no code of the method with it: three steps of every method.

The package runs as a user runs it, with its caches, batches, microbatches, stacked adapters and ranks; the reference
has none of these."""

import socket
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import reference
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitmix_lite import load_preset, train
from logitmix_lite.runs import batch_indices, read_metrics
from logitmix_lite.sft import sft
from logitmix_lite.tasks import encode_prompt
from logitmix_lite.tasks.rewards import grade

TINY = Path(__file__).parents[1] / "data" / "tiny"
SEED = 1
# Two gradient steps a batch, so that the ratio leaves 1, and a clip so small that it acts. Adam divides by the
# gradient's size: where that is at rounding level, even its sign is a matter of chance, and a weight may differ by
# twice the learning rate a step. So the learning rate is small, and the size of the whole update is compared too.
SETTINGS = dict(
    task="chain-easy", dtype="float32", prompts=2, samples=3, steps=3, epochs=2, clip=0.002, temperature=1.5, lr=5e-5,
    beta=1.0, train_size=24, validation_size=2, test_size=4, max_new_tokens=34, eval_every=3, microbatch_tokens=100,
    max_grad_norm=0.5,
)  # fmt: skip
LORA = dict(lora_rank=4, lora_alpha=8, lr=1e-4)
METHODS = {
    "fixed": dict(),
    "adaptive": dict(adaptive=True),
    "prob": dict(rule="prob"),
    "grpo-kl": dict(mixes=False, beta=SETTINGS["beta"]),
    "grpo-anchor": dict(mixes=False),
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A LoRA anchor, as a user makes it."""
    preset = load_preset("tiny", **LORA, sft_steps=25, sft_demos=200, sft_batch=16, sft_lr=1e-2)
    return sft(preset, tmp_path_factory.mktemp("sft"))


def preset_of(adapter):
    """Two models where there is no adapter, else two adapters."""
    return load_preset("tiny", **SETTINGS | (LORA | {"anchor": str(adapter)} if adapter else {}))


def start(preset, adapter, mixes):
    """theta as it starts, and ref: two models that share nothing."""
    base = partial(AutoModelForCausalLM.from_pretrained, TINY / "base")
    if not adapter:
        return [AutoModelForCausalLM.from_pretrained(TINY / name) for name in ("base" if mixes else "anchor", "anchor")]
    ref = PeftModel.from_pretrained(base(), adapter).merge_and_unload()
    if not mixes:
        return PeftModel.from_pretrained(base(), adapter, is_trainable=True), ref
    torch.manual_seed(SEED)  # half of a fresh adapter is random
    config = LoraConfig(
        r=preset.lora_rank, lora_alpha=preset.lora_alpha, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    return get_peft_model(base(), config), ref


def run_reference(method, adapter):
    """Its metrics, and theta's weights before and after."""
    preset, how = preset_of(adapter), METHODS[method]
    task, tokenizer = preset.problems(), AutoTokenizer.from_pretrained(TINY / "base")

    def given(problems):
        return [(encode_prompt(tokenizer, p.question), p.answer) for p in problems]

    def reward(text, answer):
        return grade(tokenizer.decode(text, skip_special_tokens=True), answer).correct

    steps = range(1, preset.steps + 1)
    batches = [[task.train[k] for k in batch_indices(s, preset.prompts, len(task.train), SEED)] for s in steps]
    theta, ref = start(preset, adapter, how.get("mixes", True))
    before = weights_of(theta)
    lines = reference.train(
        theta.eval(), ref.eval(), list(map(given, batches)), given(task.validation), reward,
        settings=preset, ends=[tokenizer.eos_token_id], seed=SEED, **how,
    )  # fmt: skip
    return lines, before, weights_of(theta)


def weights_of(theta) -> dict:
    """What is trained, by the names that it has on disk."""
    names = {name: name.replace(".default.", ".") for name, p in theta.named_parameters() if p.requires_grad}
    return {names[name]: p.detach().clone() for name, p in theta.named_parameters() if name in names}


@pytest.fixture(scope="module")
def expected(adapter):
    """What the reference finds, once for each method and kind."""
    known = {}

    def find(method, kind):
        if (method, kind) not in known:
            known[method, kind] = run_reference(method, adapter if kind == "lora" else None)
        return known[method, kind]

    return find


def compare(folder, kind, expected):
    """A run of the package on disk, against the reference."""
    lines, before, after = expected
    found = read_metrics(folder)[1:]
    assert len(found) == len(lines) == SETTINGS["steps"]
    for ours, line in zip(found, lines, strict=True):
        assert ours["grad_norm"] > 1e-3 and ours["skipped"] == 0 and ours["frac_reward_zero_std"] < 1
        for name, value in line.items():
            near = pytest.approx(value, rel=1e-5, abs=1e-6 if name == "loss" else 1e-5)
            assert ours[name] == near, (name, ours["step"])
    path = "theta/adapter_model" if kind == "lora" else "member_0/model"
    weights = load_file(Path(folder) / "final" / f"{path}.safetensors")
    assert weights.keys() == after.keys()
    moved = apart = 0.0
    for name, weight in after.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5, msg=lambda text, name=name: name + text)
        moved += (weight - before[name]).double().square().sum().item()
        apart += (weights[name] - weight).double().square().sum().item()
    assert moved > 0 and (apart / moved) ** 0.5 < 1e-3


@pytest.mark.parametrize("kind", ["pair", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_three_steps_of_every_method(tmp_path, method, kind, adapter, expected):
    train(preset_of(adapter if kind == "lora" else None), method, tmp_path / "run", seed=SEED)
    compare(tmp_path / "run", kind, expected(method, kind))
    found = read_metrics(tmp_path / "run")[1:]
    assert any(0 < line["reward"] < 1 for line in found) and any(line["clip_fraction"] > 0 for line in found)
    if method == "grpo-kl":  # without KL the loss of the policy that sampled is 0: it tells nothing
        assert found[-1]["loss"] > 5e-6
    if method == "adaptive":
        assert len({line["alpha"] for line in found}) > 1 and any(line["gain"] > 0 for line in found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("method", ["fixed", "grpo-kl"])
def test_two_ranks_with_lora(tmp_path, method, adapter, expected):
    """The way that is recommended for large models: adapters, and a process for each GPU; here two over gloo."""
    settings = asdict(preset_of(adapter))
    used = [name for name in [*SETTINGS, *LORA, "anchor"] if name != "beta" or method == "grpo-kl"]
    flags = [f"--{name.replace('_', '-')}={settings[name]}" for name in used]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        f"--master-port={free_port()}", "-m", "logitmix_lite", "train", "--method", method, f"--seed={SEED}",
        f"--out={tmp_path / 'run'}", *flags,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    compare(tmp_path / "run", "lora", expected(method, "lora"))
