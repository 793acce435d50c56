"""Chat: the three answers are those of the policies alone and mixed, and each token belongs to who chose it."""

import builtins
import re

import pytest
import torch
from conftest import make_lora_pair

from logitmix_lite.__main__ import main
from logitmix_lite.hf import Mixture
from logitmix_lite.lab.chat import Answer, ask, decided, pieces
from logitmix_lite.lab.pictures import read_with_both
from logitmix_lite.methods import BLUE, ORANGE
from logitmix_lite.models import load_model, load_tokenizer
from logitmix_lite.tasks import encode_prompt

EXAMPLE = "18-19-4+19-2?"
SAYS = {
    "base": "18-19=1;1-4=-3;-3+19=16;16-2=14; result is 14",
    "anchor": r"18-19=-1;-1+4=3;3+19=22;22-2=20; \boxed{20}",
    "mixture": r"18-19=-1;-1-4=-5;-5+19=14;14-2=12; \boxed{12}",
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny-base")


@pytest.fixture(scope="module")
def members():
    return [load_model(name, device="cpu") for name in ("tiny-base", "tiny-anchor")]


def lines(text: str) -> dict[str, str]:
    """The answers by name, as `chat` prints them without colours."""
    return dict(re.findall(r"^ *(base|theta|anchor|mixture|vote) +(.*)$", text, re.M))


def test_three_answers_and_who_decided(members, tokenizer):
    answers = list(ask(Mixture(members, [0.25, 0.75]), tokenizer, EXAMPLE))
    assert {a.name: "".join(a.pieces) for a in answers} == SAYS
    prompt = encode_prompt(tokenizer, EXAMPLE)
    for answer in answers:
        found = read_with_both(*members, tokenizer, prompt, SAYS[answer.name], 0.75)
        assert answer.pieces == found.pieces and [w or None for w in answer.who] == found.decided()
    assert set(answers[2].who) == {"", "base", "anchor"}  # so the comparison above could fail


def test_two_adapters_and_one_policy_alone(tokenizer):
    pair = make_lora_pair(vocab=len(tokenizer), context=64, width=32)
    mixture = Mixture([pair], [0.5, 0.5], "prob", ["theta", "ref"]).eval()
    answers = {a.name: a for a in ask(mixture, tokenizer, "1+1?", max_new_tokens=30, theta="theta")}
    assert list(answers) == ["theta", "anchor", "vote"]
    assert set(answers["theta"].who) <= {"", "theta"} and set(answers["anchor"].who) <= {"", "anchor"}
    assert len(set(answers["vote"].who)) > 1
    [alone] = ask(
        Mixture([pair], [1.0], adapters=["theta"]).eval(), tokenizer, "1+1?", max_new_tokens=30, theta="theta"
    )
    assert (alone.name, alone.pieces, set(alone.who)) == ("theta", answers["theta"].pieces, {""})


def test_samples_differ_by_seed_and_not_otherwise(members, tokenizer):
    said = [[a.pieces for a in ask(Mixture(members), tokenizer, EXAMPLE, temperature=1.5, seed=s)] for s in (0, 0, 1)]
    assert said[0] == said[1] != said[2]


def test_decided():
    first = {"base": 5, "anchor": 7}
    assert [decided(token, first, "mixture") for token in (5, 7, 6)] == ["base", "anchor", "mixture"]
    assert decided(5, {"base": 5, "anchor": 5}, "vote") == "" and decided(6, {"base": 5, "anchor": 5}, "vote") == "vote"


def test_a_character_of_several_tokens_belongs_to_its_last():
    class Bytes:
        def decode(self, tokens):
            return bytes(tokens).decode(errors="replace")

    assert pieces(Bytes(), list("aé!".encode())) == ["a", "", "é", "!"]


def test_colours():
    answer = Answer("mixture", ["1", "<", "2"], ["base", "", "anchor"])
    assert f'<span style="background:{BLUE};color:#ffffff">1</span>&lt;<span' in answer._repr_html_()
    assert f"background:{ORANGE};color:#000000" in answer._repr_html_()
    assert "\033[38;2;255;255;255;48;2;11;60;140m1\033[0m<\033[38;2;0;0;0;48;2;242;162;92m2" in answer.coloured(True)


def test_command(capsys, monkeypatch):
    main(["chat", "--alpha", "0.75", "--ask", EXAMPLE])
    assert lines(capsys.readouterr().out) == SAYS
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for no_colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_colour)
        main(["chat", "--max-new-tokens", "8", "--ask", EXAMPLE])
        assert ("\033[" in capsys.readouterr().out) != bool(no_colour)
    with pytest.raises(SystemExit, match=r"error: the tokenizer has no token for \*"):
        main(["chat", "--ask", "x*2?"])
    with pytest.raises(SystemExit, match="exceeds the model's context of 128"):
        main(["chat", "--ask", "1+" * 60 + "1?"])


def test_typed_problems(capsys, monkeypatch):
    said = iter([EXAMPLE, "2*3?", "2+3?"])

    def type_it(_):
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", type_it)
    main(["chat"])
    out = capsys.readouterr().out
    assert "has no token for *" in out and out.count(" anchor ") == 2


def test_a_finished_run_brings_its_settings(tmp_path, capsys):
    run = ["train", "--method", "fixed", "--steps", "0", "--test-size", "4", "--validation-size", "2"]
    main([*run, "--max-new-tokens", "20", "--alpha", "0.75", "--out", str(tmp_path / "run")])
    capsys.readouterr()
    main(["chat", "--model", str(tmp_path / "run" / "final"), "--ask", EXAMPLE])
    found = lines(capsys.readouterr().out)
    assert found == {"theta" if name == "base" else name: text[:20] for name, text in SAYS.items()}
    member = str(tmp_path / "run" / "final" / "member_0")
    main(["chat", "--model", member, "--base", "tiny-base", "--ask", EXAMPLE])
    assert lines(capsys.readouterr().out) == {"theta": SAYS["base"]}
    main(["chat", "--model", member, "--base", "tiny-base", "--alpha", "0.75", "--ask", EXAMPLE])
    assert lines(capsys.readouterr().out)["mixture"] == SAYS["mixture"]
    assert torch.is_grad_enabled()
