"""The pictures say what the models do: their readings against `evaluate` and against each model's own next token."""

from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from logitmix_lite import Mixture, evaluate, load_model, load_preset, load_tokenizer
from logitmix_lite.lab import pictures
from logitmix_lite.tasks import encode_prompt

ROOT = Path(__file__).parents[1]


@cache
def reading():
    return pictures.example()[0]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def answers():
    """Greedy answers to the example of base, of the anchor and of their mixture, by `evaluate`."""
    tokenizer, models = load_tokenizer("tiny-base"), [load_model("tiny-base"), load_model("tiny-anchor")]
    [problem] = [p for p in load_preset("tiny").problems().test if p.question == pictures.QUESTION]
    mixture = Mixture(models, [1 - pictures.ALPHA, pictures.ALPHA])
    found = [evaluate(model, tokenizer, [problem], max_new_tokens=64) for model in (*models, mixture)]
    return problem, [(e.completions[0], e.grades[0]) for e in found]


def test_what_the_first_picture_says_of_its_example():
    """Title and note: 14, 20, together right; the anchor decides a sign and the box, base a minus."""
    problem, [(base, by_base), (anchor, by_anchor), (mixed, by_both)] = answers()
    assert base.endswith("14") and anchor.endswith(r"\boxed{20}") and mixed.endswith(rf"\boxed{{{problem.answer}}}")
    assert not by_base.number and not by_anchor.number and by_both.correct
    assert "".join(reading().pieces) == mixed
    decided = [(who, piece) for who, piece in zip(reading().decided(), reading().pieces, strict=True) if who]
    assert decided == [("anchor", "-"), ("base", "-"), ("anchor", "\\")]


def test_a_reading_agrees_with_the_next_token_of_each_policy():
    tokenizer, theta, ref = load_tokenizer("tiny-base"), load_model("tiny-base"), load_model("tiny-anchor")
    prompt = encode_prompt(tokenizer, pictures.QUESTION)
    policies = {"base": theta, "anchor": ref, "mixture": Mixture([theta, ref], [1 - pictures.ALPHA, pictures.ALPHA])}
    for place in (0, 6, 11, 35):
        ids = torch.tensor([prompt + tokenizer("".join(reading().pieces[:place]))["input_ids"]])
        for name, policy in policies.items():
            with torch.no_grad():
                logp = policy(ids).logits[0, -1].log_softmax(-1)
            torch.testing.assert_close(reading().logps[name][place], logp, atol=1e-4, rtol=1e-3)
            assert reading().choices(name)[place] == tokenizer.decode(logp.argmax())
            token = tokenizer(reading().pieces[place])["input_ids"][0]
            assert reading().chances(name)[place].item() == pytest.approx(logp[token].exp().item(), abs=1e-4)


def test_who_decided_and_how_far_apart_the_two_are():
    tokenizer, theta, ref = load_tokenizer("tiny-base"), load_model("tiny-base"), load_model("tiny-anchor")
    prompt, text = tokenizer("13+7-4?")["input_ids"], "13+7=20;20-4=16; so 1\\boxed{16}"
    found = pictures.read_with_both(theta, ref, tokenizer, prompt, text, 0.5)
    assert "".join(found.pieces) == text and {"base", "anchor", None} == set(found.decided())
    for place, (piece, distance, decided) in enumerate(zip(found.pieces, found.kl(), found.decided(), strict=True)):
        ids = torch.tensor([prompt + tokenizer("".join(found.pieces[:place]))["input_ids"]])
        with torch.no_grad():
            first, second = (model(ids).logits[0, -1].double().log_softmax(-1) for model in (theta, ref))
        by_theta, by_ref = (tokenizer.decode(row.argmax()) == piece for row in (first, second))
        assert decided == ("base" if by_theta and not by_ref else "anchor" if by_ref and not by_theta else None)
        expected = torch.nn.functional.kl_div(second, first, log_target=True, reduction="sum").item()
        assert distance == pytest.approx(expected, abs=1e-3)


def test_lines_break_after_semicolons_where_they_can():
    assert pictures.lines_of(reading().pieces, 17) == [0, 17, 34]
    assert pictures.lines_of(list("12345;7890"), 6) == [0, 6] and pictures.lines_of(["a"] * 7, 3) == [0, 3, 6]
    assert pictures.lines_of([], 3) == [0]


def test_the_strip_shows_every_token_and_who_won():
    figure = pictures.who_decided_strip(reading(), "finding\ndetail", "note")
    said = [text.get_text() for text in figure.axes[0].texts]
    assert {"finding", "detail", "note"} <= set(said)
    tokens = sum(len(text) == 1 for text in said)
    assert tokens == 3 * len(reading().pieces)
    bars = [bar.get_height() for group in figure.axes[0].containers for bar in group]
    assert bars == pytest.approx([1.2 * kl / max(reading().kl()) for kl in reading().kl()])


def test_the_diagram_names_the_most_likely_tokens_and_the_two_weights():
    texts = [text.get_text() for text in pictures.two_models_diagram(reading(), 6).axes[0].texts]
    for name in ("base", "anchor", "mixture"):
        p, k = reading().logps[name][6].exp().max(-1)
        assert f"{p:.2f}" in texts and reading().vocabulary[k] in texts
    assert "weight 1 - alpha\n(here 0.25)" in texts and "weight alpha\n(here 0.75)" in texts
    assert f"{pictures.QUESTION} 18-19=_" in texts


def test_the_frames_write_three_answers_a_token_at_a_time():
    _, alone = pictures.example()
    _, [(base, _), (anchor, _), (mixed, _)] = answers()
    assert "".join(alone["base"]) == base and "".join(alone["anchor"]) == anchor
    frames = pictures.token_frames(reading(), alone)
    for place in range(3):
        texts = [text.get_text() for text in next(frames).axes[0].texts]
        heading = texts.index(f"What comes next after the mixture's text (alpha {pictures.ALPHA})?")
        written = "".join(text for text in texts[:heading] if len(text) == 1)
        assert written == anchor[:place] + base[:place] + mixed[:place]


def test_the_pictures_in_docs_are_small_and_of_the_right_length():
    folder = ROOT / "docs" / "pictures"
    assert all(path.stat().st_size < 1_000_000 for path in folder.iterdir())
    with Image.open(folder / "token-by-token.gif") as animation:
        assert animation.n_frames == len(reading().pieces) + 1
