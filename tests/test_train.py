"""The loop: invariants of the method, resuming bit for bit, and what a run writes. All on the shipped tiny models."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from logitmix_lite import load_policy, load_preset, train
from logitmix_lite.grpo import group_advantages
from logitmix_lite.hf import Mixture
from logitmix_lite.methods import METHODS
from logitmix_lite.models import load_model, load_tokenizer, locate, make_mixture
from logitmix_lite.ranks import Ranks
from logitmix_lite.rollout import rollout
from logitmix_lite.runs import Run, read_config, read_metrics
from logitmix_lite.schedules import Fixed
from logitmix_lite.sft import fit, sft
from logitmix_lite.tasks import encode_demo, encode_prompt, load_task
from logitmix_lite.train import Trainer

SMALL = dict(prompts=4, samples=4, steps=3, test_size=8, validation_size=8, eval_every=3, max_new_tokens=64)
ANCHOR = Path(locate("tiny-anchor")) / "model.safetensors"
ALWAYS = {"step", "reward", "format_rate", "alpha", "loss", "entropy", "kl", "tokens", "seconds", "logp_gap"}


QUICK = SMALL | dict(prompts=2, samples=2, steps=2, eval_every=2, test_size=2, validation_size=2)


def small(**changes):
    return load_preset("tiny", **(SMALL | changes))


def quick(**changes):
    """For tests of what surrounds the steps."""
    return load_preset("tiny", **(QUICK | changes))


def theta(folder) -> dict:
    weights = load_file(Path(folder) / "final" / "member_0" / "model.safetensors")
    assert weights
    return weights


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def untimed(folder) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in read_metrics(folder)]


def trainer(tmp_path, method="fixed", **changes) -> Trainer:
    preset, how = small(**changes), METHODS[method]
    schedule, beta = how.schedule.of(preset) if how.mixes else Fixed(0.0), preset.beta if how.kl else 0.0
    mixture = make_mixture(
        preset.base if how.init == "base" else preset.anchor,
        preset.anchor,
        preset.base,
        schedule.alpha,
        how.rule,
    )
    return make_trainer(mixture, preset, schedule, beta)


def make_trainer(mixture, preset, schedule, beta=0.0) -> Trainer:
    tokenizer, solved = load_tokenizer(preset.base), lambda policy: [True]
    ends = [tokenizer.eos_token_id]
    return Trainer(mixture, tokenizer, preset, schedule, beta=beta, seed=0, ends=ends, solved=solved, ranks=Ranks())


def scored_batch(trainer, signal: bool = True):
    """Rollouts of one step, with advantages that hold some dead groups and some live ones."""
    problems = load_task("chain", train=4, validation=8, test=8).train
    rollouts = trainer.rollout(1, [encode_prompt(trainer.tokenizer, p.question) for p in problems], 4)
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    return rollouts, group_advantages(rewards).flatten()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_logs(tmp_path, method):
    last = train(quick(), method, tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert "accuracy" in lines[0] and "accuracy" in lines[2] and "accuracy" not in lines[1]
    for line in lines[1:]:
        assert line.keys() >= ALWAYS
        assert line["logp_gap"] < 1e-4
        assert (line["kl"] is not None) == METHODS[method].kl
    assert last == lines[-1]
    assert read_config(tmp_path / "run")["versions"]["torch"]
    assert load_policy(tmp_path / "run" / "final").rule == METHODS[method].rule


def test_alpha_zero_is_plain_grpo_bit_for_bit(tmp_path):
    train(small(alpha=0.0), "fixed", tmp_path / "mixed", init="anchor")
    train(small(), "grpo", tmp_path / "plain", init="anchor")
    assert same(theta(tmp_path / "mixed"), theta(tmp_path / "plain"))
    mixed, plain = untimed(tmp_path / "mixed"), untimed(tmp_path / "plain")
    for line in mixed + plain:
        line.pop("kl_theta_ref", None)  # only the mixture has a ref to compare with
    assert mixed == plain
    assert not same(theta(tmp_path / "plain"), load_file(ANCHOR)), "nothing was trained: the test proves nothing"


def test_alpha_one_leaves_theta_alone(tmp_path):
    run = trainer(tmp_path, alpha=1.0)
    before = {name: p.detach().clone() for name, p in run.parameters.items()}
    metrics = run.update(*scored_batch(run))
    assert metrics["logp_gap"] < 1e-4
    assert all(torch.equal(before[name], p) for name, p in run.parameters.items())


def test_clip_fraction_counts_the_tokens_where_the_clip_acts(tmp_path):
    """A ratio of 1.3 binds where the advantage is positive, one of 0.7 where it is negative, one of 1.1 nowhere."""
    run = trainer(tmp_path)
    run.optimizer.step = lambda: None
    rollouts, advantages = scored_batch(run)
    sampled, used = rollouts.logps, rollouts.mask[advantages != 0].sum()
    for ratio, sign in ((1.3, 1), (0.7, -1), (1.1, 0)):
        rollouts.logps = sampled - torch.tensor(ratio).log() * rollouts.mask
        bound = rollouts.mask[advantages * sign > 0].sum()
        assert run.update(rollouts, advantages)["clip_fraction"] == pytest.approx((bound / used).item())


def test_groups_of_equal_reward_cost_nothing_and_count_in_the_mean(tmp_path):
    run = trainer(tmp_path)
    rollouts, advantages = scored_batch(run)
    dead = run.update(rollouts, torch.zeros(16))
    assert dead["loss"] == 0 and dead["grad_norm"] is None and 0 <= dead["logp_gap"] < 1e-4
    seen = []
    logprobs = run.logprobs
    run.logprobs = lambda rollouts, rows, *more: seen.extend(rows.tolist()) or logprobs(rollouts, rows, *more)
    loss = run.update(rollouts, advantages)["loss"]
    assert sorted(seen) == [0, 1, 2, 3, 8, 9, 10, 11]
    ratio_one = -(advantages.sum() / 16).item()  # at the policy that sampled every ratio is 1
    assert loss == pytest.approx(ratio_one, abs=1e-5)


def test_killed_and_resumed_is_never_interrupted(tmp_path):
    """SIGKILL in the middle, then resumed: weights, optimiser, random state and metrics as if nothing had happened."""
    train(quick(steps=8), "adaptive", tmp_path / "whole")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (QUICK | {"steps": 8}).items()]
    command = [sys.executable, "-m", "logitmix_lite", "train", "--method=adaptive", *flags, "--out"]
    process = subprocess.Popen([*command, tmp_path / "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(read_metrics(tmp_path / "killed")) < 3 and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "final").exists(), "it finished before the kill"
    train(quick(steps=8), "adaptive", tmp_path / "killed", resume=True)
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "killed")
    assert same(theta(tmp_path / "whole"), theta(tmp_path / "killed"))
    whole, killed = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert torch.equal(whole["random"], killed["random"])
    for one, other in zip(whole["optimizer"]["state"].values(), killed["optimizer"]["state"].values(), strict=True):
        assert same(one, other)
    assert same(load_file(ANCHOR), load_file(tmp_path / "killed" / "final" / "member_1" / "model.safetensors"))


def test_resume_refuses_another_anchor(tmp_path):
    train(quick(), "fixed", tmp_path / "run")
    with pytest.raises(ValueError, match="frozen"):  # same name, other weights: the fingerprint tells
        config = read_config(tmp_path / "run")
        (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"frozen": "0" * 64}))
        train(quick(), "fixed", tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="not empty"):
        train(quick(), "fixed", tmp_path / "run")


def test_a_run_goes_on_longer_and_leaner_and_says_so(tmp_path):
    train(quick(steps=1), "fixed", tmp_path / "run")
    made_by = read_config(tmp_path / "run")["versions"]
    train(quick(steps=2, eval_batch=3, microbatch_tokens=100), "fixed", tmp_path / "run", resume=True)
    config = read_config(tmp_path / "run")
    assert (config["steps"], config["eval_batch"], config["versions"]) == (2, 3, made_by)
    with pytest.raises(ValueError, match="has done 2 steps already, more than 1"):
        train(quick(steps=1), "fixed", tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="was started with lr"):
        train(quick(steps=2, lr=1.0), "fixed", tmp_path / "run", resume=True)


def test_half_precision_backbone_has_the_gradient_of_single_precision(tmp_path):
    """In float16 the loss is scaled up on its way back; the gradient that is clipped and applied must not be."""
    norms = {}
    for dtype in ("float32", "float16"):
        preset = small(lora_rank=4, dtype=dtype, sft_steps=1, sft_demos=8, sft_batch=8)
        sft(preset, tmp_path / f"sft-{dtype}")
        torch.manual_seed(0)
        mixture = make_mixture("base", "base", preset.base, 0.5, rank=4, dtype=dtype)
        run = make_trainer(mixture, preset, Fixed(0.5))
        rollouts, advantages = scored_batch(trainer(tmp_path / f"sampler-{dtype}"))
        rollouts.kept = None
        norm = run.update(rollouts, advantages)["grad_norm"]
        norms[dtype] = read_metrics(tmp_path / f"sft-{dtype}")[0]["grad_norm"], norm
    assert min(norms["float32"]) > 1e-4
    assert norms["float16"] == pytest.approx(norms["float32"], rel=0.05)


@pytest.mark.parametrize("blocks", [0, 1])
def test_lora_from_sft_to_training(tmp_path, blocks):
    """One backbone, two adapters: the anchor adapter stays what sft made, and the run can be resumed and loaded."""
    lora = dict(lora_rank=4, lora_blocks=blocks)
    preset = quick(**lora, sft_steps=3, sft_demos=16, sft_batch=8)
    adapter = sft(preset, tmp_path / "anchor")
    assert read_metrics(tmp_path / "anchor")[-1]["step"] == 3
    preset = quick(**lora, anchor=str(adapter))
    whole = train(preset, "grpo-kl", tmp_path / "whole")
    train(quick(**lora, anchor=str(adapter), steps=1), "grpo-kl", tmp_path / "parts")
    parts = train(preset, "grpo-kl", tmp_path / "parts", resume=True)
    assert {k: v for k, v in whole.items() if k != "seconds"} == {k: v for k, v in parts.items() if k != "seconds"}
    ref = load_file(tmp_path / "parts" / "final" / "ref" / "adapter_model.safetensors")
    assert same(ref, load_file(adapter / "adapter_model.safetensors"))
    assert load_policy(tmp_path / "parts" / "final").adapters == ["theta", "ref"]
    theta = load_file(tmp_path / "parts" / "final" / "theta" / "adapter_model.safetensors")
    assert {name.split(".layers.")[1][0] for name in theta} == set("3" if blocks else "0123")
    train(quick(**lora, anchor="base"), "fixed", tmp_path / "base-anchor")


def test_more_adapted_blocks_than_there_are(tmp_path):
    with pytest.raises(ValueError, match="has 4 layers, there are no last 5"):
        train(quick(lora_rank=4, lora_blocks=5, anchor="base"), "fixed", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sft_loss_is_that_of_transformers_on_completion_tokens_only(tmp_path):
    tokenizer, model = load_tokenizer("tiny-base"), load_model("tiny-base")
    demos = [encode_demo(tokenizer, p) for p in load_task("chain-easy", train=4, test=1, validation=1).train]
    losses, tokens = 0.0, 0
    for prompt, completion in demos:
        labels = torch.tensor([[-100] * len(prompt) + completion])
        loss = model(torch.tensor([prompt + completion]), labels=labels).loss
        losses, tokens = losses + loss.item() * len(completion), tokens + len(completion)
    run = Run(tmp_path / "run", {})
    fit(
        Mixture([model]),
        demos,
        run,
        steps=1,
        batch=4,
        lr=1e-3,
        seed=0,
        microbatch_tokens=150,
        pad=tokenizer.pad_token_id,
    )
    assert read_metrics(run.folder)[0]["loss"] == pytest.approx(losses / tokens, rel=1e-4)


def test_nan_takes_no_step_and_stops_the_run_with_its_last_checkpoint(tmp_path, monkeypatch):
    """A gradient that is not finite: three steps skipped and counted, weights as they were, and a sentence."""
    module = sys.modules[Trainer.__module__]  # `logitmix_lite.train` is the function
    usual = module.clip_gradients
    monkeypatch.setattr(module, "clip_gradients", lambda *a: usual(*a) * float("nan"))
    with pytest.raises(ValueError, match="stopped: loss, gradient or entropy was NaN or infinite 3 steps in a row"):
        train(small(steps=9, samples=8), "grpo-kl", tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert [line.get("skipped") for line in lines] == [None, 1, 1, 1]
    assert [line.get("not_finite") for line in lines] == [None, ["grad_norm"], ["grad_norm"], ["grad_norm"]]
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["parameters"]
    start = load_file(ANCHOR)
    assert all(torch.equal(tensor, start[name.removeprefix("members.0.")]) for name, tensor in saved.items())


def test_where_theta_is_and_how_far_from_ref(tmp_path):
    """`distance` is the norm of the change of theta's weights; `kl_theta_ref` a mean of k3 on theta's own samples."""
    train(small(steps=2, eval_every=2, test_size=40, lr=1e-3), "fixed", tmp_path / "run")
    first, last = (line for line in read_metrics(tmp_path / "run") if "accuracy" in line)
    base, anchor = (load_model(name) for name in ("tiny-base", "tiny-anchor"))
    ours, start = theta(tmp_path / "run"), base.state_dict()
    moved = sum((ours[name] - start[name]).double().square().sum() for name in ours) ** 0.5
    assert first["distance"] == 0 and last["distance"] == pytest.approx(moved.item(), rel=1e-5)
    task, tokenizer = small(test_size=40).problems(), load_tokenizer("tiny-base")
    prompts = [encode_prompt(tokenizer, p.question) for p in task.test[:32]]
    drawn = rollout(base, prompts, seed=[0, 0], max_new_tokens=SMALL.get("max_new_tokens", 64))
    k3 = []
    for prompt, text, mask in zip(prompts, drawn.completions, drawn.mask.bool(), strict=True):
        ids = torch.cat([torch.tensor(prompt), text[mask]])
        logps = [model(ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in (base, anchor)]
        d = (logps[1] - logps[0]).gather(-1, text[mask, None])
        k3.append((d.exp() - d - 1).mean().item())
    assert first["kl_theta_ref"] == pytest.approx(sum(k3) / len(k3), rel=1e-3)


def test_every_end_of_a_turn_ends_a_completion(tmp_path):
    """generation_config knows an end that the tokenizer does not: samples stop there, in training and evaluation."""
    tokenizer = load_tokenizer("tiny-base")
    for name in ("base", "anchor"):
        shutil.copytree(locate(f"tiny-{name}"), tmp_path / name)
        path = tmp_path / name / "generation_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["eos_token_id"] = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(";")]
        path.write_text(json.dumps(config), encoding="utf-8")
    where = dict(base=str(tmp_path / "base"), anchor=str(tmp_path / "anchor"))
    train(small(steps=1, **where), "fixed", tmp_path / "run")
    line = read_metrics(tmp_path / "run")[1]
    assert line["length"] < 12 and line["truncated"] == 0 and line["format_rate"] == 0  # `13+7=20;`, and no more


def test_the_same_command_gives_the_same_run(tmp_path):
    for name in ("one", "two"):
        train(quick(), "adaptive", tmp_path / name)
    assert untimed(tmp_path / "one") == untimed(tmp_path / "two")
    assert same(theta(tmp_path / "one"), theta(tmp_path / "two"))
