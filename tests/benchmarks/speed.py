"""Speed and memory against what people use today: `python tests/benchmarks/speed.py [--rows rollout,step] [--runs 5]`.

Every row does the same work on both sides, in turns in one process tree, and prints the median of the paired ratios.

rollout   a mixed rollout against `generate` of transformers, on one policy and with the second in a logits processor
training  the training pass of the mixture against that of one policy
logprobs  `token_logprobs` against a full log-softmax, time and memory
step      a whole GRPO step against TRL's (needs `pip install trl`)
sizes     what a mixed rollout costs at half and at twice the completions, tokens, policies and vocabulary
limits    rollout and training against what this machine can do at best: bytes and products a second, both measured

SmolLM2-135M if `python -m logitmix_lite fetch smol` has been run, else random weights of its shape. Other shapes have
random weights of their true sizes. What a GPU is for:

    python tests/benchmarks/speed.py --shape qwen-1.5b --new 512 --rows rollout,training,limits --out h200-1.5b.json
    python tests/benchmarks/speed.py --shape qwen-7b --new 1024 --rows limits --runs 1 --out h200-7b.json"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random
from unittest.mock import patch

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

from logitmix_lite import Mixture, load_task, rollout, token_logprobs
from logitmix_lite.lab import budget
from logitmix_lite.models import LORA_LAYERS, add_lora, default_device, locate
from logitmix_lite.rollout import Rollouts, completion_logprobs
from logitmix_lite.runs import PACKAGES, hardware, read_metrics
from logitmix_lite.tasks import encode_prompt
from logitmix_lite.tasks.rewards import grade_all

RANK = 16


@dataclass(frozen=True)
class Work:
    """What both sides do: `prompts` x `samples` completions of `new` tokens by a model of some shape, `runs` times."""

    shape: str = "smol"
    prompts: int = 8
    samples: int = 8
    new: int = 48
    runs: int = 5

    @property
    def real(self) -> bool:
        """Whether the model is SmolLM2 itself, and not random weights."""
        return self.shape == "smol" and fetched()


def load(work: Work, vocabulary: int | None = None):
    """A fresh model, float32 on a CPU and bfloat16 on a GPU. vocabulary: random weights, with that many tokens."""
    dtype = torch.bfloat16 if default_device() == "cuda" else torch.float32
    torch.manual_seed(0)
    if work.real and vocabulary is None:
        return AutoModelForCausalLM.from_pretrained(locate("smol"), dtype=dtype).to(default_device()).eval()
    config = budget.shape(work.shape)
    config.vocab_size = vocabulary or config.vocab_size
    with torch.device(default_device()):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def fetched() -> bool:
    try:
        return bool(locate("smol"))
    except FileNotFoundError:
        return False


def policies(work: Work, members: int = 2, blocks: int = 0, vocabulary: int | None = None) -> Mixture:
    """LoRA adapters of rank 16 on one backbone, none of them zero, mixed in equal shares; the first is trained.

    blocks: adapters on that many of the last blocks only; 0: on all."""
    names = [f"policy{k}" for k in range(members)]
    model = add_lora(load(work, vocabulary), RANK, 2 * RANK, blocks, names[0])
    for name in names[1:]:
        model.add_adapter(name, model.peft_config[names[0]])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
        parameter.requires_grad_(f".{names[0]}." in name)
    return Mixture([model], adapters=names).eval()


def prompts(work: Work) -> list[list[int]]:
    """Token ids of word problems; of random tokens where there is no tokenizer."""
    if work.real:
        tokenizer, task = AutoTokenizer.from_pretrained(locate("smol")), load_task("words", train=work.prompts)
        return [encode_prompt(tokenizer, problem.question, task.instruction) for problem in task.train]
    return torch.randint(100, 8000, (work.prompts, 60), generator=torch.Generator().manual_seed(0)).tolist()


def sample(mixture: Mixture, work: Work, keep=False):
    """A rollout in which nothing ends early."""
    rows = [[token % mixture.config.vocab_size for token in row] for row in prompts(work)]  # a small vocabulary's too
    return rollout(mixture, rows, samples=work.samples, max_new_tokens=work.new, eos=[], pad=0, keep=keep)


class SecondModel(LogitsProcessor):
    """How one mixes two models today: a logits processor that runs the other model with a cache of its own."""

    def __init__(self, model, mask):
        self.model, self.mask, self.cache = model, mask, None

    def __call__(self, input_ids, scores):
        new = input_ids if self.cache is None else input_ids[:, -1:]
        if self.cache is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], -1)
        places = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        with torch.no_grad():
            out = self.model(
                new, attention_mask=self.mask, position_ids=places, cache=self.cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        self.cache = out.cache
        return 0.5 * scores + 0.5 * out.logits[:, -1].to(scores.dtype)


def generate(model, ids, mask, new, processors=None):
    """transformers' own sampling of `new` tokens a row; nothing ends early, so that both sides do the same work."""
    return model.generate(
        ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
        eos_token_id=None, logits_processor=processors,
    )  # fmt: skip


def clock(work) -> float:
    """Seconds that `work()` takes, the GPU's queue included."""
    if default_device() == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if default_device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rounds(sides: dict[str, Callable], runs: int) -> dict[str, list[float]]:
    """Seconds of each side in each of `runs` rounds, in turns, after one round that does not count."""
    for side in sides.values():
        side()
    times = [{name: clock(side) for name, side in sides.items()} for _ in range(runs)]
    return {name: [turn[name] for turn in times] for name in sides}


def compare(name: str, ours: list[float], peer: list[float], unit: str = "s") -> dict:
    """A line of the table from measurements of both sides, in pairs. range: least and largest ratio of a pair."""
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    row = result(name, statistics.median(ours), statistics.median(peer), statistics.median(ratios), unit)
    return row | {"range": [round(min(ratios), 2), round(max(ratios), 2)]}


def result(name: str, ours: float, peer: float, ratio: float, unit: str = "s") -> dict:
    """A line of the table; ratio: peer / ours, so that more is better for us."""
    return {"row": name, "ours": float(f"{ours:.4g}"), "peer": float(f"{peer:.4g}"), "unit": unit,
            "ratio": round(ratio, 2)}  # fmt: skip


def row_rollout(work: Work) -> list[dict]:
    """Mixed rollout of two policies against `generate` on one, and with the second in a processor."""
    mixture, plain, second, rows = policies(work), load(work), load(work), prompts(work)
    late = policies(work, blocks=plain.config.num_hidden_layers // 3)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(r)) + r for r in rows for _ in range(work.samples)], device=plain.device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows for _ in range(work.samples)])
    mask = mask.to(plain.device)

    assert sample(mixture, work).completions.shape == (work.prompts * work.samples, work.new)
    times = rounds({
        "mixed": lambda: sample(mixture, work),
        "late": lambda: sample(late, work),
        "one": lambda: generate(plain, ids, mask, work.new),
        "processor": lambda: generate(plain, ids, mask, work.new, [SecondModel(second, mask)]),
    }, work.runs)  # fmt: skip
    third = "mixed rollout, adapters on a third of the blocks"
    return [
        compare("mixed rollout / generate, one policy", times["mixed"], times["one"]),
        compare("mixed rollout / generate + logits processor", times["mixed"], times["processor"]),
        compare(f"{third} / generate, one policy", times["late"], times["one"]),
        compare(f"{third} / generate + logits processor", times["late"], times["processor"]),
    ]


def learn(mixture: Mixture, r: Rollouts, tokens: int = 4096, kept: bool = True) -> None:
    """A training pass, whole groups of about `tokens` tokens at a time."""
    size = r.samples * r.completions.shape[1]
    for prompts in torch.arange(len(r.prompt_ids)).split(max(1, tokens // size)):
        rows = slice(int(prompts[0]) * r.samples, (int(prompts[-1]) + 1) * r.samples)
        states = [s[rows] for s in r.kept] if kept else None
        completion_logprobs(
            mixture, r.prompt_ids[prompts], r.prompt_mask[prompts], r.completions[rows], r.mask[rows], kept=states
        ).sum().backward()
    mixture.zero_grad()


def row_training(work: Work) -> list[dict]:
    """The training pass of the mixture, with ref's states kept from the rollout, against single-policy GRPO's."""
    mixture, late = policies(work), policies(work, blocks=budget.shape(work.shape).num_hidden_layers // 3)
    rollouts = {m: sample(m, work, keep=True) for m in (mixture, late)}

    def one():
        with mixture.using((1, 0)):
            learn(mixture, rollouts[mixture], kept=False)

    times = rounds({
        "kept": lambda: learn(mixture, rollouts[mixture]),
        "again": lambda: learn(mixture, rollouts[mixture], kept=False),
        "late": lambda: learn(late, rollouts[late]),
        "one": one,
    }, work.runs)  # fmt: skip
    third = "mixed training pass, adapters on a third of the blocks"
    return [
        compare("mixed training pass, ref kept / one policy's", times["kept"], times["one"]),
        compare("the same / mixed, ref run again", times["kept"], times["again"]),
        compare(f"{third} / one policy's, on all", times["late"], times["one"]),
    ]


def row_sizes(work: Work) -> list[dict]:
    """How the cost of a mixed rollout grows with each size. peer: the usual size, measured in the same rounds."""
    vocabulary, usual = budget.shape(work.shape).vocab_size, policies(work)
    count, drawn = work.prompts * work.samples, policies(work, vocabulary=vocabulary)
    others = {}
    for factor in (0.5, 2):
        samples, new = int(factor * work.samples), int(factor * work.new)
        others |= {
            f"{work.prompts * samples} completions instead of {count}": (factor, usual, replace(work, samples=samples)),
            f"{new} tokens each instead of {work.new}": (factor, usual, replace(work, new=new)),
            f"{int(2 * factor)} policies mixed instead of 2": (factor, policies(work, int(2 * factor)), work),
            f"vocabulary of {int(factor * vocabulary)} instead of {vocabulary}": (
                factor, policies(work, vocabulary=int(factor * vocabulary)), work
            ),
        }  # fmt: skip
    sides = {size: partial(sample, mixture, changed) for size, (_, mixture, changed) in others.items()}
    sides |= {"usual": lambda: sample(usual, work), "usual vocabulary": lambda: sample(drawn, work)}
    times, rows = rounds(sides, work.runs), []
    for size, (factor, _, _) in others.items():
        row = compare(size, times[size], times["usual vocabulary" if "vocabulary" in size else "usual"])
        text = f"{size}: {factor:g} times as much costs {1 / row['ratio']:.2f} times the time"
        rows.append(row | {"row": text, "size": size, "factor": factor})
    return rows


def rates() -> tuple[float, float]:
    """Operations a second of a large matrix product, and bytes a second read and written by a copy, at their best."""
    cpu = default_device() == "cpu"
    like = dict(device=default_device(), dtype=torch.float32 if cpu else torch.bfloat16)
    side, size = (2048, 2**26) if cpu else (8192, 2**31)
    square, row, other = torch.randn(side, side, **like), torch.zeros(size, **like), torch.zeros(size, **like)
    product, copy = (
        min(clock(work) for _ in range(10)) for work in (lambda: square @ square, lambda: other.copy_(row))
    )
    return 2 * side**3 / product, 2 * row.nbytes / copy


def row_limits(work: Work) -> list[dict]:
    """Decoding against the time that reading weights and both caches takes, training against that of its matrix
    products, by this machine's measured rates; and the memory that a whole step needs, on a GPU."""
    flops, bandwidth = rates()
    mixture, gpu = policies(work), default_device() == "cuda"
    if gpu:
        mixture.gradient_checkpointing_enable()
        torch.cuda.reset_peak_memory_stats()
    count, length = work.prompts * work.samples, max(map(len, prompts(work)))
    plan = budget.Plan(
        budget.shape(work.shape), count, work.samples, length, work.new, rank=RANK, dtype=mixture.dtype, checkpoint=gpu
    )
    least, rollouts = plan.seconds(flops, bandwidth), sample(mixture, work, keep=True)

    def train():
        learn(mixture, rollouts, plan.microbatch_tokens)

    train()
    decoding = statistics.median(clock(lambda: sample(mixture, work)) for _ in range(work.runs))
    training = statistics.median(clock(train) for _ in range(work.runs))
    speed = count * work.new / decoding
    print(f"measured {flops / 1e12:.3g} TFLOP/s, {bandwidth / 1e12:.3g} TB/s, {speed:.0f} tokens/s")
    rows = [
        result("mixed rollout / reading weights and caches", decoding, least["decoding"], least["decoding"] / decoding),
        result("training pass / its matrix products", training, least["training"], least["training"] / training),
    ]
    if gpu:
        used = torch.cuda.max_memory_allocated() / 1e9
        rows.append(result("worst moment / 80 GB", used, 80, 80 / used, "GB"))
        rows.append(result("worst moment / budget.Plan", used, plan.peak() / 1e9, plan.peak() / 1e9 / used, "GB"))
    return rows


def row_step(work: Work) -> list[dict]:
    """One GRPO step through the mixture against TRL's GRPOTrainer with KL: 64 completions, LoRA of the same rank.

    Both go through their own whole step (sampling, rewards, loss, optimiser); medians over steps, not in turns. Rewards
    are graded and then drawn at random, or we would skip the training of groups that are all wrong."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from logitmix_lite.config import load_preset
    from logitmix_lite.train import train

    random = Random(0)

    def drawn(grade):
        return replace(grade, correct=random.random() < 0.5)

    if not work.real:
        raise SystemExit("the row `step` needs SmolLM2: python -m logitmix_lite fetch smol")
    task = load_task("words", train=work.prompts * (work.runs + 1))
    with tempfile.TemporaryDirectory() as folder:
        # the untrained model hardly ever ends within 48 tokens; with one test problem, the time is that of the steps
        preset = load_preset(
            "smol", anchor="base", lora_rank=RANK, lora_alpha=2 * RANK, lora_blocks=0, prompts=work.prompts,
            samples=work.samples, max_new_tokens=work.new, steps=work.runs + 2, test_size=1, eval_every=10**6,
        )  # fmt: skip
        with patch("logitmix_lite.trainer.grade_all", lambda *args: list(map(drawn, grade_all(*args)))):
            train(preset, "fixed", f"{folder}/ours")
        # without the first step, which warms up, and the last, which also evaluates
        ours = [line["seconds"] for line in read_metrics(f"{folder}/ours")[2:-1]]

        ends = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                ends.append(time.perf_counter())

            on_train_end = on_step_begin

        rows = [{"prompt": [{"role": "user", "content": f"{p.question} {task.instruction}"}], "answer": p.answer}
                for p in task.train]  # fmt: skip
        config = GRPOConfig(
            output_dir=f"{folder}/trl", per_device_train_batch_size=32, gradient_accumulation_steps=2,
            num_generations=work.samples, max_completion_length=work.new, beta=0.04, max_steps=work.runs + 1,
            learning_rate=1e-4,
            use_cpu=default_device() == "cpu", report_to=[], save_strategy="no", logging_steps=1000, bf16=False,
            gradient_checkpointing=False, disable_tqdm=True,
        )  # fmt: skip

        def reward(completions, answer, **kwargs):
            texts = [completion[0]["content"] for completion in completions]
            return [float(drawn(grade).correct) for grade in grade_all(texts, answer)]

        trainer = GRPOTrainer(
            locate("smol"), reward, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
            peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LORA_LAYERS, task_type="CAUSAL_LM"),
        )  # fmt: skip
        trainer.train()
    peer = [b - a for a, b in zip(ends[1:], ends[2:], strict=False)]
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return [result("GRPO step, mixing / TRL GRPOTrainer, KL", mine, theirs, theirs / mine)]


def row_logprobs(work: Work) -> list[dict]:
    """`token_logprobs` forward and backward against the full log-softmax: 2,048 tokens, D 1,536, V 151,936, float32."""

    def child(kind: str) -> tuple[float, float]:
        command = [sys.executable, __file__, "--child", kind]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return tuple(json.loads(out))

    pairs = [(child("chunked"), child("full")) for _ in range(work.runs)]
    ours, peer = (list(zip(*side, strict=True)) for side in zip(*pairs, strict=True))
    return [
        compare(f"token_logprobs / full log-softmax, {what}", ours[k], peer[k], unit)
        for k, (what, unit) in enumerate((("time", "s"), ("extra peak memory", "MiB")))
    ]


def logprobs_child(kind: str) -> None:
    """In a process of its own, so that its peak memory is its own: prints seconds and extra MiB."""
    torch.manual_seed(0)
    hidden = torch.randn(2048, 1536, requires_grad=True)
    # made in place: a peak before the work would hide what the work needs
    weight, tokens = torch.randn(151936, 1536).div_(40), torch.randint(151936, (2048,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if kind == "chunked":
        token_logprobs(hidden, weight, tokens).sum().backward()
    else:
        (hidden @ weight.T).log_softmax(-1).gather(-1, tokens[:, None]).sum().backward()
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))


ROWS = {name.removeprefix("row_"): row for name, row in list(globals().items()) if name.startswith("row_")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="rollout,training,logprobs", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--shape", choices=list(budget.SIZES), default=Work.shape)
    parser.add_argument("--prompts", type=int, default=Work.prompts, help="different prompts (default: 8)")
    parser.add_argument("--samples", type=int, default=Work.samples, help="completions a prompt (default: 8)")
    parser.add_argument("--new", type=int, default=Work.new, help="tokens a completion (default: 48)")
    parser.add_argument("--runs", type=int, default=Work.runs, help="paired runs a row (default: 5)")
    parser.add_argument("--out", help="JSON file for the table, with versions and hardware")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return logprobs_child(args.child)
    unknown = [name for name in args.rows.split(",") if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}: choose of {', '.join(ROWS)}")
    work = Work(args.shape, args.prompts, args.samples, args.new, args.runs)
    print(f"{hardware()}, torch {torch.__version__}: {work.shape} with {'its' if work.real else 'random'} weights, "
          f"{work.prompts} x {work.samples} completions of {work.new} tokens, medians of {work.runs}")  # fmt: skip
    found = []
    for name in args.rows.split(","):
        for row in ROWS[name](work):
            spread = "{} to {}".format(*row["range"]) if "range" in row else ""
            print(f"{row['row']:72s} {row['ours']:8} against {row['peer']:8} {row['unit']:3s} ratio {row['ratio']:6}",
                  spread, flush=True)  # fmt: skip
            found.append(row)
    if args.out:
        made_by = {"hardware": hardware(), "versions": {name: version(name) for name in PACKAGES}}
        Path(args.out).write_text(json.dumps(asdict(work) | made_by | {"rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
