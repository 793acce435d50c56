"""One step of training, for all methods: sample, reward, advantages, ascend, and let the schedule set alpha.

The methods differ in the mixture (its members, weights and rule), in the schedule, and in beta; nothing here asks which
of them is running."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor

from .fast.precision import clip_gradients, loss_scale, trainable
from .fast.rows import token_batches
from .grpo import group_advantages, grpo_loss, kl_k3, sequence_mean
from .hf import Mixture
from .rollout import Rollouts, completion_logprobs, rollout
from .tasks.rewards import grade_all


class Trainer:
    """A mixture whose first member, theta, learns. `step` is algorithm 1 and, under an adaptive schedule, algorithm 2.

    settings: the numbers of a run, such as a `config.Preset`. schedule: sets alpha after each step. beta: weight of the
    KL term to ref, 0 for none. ends: ids that end a completion. solved: for the schedule, see `schedules.Fixed`. ranks:
    this process among those of the run; each samples and trains its share of the prompts."""

    def __init__(
        self, mixture: Mixture, tokenizer, settings, schedule, *, beta: float, seed: int, ends: Sequence[int],
        solved: Callable[[str], Sequence[bool]], ranks,
    ):  # fmt: skip
        self.mixture, self.tokenizer, self.settings, self.schedule = mixture, tokenizer, settings, schedule
        self.beta, self.seed, self.ends, self.solved, self.ranks = beta, seed, list(ends), solved, ranks
        self.parameters, self.scale = trainable(mixture), loss_scale(mixture)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=settings.lr, weight_decay=0)

    def set_alpha(self, alpha: float) -> None:
        """The schedule's alpha, and the mixture's where there is a ref to mix with."""
        self.schedule.alpha = alpha
        if len(self.mixture.weights) == 2:
            self.mixture.alpha = alpha

    def step(self, number: int, prompts: Sequence[Sequence[int]], answers: Sequence[str]) -> dict:
        """Algorithm 1 on some prompts (token ids) and their right answers, shared among the ranks; returns metrics.

        number: of the step, from 1; with the seed it decides the samples."""
        settings, alpha = self.settings, self.schedule.alpha
        prompts, answers = self.ranks.share(prompts), self.ranks.share(answers)
        rollouts = self.rollout(number, prompts, settings.samples)
        grades = grade_all(rollouts.texts(self.tokenizer), [a for a in answers for _ in range(settings.samples)])
        rewards = torch.tensor([float(g.correct) for g in grades], device=rollouts.logps.device)
        advantages = group_advantages(rewards.view(-1, settings.samples))
        right, boxed, number_right, logps, equal, truncated, tokens, failed = self.ranks.sum(
            rewards.sum().item(), sum(g.formatted for g in grades), sum(g.number for g in grades),
            rollouts.logps.sum().item(), (advantages == 0).all(-1).sum().item(), rollouts.truncated.sum().item(),
            rollouts.mask.sum().item(), sum(g.failed for g in grades),
        )  # fmt: skip
        groups = len(prompts) * self.ranks.count
        total = groups * settings.samples
        metrics = {
            "reward": right / total,
            "format_rate": boxed / total,
            "number_rate": number_right / total,
            "alpha": alpha,
            # minus the mean log-prob of what was sampled estimates the entropy without bias, from tokens in hand
            "entropy": -logps / tokens,
            "frac_reward_zero_std": equal / groups,
            "truncated": truncated / total,
            "length": tokens / total,
            "tokens": int(tokens),
            "failed_comparisons": int(failed),
        }
        metrics |= self.update(rollouts, advantages.flatten())
        began = time.perf_counter()
        if found := self.schedule.after_step(number, self.solved):
            metrics |= found | {"adapt_seconds": round(time.perf_counter() - began, 3)}
        self.set_alpha(self.schedule.alpha)
        return metrics

    def rollout(self, number: int, prompts: Sequence[Sequence[int]], samples: int) -> Rollouts:
        """Completions of this rank's prompts, the same as if one process had sampled those of all ranks."""
        return rollout(
            self.mixture, prompts, samples=samples, seed=[self.seed, number], eos=self.ends,
            max_new_tokens=self.settings.max_new_tokens, temperature=self.settings.temperature,
            pad=self.tokenizer.pad_token_id, keep=self.settings.keep_ref_states,
            skip=self.ranks.rank * len(prompts) * samples,
        )  # fmt: skip

    def update(self, rollouts: Rollouts, advantages: Tensor) -> dict:
        """`settings.epochs` optimiser steps on one batch of rollouts. Microbatches sum to the loss of the whole batch.

        A step whose loss or gradient is not finite is skipped, and counted in the metrics."""
        self.newest = replace(rollouts, kept=None), advantages  # for whoever wants to read them
        # Without KL, completions of zero advantage have zero gradient: they count in the mean and cost no compute.
        used = torch.arange(len(advantages), device=advantages.device)
        used = used if self.beta else advantages.nonzero().squeeze(-1)
        batches = self.microbatches(rollouts, used)
        ref_logp = self.reference_logprobs(rollouts, batches) if self.beta else None
        [tokens] = self.ranks.sum(rollouts.mask[used].sum().item())
        if tokens == 0:  # nothing to learn from; still compare the trainer's log-probs with the sampler's
            with torch.no_grad():
                gap = (self.logprobs(rollouts, torch.arange(1, device=used.device)) - rollouts.logps[:1]).abs().max()
            return {"loss": 0.0, "kl": None, "grad_norm": None, "clip_fraction": 0.0, "skipped": 0,
                    "logp_gap": self.ranks.max(gap.item())}  # fmt: skip
        metrics, skipped = {}, 0
        for epoch in range(self.settings.epochs):
            sums, gap = torch.zeros(3, dtype=torch.float64), 0.0
            for rows in batches:
                loss, kl, clipped, apart = self.loss(rollouts, advantages, rows, ref_logp)
                if loss.requires_grad:  # at alpha = 1 the policy is ref, and theta gets no gradient
                    (self.scale * loss).backward()
                sums += torch.tensor([loss.item(), kl, clipped / tokens], dtype=torch.float64)
                gap = max(gap, apart)
            self.ranks.sum_gradients(self.parameters.values())
            loss, kl, clipped = self.ranks.sum(*sums.tolist())
            norm = clip_gradients(self.parameters.values(), self.settings.max_grad_norm, self.scale).item()
            if isfinite(loss) and isfinite(norm):
                self.optimizer.step()
            else:
                skipped += 1
            self.optimizer.zero_grad()
            if epoch == 0:  # theta is still the policy that sampled
                metrics = {"loss": loss, "kl": kl if self.beta else None, "grad_norm": norm}
                metrics["logp_gap"] = self.ranks.max(gap)
        return metrics | {"clip_fraction": clipped, "skipped": skipped}

    def loss(self, rollouts: Rollouts, advantages: Tensor, rows: Tensor, ref_logp: Tensor | None):
        """Equation 6 of some completions, as their share of the whole batch's, plus beta times the KL to ref.

        Returns it, the KL's share, the number of tokens where the clip acts, and the largest difference between the
        sampler's and the trainer's log-probs."""
        logp, old, mask = self.logprobs(rollouts, rows), rollouts.logps[rows], rollouts.mask[rows]
        total, clip = len(advantages) * self.ranks.count, self.settings.clip
        loss, kl = grpo_loss(logp, old, advantages[rows], mask, clip) * len(rows) / total, 0.0
        if self.beta:
            k3 = sequence_mean(kl_k3(logp, ref_logp[rows]), mask).sum() / total
            loss, kl = loss + self.beta * k3, k3.item()
        with torch.no_grad():
            moved = (logp - old).exp() - 1
            acts = (moved * advantages[rows].sign()[:, None] > clip) & mask.bool()
            return loss, kl, acts.sum().item(), (logp - old).abs().max().item()

    def microbatches(self, rollouts: Rollouts, used: Tensor) -> list[Tensor]:
        """The completions `used`, in parts of about `settings.microbatch_tokens`."""
        prompts = rollouts.prompt_mask.sum(-1)[used // rollouts.samples]
        lengths = (prompts + rollouts.mask[used].sum(-1)).tolist()
        return [used[rows] for rows in token_batches(lengths, self.settings.microbatch_tokens)]

    def logprobs(self, rollouts: Rollouts, rows: Tensor) -> Tensor:
        """The training pass over some of the completions, `[n, T]`, at the temperature that sampled them."""
        prompts, prompt_of = (rows // rollouts.samples).unique(return_inverse=True)
        return completion_logprobs(
            self.mixture, rollouts.prompt_ids[prompts], rollouts.prompt_mask[prompts],
            rollouts.completions[rows], rollouts.mask[rows], self.settings.temperature, prompt_of,
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
