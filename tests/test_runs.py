"""A run's folder under whatever may happen to it: kills, full disks, other owners, changed data, NaN, time."""

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree

import psutil
import pytest
import torch
from jupyter_client import KernelManager
from safetensors.torch import load_file

import logitmix_lite.runs
from logitmix_lite import load_preset, train
from logitmix_lite.__main__ import main
from logitmix_lite.fingerprints import contents, fingerprint, problems_fingerprint
from logitmix_lite.lab.sweep import sweep
from logitmix_lite.models import load_model, load_tokenizer, locate
from logitmix_lite.records import read_config, read_metrics, to_json
from logitmix_lite.runs import Run, batch_indices
from logitmix_lite.sft import sft
from logitmix_lite.tasks.load import load_task
from logitmix_lite.watch import Diverged, Watch

SMALL = dict(
    task="chain-easy", prompts=2, samples=4, steps=2, test_size=2, validation_size=2, eval_every=9, max_new_tokens=40
)


def small(**changes):
    return load_preset("tiny", **(SMALL | changes))


def flags(**changes):
    return [f"--{name.replace('_', '-')}={value}" for name, value in (SMALL | changes).items()]


def untimed(folder) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in read_metrics(folder)]


def same_run(first, second) -> None:
    """Metrics, grades, weights, optimiser and random state, to the last bit."""
    assert untimed(first) == untimed(second) and len(untimed(first)) > 1
    assert (first / "grades.json").read_bytes() == (second / "grades.json").read_bytes()
    for member in ("member_0", "member_1"):
        one, two = (load_file(run / "final" / member / "model.safetensors") for run in (first, second))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    one, two = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (first, second))
    assert torch.equal(one["random"], two["random"]) and one["step"] == two["step"]
    for a, b in zip(one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


class Toy:
    """A run of one weight: step k adds k to it. Each `go` opens the folder anew."""

    def __init__(self, folder, **config):
        self.folder, self.config = folder, config

    def open(self, resume=True) -> dict:
        self.run = Run(self.folder, self.config, resume)
        self.parameters = {"w": torch.nn.Parameter(torch.zeros(3))}
        self.optimizer = torch.optim.AdamW(self.parameters.values())
        return self.run.restore(self.parameters, self.optimizer)

    def go(self, steps: int, resume=True) -> dict:
        state = self.open(resume)
        for step in range(state["step"] + 1, steps + 1):
            with torch.no_grad():
                self.parameters["w"] += step
            self.run.log({"step": step, "sum": self.parameters["w"][0].item()})
            self.run.save(step, self.parameters, self.optimizer)
        return state


SUMS = [{"step": step, "sum": float(sum(range(step + 1)))} for step in range(7)]


def test_data_order():
    """Each epoch visits everything once, in another order; a step's data depends on nothing but step and seed."""
    steps = [batch_indices(step, 4, 10, seed=0) for step in range(1, 6)]
    flat = sum(steps, [])
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    assert batch_indices(3, 4, 10, seed=0) == steps[2] and batch_indices(3, 4, 10, seed=1) != steps[2]


# Killed, interrupted, cut short

KILLER = """
import json, os, random, signal, sys, time
import torch
import logitmix_lite.sft, logitmix_lite.evaluate  # all that is slow to import, once
from logitmix_lite import load_preset, train

folder, settings, seconds = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
dice = random.Random(0)

def die_at(count):
    '''SIGKILL before or after one of the calls that writing consists of, or with half of a checkpoint written.'''
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    def wrapped(real):
        def call(*arguments, **options):
            nonlocal count
            count -= 1
            if count == 0 and dice.random() < 0.5:
                die()
            result = real(*arguments, **options)
            if count <= 0:
                if real is save:
                    os.truncate(arguments[1], dice.randrange(os.path.getsize(arguments[1])))
                die()
            return result
        return call
    save = torch.save
    for module, name in ((torch, 'save'), (os, 'fsync'), (os, 'replace'), (os, 'rename'), (os, 'unlink')):
        setattr(module, name, wrapped(getattr(module, name)))

for kill in range(20):
    resume, delay, count = os.path.exists(folder + '/config.json'), dice.uniform(0, 0.3) * seconds, dice.randint(1, 25)
    child = os.fork()
    if child == 0:
        sys.stdout = open(folder + '.log', 'a')
        if kill % 2:
            die_at(count)
        train(load_preset('tiny', **settings), 'fixed', folder, resume=resume)
        os._exit(0)
    if kill % 2 == 0:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    steps = sum(1 for _ in open(folder + '/metrics.jsonl')) if os.path.exists(folder + '/metrics.jsonl') else 0
    print(json.dumps([code, steps, sorted(os.listdir(folder)) if os.path.isdir(folder) else []]), flush=True)
"""


@pytest.mark.slow
def test_killed_at_20_moments_ends_as_if_never_interrupted(tmp_path):
    settings = SMALL | {"steps": 15}
    began = time.perf_counter()
    train(load_preset("tiny", **settings), "fixed", tmp_path / "whole")
    assert [line.get("grad_norm") is not None for line in read_metrics(tmp_path / "whole")].count(True) > 3
    seconds = time.perf_counter() - began  # so that the kills meet the run on a busy machine as on an idle one
    command = [sys.executable, "-c", KILLER, tmp_path / "killed", json.dumps(settings), str(seconds)]
    environment = dict(os.environ) | {"TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    codes, steps, left = zip(*map(json.loads, done.stdout.splitlines()), strict=True)
    assert len(codes) == 20 and codes.count(-signal.SIGKILL) >= 15, (codes, done.stderr[-2000:])
    assert not set(codes) - {0, -signal.SIGKILL}, done.stderr[-2000:]
    assert len(set(steps)) > 2 and any("checkpoint.pt.tmp" in names for names in left), "it was killed at few moments"
    train(load_preset("tiny", **settings), "fixed", tmp_path / "killed", resume=True)
    same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").glob("*.tmp"))


def test_interrupt_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "logitmix_lite", "train", "--method", "fixed", *flags(steps=500)]
    command += ["--out", tmp_path / "run"]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    while len(read_metrics(tmp_path / "run")) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in out and "Traceback" not in err


@pytest.mark.slow
def test_interrupt_in_a_notebook_cell_then_resume_in_the_same_kernel(tmp_path):
    cell = "from logitmix_lite import load_preset, train\n"
    cell += f"line = train(load_preset('tiny', **{SMALL | {'steps': 15}}), 'fixed', {str(tmp_path / 'run')!r}"
    manager = KernelManager()
    manager.kernel_spec.argv[0] = sys.executable
    manager.start_kernel()
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        asked = client.execute(cell + ")", stop_on_error=False)
        while len(read_metrics(tmp_path / "run")) < 4:
            time.sleep(0.02)
        manager.interrupt_kernel()

        def reply(to):
            while (message := client.get_shell_msg(timeout=100))["parent_header"]["msg_id"] != to:
                pass
            return message["content"]

        assert reply(asked)["ename"] == "KeyboardInterrupt"
        assert len(read_metrics(tmp_path / "run")) < 16, "it finished before the interrupt"
        # the interrupted run lives on in the kernel's last traceback, and must not stand in the way
        assert reply(client.execute(cell + ", resume=True)"))["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    train(small(steps=15), "fixed", tmp_path / "whole")
    same_run(tmp_path / "whole", tmp_path / "run")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor([6.0] * 3).numpy().tobytes())] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm", [cut, flip, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(bytes(4096)), Path.unlink]
)
def test_a_broken_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys, harm):
    toy = Toy(tmp_path / "run")
    toy.go(3, resume=False)
    harm(toy.run.checkpoint)
    assert toy.go(3)["step"] == 2
    assert ("checkpoint.pt is not whole" in capsys.readouterr().out) == (harm is not Path.unlink)
    assert read_metrics(toy.folder) == SUMS[:4] and toy.parameters["w"].tolist() == [6.0] * 3
    # the broken one did not become the one before
    assert torch.load(toy.run.before, weights_only=True)["step"] == 2
    toy.go(6)
    assert read_metrics(toy.folder) == SUMS
    for checkpoint in (toy.run.checkpoint, toy.run.before):
        cut(checkpoint)
    assert toy.go(1)["step"] == -1 and read_metrics(toy.folder) == SUMS[:2]  # from the start: as good, only slower


@pytest.mark.parametrize("harm", ["last line", "all but a character", "gone", "a line in the middle"])
def test_harmed_metrics_are_written_again(tmp_path, harm):
    toy = Toy(tmp_path / "run")
    toy.go(4, resume=False)
    text = toy.run.metrics.read_text()
    if harm == "gone":
        toy.run.metrics.unlink()
    else:
        cuts = {"last line": text[:-9], "all but a character": "{", "a line in the middle": text.replace("1.0", "1.")}
        assert cuts[harm] != text
        toy.run.metrics.write_text(cuts[harm])
    if harm == "last line":
        assert read_metrics(toy.folder) == SUMS[:4]
    if harm == "a line in the middle":
        with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is no metrics"):
            read_metrics(toy.folder)
    toy.go(4)
    assert toy.run.metrics.read_text() == text


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    toy = Toy(tmp_path / "run")
    toy.go(2, resume=False)
    toy.run.log({"step": 3, "sum": -1.0})
    toy.go(3)
    assert read_metrics(toy.folder) == SUMS[:4]


# The disk


def test_full_disk_keeps_the_checkpoint(tmp_path, monkeypatch):
    train(small(steps=1), "fixed", tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()

    def full(state, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(logitmix_lite.runs.torch, "save", full)
    with pytest.raises(OSError, match="could not write .*checkpoint.pt.*free some space"):
        train(small(steps=2), "fixed", tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("room, what", [(2500, "checkpoint.pt"), (1500, "metrics.jsonl"), (50, "config.json")])
def test_where_files_may_not_grow_a_run_ends_in_a_sentence_and_goes_on_later(tmp_path, room, what):
    """The operating system's own refusals, by a limit on the size of files."""
    toy = Toy(tmp_path / "run", note="-" * 100)
    if what == "metrics.jsonl":
        toy.go(0, resume=False)
        toy.run.log({"step": 1, "sum": 1.0, "note": "-" * 1000})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match=f"could not write .*{what}.*free some space"):
            if what == "metrics.jsonl":
                toy.run.log({"step": 2, "sum": 3.0, "note": "-" * 1000})
            else:
                toy.go(3, resume=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(toy.folder.glob("*.tmp"))
    toy.go(3, resume=what != "config.json")
    assert read_metrics(toy.folder) == SUMS[:4]


def test_a_disk_that_is_full_at_the_end_leaves_no_half_model(tmp_path):
    toy = Toy(tmp_path / "run")
    toy.go(1, resume=False)

    def full(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="could not write .*final .*No space left on device"):
        toy.run.finish(full)
    assert not toy.run.final.exists()
    toy.open()
    toy.run.finish(lambda folder: (folder / "model.safetensors").write_bytes(b"whole"))
    assert [file.name for file in toy.run.final.iterdir()] == ["model.safetensors"]


# One owner


@pytest.fixture
def other_owner():
    """Own a folder in another process."""
    started = []

    def own(folder):
        code = "import sys, time, pathlib; from logitmix_lite.disk import own; lock = own(pathlib.Path(sys.argv[1])); "
        command = [sys.executable, "-c", code + "print('mine', flush=True); time.sleep(100)", str(folder)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "mine\n"
        return started[-1]

    yield own
    for process in started:
        process.kill()
        process.communicate()


def test_one_owner_at_a_time_and_a_dead_one_is_none(tmp_path, other_owner):
    toy = Toy(tmp_path / "run")
    toy.go(1, resume=False)
    toy.run.lock.release()
    before = {file: file.read_bytes() for file in toy.folder.iterdir() if file.name != "run.lock"}
    owner = other_owner(toy.folder)
    for _ in range(2):  # the first refusal leaves no trace
        with pytest.raises(ValueError, match=f"is being written by process {owner.pid} on .*: wait for it, or stop it"):
            toy.open()
    assert before == {file: file.read_bytes() for file in before}
    Run(toy.folder, {}, resume=True, main=False)  # another rank of the owner
    owner.kill()
    owner.wait()
    assert toy.go(2)["step"] == 1


def test_a_grid_has_one_owner(tmp_path, other_owner):
    owner = other_owner(tmp_path)
    with pytest.raises(ValueError, match=f"is being written by process {owner.pid}"):
        sweep(small(), ["fixed"], [0], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.lock"]


def test_a_run_that_ends_badly_lets_go(tmp_path, other_owner):
    toy = Toy(tmp_path / "run")
    toy.go(1, resume=False)
    kept = Run(toy.folder, {}, resume=True)  # as a notebook keeps it
    with pytest.raises(KeyboardInterrupt), kept:
        raise KeyboardInterrupt
    other_owner(toy.folder)
    with pytest.raises(KeyboardInterrupt), Run(toy.folder, {}, resume=True, main=False):
        raise KeyboardInterrupt


def test_a_later_run_of_the_same_process_takes_over(tmp_path):
    toy = Toy(tmp_path / "run")
    toy.go(1, resume=False)
    earlier = toy.run
    toy.open()
    for write in (
        lambda: earlier.log({}), lambda: earlier.save(1, {}, toy.optimizer), lambda: earlier.write("a.json", {}),
        earlier.finish,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="was opened by a later Run of this process"):
            write()
    toy.run.finish()
    toy.open()


# Known by contents

LEARN = dict(sft_steps=2, sft_demos=8, sft_batch=4, test_size=2, validation_size=2)


def test_moved_data_and_weights_resume_and_changed_ones_are_refused(tmp_path):
    copytree(locate("tiny-base"), tmp_path / "base")
    here = small(**LEARN, base=str(tmp_path / "base"), lora_rank=2)
    sft(here, tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = small(**LEARN, base=str(tmp_path / "moved"), lora_rank=2)
    sft(moved, tmp_path / "run", resume=True)
    assert read_config(tmp_path / "run")["base"] == str(tmp_path / "moved")  # where it can be found now
    made = read_config(tmp_path / "run")
    weights = tmp_path / "moved" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4] ^= 1  # the last weight's lowest bits
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="was started with other frozen weights .*, frozen in its config"):
        sft(moved, tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="was started with sft_lr = 0.0008, not 0.1"):
        sft(small(**LEARN, base=str(tmp_path / "moved"), lora_rank=2, sft_lr=0.1), tmp_path / "run", resume=True)
    assert read_config(tmp_path / "run") == made


def test_moved_problems_resume_and_changed_ones_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("logitmix_lite.tasks.load.BOX_IT", "")  # the tiny tokenizer has no capital P
    rows = [{"question": f"{k}+1?", "answer": str(k + 1)} for k in range(20)]

    def go(name, rows, resume=True):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sft(small(**LEARN | {"sft_demos": 16}, task=str(path), sft_task=str(path)), tmp_path / "run", resume=resume)

    go("here.jsonl", rows, resume=False)
    go("elsewhere/here.jsonl", rows)
    for changed in (rows + [{"question": "99+1?", "answer": "100"}], rows[:-1] + [rows[-1] | {"answer": "7"}]):
        with pytest.raises(ValueError, match="was started with other problems .*, problems in its config"):
            go("here.jsonl", changed)


def test_whole_weights_that_training_starts_from_are_known(tmp_path):
    sft(small(**LEARN), tmp_path / "run")
    with pytest.raises(ValueError, match="was started with other weights that theta starts from"):
        sft(small(**LEARN, base="tiny-anchor"), tmp_path / "run", resume=True)


def test_problems_are_known_by_what_they_say():
    task = load_task("chain", train=20, validation=4, test=4)
    assert problems_fingerprint(task) == problems_fingerprint(load_task("chain", train=20, validation=4, test=4))
    one, *rest = task.test
    edited = [replace(one, **{name: "5"}) for name in ("question", "answer", "solution")]
    others = [replace(task, test=[problem, *rest]) for problem in edited]
    others += [replace(task, instruction="Box it."), replace(task, test=task.validation, validation=task.test)]
    others += [replace(task, train=task.train[1:]), replace(task, train=task.train[::-1])]
    assert len({problems_fingerprint(other) for other in [task, *others]}) == 8


def test_fingerprints_of_weights():
    half = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    found = [fingerprint(x) for x in ({}, {"a": half}, {"b": half}, {"a": half + 1}, {"a": torch.tensor(1.0)})]
    assert len(set(found)) == 5 and found[1] == fingerprint({"a": half.clone()})
    model, task = load_model("tiny-base"), load_task("chain", train=4, validation=1, test=1)
    everything = contents(model, task)
    model.requires_grad_(False)
    assert contents(model, task)["frozen"] == everything["start"]


def test_older_runs_are_known_by_their_paths(tmp_path):
    toy = Toy(tmp_path / "run", base="here", lr=1.0)
    toy.go(1, resume=False)
    prints = {"problems": "a", "start": "b", "frozen": "c"}
    Toy(tmp_path / "run", base="here", lr=1.0, **prints).open()
    Toy(tmp_path / "run", base="there", lr=1.0, **prints).open()  # now they are there
    with pytest.raises(ValueError, match="other problems"):
        Toy(tmp_path / "run", base="there", lr=1.0, **prints | {"problems": "d"}).open()
    toy = Toy(tmp_path / "old", base="here")
    toy.go(1, resume=False)
    with pytest.raises(ValueError, match="was started with base = 'here', not 'there'"):
        Toy(tmp_path / "old", base="there", **prints).open()


def test_what_is_no_new_run_and_no_old_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(ValueError, match="is not empty: choose another --out"):
            Run(tmp_path / name, {})
        with pytest.raises(ValueError, match="holds no run to resume"):
            Run(tmp_path / name, {}, resume=True)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "died").mkdir()  # before its first file was whole
    for name in ("run.lock", "config.json.tmp"):
        (tmp_path / "died" / name).write_text("{")
    assert Toy(tmp_path / "died").go(1, resume=False)["step"] == -1


# Files are not code


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, '"steps"', "\xff"])
def test_a_config_that_is_none_is_refused_in_a_sentence(tmp_path, text):
    toy = Toy(tmp_path / "run", steps=1)
    toy.go(1, resume=False)
    (toy.folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="config.json is not the JSON object"):
        toy.open()


def test_nothing_in_a_run_is_executed_or_followed(tmp_path, capsys):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    toy = Toy(tmp_path / "run")
    toy.go(2, resume=False)
    toy.run.lock.release()
    torch.save({"parameters": {"w": torch.zeros(3)}, "step": 2, "more": Hostile()}, toy.run.checkpoint)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("checkpoint.pt.tmp", "config.json.tmp", "metrics.jsonl.tmp", "a.json.tmp", "a.json"):
        (toy.folder / name).symlink_to(victim)
    toy.run.metrics.unlink()
    toy.run.metrics.symlink_to(victim)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").write_text("precious")
    toy.run.final.symlink_to(tmp_path / "home")
    (toy.folder / "final.tmp").symlink_to(tmp_path / "home")
    assert toy.go(3)["step"] == 1 and "checkpoint.pt is not whole" in capsys.readouterr().out
    toy.run.write("a.json", {"a": 1})
    with pytest.raises(OSError):
        toy.run.finish(lambda folder: (folder / "file").write_text("new"))
    assert not (tmp_path / "executed").exists()
    assert victim.read_text() == (tmp_path / "home" / "file").read_text() == "precious"
    toy.run.lock.release()
    (toy.folder / "run.lock").unlink()
    (toy.folder / "run.lock").symlink_to(victim)
    with pytest.raises(OSError):
        toy.open()
    assert victim.read_text() == "precious"


def test_a_checkpoint_of_other_shapes_is_no_checkpoint(tmp_path):
    toy = Toy(tmp_path / "run")
    toy.go(2, resume=False)
    state = torch.load(toy.run.checkpoint, weights_only=True)
    state["parameters"]["w"] = torch.ones(1)  # would be broadcast
    torch.save(state, toy.run.checkpoint)
    assert toy.open()["step"] == 1


# Numbers that are none


def test_json_holds_no_nan(tmp_path):
    toy = Toy(tmp_path / "run", lr=math.inf)
    toy.go(0, resume=False)
    toy.run.log({"step": 1, "loss": math.nan, "sizes": [1.0, -math.inf], "deep": {"er": math.inf}, "fine": 0.5})
    toy.run.write("grades.json", {"a": math.nan})
    for file in toy.folder.glob("*.json*"):
        assert not re.search(r"NaN|Infinity", file.read_text()), file.name
    assert read_metrics(toy.folder)[-1] == {
        "step": 1, "loss": None, "sizes": [1.0, None], "deep": {"er": None}, "fine": 0.5,
        "not_finite": ["loss", "sizes.1", "deep.er"],
    }  # fmt: skip
    assert to_json({"a": (1, 2.5, None, True)}) == '{"a": [1, 2.5, null, true]}'


def poisoned(monkeypatch, steps, what="gradient"):
    """Spoil these steps of supervised training, as seen on a GPU."""
    clip, count = logitmix_lite.sft.clip_gradients, iter(range(1, 1000))

    def spoil(parameters, *more):
        parameters = list(parameters)
        if next(count) in steps:
            parameters[3].grad.view(-1)[0] = {"gradient": math.nan, "infinite": math.inf}[what]
        return clip(parameters, *more)

    monkeypatch.setattr("logitmix_lite.sft.clip_gradients", spoil)


@pytest.mark.parametrize("what", ["gradient", "infinite"])
def test_a_step_on_nan_is_skipped_and_counted(tmp_path, monkeypatch, what):
    poisoned(monkeypatch, (2, 3, 5), what)
    sft(small(**LEARN | {"sft_steps": 6}), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert [line.get("skipped") for line in lines] == [None, 1, 2, None, 3, None]
    assert lines[1]["not_finite"] == ["grad_norm"] and lines[1]["grad_norm"] is None
    weights = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_three_in_a_row_stop_the_run_with_its_last_good_checkpoint(tmp_path, monkeypatch):
    poisoned(monkeypatch, (2, 3, 4, 5))
    with pytest.raises(Diverged, match="3 steps in a row, last at step 4.*Try a lower learning rate"):
        sft(small(**LEARN | {"sft_steps": 6}), tmp_path / "run")
    assert [line.get("skipped") for line in read_metrics(tmp_path / "run")] == [None, 1, 2, 3]
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3 and all(tensor.isfinite().all() for tensor in state["parameters"].values())
    assert not (tmp_path / "run" / "final").exists()
    with pytest.raises(SystemExit, match="error: stopped: .*3 steps in a row"):  # a sentence on the command line
        main(["sft", *flags(**LEARN | {"sft_steps": 6}), "--out", str(tmp_path / "run"), "--resume"])


def test_a_nan_weight_stops_before_anything_is_learned(tmp_path):
    model = load_model("tiny-base")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "base")
    load_tokenizer("tiny-base").save_pretrained(tmp_path / "base")
    for rank in (0, 2):  # trained, or frozen under an adapter
        with pytest.raises(Diverged, match="stopped"):
            sft(small(**LEARN | {"sft_steps": 6}, base=str(tmp_path / "base"), lora_rank=rank), tmp_path / str(rank))
        assert not (tmp_path / str(rank) / "final").exists()


def test_weights_that_a_step_spoils_are_never_saved(tmp_path, monkeypatch):
    step = torch.optim.AdamW.step
    count = iter(range(1, 100))

    def spoil(optimizer, *more):
        step(optimizer, *more)
        if next(count) == 3:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][5].view(-1)[0] = math.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(Diverged, match="NaN or infinite after step 3; .*checkpoint.pt is the last good checkpoint"):
        sft(small(**LEARN | {"sft_steps": 6}), tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 2
    assert not (tmp_path / "run" / "final").exists()


def test_an_infinite_learning_rate(tmp_path):
    with pytest.raises(ValueError, match="learning rate|lr must be"):
        sft(small(**LEARN, sft_lr=math.inf), tmp_path / "sft")
    with pytest.raises(ValueError, match="learning rate|lr must be"):
        train(small(lr=math.inf, steps=5, samples=8, prompts=4), "fixed", tmp_path / "run")
    assert not list(tmp_path.rglob("final"))


def test_entropy_that_is_no_number_stops_too():
    for nan in (math.nan, None):  # as it is measured, and as it is read back
        watch, line = Watch(), {"reward": 0.0, "frac_reward_zero_std": 1.0, "entropy": nan}
        assert watch.notice({"step": 1} | line) is watch.notice({"step": 2} | line) is None
        with pytest.raises(Diverged, match="3 steps in a row, last at step 3"):
            watch.notice({"step": 3} | line)


# Said once, in plain words

HEALTHY = {"reward": 0.5, "frac_reward_zero_std": 0.25, "entropy": 0.5, "truncated": 0.1}


def said(changes, steps=30, start=HEALTHY, watch=None):
    watch = watch or Watch()
    lines = [{"step": 0, "alpha": 0.5}, {"step": 1} | start]
    lines += [{"step": step} | HEALTHY | changes for step in range(2, steps)]
    return [(line["step"], words) for line in lines if (words := watch.notice(line))]


@pytest.mark.parametrize(
    "changes, step, words",
    [
        ({"reward": 0.0, "frac_reward_zero_std": 1.0}, 21, "for 20 steps no completion was right.*easier problems"),
        ({"reward": 0.5, "frac_reward_zero_std": 1.0}, 21, "for 20 steps all completions of a prompt had.*hard"),
        ({"entropy": 0.049}, 6, "for 5 steps the entropy is below a tenth.*lower learning rate"),
        ({"truncated": 1.0}, 4, "for 3 steps no completion came to its end.*more --max-new-tokens"),
    ],
)
def test_trouble_is_said_once_with_what_to_try(changes, step, words):
    [(when, found)] = said(changes)
    assert when == step
    assert re.search(words, found)
    assert said({}) == []


def test_trouble_that_passes_is_not_said():
    watch = Watch()
    for step in range(1, 200):
        equal = float(step % 20 != 0)  # 19 steps at a time
        line = {"step": step, "reward": 0.0, "frac_reward_zero_std": equal, "entropy": 1.0 if step % 5 == 1 else 0.01}
        assert watch.notice(line | {"truncated": float(step % 3 != 0)}) is None


def test_a_resumed_run_says_nothing_twice_and_goes_on_counting():
    lines = [{"step": step} | HEALTHY | {"reward": 0.0, "frac_reward_zero_std": 1.0} for step in range(1, 40)]
    watch = Watch(lines[:10])
    assert [line["step"] for line in lines[10:] if watch.notice(line)] == [20]
    assert not any(map(Watch(lines[:25]).notice, lines[25:]))
    skipped = [{"step": 1, "skipped": 1}, {"step": 2, "skipped": 2}]
    watch = Watch(skipped)
    assert not watch.finite(math.nan, 1.0) and watch.skipped == 3
    with pytest.raises(Diverged):
        watch.notice({"step": 3, "skipped": 3})


def test_the_recorded_runs_are_healthy():
    folder = Path(__file__).resolve().parents[1] / "data" / "results" / "tiny"
    runs = [path.parent for path in folder.rglob("metrics.jsonl")]
    assert len(runs) > 50
    for run in runs:
        watch = Watch()
        assert not [words for line in read_metrics(run) if (words := watch.notice(line))], run.name


# Time


@pytest.mark.slow
def test_memory_and_file_handles_are_flat_over_500_steps(tmp_path, monkeypatch):
    process, seen, log = psutil.Process(), [], Run.log

    def measured(run, line):
        seen.append((process.memory_info().rss / 1e6, process.num_fds(), len(process.open_files())))
        log(run, line)

    monkeypatch.setattr(Run, "log", measured)
    train(small(prompts=1, samples=2, steps=500, max_new_tokens=4, eval_every=1000), "fixed", tmp_path / "run")
    memory, handles, files = zip(*seen, strict=True)
    early, late = sorted(memory[100:200])[50], sorted(memory[400:])[50]
    print(f"memory {early:.1f} MB after 150 steps, {late:.1f} MB after 450; handles {handles[100]} and {handles[-1]}")
    assert late - early < 10 and handles[-1] == handles[100] and files[-1] == files[100]
