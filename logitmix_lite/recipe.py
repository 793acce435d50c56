"""From a preset and a method's name to a run: load, check, train step by step, examine, save."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

from .config import Preset, check, load_preset
from .evaluate import evaluate
from .fingerprints import contents
from .grpo import kl_k3, sequence_mean
from .hf import Mixture
from .methods import named
from .models import average_with_base, check_precision, load_tokenizer, make_mixture
from .ranks import Ranks
from .relatives import Critic
from .rollout import check_prompts
from .runs import Run, batch_indices
from .schedules import Fixed
from .tasks.load import Task, encode_prompt, end_tokens
from .tasks.rewards import Grade, as_bits, grade
from .trackers import check_tracker, reporting
from .train import Trainer
from .watch import Watch

ALONE = {"theta": (1.0, 0.0), "ref": (0.0, 1.0)}  # weights of one policy alone
RATES = {"accuracy": "correct", "test_format_rate": "formatted", "test_number_rate": "number"}


def train(
    preset: Preset | str, method: str, out: str | Path, *, seed: int = 0, init: str | None = None, resume: bool = False,
    report_to: str | None = None, log_completions: int = 0, callback: Callable[[dict], object] | None = None,
) -> dict:  # fmt: skip
    """Train theta on `preset.task` and write a run to `out`; returns the last line of its metrics.

    method: a name in `methods.METHODS`. init: where theta starts, if not where the method has it: "base", "anchor",
    "average" (of their weights), or a path.
    resume: go on from the checkpoint in `out`; the result is, on a CPU bit for bit, that of a run never interrupted.
    report_to: a name in `trackers.TRACKERS`, which then gets all metrics. log_completions: write so many completions of
    each step to completions.jsonl. callback: called with each step's metrics, once they are written.
    Raises ValueError for settings that cannot work, before anything is written."""
    how = named(method)
    preset = replace(load_preset(preset) if isinstance(preset, str) else preset, **how.settings)
    check(preset)
    if preset.temperature == 0:
        raise ValueError("GRPO learns from differences between samples: temperature must be positive")
    for name, number in (("seed", seed), ("log_completions", log_completions)):
        if number < 0:
            raise ValueError(f"{name} must not be negative, got {number}")
    check_tracker(report_to)
    ranks, init = Ranks(), init or how.init
    ranks.share(range(preset.prompts))  # can they be shared evenly?
    schedule = how.schedule.of(preset) if how.mixes else Fixed(0.0)
    task, tokenizer = preset.problems(), load_tokenizer(preset.base)
    prompts = {p.question: encode_prompt(tokenizer, p.question, task.instruction)
               for p in task.train + task.validation + task.test}  # fmt: skip
    torch.manual_seed(seed)  # a LoRA adapter's random start
    mixture = make_mixture(
        preset.anchor if init in ("anchor", "average") else init, preset.anchor if how.mixes or how.kl else None,
        preset.base, schedule.alpha, how.rule,
        rank=preset.lora_rank, scale=preset.lora_alpha, blocks=preset.lora_blocks, dtype=preset.dtype,
    )  # fmt: skip
    if init == "average":
        average_with_base(mixture, preset.base)
    if preset.checkpoint_activations:
        mixture.gradient_checkpointing_enable()
    check_precision(mixture)
    check_prompts(mixture, list(prompts.values()), preset.max_new_tokens)
    ends = end_tokens(tokenizer, mixture.generation_config.eos_token_id)
    exam = Exam(mixture, tokenizer, task, preset, prompts, ends, ranks)
    trainer = Trainer(
        mixture, tokenizer, preset, schedule, beta=preset.beta if how.kl else 0.0, seed=seed, ends=ends,
        solved=exam.solved, ranks=ranks,
        critic=Critic(mixture, 10 * preset.lr) if preset.adv_estimator == "gae" else None,
    )  # fmt: skip
    settings = asdict(preset)
    config = {"command": "train", "preset": settings.pop("name"), "method": method, "seed": seed, "init": init}
    config |= settings | contents(mixture, task) | ({"rows": task.counts} if task.counts else {})
    try:
        with Run(out, config, resume, ranks.main) as run:
            ranks.wait()
            with reporting(report_to if ranks.main else None, run.folder, config) as report:
                return _steps(trainer, exam, run, log_completions, report, callback if ranks.main else None)
    except KeyboardInterrupt:
        ranks.print(f"\nStopped. {out} has all steps to its last checkpoint: --resume, in the same command, goes on.")
        raise


def _steps(trainer: Trainer, exam: "Exam", run: Run, log_completions: int, report, callback) -> dict:
    """All steps from the last checkpoint on, with a line of metrics and a checkpoint after each."""
    preset, task, schedule = exam.preset, exam.task, trainer.schedule
    exam.start = [p.detach().to("cpu", copy=True) for p in trainer.parameters.values()]
    state = run.restore(trainer.parameters, trainer.optimizer)
    trainer.set_alpha(state.get("alpha", schedule.alpha))
    line, watch = state.get("line", {}), Watch(state["lines"])
    size = preset.prompts * preset.dynamic_sampling
    for past in state["lines"]:
        report(past)
    bar = tqdm(
        range(state["step"] + 1, preset.steps + 1), initial=state["step"] + 1, total=preset.steps + 1, unit="step",
        disable=None if exam.ranks.main else True,
    )  # fmt: skip
    for step in bar:
        began, line = time.perf_counter(), {"step": step, "alpha": schedule.alpha}
        if step > 0:
            problems = [task.train[k] for k in batch_indices(step, size, len(task.train), trainer.seed)]
            line |= trainer.step(step, [exam.prompts[p.question] for p in problems], [p.answer for p in problems])
        if step % preset.eval_every == 0 or step == preset.steps:
            line |= exam.test(trainer) | {"accuracy_alpha": schedule.alpha}
        line["seconds"] = round(time.perf_counter() - began, 3)
        run.log(line)
        report(line)
        if log_completions and step > 0:
            run.log_completions(exam.read(trainer, problems, step, log_completions))
        words = watch.notice(line)
        if words and exam.ranks.main:
            tqdm.write(words)
        if step % preset.save_every == 0 or step == preset.steps:
            run.save(step, trainer.parameters, trainer.optimizer, alpha=schedule.alpha, line=line)
        shown = {name: f"{line[name]:.3f}" for name in ("reward", "accuracy") if line.get(name) is not None}
        bar.set_postfix(shown | {"alpha": f"{line['alpha']:.2f}"})
        if callback:
            callback(line)
    run.write("grades.json", exam.final())
    run.finish(exam.mixture.save_pretrained, exam.tokenizer.save_pretrained)
    exam.ranks.wait()
    return line


@dataclass
class Exam:
    """Greedy decodes of held-out problems by the mixture as it is. Each rank decodes its share."""

    mixture: Mixture
    tokenizer: object
    task: Task
    preset: Preset
    prompts: dict[str, list[int]]
    ends: list[int]
    ranks: Ranks
    tested: list[Grade] = field(default_factory=list)  # the newest grades of the test problems

    def grades(self, problems) -> list[Grade]:
        """Grades of one greedy answer to each problem."""
        mine = problems[self.ranks.rank :: self.ranks.count]
        found = mine and evaluate(
            self.mixture, self.tokenizer, mine, max_new_tokens=self.preset.max_new_tokens, batch=self.preset.eval_batch,
            prompts=[self.prompts[p.question] for p in mine], ends=self.ends,
        ).grades  # fmt: skip
        shares = self.ranks.gather(found)
        return [shares[k % self.ranks.count][k // self.ranks.count] for k in range(len(problems))]

    def solved(self, policy: str) -> list[bool]:
        """Which validation problems a policy solves: the mixture, theta alone, or ref alone."""
        with self.mixture.using(ALONE.get(policy, self.mixture.weights)):
            return [g.correct for g in self.grades(self.task.validation)]

    def test(self, trainer: Trainer) -> dict:
        """Rates on the test problems; how far theta has moved, and how far it is from ref."""
        self.tested = self.grades(self.task.test)
        pairs = zip(trainer.parameters.values(), self.start, strict=True)
        moved = sum((now.detach().cpu() - before).square().sum() for now, before in pairs).item()
        mixes = len(self.mixture.weights) == 2
        rates = {name: fmean(getattr(g, rate) for g in self.tested) for name, rate in RATES.items()}
        return rates | {"distance": moved**0.5, "kl_theta_ref": self.kl_theta_ref(trainer) if mixes else None}

    def read(self, trainer: Trainer, problems, step: int, count: int) -> list[dict]:
        """The first completions of a step on these problems: what was asked and said, its reward and its advantage."""
        rollouts, advantages = trainer.newest
        asked = {tuple(self.prompts[p.question]): p for p in problems}
        rows = []
        for k, text in enumerate(rollouts.texts(self.tokenizer)[:count]):
            place, mask = k // rollouts.samples, rollouts.mask[k]
            problem = asked[tuple(rollouts.prompt_ids[place][rollouts.prompt_mask[place].bool()].tolist())]
            reward = float(grade(text, problem.answer).correct)
            advantage = ((advantages[k] * mask).sum() / mask.sum()).item()  # the mean, where its tokens differ
            rows.append(dict(step=step, prompt=problem.question, completion=text, reward=reward, advantage=advantage))
        return rows

    def kl_theta_ref(self, trainer: Trainer) -> float:
        """KL(theta || ref), nats a token, on what theta samples for some test problems."""
        with self.mixture.using(ALONE["theta"]):
            rollouts = trainer.rollout(0, [self.prompts[p.question] for p in self.task.test[:32]], samples=1)
        rows = torch.arange(len(rollouts.logps), device=rollouts.logps.device)
        ref_logp = trainer.reference_logprobs(rollouts, [rows])
        return sequence_mean(kl_k3(rollouts.logps, ref_logp), rollouts.mask).mean().item()

    def final(self) -> dict:
        """Of the mixture, theta alone and ref alone after training: who solves which test problem ("1" or "0" each)."""
        found = {"mixture": self.tested or self.grades(self.task.test)}
        for name, weights in ALONE.items() if len(self.mixture.weights) == 2 else ():
            with self.mixture.using(weights):
                found[name] = self.grades(self.task.test)
        return {name: as_bits(grades, RATES.values()) for name, grades in found.items()}
