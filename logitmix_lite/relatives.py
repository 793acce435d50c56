"""What stands beside the method: a critic for PPO, a teacher that has seen more (SDPO), and one model out of two."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .config import Preset
from .evaluate import evaluate
from .fast.rows import pad_rows
from .fingerprints import contents
from .hf import Mixture
from .mixture import evaluating, positions
from .models import load_policy, load_tokenizer
from .rollout import Rollouts, rollout
from .runs import Run, batch_indices
from .tasks.load import Task, encode_prompt, end_tokens
from .tasks.rewards import as_bits

STARTS = ("theta", "average")
VALUE_WEIGHT = 0.1  # of the critic's squared error beside the policy's loss, as in TRL's PPO


def gae(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (arXiv:1506.02438) of each token, and the returns that values should have been.

    values, mask: `[N, T]`; rewards: `[N]`, paid at each completion's last token. Both results are `[N, T]`, 0 on
    padding. `A_t = delta_t + gamma * lam * A_(t+1)` with `delta_t = r_t + gamma * V_(t+1) - V_t`."""
    mask = mask.to(values.dtype)
    values = values * mask
    last = mask * (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], -1)
    delta = (rewards[:, None] * last + gamma * following - values) * mask
    advantages, ahead = torch.zeros_like(values), torch.zeros_like(rewards)
    for t in reversed(range(values.shape[1])):
        ahead = advantages[:, t] = delta[:, t] + gamma * lam * ahead
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values shifted and scaled to mean 0 and variance 1 over the tokens where `mask` is 1; 0 elsewhere."""
    mask = mask.bool()
    return ((values - values[mask].mean()) / (values[mask].std() + 1e-8)).masked_fill(~mask, 0)


class Critic:
    """PPO's advantages (arXiv:1707.06347), token by token: a linear value head on theta's last hidden states, and GAE.

    The head learns from a squared error, together with the policy and by the same optimiser, at a learning rate of its
    own. The states it reads are taken as given, so that theta follows the policy's loss alone."""

    def __init__(self, mixture: Mixture, lr: float, gamma: float = 1.0, lam: float = 0.95):
        weight = mixture.head(0).weight
        self.head = nn.Linear(weight.shape[1], 1, device=weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.parameters = {f"critic.{name}": p for name, p in self.head.named_parameters()}
        self.lr, self.gamma, self.lam = lr, gamma, lam

    def __call__(self, trainer, rollouts: Rollouts, rewards: Tensor) -> Tensor:
        """Whitened advantages `[N, T]`; the gradient of the head's error waits for the trainer's next step."""
        rows = torch.arange(len(rewards), device=rewards.device)
        states = rollouts.logps.new_zeros(*rollouts.mask.shape, self.head.in_features)
        for part in trainer.microbatches(rollouts, rows):
            states[part] = theta_states(trainer.mixture, rollouts, part).to(states.dtype)
        values = self.head(states).squeeze(-1)
        advantages, returns = gae(values.detach(), rewards, rollouts.mask, self.gamma, self.lam)
        error = ((values - returns).square() * rollouts.mask).sum() / rollouts.mask.sum()
        (trainer.scale * VALUE_WEIGHT * 0.5 * error / trainer.ranks.count).backward()
        return whiten(advantages, rollouts.mask)


@torch.no_grad()
def theta_states(mixture: Mixture, rollouts: Rollouts, rows: Tensor) -> Tensor:
    """Theta's last hidden states where each token of some completions was predicted, `[n, T, D]`."""
    groups, prompt = rows // rollouts.samples, rollouts.prompt_ids.shape[1]
    ids = torch.cat([rollouts.prompt_ids[groups], rollouts.completions[rows]], -1)
    seen = torch.cat([rollouts.prompt_mask[groups], rollouts.mask[rows]], -1)
    with evaluating(mixture), mixture.using((1.0, *[0.0] * (len(mixture.weights) - 1))):
        [states] = mixture.hidden(ids, seen)
    return states[:, prompt - 1 : -1]


@torch.no_grad()
def teacher_logits(teacher: Mixture, said: Rollouts, hints: Sequence[Sequence[int]] = ()) -> Tensor:
    """What a mixture would have said at each token of some completions, logits `[N, T, V]`.

    hints: for each prompt another that tells the first member more, feedback or a solution; the others read what was
    answered. With members theta and ref, and weights `(lam, 1 - lam)`, that is SDPO's teacher, equation 11:
    `log q = (1 - lam) * log pi_ref(.|prompt, ...) + lam * log pi_theta(.|hint, ...) + const`."""
    plain, states = (said.prompt_ids, said.prompt_mask), []
    told = pad_rows(hints, 0, left=True) if hints else plain
    for k in teacher.running:
        prompt, real = (x.to(said.mask.device).repeat_interleave(said.samples, 0) for x in (plain if k else told))
        ids, seen = torch.cat([prompt, said.completions], -1), torch.cat([real, said.mask], -1)
        with teacher.using([float(k == member) for member in range(len(teacher.weights))]):
            [state] = teacher.hidden(ids, seen, positions(seen))
        states.append(state[:, prompt.shape[1] - 1 : -1])
    return teacher.combine(states)


def reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(student || teacher), nats, averaged over the places where `mask` is 1; logits `[N, T, V]`, mask `[N, T]`."""
    log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    kl = (log_student.exp() * (log_student - log_teacher)).sum(-1)
    return (kl * mask).sum() / mask.sum()


def start_from(mixture: Mixture, init: str) -> PreTrainedModel:
    """A copy of theta ("theta"), or of the members' weights averaged as the mixture weighs them ("average")."""
    if mixture.adapters or init not in STARTS:
        raise ValueError(f"a student starts from {' or '.join(STARTS)} of a mixture of whole models, got {init!r}")
    [theta, *others], [weight, *weights] = mixture.members, mixture.weights
    student = type(theta)(theta.config).to(theta.device, theta.dtype)
    student.load_state_dict(theta.state_dict())
    if init == "average":
        states = [member.state_dict() for member in others]
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                parameter.mul_(weight)
                for share, state in zip(weights, states, strict=True):
                    parameter.add_(state[name].to(parameter), alpha=share)
    return student.train()


def distil(
    teacher: Mixture, student: PreTrainedModel, tokenizer, prompts: Sequence[Sequence[int]], *,
    hints: Sequence[Sequence[int]] = (), steps: int = 60, batch: int = 64, lr: float = 2e-4, max_new_tokens: int = 64,
    seed: int = 0, log=lambda line: None,
) -> PreTrainedModel:  # fmt: skip
    """Teach `student`, a plain causal language model, what the mixture would do where the student goes itself.

    On-policy distillation (arXiv:2306.13649): in each step the student answers `batch` prompts by sampling, and pays
    KL(student || mixture) at each of its tokens. The learning rate falls to 0 along a line. log: called with one dict
    of metrics a step; `kl` is before it. hints: one for each of `prompts`, for the teacher (`teacher_logits`); a
    teacher whose first member is the student then is SDPO's, the student itself as it would answer if it knew more."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0)
    ends, pad = end_tokens(tokenizer, teacher.generation_config.eos_token_id), tokenizer.pad_token_id
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - (step - 1) / steps)
        picks = batch_indices(step, batch, len(prompts), seed)
        chosen = [prompts[k] for k in picks]
        said = rollout(student, chosen, max_new_tokens=max_new_tokens, seed=[seed, step], eos=ends, pad=pad)
        with evaluating(teacher):
            wanted = teacher_logits(teacher, said, [hints[k] for k in picks] if hints else ())
        ids = torch.cat([said.prompt_ids, said.completions], -1)
        seen = torch.cat([said.prompt_mask, said.mask], -1)
        found = student(input_ids=ids, attention_mask=seen, position_ids=positions(seen), use_cache=False).logits
        found = found[:, said.prompt_ids.shape[1] - 1 : -1]
        loss = reverse_kl(found, wanted, said.mask)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        log({"step": step, "kl": loss.item(), "tokens": int(said.mask.sum())})
    return student.eval()


def distil_model(
    source: str, preset: Preset, out: str | Path, init: str = "theta", steps: int = 60, seed: int = 0
) -> dict:
    """Make one model out of the trained mixture in the folder `source`, and write it to `out`/final with a report.

    summary.json there tells of the mixture, of where the student started and of the student: who solves which of the
    preset's test problems, tokens a second of greedy decoding (best of three) and bytes of weights."""
    teacher, tokenizer, task = load_policy(source, preset.base, preset.dtype), load_tokenizer(source), preset.problems()
    student = start_from(teacher, init)
    prompts = [encode_prompt(tokenizer, p.question, task.instruction) for p in task.train]
    batch = preset.prompts * preset.samples // 2
    config = {"command": "distil", "source": str(source), "init": init, "seed": seed, "steps": steps, "batch": batch}
    config |= {"lr": preset.lr, "max_new_tokens": preset.max_new_tokens, "test_size": preset.test_size}
    with Run(out, config | contents(teacher, task)) as run:
        measured = {"mixture": measure(teacher, tokenizer, task, preset)}
        measured["start"] = measure(student.eval(), tokenizer, task, preset)
        distil(
            teacher, student.train(), tokenizer, prompts, steps=steps, batch=batch, lr=preset.lr, seed=seed,
            max_new_tokens=preset.max_new_tokens, log=run.log,
        )  # fmt: skip
        measured["student"] = measure(student, tokenizer, task, preset)
        run.write("summary.json", measured)
        run.finish(student.save_pretrained, tokenizer.save_pretrained)
    return measured


def measure(policy, tokenizer, task: Task, preset: Preset) -> dict:
    """What a policy gets right of the task's test problems, how fast it decodes them, and what its weights take."""
    best, clock = 0.0, time.perf_counter if policy.device.type == "cuda" else time.process_time  # without other work
    for _ in range(3):
        began = clock()
        found = evaluate(
            policy, tokenizer, task.test, instruction=task.instruction, max_new_tokens=preset.max_new_tokens,
            batch=preset.eval_batch,
        )  # fmt: skip
        best = max(best, sum(found.lengths) / (clock() - began))
    rates = as_bits(found.grades, ("correct", "formatted"))
    size = sum(p.numel() * p.element_size() for p in policy.parameters())
    return rates | {"accuracy": found.accuracy, "tokens_per_second": round(best), "bytes": size}
