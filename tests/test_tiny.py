"""The tiny world: a tokenizer that loses nothing, and two shipped models with opposite gifts. SmolLM2's anchor."""

import json
import random
import re
from pathlib import Path

from transformers import AutoTokenizer

from logitmix_lite import evaluate, load_model, load_policy, load_task, load_tokenizer
from logitmix_lite.config import load_preset
from logitmix_lite.lab.tiny import BOXED, RARE, base_problems, char_tokenizer, varied_ending
from logitmix_lite.models import locate


def test_the_tokenizer_that_is_loaded_is_the_one_that_was_made():
    """AutoTokenizer picks the class by the model's type, whatever class was saved: spaces were once lost that way."""
    made = char_tokenizer()
    rng = random.Random(0)
    texts = [varied_ending(p.solution, rng) for p in load_task("chain", train=200).train]
    assert any("\\boxed" in text for text in texts) and sum("so " in text for text in texts) > 5
    for name in ("tiny-base", "tiny-anchor"):
        loaded = load_tokenizer(name)
        assert type(loaded) is type(AutoTokenizer.from_pretrained(locate(name)))
        assert len(loaded) == len(made) == load_model(name).config.vocab_size
        for text in texts:
            ids = loaded(text)["input_ids"]
            assert ids == made(text)["input_ids"] and len(ids) == len(text) and loaded.decode(ids) == text
        assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)


def test_what_base_saw():
    """Right chains, each once, none of those that any run tests on; few of the tested kind, few in a box."""
    seen, tiny = base_problems(2000), load_preset("tiny").problems()
    questions = {problem.question for problem in seen}
    assert len(questions) == 2000 and not questions & {p.question for p in tiny.test + tiny.validation}
    assert all(eval(p.question.removesuffix("?")) == int(p.answer) for p in seen)
    larger = sum(any(int(n) >= 15 for n in re.findall(r"\d+", question)) for question in questions) / 2000
    assert 0.9 * RARE < larger <= RARE
    rng = random.Random(0)
    boxed = sum("boxed" in varied_ending(p.solution, rng) for p in seen) / 2000
    assert abs(boxed - BOXED) < 0.015


def test_tiny_world_has_its_complementarity():
    """Base reasons and does not box, the anchor boxes and reasons worse: counted on the shipped checkpoints."""
    task = load_task("chain", train=1, validation=1, test=200)
    tokenizer = load_tokenizer("tiny-base")
    base, anchor = (
        evaluate(load_policy(name), tokenizer, task.test, max_new_tokens=64, batch=200)
        for name in ("tiny-base", "tiny-anchor")
    )
    assert base.format_rate < 0.10 and 0.40 <= base.number_rate <= 0.70
    assert anchor.format_rate >= 0.98 and anchor.accuracy < base.number_rate - 0.05
    assert [p.question for p in base.problems] == [p.question for p in anchor.problems]
    rows = base.records()
    assert sum(row["number"] for row in rows) / 200 == base.number_rate
    assert base.summary()["format_rate_95"][1] < 0.12


def test_the_shipped_anchor_of_smollm2_is_what_its_preset_makes():
    preset = load_preset("smol")
    adapter = json.loads((Path(locate(preset.anchor)) / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == preset.base
    assert (adapter["r"], adapter["lora_alpha"]) == (preset.lora_rank, preset.lora_alpha)
    assert adapter["layers_to_transform"] == list(range(30 - preset.lora_blocks, 30))
