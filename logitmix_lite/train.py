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
from .grpo import aggregate, group_advantages, kl_k3, sequence_mean, soft_overlong_punishment, surrogate
from .hf import Mixture
from .rollout import Rollouts, completion_logprobs, rollout
from .tasks.rewards import grade_all


class Trainer:
    """A mixture whose first member, theta, learns. `step` is algorithm 1 and, under an adaptive schedule, algorithm 2.

    settings: the numbers of a run, such as a `config.Preset`. schedule: sets alpha after each step. beta: weight of the
    KL term to ref, 0 for none. ends: ids that end a completion. solved: for the schedule, see `schedules.Fixed`. ranks:
    this process among those of the run; each samples and trains its share of the prompts. critic: gives each token its
    advantage, in place of the group, and has `parameters` of its own."""

    def __init__(
        self, mixture: Mixture, tokenizer, settings, schedule, *, beta: float, seed: int, ends: Sequence[int],
        solved: Callable[[str], Sequence[bool]], ranks, critic=None,
    ):  # fmt: skip
        self.mixture, self.tokenizer, self.settings, self.schedule = mixture, tokenizer, settings, schedule
        self.beta, self.seed, self.ends, self.solved, self.ranks = beta, seed, list(ends), solved, ranks
        self.parameters, self.scale, self.critic = trainable(mixture), loss_scale(mixture), critic
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=settings.lr, weight_decay=0)
        if critic:
            self.parameters |= critic.parameters
            self.optimizer.add_param_group({"params": list(critic.parameters.values()), "lr": critic.lr})
        theta = (1.0, *[0.0] * (len(mixture.weights) - 1))
        self.learner = theta if settings.ratio == "theta" else None  # weights of the ratio's numerator, if others

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
        rewards = rewards.view(-1, settings.samples)
        alike = (rewards == rewards[:, :1]).all(-1)
        right, boxed, number_right, logps, equal, truncated, tokens, failed = self.ranks.sum(
            rewards.sum().item(), sum(g.formatted for g in grades), sum(g.number for g in grades),
            rollouts.logps.sum().item(), alike.sum().item(), rollouts.truncated.sum().item(),
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
        if settings.dynamic_sampling > 1:  # the first groups that can teach, and others if there are not enough
            groups = alike.int().argsort(stable=True)[: len(prompts) // settings.dynamic_sampling]
            rollouts, rewards = rollouts.select(groups), rewards[groups]
        metrics |= self.update(rollouts, self.advantages(rollouts, rewards))
        began = time.perf_counter()
        if found := self.schedule.after_step(number, self.solved):
            metrics |= found | {"adapt_seconds": round(time.perf_counter() - began, 3)}
        self.set_alpha(self.schedule.alpha)
        return metrics

    def advantages(self, rollouts: Rollouts, rewards: Tensor) -> Tensor:
        """Of each completion, `[N]`, or by a critic of each token, `[N, T]`. rewards: of each group, `[Q, G]`."""
        settings, lengths = self.settings, rollouts.mask.sum(-1).view_as(rewards)
        if settings.overlong_cache:
            rewards = rewards + soft_overlong_punishment(lengths, settings.max_new_tokens, settings.overlong_cache)
        if self.critic:
            found = self.critic(self, rollouts, rewards.flatten())
        else:
            found = group_advantages(rewards, scale=settings.scale_rewards).flatten()
        if settings.mask_truncated_completions:
            found[rollouts.truncated] = 0
        return found

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
        used = used if self.beta else advantages.view(len(used), -1).any(-1).nonzero().squeeze(-1)
        batches = self.microbatches(rollouts, used)
        ref_logp = self.reference_logprobs(rollouts, batches) if self.beta else None
        tokens, all_tokens = self.ranks.sum(rollouts.mask[used].sum().item(), rollouts.mask.sum().item())
        if tokens == 0:  # nothing to learn from; still compare the trainer's log-probs with the sampler's
            with torch.no_grad():
                gap = (self.logprobs(rollouts, torch.arange(1, device=used.device)) - rollouts.logps[:1]).abs().max()
            return {"loss": 0.0, "kl": None, "grad_norm": None, "clip_fraction": 0.0, "skipped": 0,
                    "logp_gap": self.ranks.max(gap.item())}  # fmt: skip
        metrics, skipped = {}, 0
        for epoch in range(self.settings.epochs):
            sums, gap = torch.zeros(3, dtype=torch.float64), 0.0
            for rows in batches:
                loss, kl, clipped, apart = self.loss(rollouts, advantages, rows, ref_logp, all_tokens)
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
                metrics["logp_gap"] = None if self.learner else self.ranks.max(gap)  # of one policy with itself
        return metrics | {"clip_fraction": clipped, "skipped": skipped}

    def loss(self, rollouts: Rollouts, advantages: Tensor, rows: Tensor, ref_logp: Tensor | None, tokens: int):
        """Equation 6 of some completions, as their share of a batch of `tokens`, plus beta times the KL to ref.

        Returns it, the KL's share, the number of tokens where the clip acts, and the largest difference between the
        sampler's and the trainer's log-probs."""
        settings, clip, high, cap = self.settings, self.settings.clip, self.settings.clip_high, self.settings.ratio_cap
        logp, old, mask = self.logprobs(rollouts, rows, self.learner), rollouts.logps[rows], rollouts.mask[rows]
        total, kl = len(advantages) * self.ranks.count, 0.0
        gains = surrogate(logp, old, advantages[rows], mask, clip, high, cap)
        loss = aggregate(-gains, mask, settings.loss_type, total, tokens, settings.max_new_tokens)
        if self.beta:
            k3 = sequence_mean(kl_k3(logp, ref_logp[rows]), mask).sum() / total
            loss, kl = loss + self.beta * k3, k3.item()
        with torch.no_grad():
            moved, signs = (logp - old).exp() - 1, advantages[rows].view(len(rows), -1).sign()
            acts = moved > cap - 1 if cap else moved * signs > torch.where(signs > 0, high or clip, clip)
            return loss, kl, (acts & mask.bool()).sum().item(), (logp - old).abs().max().item()

    def microbatches(self, rollouts: Rollouts, used: Tensor) -> list[Tensor]:
        """The completions `used`, in parts of about `settings.microbatch_tokens`."""
        prompts = rollouts.prompt_mask.sum(-1)[used // rollouts.samples]
        lengths = (prompts + rollouts.mask[used].sum(-1)).tolist()
        return [used[rows] for rows in token_batches(lengths, self.settings.microbatch_tokens)]

    def logprobs(self, rollouts: Rollouts, rows: Tensor, weights: Sequence[float] | None = None) -> Tensor:
        """The training pass over some of the completions, `[n, T]`, at the temperature that sampled them.

        weights: of the mixture, if not those that sampled."""
        prompts, prompt_of = (rows // rollouts.samples).unique(return_inverse=True)
        with self.mixture.using(weights or self.mixture.weights):
            return completion_logprobs(
                self.mixture, rollouts.prompt_ids[prompts], rollouts.prompt_mask[prompts],
                rollouts.completions[rows], rollouts.mask[rows], self.settings.temperature, prompt_of,
                kept=[states[rows] for states in rollouts.kept] if rollouts.kept and not weights else None,
            )  # fmt: skip

    @torch.no_grad()
    def reference_logprobs(self, rollouts: Rollouts, batches: list[Tensor]) -> Tensor:
        """Log-probs of the completions in `batches` under ref alone, `[N, T]`; other rows hold 0."""
        logp = torch.zeros_like(rollouts.logps)
        with self.mixture.using((0.0, 1.0)):
            for rows in batches:
                logp[rows] = self.logprobs(rollouts, rows).to(logp.dtype)
        return logp
