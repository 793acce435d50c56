"""One visit to a GPU: checks, benchmarks and recorded runs, in this order, each result written as soon as it is there.

    python tests/gpu/visit.py --weights FOLDER --data FOLDER --out data/results/gpu --minutes 12

weights: a folder of Qwen2.5 0.5B, or of numbered pieces (model.00, model.01, ...) of a tar archive of it. data: a
folder with GSM8K's train.jsonl and test.jsonl. No network is needed. Started again, it goes on where it was.
`--rehearse` is the whole visit on a CPU with the tiny models, in a minute or two.

checks    the tests marked gpu: recorded steps, bfloat16, a LoRA step
bench     rollout and training against `generate` and this card's rates, at the shapes of 1.5B and 7B
anchors   fine-tuning on human solutions, several ways, at once
premise   base and each anchor alone, and mixed: on validation problems, by which one anchor and the longest completion
          are chosen, and on test problems; the mixing table of the chosen pair
runs      the methods in `SEARCHED` at every rate; with the one that earns more reward at the end of training, others in
          the order of `RUNS`; several at a time, until the minutes are over"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # the package need not be installed
PYTHON = [sys.executable, "-m", "logitmix_lite"]
RATES = ("1e-4", "3e-4")
SEARCHED = ("grpo-anchor", "fixed", "grpo-kl", "grpo")  # seed 0 of each, at every rate: the strong baseline first
RUNS = [  # at the chosen rate; what was not started when time is over is done at the next visit
    ("grpo-anchor", 1), ("fixed", 1), ("grpo-kl", 1), ("grpo", 1), ("prob", 0), ("wise-ft", 0),
    ("grpo-anchor", 2), ("fixed", 2), ("grpo-kl", 2), ("grpo", 2), ("base-anchor", 0), ("grpo-kl-0.01", 0),
    ("adaptive", 0), ("adaptive", 1), ("adaptive", 2),  # three times the others' price: it decodes after every step
]  # fmt: skip
LIKE = {  # whose rate a method has that was not searched
    "prob": "fixed", "base-anchor": "fixed", "adaptive": "fixed", "wise-ft": "grpo-anchor", "grpo-kl-0.01": "grpo-kl",
}  # fmt: skip
LAST = 10  # steps whose training reward decides between the rates
SETTINGS = ["--prompts", "16", "--samples", "8", "--temperature", "0.7", "--steps", "40", "--eval-every", "10",
            "--eval-batch", "100", "--microbatch-tokens", "16384", "--save-every", "10"]  # fmt: skip
SHORT = ["--steps", "2", "--prompts", "2", "--samples", "2", "--eval-every", "1"]  # of the rehearsal
HELD_OUT = "200"  # validation problems by which the anchor is chosen: more than the runs use, none seen by an anchor
ANCHORS = {  # name: settings of `sft`
    "human-200": ["--sft-demos", "200", "--sft-steps", "19"],
    "human-4000": ["--sft-demos", "4000", "--sft-steps", "50"],
    "short-1000": ["--sft-demos", "1000", "--sft-steps", "31", "--sft-task", "short.jsonl"],
    "answer-1000": ["--sft-demos", "1000", "--sft-steps", "31", "--sft-task", "answer.jsonl"],
}


class Visit:
    def __init__(self, args):
        self.out, self.rehearse, self.jobs = Path(args.out).resolve(), args.rehearse, args.jobs
        self.deadline = time.monotonic() + 60 * args.minutes
        self.out.mkdir(parents=True, exist_ok=True)
        self.data = Path(args.data).resolve() if args.data else None
        self.weights = Path(args.weights).resolve() if args.weights else None
        self.only = args.only
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        self.env = os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        self.env |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // max(1, self.jobs)))}

    def left(self) -> float:
        """Seconds until the visit must be over."""
        return self.deadline - time.monotonic()

    def note(self, stage: str, **what) -> None:
        """Append to the visit's log, and say so."""
        line = {"stage": stage, "left": round(self.left()), **what}
        with (self.out / "visit.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def command(self, name: str, command: list[str]) -> int:
        """Run a command with its output in a log of its own; interrupted, as by Ctrl-C, when the visit is over."""
        log = self.out / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        start = time.monotonic()
        with log.open("a", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=self.env, cwd=REPOSITORY)
            try:
                process.wait(timeout=max(1, self.left()))
            except subprocess.TimeoutExpired:
                process.send_signal(2)
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    process.kill()
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        self.note(name, code=process.returncode, seconds=round(time.monotonic() - start, 1), last=last)
        return process.returncode

    def every(self, commands: dict[str, list[str]], jobs: int | None = None) -> dict[str, int]:
        """Run several commands, `jobs` at a time; none is started after the end."""
        with ThreadPoolExecutor(jobs or self.jobs) as pool:
            codes = pool.map(lambda name: self.command(name, commands[name]) if self.left() > 5 else -1, commands)
            return dict(zip(commands, codes, strict=True))

    # ---- stages -----------------------------------------------------------------------------------------------------

    def preset(self) -> list[str]:
        """Flags of every command: which models and problems."""
        if self.rehearse:
            return ["--preset", "tiny", "--validation-size", "8", "--test-size", "20"]
        return ["--preset", "qwen-0.5b", "--base", str(self.weights), "--data", str(self.data)]

    def unpack(self) -> None:
        """Put numbered pieces together, once."""
        pieces = sorted(self.weights.glob("model.[0-9]*")) if self.weights else []
        if pieces and not (self.weights / "config.json").exists():
            archive = self.weights / "model.tar"
            with archive.open("wb") as whole:
                for piece in pieces:
                    whole.write(piece.read_bytes())
            with tarfile.open(archive) as tar:
                tar.extractall(self.weights, filter="data")
            archive.unlink()
        if not self.rehearse and not (self.weights and (self.weights / "config.json").exists()):
            sys.exit(f"no model in {self.weights}: give --weights a folder with config.json, or its numbered pieces")
        self.note("weights", folder=self.weights and self.weights.name, pieces=len(pieces))

    def checks(self) -> None:
        code = self.command("checks", [sys.executable, "-m", "pytest", "-q", "tests/gpu"])
        if code not in ((0, 5) if self.rehearse else (0,)):  # 5: all of them skipped
            sys.exit(f"the checks failed (see {self.out / 'logs' / 'checks.log'}): nothing else was started")

    def bench(self) -> None:
        script = [*PYTHON, "bench"]
        if self.rehearse:
            rows = {"bench-smol": ["--rows", "limits", "--new", "4", "--prompts", "2", "--samples", "2", "--runs", "1"]}
        else:
            rows = {
                "bench-1.5b": ["--shape", "qwen-1.5b", "--new", "512", "--rows", "limits,generate", "--runs", "2"],
                "bench-7b": ["--shape", "qwen-7b", "--new", "1024", "--rows", "limits", "--runs", "1"],
            }
        todo = {name: [*script, *flags, "--out", str(self.out / f"{name}.json")] for name, flags in rows.items()
                if not (self.out / f"{name}.json").exists()}  # fmt: skip
        self.every(todo, jobs=1)

    def anchors(self) -> None:
        kinds = {"tiny": ["--sft-steps", "2"]} if self.rehearse else ANCHORS
        if (self.out / "chosen.json").exists():  # at an earlier visit: the others are not needed any more
            name = json.loads((self.out / "chosen.json").read_text(encoding="utf-8"))["anchor"]
            kinds = {name: kinds[name]}
        if not self.rehearse:
            short_demonstrations(self.data / "train.jsonl", self.out)
        commands = {}
        for name, settings in kinds.items():
            folder = self.out / "anchors" / name
            if not (folder / "final").exists():
                settings = [str(self.out / s) if s.endswith(".jsonl") else s for s in settings]
                held_out = "20" if self.rehearse else HELD_OUT
                commands[f"sft-{name}"] = [
                    *PYTHON, "sft", *self.preset(), *settings, "--save-every", "1000", "--validation-size", held_out,
                    "--out", str(folder), *(["--resume"] if folder.exists() else []),
                ]  # fmt: skip
        self.every(commands)

    def premise(self) -> None:
        lengths = ["--lengths", "32,64"] if self.rehearse else ["--lengths", "160,320", "--validation-size", HELD_OUT]
        todo, measured = {}, {}
        for folder in sorted(self.out.glob("anchors/*/final")):
            name = folder.parent.name
            measured[name] = self.out / "premise" / f"{name}.json"
            if not measured[name].exists():
                flags = [*self.preset(), "--anchor", str(folder), *lengths, "--out", str(measured[name])]
                todo[f"premise-{name}"] = [*PYTHON, "premise", *flags]
        self.every(todo)
        found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in measured.items() if path.exists()}
        if found and not (self.out / "chosen.json").exists():
            from logitmix_lite.lab.premise import choose

            (self.out / "chosen.json").write_text(json.dumps(choose(found), indent=2) + "\n", encoding="utf-8")

    def chosen(self, method: str = "fixed") -> list[str]:
        """Flags of the chosen anchor, unless the method names its own, and of the longest completion."""
        from logitmix_lite.methods import named

        if not (self.out / "chosen.json").exists():
            sys.exit(f"no anchor was chosen: see {self.out / 'logs'}")
        chosen = json.loads((self.out / "chosen.json").read_text(encoding="utf-8"))
        anchor = str(self.out / "anchors" / chosen["anchor"] / "final")
        own = "anchor" in named(method).settings
        return [*([] if own else ["--anchor", anchor]), "--max-new-tokens", str(chosen["max_new_tokens"])]

    def runs(self) -> None:
        table, searched, others = self.out / "mixing.csv", SEARCHED, RUNS
        if self.rehearse:  # one of each kind of start and of anchor
            searched, others = ("grpo-anchor", "fixed"), [("fixed", 1), ("base-anchor", 0)]
        with ThreadPoolExecutor(self.jobs) as pool:
            first = {m: [pool.submit(self.run, m, 0, rate) for rate in RATES] for m in searched}
            if not table.exists():
                flags = [*self.preset(), *self.chosen(), "--alphas", "0,0.25,0.5,0.75,1", "--out", str(table)]
                pool.submit(self.command, "mixing-table", [*PYTHON, "mixing-table", *flags])
            chosen = {}
            for method, seed in others:
                like = LIKE.get(method, method)
                if like not in chosen:
                    wait(first[like])
                    chosen[like] = best_rate({rate: self.folder(like, 0, rate) for rate in RATES})
                    self.note("rate", method=like, chosen=chosen[like])
                pool.submit(self.run, method, seed, chosen[like])

    def folder(self, method: str, seed: int, rate: str) -> Path:
        return self.out / "runs" / f"lr-{rate}" / f"{method}-seed{seed}"

    def run(self, method: str, seed: int, rate: str) -> None:
        """One run of RL, unless it is finished already, or time is over."""
        folder = self.folder(method, seed, rate)
        if (folder / "final").exists() or self.left() < 5:
            return
        command = [*PYTHON, "train", *self.preset(), *self.chosen(method), *(SHORT if self.rehearse else SETTINGS)]
        command += ["--method", method, "--seed", str(seed), "--lr", rate, "--out", str(folder)]
        self.command(f"{folder.name}-lr-{rate}", command + (["--resume"] if (folder / "config.json").exists() else []))

    def go(self) -> None:
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        self.note("start", device=device, torch=torch.__version__, rehearse=self.rehearse)
        if not self.rehearse and not torch.cuda.is_available():
            sys.exit("no GPU here: --rehearse runs the visit on a CPU with the tiny models")
        for stage in ("unpack", "checks", "bench", "anchors", "premise", "runs"):
            if self.only and stage not in self.only:
                continue
            getattr(self, stage)()
        self.note("end")


def best_rate(runs: dict[str, Path]) -> str:
    """Of runs by their rate, the one whose last steps earned most, on training problems; the first of equals."""
    from logitmix_lite.records import read_metrics

    def reward(rate: str) -> float:
        earned = [row["reward"] for row in read_metrics(runs[rate]) if "reward" in row][-LAST:]
        return sum(earned) / len(earned) if earned else float("-inf")

    return max(runs, key=reward)


def short_demonstrations(train: Path, out: Path) -> None:
    """Two task files of the training problems: with the 1,000 shortest human solutions, and with answers alone."""
    if (out / "short.jsonl").exists():
        return
    from logitmix_lite.tasks.hub import gsm8k

    problems = [gsm8k(json.loads(line)) for line in train.read_text(encoding="utf-8").splitlines()]
    problems.sort(key=lambda p: len(p.solution))
    for name, count in (("answer", len(problems)), ("short", 1500)):
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for p in problems[:count]:
                row = {"question": p.question, "answer": p.answer, "solution": p.solution}
                if name == "answer":
                    del row["solution"]
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="folder of the model, or of its numbered pieces")
    parser.add_argument("--data", help="folder with train.jsonl and test.jsonl of GSM8K")
    parser.add_argument("--out", default="data/results/gpu", help="folder for everything (default: data/results/gpu)")
    parser.add_argument("--minutes", type=float, default=12, help="when the visit must be over (default: 12)")
    parser.add_argument("--jobs", type=int, default=8, help="processes at a time on the card (default: 8)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="some of the stages, separated by commas")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with the tiny models")
    Visit(parser.parse_args()).go()
