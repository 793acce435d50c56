"""Several processes are one: two ranks over gloo on a CPU make the run that one process makes."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from logitmix_lite import load_preset, train
from logitmix_lite.runs import read_metrics

SETTINGS = dict(prompts=4, samples=4, steps=2, test_size=6, validation_size=5, eval_every=2, lr=1e-3)
TIMES = ("seconds", "adapt_seconds")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(folder, method, **changes):
    """Run the command line in two processes."""
    # what `accelerate launch` starts on GPUs; on a CPU it would start one process
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        f"--master-port={free_port()}", "-m", "logitmix_lite", "train", "--method", method, "--out", str(folder),
    ]  # fmt: skip
    command += [f"--{name.replace('_', '-')}={value}" for name, value in (SETTINGS | changes).items()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(load_preset("tiny", **SETTINGS), "adaptive", folder)
    return folder


def weights(folder):
    return load_file(Path(folder) / "final" / "member_0" / "model.safetensors")


def same_run(first, second):
    """Metrics and final weights, up to the rounding of sums in another order."""
    for one, two in zip(read_metrics(first), read_metrics(second), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - set(TIMES):
            assert one[name] == two[name] or one[name] == pytest.approx(two[name], rel=1e-5, abs=1e-5), name
    start = load_file(Path(__file__).parents[1] / "data" / "tiny" / "base" / "model.safetensors")
    one, two = weights(first), weights(second)
    assert max((one[name] - start[name]).abs().max() for name in start) > 1e-3  # it has learned
    for name in one:  # Adam divides by the gradient's size: where that is tiny, its rounding shows
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=0)
    one, two = (json.loads((Path(folder) / "grades.json").read_text()) for folder in (first, second))
    assert one == two


def test_two_ranks_make_the_run_of_one(tmp_path, whole):
    done = launch(tmp_path / "run", "adaptive")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("accuracy") == 1
    same_run(whole, tmp_path / "run")


def test_a_checkpoint_of_two_ranks_resumes_on_one(tmp_path, whole):
    assert launch(tmp_path / "run", "adaptive", steps=1).returncode == 0
    train(load_preset("tiny", **SETTINGS), "adaptive", tmp_path / "run", resume=True)
    one, split = read_metrics(whole), read_metrics(tmp_path / "run")
    assert [line["step"] for line in split] == [0, 1, 2]
    assert split[2]["reward"] == one[2]["reward"] and split[2]["loss"] == pytest.approx(one[2]["loss"], abs=1e-5)
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, weights(whole)[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_brings_its_own_sharding_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")  # what `accelerate launch` sets
    with pytest.raises(ValueError, match=f"asks for {name}"):
        train("tiny", "fixed", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["one-machine", "two-machines"])
def test_accelerate_reads_the_shipped_configurations(name):
    # load_config_from_file raises on keys it does not know
    config = load_config_from_file(str(Path(__file__).parents[1] / "configs" / f"{name}.yaml"))
    assert config.distributed_type == "MULTI_GPU" and config.mixed_precision == "no"
    assert config.num_processes == 8 * config.num_machines


def test_prompts_that_cannot_be_shared_are_refused(tmp_path):
    done = launch(tmp_path / "run", "fixed", prompts=3)
    assert done.returncode != 0 and "3 prompts a step can't be shared by 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()
