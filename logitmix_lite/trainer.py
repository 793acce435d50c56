"""The RL loop, for all methods: sample, reward, ascend, step by step; and what is measured on the way."""

import time
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from .config import Preset
from .evaluate import evaluate
from .grpo import group_advantages, grpo_loss, kl_k3, sequence_mean
from .hf import Mixture
from .models import clip_gradients, loss_scale, trainable
from .ranks import Ranks
from .rollout import Rollouts, completion_logprobs, rollout, token_batches
from .runs import Run, batch_indices
from .schedules import Adaptive, Fixed
from .tasks.load import Task, encode_prompt
from .tasks.rewards import Grade, grade_all


class Trainer:
    """One run: the mixture, its optimiser and its problems. `step()` is the algorithm, the rest is bookkeeping.

    schedule: who sets alpha. beta: weight of the KL term, 0 for none."""

    def __init__(
        self, mixture: Mixture, tokenizer, task: Task, preset: Preset, schedule: Fixed | Adaptive, beta: float,
        seed: int, run: Run, ranks: Ranks,
    ):  # fmt: skip
        self.mixture, self.tokenizer, self.task, self.preset = mixture, tokenizer, task, preset
        self.schedule, self.beta, self.seed, self.run_folder, self.ranks = schedule, beta, seed, run, ranks
        self.tested: list[Grade] = []  # the newest grades of the test problems
        self.parameters, self.scale = trainable(mixture), loss_scale(mixture)
        self.start = [p.detach().to("cpu", copy=True) for p in self.parameters.values()]
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=preset.lr, weight_decay=0)

    def run(self) -> dict:
        """All steps from the last checkpoint on, with a line of metrics and a checkpoint after each."""
        preset, run = self.preset, self.run_folder
        state = run.restore(self.parameters, self.optimizer)
        self.set_alpha(state.get("alpha", self.schedule.alpha))
        line = state.get("line", {})
        bar = tqdm(
            range(state["step"] + 1, preset.steps + 1), initial=state["step"] + 1, total=preset.steps + 1, unit="step",
            disable=None if self.ranks.main else True,
        )  # fmt: skip
        for step in bar:
            began = time.perf_counter()
            line = {"step": step, **(self.step(step) if step > 0 else {"alpha": self.schedule.alpha})}
            if step % preset.eval_every == 0 or step == preset.steps:
                line |= self.evaluate()
            line["seconds"] = round(time.perf_counter() - began, 3)
            run.log(line)
            if step % preset.save_every == 0 or step == preset.steps:
                run.save(step, self.parameters, self.optimizer, alpha=self.schedule.alpha, line=line)
            shown = {name: f"{line[name]:.3f}" for name in ("reward", "accuracy") if line.get(name) is not None}
            bar.set_postfix(shown | {"alpha": f"{line['alpha']:.2f}"})
        run.write("grades.json", self.final_grades())
        run.finish(self.mixture.save_pretrained, self.tokenizer.save_pretrained)
        self.ranks.wait()
        return line

    def step(self, step: int) -> dict:
        """Algorithm 1: sample from the mixture, reward, advantages (equation 4), ascend (equation 6)."""
        preset = self.preset
        problems = [self.task.train[k] for k in batch_indices(step, preset.prompts, len(self.task.train), self.seed)]
        problems = self.ranks.share(problems)
        rollouts = self.rollout(problems, step)
        answers = [p.answer for p in problems for _ in range(preset.samples)]
        grades = grade_all(rollouts.texts(self.tokenizer), answers)
        rewards = torch.tensor([float(g.correct) for g in grades], device=rollouts.logps.device)
        advantages = group_advantages(rewards.view(-1, preset.samples)).flatten()
        dead = (advantages.view(-1, preset.samples) == 0).all(-1).sum().item()
        right, boxed, number, logps, dead, truncated, tokens, failed = self.ranks.sum(
            rewards.sum().item(), sum(g.formatted for g in grades), sum(g.number for g in grades),
            rollouts.logps.sum().item(), dead, rollouts.truncated.sum().item(), rollouts.mask.sum().item(),
            sum(g.failed for g in grades),
        )  # fmt: skip
        total = preset.prompts * preset.samples
        metrics = {
            "reward": right / total,
            "format_rate": boxed / total,
            "number_rate": number / total,
            "alpha": self.schedule.alpha,
            # minus the mean log-prob of what was sampled estimates the entropy without bias, from tokens in hand
            "entropy": -logps / tokens,
            "dead_groups": dead / preset.prompts,
            "truncated": truncated / total,
            "length": tokens / total,
            "tokens": int(tokens),
            "failed_comparisons": int(failed),
        }
        metrics |= self.update(rollouts, advantages)
        if isinstance(self.schedule, Adaptive):
            metrics |= self.adapt()
        return metrics

    def rollout(self, problems, step: int, samples: int | None = None) -> Rollouts:
        prompts = [encode_prompt(self.tokenizer, p.question, self.task.instruction) for p in problems]
        return rollout(
            self.mixture, prompts, samples=samples or self.preset.samples, seed=[self.seed, step],
            max_new_tokens=self.preset.max_new_tokens, temperature=self.preset.temperature,
            eos=self.tokenizer.eos_token_id, pad=self.tokenizer.pad_token_id, keep=self.preset.keep_ref_states,
            skip=self.ranks.rank * len(problems) * (samples or self.preset.samples),
        )  # fmt: skip

    def update(self, rollouts: Rollouts, advantages: Tensor) -> dict:
        """`preset.epochs` optimiser steps on one batch of rollouts. Microbatches sum to the loss of the whole batch."""
        preset, total = self.preset, len(advantages) * self.ranks.count
        # Without KL, completions of zero advantage have zero gradient: they count in the mean and cost no compute.
        used = torch.arange(len(advantages), device=advantages.device)
        used = used if self.beta else advantages.nonzero().squeeze(-1)
        batches = self.microbatches(rollouts, used)
        ref_logp = self.reference_logprobs(rollouts, batches) if self.beta else None
        metrics = {"loss": 0.0, "kl": None, "grad_norm": None, "clip_fraction": 0.0, "logp_gap": 0.0}
        [used_tokens] = self.ranks.sum(rollouts.mask[used].sum().item())
        if used_tokens == 0:  # nothing to learn from; still compare the trainer's log-probs with the sampler's
            with torch.no_grad():
                logp = self.logprobs(rollouts, torch.arange(1, device=used.device))
            return metrics | {"logp_gap": self.ranks.max((logp - rollouts.logps[:1]).abs().max().item())}
        for epoch in range(preset.epochs):
            loss, kl, clipped, gap = 0.0, 0.0, 0.0, 0.0
            for rows in batches:
                logp, old, mask = self.logprobs(rollouts, rows), rollouts.logps[rows], rollouts.mask[rows]
                part = grpo_loss(logp, old, advantages[rows], mask, preset.clip) * len(rows) / total
                if self.beta:
                    k3 = sequence_mean(kl_k3(logp, ref_logp[rows]), mask).sum() / total
                    part, kl = part + self.beta * k3, kl + k3.item()
                if part.requires_grad:  # at alpha = 1 the policy is ref, and theta gets no gradient
                    (self.scale * part).backward()
                loss += part.item()
                with torch.no_grad():
                    moved = (logp - old).exp() - 1
                    binds = (moved * advantages[rows].sign()[:, None] > preset.clip) & mask.bool()
                    clipped += binds.sum().item() / used_tokens
                    gap = max(gap, (logp - old).abs().max().item())
            self.ranks.sum_gradients(self.parameters.values())
            loss, kl, clipped = self.ranks.sum(loss, kl, clipped)
            norm = clip_gradients(self.parameters.values(), preset.max_grad_norm, self.scale)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if epoch == 0:  # theta is still the policy that sampled
                metrics |= {"loss": loss, "kl": kl if self.beta else None, "grad_norm": norm.item()}
                metrics["logp_gap"] = self.ranks.max(gap)
        return metrics | {"clip_fraction": clipped}

    def microbatches(self, rollouts: Rollouts, used: Tensor) -> list[Tensor]:
        """The completions `used`, in parts of about `preset.microbatch_tokens`."""
        prompts = rollouts.prompt_mask.sum(-1)[used // rollouts.samples]
        lengths = (prompts + rollouts.mask[used].sum(-1)).tolist()
        return [used[rows] for rows in token_batches(lengths, self.preset.microbatch_tokens)]

    def logprobs(self, rollouts: Rollouts, rows: Tensor) -> Tensor:
        """The training pass over some of the completions, `[n, T]`, at the temperature that sampled them."""
        prompts, prompt_of = (rows // rollouts.samples).unique(return_inverse=True)
        return completion_logprobs(
            self.mixture, rollouts.prompt_ids[prompts], rollouts.prompt_mask[prompts],
            rollouts.completions[rows], rollouts.mask[rows], self.preset.temperature, prompt_of,
            kept=[states[rows] for states in rollouts.kept] if rollouts.kept else None,
        )  # fmt: skip

    @torch.no_grad()
    def reference_logprobs(self, rollouts: Rollouts, batches: list[Tensor]) -> Tensor:
        """Log-probs of the completions in `batches` under ref alone, `[N, T]`; other rows hold 0."""
        logp = torch.zeros_like(rollouts.logps)
        with self.mixture.using((0.0, 1.0)):
            for rows in batches:
                logp[rows] = self.logprobs(rollouts, rows).to(logp.dtype)
        return logp

    def adapt(self) -> dict:
        """Equations 7 to 9: greedy decodes of the validation problems, mixture against theta, set the next alpha."""
        began = time.perf_counter()
        mixed = self.grades(self.task.validation)
        with self.mixture.using((1.0, 0.0)):
            theta = self.grades(self.task.validation)
        found = self.schedule.update([g.correct for g in mixed], [g.correct for g in theta])
        self.set_alpha(found.pop("alpha"))
        return found | {"adapt_seconds": round(time.perf_counter() - began, 3)}

    def set_alpha(self, alpha: float) -> None:
        self.schedule.alpha = alpha
        if len(self.mixture.weights) == 2:
            self.mixture.alpha = alpha

    def grades(self, problems) -> list[Grade]:
        """Grades of greedy decodes; each rank decodes its share."""
        mine = problems[self.ranks.rank :: self.ranks.count]
        found = mine and evaluate(
            self.mixture, self.tokenizer, mine, instruction=self.task.instruction,
            max_new_tokens=self.preset.max_new_tokens, batch=self.preset.eval_batch,
        ).grades  # fmt: skip
        shares = self.ranks.gather(found)
        return [shares[k % self.ranks.count][k // self.ranks.count] for k in range(len(problems))]

    def evaluate(self) -> dict:
        """Rates of greedy decodes of the test problems; how far theta has moved, and how far it is from ref."""
        found = self.tested = self.grades(self.task.test)
        pairs = zip(self.parameters.values(), self.start, strict=True)
        moved = sum((now.detach().cpu() - before).square().sum() for now, before in pairs).item()
        return {
            "accuracy": fmean(g.correct for g in found),
            "test_format_rate": fmean(g.formatted for g in found),
            "test_number_rate": fmean(g.number for g in found),
            "distance": moved**0.5,
            "kl_theta_ref": self.kl_theta_ref() if len(self.mixture.weights) == 2 else None,
        }

    def kl_theta_ref(self) -> float:
        """KL(theta || ref), nats a token, on what theta samples for some test problems."""
        with self.mixture.using((1.0, 0.0)):
            rollouts = self.rollout(self.task.test[:32], step=0, samples=1)
        rows = torch.arange(len(rollouts.logps), device=rollouts.logps.device)
        ref_logp = self.reference_logprobs(rollouts, [rows])
        return sequence_mean(kl_k3(rollouts.logps, ref_logp), rollouts.mask).mean().item()

    def final_grades(self) -> dict:
        """Of the mixture, theta alone and ref alone after training: who solves which test problem ("1" or "0" each)."""
        policies = {"mixture": self.mixture.weights}
        if len(self.mixture.weights) == 2:
            policies |= {"theta": (1.0, 0.0), "ref": (0.0, 1.0)}
        grades = {}
        for name, weights in policies.items():
            with self.mixture.using(weights):
                found = name == "mixture" and self.tested or self.grades(self.task.test)
            rates = ("correct", "formatted", "number")
            grades[name] = {rate: "".join(str(int(getattr(g, rate))) for g in found) for rate in rates}
        return grades
