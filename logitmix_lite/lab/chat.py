"""Ask a mixture: base (or a trained theta), anchor and mixture answer a problem, coloured by who decided each token."""

import html
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..config import Preset
from ..evaluate import load_mixed, tokenizer_of
from ..methods import BLUE, GREEN, MAGENTA, ORANGE
from ..recipe import ALONE
from ..rollout import rollout
from ..tasks.load import encode_prompt, end_tokens, instruction_of

COLOURS = {"base": BLUE, "theta": BLUE, "anchor": ORANGE, "mixture": GREEN, "vote": MAGENTA}
INK = {ORANGE: "#000000"}  # on the others white is easier to read


@dataclass(frozen=True)
class Answer:
    """What one policy said: its tokens as text, and who decided each: the one policy whose first choice it was ("base"
    or "theta", "anchor"), the "mixture" (or "vote") where it was neither's, and "" where they agree."""

    name: str
    pieces: list[str]
    who: list[str]

    def coloured(self, terminal: bool = False) -> str:
        """As HTML, or with the codes of a terminal that has all colours."""
        parts = zip([f"{self.name:^9}", " ", *self.pieces], [self.name, "", *self.who], strict=True)
        return "".join(paint(text, COLOURS.get(who), terminal) for text, who in parts)

    def __str__(self) -> str:
        return f"{self.name:^9} {''.join(self.pieces)}"

    def _repr_html_(self) -> str:
        return f'<pre style="white-space:pre-wrap">{self.coloured()}</pre>'


def paint(text: str, colour: str | None, terminal: bool) -> str:
    """The text on a background of that colour; None: as it is."""
    if colour is None:
        return text if terminal else html.escape(text)
    ink = INK.get(colour, "#ffffff")
    if not terminal:
        return f'<span style="background:{colour};color:{ink}">{html.escape(text)}</span>'
    front, back = (";".join(str(int(c[k : k + 2], 16)) for k in (1, 3, 5)) for c in (ink, colour))
    return f"\033[38;2;{front};48;2;{back}m{text}\033[0m"


@torch.no_grad()
def ask(
    mixture, tokenizer, question: str, *, instruction="", max_new_tokens=64, temperature=0.0, seed=0, theta="base"
) -> Iterator[Answer]:
    """The answers of theta alone, ref alone, and their mixture as it is; of other numbers of members, the mixture's.

    In a notebook: `display(*ask(mixture, tokenizer, "18-19-4+19-2?"))`. theta: its name, "base" or "theta".
    Raises ValueError for a question that the tokenizer can't read or the context can't hold."""
    prompt = encode_prompt(tokenizer, question, instruction)
    ends = end_tokens(tokenizer, mixture.generation_config.eos_token_id)
    alone = dict(zip((theta, "anchor"), ALONE.values(), strict=True)) if len(mixture.weights) == 2 else {}
    mixed = "vote" if mixture.rule == "prob" else "mixture" if len(mixture.weights) > 1 else theta
    run = dict(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, eos=ends, pad=tokenizer.pad_token_id)
    for name, weights in (alone | {mixed: mixture.weights}).items():
        with mixture.using(weights):
            found = rollout(mixture, [prompt], **run)
        said = found.completions[:, : found.completions.shape[1] - int(not found.truncated)]  # without the end token
        ids, tokens = torch.cat([found.prompt_ids, said], 1), said[0].tolist()
        first = {who: first_choices(mixture, ids, len(tokens), weights) for who, weights in alone.items()}
        who = [decided(token, {a: choices[k] for a, choices in first.items()}, mixed) for k, token in enumerate(tokens)]
        yield Answer(name, pieces(tokenizer, tokens), who)


def first_choices(mixture, ids, last: int, weights) -> list[int]:
    """What the policy of these weights finds most likely in place of each of the `last` tokens of `ids` `[1, T]`."""
    with mixture.using(weights):
        return mixture(ids, logits_to_keep=last + 1).logits[0, :-1].argmax(-1).tolist()


def decided(token: int, first: Mapping[str, int], mixed: str) -> str:
    """Who decided a token, from the first choices of those who were asked; see `Answer.who`."""
    theirs = [who for who, choice in first.items() if choice == token]
    return "" if len(theirs) == len(first) else theirs[0] if theirs else mixed


def pieces(tokenizer, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text; a character made of several tokens belongs to its last."""
    texts = [tokenizer.decode(tokens[:end]).rstrip("\ufffd") for end in range(len(tokens) + 1)]
    return [after[len(before) :] for before, after in pairwise(texts)]


def chat(preset: Preset, model: str | None = None, alpha: float | None = None, question="", sampled=False) -> None:
    """Print the answers to `question`, or else to all that are typed until an empty line.

    model: a model, adapter or mixture, mixed as `load_mixed` explains; without it the preset's base and anchor.
    sampled: at the preset's temperature. Colours need a terminal, and NO_COLOR (no-color.org) switches them off."""
    mixture = load_mixed(model, preset, alpha) if model else load_mixed(preset.base, preset, preset.alpha)
    tokenizer, instruction = tokenizer_of(model or preset.base, preset.base), instruction_of(preset.task)
    temperature, colours = preset.temperature if sampled else 0.0, sys.stdout.isatty() and not os.getenv("NO_COLOR")
    how = dict(instruction=instruction, max_new_tokens=preset.max_new_tokens, temperature=temperature)
    for seed, text in enumerate([question] if question else typed()):
        try:
            for answer in ask(mixture, tokenizer, text, seed=seed, theta="theta" if model else "base", **how):
                print(answer.coloured(terminal=True) if colours else answer, flush=True)
        except ValueError as error:
            if question:
                raise
            print(error)


def typed() -> Iterator[str]:
    with suppress(EOFError):
        while line := input("problem (nothing to stop)> ").strip():
            yield line
