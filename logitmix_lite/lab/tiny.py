"""The tiny world: a character tokenizer and a model of 1 M parameters, trained here from nothing.

Base sees many chains of small numbers and few of larger ones; their endings vary in style, and few are boxed. The
anchor is base, fine-tuned on a couple of hundred boxed demonstrations of easy chains. What each is good at comes from
that alone."""

import random
import shutil
import string
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from ..config import load_preset
from ..hf import Mixture
from ..runs import Run
from ..sft import fit, sft
from ..tasks.generated import Problem
from ..tasks.load import distinct, encode_demo, load_task, normalised

ENDINGS = ("answer {}", "so {}", "result is {}", "gives {}", "total {}")
BOXED = 0.03  # share of base's chains that end in a box
RARE = 0.1  # share of base's chains that are of the kind that is tested
BASE = dict(chains=10000, steps=900, batch=64, lr=3e-3)
HELD_OUT = dict(validation_size=1000, test_size=5000)  # neither model sees these: more than any run evaluates on


def char_tokenizer() -> Qwen2Tokenizer:
    """One token a character: BPE without merges. Of Qwen2's class, since AutoTokenizer loads that for any Qwen2."""
    characters = string.digits + string.ascii_lowercase + "+-=;?\\{}Ġ"  # byte-level BPE writes a space as Ġ
    vocabulary = {token: k for k, token in enumerate(["<pad>", "<eos>", *characters])}
    return Qwen2Tokenizer(
        vocab=vocabulary, merges=[], eos_token="<eos>", pad_token="<pad>", unk_token=None, padding_side="left",
        model_max_length=128,
    )  # fmt: skip


def new_model(tokenizer) -> Qwen2ForCausalLM:
    """A Qwen2 of 4 layers, 128 wide, with random weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True,
        initializer_range=0.08, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def varied_ending(solution: str, rng: random.Random) -> str:
    """The same working with its ending in one of several styles; boxed with probability BOXED."""
    work, box = solution.rsplit("; ", 1)
    answer = box.removeprefix("\\boxed{").removesuffix("}")
    return f"{work}; {box if rng.random() < BOXED else rng.choice(ENDINGS).format(answer)}"


def base_problems(count: int) -> list[Problem]:
    """What base is trained on: `count` different chains, a share RARE of them of the tested kind, none held out."""
    rare = round(RARE * count)
    tested = load_preset("tiny", train_size=rare, **HELD_OUT).problems()
    common = load_task("chain-common", train=2 * count, validation=0, test=0).train
    known = {normalised(p.question) for p in tested.validation + tested.test + tested.train}
    return tested.train + list(islice(distinct(common, known), count - rare))


def pretrain(out: str | Path, seed: int = 0, resume: bool = False, **changes) -> Path:
    """Train base from nothing; returns its folder. changes: to the numbers in BASE."""
    settings = BASE | changes
    run = Run(out, {"command": "pretrain", "boxed": BOXED, "rare": RARE, "seed": seed} | settings, resume)
    tokenizer = char_tokenizer()
    torch.manual_seed(seed)
    model = new_model(tokenizer)
    rng = random.Random(seed)
    demos = [
        encode_demo(tokenizer, replace(problem, solution=varied_ending(problem.solution, rng)))
        for problem in base_problems(settings["chains"])
    ]
    fit(
        Mixture([model], [1.0]), demos, run, steps=settings["steps"], batch=settings["batch"], lr=settings["lr"],
        seed=seed, microbatch_tokens=8192, pad=tokenizer.pad_token_id,
    )  # fmt: skip
    run.finish(model.save_pretrained, tokenizer.save_pretrained)
    return run.final


def fine_tuned(model: PreTrainedModel, demos: Sequence, *, steps: int, batch: int, lr: float, seed: int):
    """The model after SFT on some demonstrations, in evaluation mode; nothing is written."""
    with tempfile.TemporaryDirectory() as folder, Run(folder, {}) as run:
        fit(
            Mixture([model], [1.0]), demos, run, steps=steps, batch=batch, lr=lr, seed=seed, microbatch_tokens=8192,
            pad=model.config.pad_token_id, save_every=steps,
        )  # fmt: skip
    return model.eval()


def make(folder: Path, seed: int = 0) -> None:
    """Write base/ and anchor/ to `folder`, replacing what is there. Takes some minutes on two cores."""
    with tempfile.TemporaryDirectory() as work:
        base = pretrain(Path(work) / "base", seed)
        preset = load_preset("tiny", base=str(base), **HELD_OUT)
        anchor = sft(preset, Path(work) / "anchor", seed)
        for name, made in (("base", base), ("anchor", anchor)):
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(made, folder / name)
