"""Rows on the mixture itself: sampling, training, how the cost grows, and what the machine could do at best."""

import statistics
from dataclasses import replace
from functools import partial

import torch
from transformers import LogitsProcessor

from ...fast.rows import pad_rows
from ...hf import CACHE
from ...models import default_device
from .. import budget
from . import Work
from .work import RANK, clock, compare, learn, load, policies, prompts, result, rounds, sample


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
                new, attention_mask=self.mask, position_ids=places, use_cache=True, logits_to_keep=1,
                **{CACHE: self.cache},
            )  # fmt: skip
        self.cache = out[CACHE]
        return 0.5 * scores + 0.5 * out.logits[:, -1].to(scores.dtype)


def generate(model, ids, mask, new, processors=None):
    """transformers' own sampling of `new` tokens a row; nothing ends early, so that both sides do the same work."""
    return model.generate(
        ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
        eos_token_id=None, logits_processor=processors,
    )  # fmt: skip


def row_rollout(work: Work) -> list[dict]:
    """Mixed rollout of two policies against `generate` on one, and with the second in a processor."""
    mixture, plain, second = policies(work), load(work), load(work)
    late = policies(work, blocks=plain.config.num_hidden_layers // 3)
    ids, mask = (x.repeat_interleave(work.samples, 0).to(plain.device) for x in pad_rows(prompts(work), 0, left=True))

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


def row_generate(work: Work) -> list[dict]:
    """Mixed rollout of two policies against `generate` on one, and nothing else: where minutes are dear."""
    mixture, plain = policies(work), load(work)
    ids, mask = (x.repeat_interleave(work.samples, 0).to(plain.device) for x in pad_rows(prompts(work), 0, left=True))
    generate(plain, ids, mask, 4)  # warms up
    sample(mixture, work)
    times = [(clock(lambda: sample(mixture, work)), clock(lambda: generate(plain, ids, mask, work.new)))
             for _ in range(work.runs)]  # fmt: skip
    return [compare("mixed rollout / generate, one policy", *zip(*times, strict=True))]


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
