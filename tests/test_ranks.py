"""Several processes are one: two ranks over gloo on a CPU make the run that one process makes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from logitmix_lite.runs import read_metrics

FLAGS = [
    "--steps=2",
    "--prompts=4",
    "--samples=4",
    "--test-size=6",
    "--validation-size=5",
    "--eval-every=2",
    "--lr=1e-3",
]
TIMES = ("seconds", "adapt_seconds")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(folder, method, ranks, *flags):
    """Run the command line in `ranks` processes."""
    # what `accelerate launch` starts on GPUs; on a CPU it would start one process
    where = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *where] if ranks > 1 else []
    command = [sys.executable, *launch, "-m", "logitmix_lite", "train", "--method", method, "--out", str(folder)]
    environment = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [*command, *FLAGS, *flags], capture_output=True, text=True, env=dict(os.environ) | environment, timeout=240
    )
    return done


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


def test_two_ranks_make_the_run_of_one(tmp_path):
    for ranks in (1, 2):
        done = train(tmp_path / str(ranks), "adaptive", ranks)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("accuracy") == 1
    same_run(tmp_path / "1", tmp_path / "2")


def test_a_checkpoint_of_two_ranks_resumes_on_one(tmp_path):
    assert train(tmp_path / "whole", "fixed", 1).returncode == 0
    assert train(tmp_path / "split", "fixed", 2, "--steps=1").returncode == 0
    assert train(tmp_path / "split", "fixed", 1, "--resume").returncode == 0
    whole, split = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "split")
    assert [line["step"] for line in split] == [0, 1, 2]
    assert split[2]["reward"] == whole[2]["reward"] and split[2]["loss"] == pytest.approx(whole[2]["loss"], abs=1e-5)
    for name, tensor in weights(tmp_path / "split").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "whole")[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_brings_its_own_sharding_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")  # what `accelerate launch` sets
    done = train(tmp_path / "run", "fixed", 1)
    assert done.returncode != 0 and f"asks for {name}" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["one-machine", "two-machines"])
def test_accelerate_reads_the_shipped_configurations(name):
    # load_config_from_file raises on keys it does not know
    config = load_config_from_file(str(Path(__file__).parents[1] / "configs" / f"{name}.yaml"))
    assert config.distributed_type == "MULTI_GPU" and config.mixed_precision == "no"
    assert config.num_processes == 8 * config.num_machines


def test_prompts_that_cannot_be_shared_are_refused(tmp_path):
    done = train(tmp_path / "run", "fixed", 2, "--prompts=3")
    assert done.returncode != 0 and "3 prompts a step can't be shared by 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()
