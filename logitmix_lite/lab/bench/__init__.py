"""Speed and memory against what people use today. Both sides of a row do the same work, in turns in one process tree;
the ratio is the median of the paired ratios, and more is better for this package.

SmolLM2-135M if `python -m logitmix_lite fetch smol` has been run, else random weights of its shape. Other shapes have
random weights of their true sizes. What a GPU is for:

    python -m logitmix_lite bench --shape qwen-1.5b --new 512 --rows rollout,training,limits --out h200-1.5b.json
    python -m logitmix_lite bench --shape qwen-7b --new 1024 --rows limits --runs 1 --out h200-7b.json

rows:
  rollout   a mixed rollout against `generate` of transformers, on one policy and with the second in a logits processor
  generate  the same against `generate` on one policy alone: where minutes are dear
  training  the training pass of the mixture against that of one policy
  logprobs  `token_logprobs` against a full log-softmax, time and memory
  step      a whole GRPO step against TRL's (needs `pip install trl`)
  nash      a mixed rollout against TRL's sampler for the same rule, Nash-MD's (needs `pip install "trl<1.14"`)
  sizes     what a mixed rollout costs at half and at twice the completions, tokens, policies and vocabulary
  limits    rollout and training against what this machine can do at best: bytes and products a second, both measured"""

import argparse
import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

from ...records import check_new

ROWS = ("rollout", "generate", "training", "logprobs", "step", "nash", "sizes", "limits")


@dataclass(frozen=True)
class Work:
    """What both sides do: `prompts` x `samples` completions of `new` tokens by a model of some shape, `runs` times."""

    shape: str = "smol"
    prompts: int = 8
    samples: int = 8
    new: int = 48
    runs: int = 5


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command `bench`."""
    parser.add_argument("--rows", default="rollout,training,logprobs", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--shape", default=Work.shape, help="smol, qwen-0.5b, qwen-1.5b, qwen-3b or qwen-7b")
    parser.add_argument("--prompts", type=int, default=Work.prompts, help="different prompts (default: 8)")
    parser.add_argument("--samples", type=int, default=Work.samples, help="completions a prompt (default: 8)")
    parser.add_argument("--new", type=int, default=Work.new, help="tokens a completion (default: 48)")
    parser.add_argument("--runs", type=int, default=Work.runs, help="paired runs a row (default: 5)")
    parser.add_argument("--out", help="JSON file for the table, with versions and hardware")


def run(args: argparse.Namespace) -> None:
    """Measure, print a line for each row, and write them to `args.out` if given."""
    names = args.rows.split(",")
    for name in names:
        if name not in ROWS:
            raise ValueError(f"no row {name!r}: choose of {', '.join(ROWS)}")
    work = Work(**{f.name: getattr(args, f.name) for f in fields(Work)})
    if min(work.prompts, work.samples, work.new, work.runs) < 1:
        raise ValueError("prompts, samples, new and runs must be at least 1")
    if args.out:
        check_new(args.out)
    from ...fingerprints import PACKAGES, hardware
    from . import peers, rows
    from .work import is_real

    made_by = {"hardware": hardware(), "versions": {name: version(name) for name in PACKAGES}}
    print(f"{made_by['hardware']}, torch {made_by['versions']['torch']}: {work.shape} with "
          f"{'its' if is_real(work) else 'random'} weights, {work.prompts} x {work.samples} completions of {work.new} "
          f"tokens, medians of {work.runs}")  # fmt: skip
    found = []
    for name in names:
        measure = getattr(peers if name in ("step", "nash", "logprobs") else rows, f"row_{name}")
        for row in measure(work):
            spread = "{} to {}".format(*row["range"]) if "range" in row else ""
            print(f"{row['row']:72s} {row['ours']:8} against {row['peer']:8} {row['unit']:3s} ratio {row['ratio']:6}",
                  spread, flush=True)  # fmt: skip
            found.append(row)
    if args.out:
        text = json.dumps(asdict(work) | made_by | {"rows": found}, indent=2) + "\n"
        Path(args.out).write_text(text, encoding="utf-8")
