"""Speed and memory against what people use today: `python tests/benchmarks/speed.py [--rows rollout,step] [--runs 5]`.

Every row does the same work on both sides, in turns in one process tree, and prints the median of the paired ratios.
SmolLM2-135M if `python -m logitmix_lite fetch smol` has been run, else random weights of its shape. On a GPU also the
shape of Qwen2.5-1.5B with random weights (`--shape qwen-1.5b`). The row `step` needs `pip install trl`."""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

from logitmix_lite import Mixture, budget, grade, load_task, rollout, token_logprobs
from logitmix_lite.models import LORA_LAYERS, default_device, locate
from logitmix_lite.rollout import completion_logprobs
from logitmix_lite.tasks import encode_prompt

PROMPTS, SAMPLES, NEW, RANK = 8, 8, 48, 16


def load(shape: str):
    """A fresh model: SmolLM2 where it has been fetched, else one of that shape; bfloat16 on a GPU."""
    dtype = torch.bfloat16 if default_device() == "cuda" else torch.float32
    torch.manual_seed(0)
    if shape == "smol" and fetched():
        model = AutoModelForCausalLM.from_pretrained(locate("smol"), dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_config(budget.shape(shape), dtype=dtype)
    return model.to(default_device()).eval()


def fetched() -> bool:
    try:
        return bool(locate("smol"))
    except FileNotFoundError:
        return False


def two_policies(shape: str) -> Mixture:
    """Two LoRA adapters of rank 16 on one backbone, neither of them zero, mixed half and half; theta is trained."""
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LORA_LAYERS, task_type="CAUSAL_LM")
    model = get_peft_model(load(shape), config, adapter_name="theta")
    model.add_adapter("ref", config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
        parameter.requires_grad_(".theta." in name)
    return Mixture([model], [0.5, 0.5], adapters=["theta", "ref"]).eval()


def prompts(shape: str) -> list[list[int]]:
    """Token ids of eight word problems; of random tokens where there is no tokenizer."""
    if shape == "smol" and fetched():
        tokenizer, task = AutoTokenizer.from_pretrained(locate("smol")), load_task("words", train=PROMPTS)
        return [encode_prompt(tokenizer, problem.question, task.instruction) for problem in task.train]
    return torch.randint(100, 40000, (PROMPTS, 60), generator=torch.Generator().manual_seed(0)).tolist()


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


def generate(model, ids, mask, processors=None):
    """transformers' own sampling of NEW tokens a row; nothing ends early, so that both sides do the same work."""
    return model.generate(
        ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0,
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


def compare(name: str, ours, peer, runs: int, better: str) -> dict:
    """Median of `peer / ours` over runs in turns, after one of each that does not count."""
    ours(), peer()
    pairs = [(clock(ours), clock(peer)) for _ in range(runs)]
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    return {
        "row": name,
        "ours_s": round(mine, 3),
        "peer_s": round(theirs, 3),
        "ratio": round(ratio, 2),
        "better": better,
    }


def row_rollout(shape: str, runs: int) -> list[dict]:
    """Mixed rollout of two policies against `generate` on one, and with the second in a processor."""
    mixture, plain, second, rows = two_policies(shape), load(shape), load(shape), prompts(shape)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows for _ in range(SAMPLES)], device=plain.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows for _ in range(SAMPLES)])
    mask = mask.to(plain.device)

    def ours():
        return rollout(mixture, rows, samples=SAMPLES, max_new_tokens=NEW, eos=[], pad=0)

    assert ours().completions.shape == (PROMPTS * SAMPLES, NEW)
    return [
        compare("mixed rollout / generate, one policy", ours, lambda: generate(plain, ids, mask), runs, "higher"),
        compare(
            "mixed rollout / generate + logits processor", ours,
            lambda: generate(plain, ids, mask, [SecondModel(second, mask)]), runs, "higher",
        ),
    ]  # fmt: skip


def row_training(shape: str, runs: int) -> list[dict]:
    """The training pass of the mixture, with ref's states kept from the rollout, against single-policy GRPO's."""
    mixture = two_policies(shape)
    rollouts = rollout(mixture, prompts(shape), samples=SAMPLES, max_new_tokens=NEW, eos=[], pad=0, keep=True)
    place = torch.arange(PROMPTS * SAMPLES) // SAMPLES
    args = rollouts.prompt_ids[place], rollouts.prompt_mask[place], rollouts.completions, rollouts.mask

    def passes(weights, kept):
        with mixture.using(weights):
            for rows in torch.arange(PROMPTS * SAMPLES).split(32):
                states = [s[rows] for s in kept] if kept else None
                completion_logprobs(mixture, *(x[rows] for x in args), kept=states).sum().backward()
        mixture.zero_grad()

    return [
        compare("single-policy training pass / mixed, ref kept", lambda: passes((0.5, 0.5), rollouts.kept),
                lambda: passes((1.0, 0.0), None), runs, "higher"),
        compare("mixed, ref run again / mixed, ref kept", lambda: passes((0.5, 0.5), rollouts.kept),
                lambda: passes((0.5, 0.5), None), runs, "higher"),
    ]  # fmt: skip


def row_step(shape: str, runs: int) -> list[dict]:
    """One GRPO step through the mixture against TRL's GRPOTrainer with KL: 64 completions, LoRA of the same rank.

    Both go through their own whole step (sampling, rewards, loss, optimiser); medians over steps, not in turns."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from logitmix_lite.presets import load_preset
    from logitmix_lite.train import train

    if shape != "smol" or not fetched():
        raise SystemExit("the row `step` needs SmolLM2: python -m logitmix_lite fetch smol")
    task = load_task("words", train=PROMPTS * (runs + 1))
    with tempfile.TemporaryDirectory() as folder:
        # the untrained model hardly ever ends within 48 tokens; with one test problem, the time is that of the steps
        preset = load_preset(
            "smol", anchor="base", prompts=PROMPTS, samples=SAMPLES, max_new_tokens=NEW, steps=runs + 1, test_size=1,
            eval_every=10**6, microbatch_tokens=4096,
        )  # fmt: skip
        train(preset, "fixed", f"{folder}/ours")
        lines = [json.loads(line) for line in open(f"{folder}/ours/metrics.jsonl")]
        ours = [line["seconds"] for line in lines[2:-1]] or [lines[-1]["seconds"]]

        ends = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                ends.append(time.perf_counter())

            on_train_end = on_step_begin

        rows = [{"prompt": [{"role": "user", "content": f"{p.question} {task.instruction}"}], "answer": p.answer}
                for p in task.train]  # fmt: skip
        config = GRPOConfig(
            output_dir=f"{folder}/trl", per_device_train_batch_size=32, gradient_accumulation_steps=2,
            num_generations=SAMPLES, max_completion_length=NEW, beta=0.04, max_steps=runs + 1, learning_rate=1e-4,
            use_cpu=default_device() == "cpu", report_to=[], save_strategy="no", logging_steps=1000, bf16=False,
            gradient_checkpointing=False, disable_tqdm=True,
        )  # fmt: skip

        def reward(completions, answer, **kwargs):
            texts = [completion[0]["content"] for completion in completions]
            return [float(grade(text, gold).correct) for text, gold in zip(texts, answer, strict=True)]

        trainer = GRPOTrainer(
            locate("smol"), reward, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
            peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LORA_LAYERS, task_type="CAUSAL_LM"),
        )  # fmt: skip
        trainer.train()
    peer = [b - a for a, b in zip(ends[1:], ends[2:], strict=False)] or [ends[1] - ends[0]]
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return [{"row": "GRPO step, mixing / TRL GRPOTrainer, KL", "ours_s": mine, "peer_s": round(theirs, 3),
             "ratio": round(theirs / mine, 2), "better": "higher"}]  # fmt: skip


def row_logprobs(shape: str, runs: int) -> list[dict]:
    """`token_logprobs` forward and backward against the full log-softmax: 2,048 tokens, D 1,536, V 151,936, float32."""

    def child(kind: str) -> tuple[float, float]:
        command = [sys.executable, __file__, "--child", kind]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return tuple(json.loads(out))

    pairs = [(child("chunked"), child("full")) for _ in range(runs)]
    row = {"ours_s": round(statistics.median(a[0] for a, _ in pairs), 3),
           "peer_s": round(statistics.median(b[0] for _, b in pairs), 3)}  # fmt: skip
    times = statistics.median(b[0] / a[0] for a, b in pairs)
    memory = statistics.median(b[1] / a[1] for a, b in pairs)
    return [
        {"row": "full log-softmax / token_logprobs, time", **row, "ratio": round(times, 2), "better": "higher"},
        {"row": "full log-softmax / token_logprobs, extra peak MiB", "ours_s": round(pairs[0][0][1]),
         "peer_s": round(pairs[0][1][1]), "ratio": round(memory, 1), "better": "higher"},
    ]  # fmt: skip


def logprobs_child(kind: str) -> None:
    """In a process of its own, so that its peak memory is its own: prints seconds and extra MiB."""
    torch.manual_seed(0)
    hidden = torch.randn(2048, 1536, requires_grad=True)
    weight, tokens = torch.randn(151936, 1536) / 40, torch.randint(151936, (2048,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if kind == "chunked":
        token_logprobs(hidden, weight, tokens).sum().backward()
    else:
        (hidden @ weight.T).log_softmax(-1).gather(-1, tokens[:, None]).sum().backward()
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))


ROWS = {"rollout": row_rollout, "training": row_training, "logprobs": row_logprobs, "step": row_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="rollout,training,logprobs", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--runs", type=int, default=5, help="paired runs a row")
    parser.add_argument("--shape", choices=["smol", "qwen-1.5b"], default="smol")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return logprobs_child(args.child)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {default_device()}, {args.shape}, "
          f"{'its weights' if args.shape == 'smol' and fetched() else 'random weights'}, "
          f"{PROMPTS} x {SAMPLES} completions of {NEW} tokens, medians of {args.runs}")  # fmt: skip
    for name in args.rows.split(","):
        for row in ROWS[name](args.shape, args.runs):
            print(f"{row['row']:52s} ours {row['ours_s']:8} peer {row['peer_s']:8} ratio {row['ratio']:6}", flush=True)


if __name__ == "__main__":
    main()
