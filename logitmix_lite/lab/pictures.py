"""The pictures in docs/pictures, drawn from the tiny models; `python -m logitmix_lite.lab.pictures` remakes them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, FancyBboxPatch, Rectangle
from PIL import Image
from torch import Tensor

from ..hf import Mixture
from ..mixing import mix_logits
from ..models import load_model, load_tokenizer
from ..rollout import rollout
from ..tasks import encode_prompt
from .plots import MIX, REF, THETA

QUESTION, ALPHA = "18-19-4+19-2?", 0.75  # the example that goes through the course
FINDING = """Alone each gets 18-19-4+19-2 wrong, together they are right
The anchor puts in a sign and the box, base keeps a minus."""
NOTE = "Alone, base ends in 14\nand the anchor in 20.\nalpha 0.75, no training"
ROLES = {"anchor": (REF[0], "black"), "base": (THETA[0], "white"), "mixture": (MIX[0], "black")}  # fill and ink
PALE, RULE = "#f4f4f4", "#c9c9c9"


@dataclass
class Reading:
    """A text read token by token with both policies and their product.

    tokens: its T token ids. logps: for "base" (theta, whatever it is), "anchor" and "mixture", the log-probs of
    the next token at each place, `[T, V]`. vocabulary: the V tokens as text."""

    tokens: list[int]
    logps: dict[str, Tensor]
    vocabulary: list[str]

    @property
    def pieces(self) -> list[str]:
        """The tokens as text."""
        return [self.vocabulary[k] for k in self.tokens]

    def choices(self, name: str) -> list[str]:
        """What this policy finds most likely at each place."""
        return [self.vocabulary[k] for k in self.logps[name].argmax(-1).tolist()]

    def chances(self, name: str) -> Tensor:
        """The probability that this policy gives to each token of the text, `[T]`; their product is equation 3."""
        return self.logps[name].gather(-1, torch.tensor(self.tokens)[:, None]).squeeze(-1).exp()

    def kl(self) -> list[float]:
        """KL(theta || ref) at each place, in nats: how far apart the two are."""
        theta, ref = self.logps["base"], self.logps["anchor"]
        return (theta.exp() * (theta - ref)).sum(-1).tolist()

    def decided(self) -> list[str | None]:
        """Whose first choice stands in the text where the two differ: "base", "anchor", or None for neither."""
        pairs = zip(self.pieces, self.choices("base"), self.choices("anchor"), strict=True)
        return [None if a == b or piece not in (a, b) else "base" if piece == a else "anchor" for piece, a, b in pairs]


@torch.no_grad()
def read_with_both(theta, ref, tokenizer, prompt: Sequence[int], text: str, alpha: float) -> Reading:
    """Read `text`, an answer to `prompt` (token ids), with theta, ref and their mixture of weight alpha on ref."""
    answer = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*prompt, *answer]], device=theta.device)
    first, second = (model(ids).logits[0, len(prompt) - 1 : -1] for model in (theta, ref))
    logits = {"base": first, "anchor": second, "mixture": mix_logits(first, second, alpha)}
    logps = {name: x.float().log_softmax(-1).cpu() for name, x in logits.items()}
    return Reading(answer, logps, [tokenizer.decode(k) for k in range(first.shape[-1])])


def box(ax: Axes, x: float, y: float, text: str, fill: str, ink="black", edge=RULE, width=0.9, **font) -> None:
    """Draw one rounded box with a token in it, its centre at (x, y)."""
    shape = "round,pad=0,rounding_size=0.14"
    ax.add_patch(FancyBboxPatch((x - width / 2, y - 0.45), width, 0.9, boxstyle=shape, fc=fill, ec=edge, lw=0.8))
    shown = {" ": "␣", "\n": "⏎"}.get(text, text)
    font = {"family": "monospace", "size": 12 / max(1, 0.6 * len(shown))} | font
    ax.text(x, y - 0.04, shown, color=ink, ha="center", va="center", **font)


def canvas(width: float, height: float, inches: float = 5.2) -> Axes:
    """Empty axes over a whole figure of that width, in units of one box."""
    figure = plt.figure(figsize=(inches, inches * height / width), dpi=150, layout="none")
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(-height, 0))
    ax.axis("off")
    return ax


def who_decided_strip(reading: Reading, title: str = "", note: str = "", columns: int = 17) -> Figure:
    """What each policy would say next, above the mixture's text; where the two differ, the winner's box is filled.

    The skyline is KL(theta || ref). note: for the free space at the end. At most `columns` tokens a line."""
    says = {"anchor": reading.choices("anchor"), "base": reading.choices("base"), "mixture": reading.pieces}
    differ = [a != b for a, b in zip(says["anchor"], says["base"], strict=True)]
    starts, kl, decided = lines_of(reading.pieces, columns), reading.kl(), reading.decided()
    lines = [range(a, b) for a, b in zip(starts, [*starts[1:], len(kl)], strict=True)]
    skies = [1.7 + 1.2 * max(kl[k] for k in line) / max(kl) if any(differ[k] for k in line) else 0.6 for line in lines]
    ax = canvas(columns + 3.7, 2.2 + sum(skies) + 3.2 * len(lines))
    ax.text(0.2, -0.9, title.partition("\n")[0], size=10.2, weight="bold", va="center")
    ax.text(0.2, -1.9, title.partition("\n")[2], size=9.5, va="center")
    ground = -2.2
    for line, sky in zip(lines, skies, strict=True):
        ground -= sky
        ax.plot([3.5, columns + 3.5], [ground, ground], color=RULE, lw=0.8)
        if sky > 1:
            ax.text(3.3, ground + 0.15, "how far apart\n(KL in nats)", ha="right", size=7.5, color="#555555")
        for row, (role, said) in enumerate(says.items()):
            y = ground - 0.6 - row
            box(ax, 1.75, y, role, *ROLES[role], ROLES[role][0], width=3.1, family=None, size=9)
            for x, place in enumerate(line, 4):
                winner = decided[place]
                if winner and role in (winner, "mixture"):
                    box(ax, x, y, said[place], *ROLES[winner], ROLES[winner][0], weight="bold")
                elif differ[place] and role != "mixture":  # what was overruled
                    box(ax, x, y, said[place], "white", "#444444", ROLES[role][0])
                    ax.plot([x - 0.3, x + 0.3], [y - 0.3, y + 0.3], color=ROLES[role][0], lw=1.2, zorder=2)
                else:
                    box(ax, x, y, said[place], PALE)
        for x, place in enumerate(line, 4):
            tall = 1.2 * kl[place] / max(kl)
            ax.bar(x, tall, 0.6, bottom=ground, color="#555555")
            if differ[place]:
                ax.text(x, ground + tall + 0.1, f"{kl[place]:.1f}", ha="center", size=8.5)
        ground -= 3.2
    ax.text(columns + 3.4, ground + 0.4, note, ha="right", size=8.5, linespacing=1.35)
    return ax.figure


def lines_of(pieces: Sequence[str], columns: int) -> list[int]:
    """Where each line of at most `columns` tokens starts; a line ends after a semicolon, where one is near enough."""
    starts = [0]
    while len(pieces) - starts[-1] > columns:
        window = pieces[starts[-1] : starts[-1] + columns]
        ends = [k + 1 for k, piece in enumerate(window) if piece == ";" and k + 1 > columns // 2]
        starts.append(starts[-1] + (ends[-1] if ends else columns))
    return starts


def first_choices(ax: Axes, x: float, y: float, reading: Reading, name: str, place: int, long=4.0, count=3, **font):
    """Draw one policy's most likely next tokens at a place as bars, downwards from (x, y); a sure token is `long`."""
    for row, (p, k) in enumerate(zip(*(v.tolist() for v in reading.logps[name][place].exp().topk(count)), strict=True)):
        box(ax, x, y - row, reading.vocabulary[k], PALE, **font)
        ax.barh(y - row, p * long, 0.6, left=x + 0.7, color=ROLES[name][0], ec="black", lw=0.4)
        ax.text(x + 0.9 + p * long, y - row - 0.04, f"{p:.2f}", va="center", size=8)


def padlock(ax: Axes, x: float, y: float) -> None:
    """Draw a closed padlock, one unit wide, its body's centre at (x, y)."""
    ax.add_patch(Arc((x, y + 0.4), 0.7, 1.1, theta1=0, theta2=180, lw=2.2, color="black", zorder=4))
    ax.add_patch(Rectangle((x - 0.5, y - 0.4), 1, 0.8, color="black", zorder=4))


def two_models_diagram(reading: Reading, place: int = 6) -> Figure:
    """Two models, one token, one reward, a gradient into one side; the bars are those of one place of `reading`."""
    ax = canvas(21, 22.6)
    arrow = dict(arrowstyle="-|>,head_width=0.25,head_length=0.5", color="#444444", lw=1.4)

    def point(start, end, **style) -> None:
        ax.annotate("", end, start, arrowprops=arrow | style)

    def say(x, y, text, **font) -> None:
        ax.text(x, y, text, **(dict(ha="center", va="center", size=9) | font))

    def role(x, y, name, text, detail, width) -> None:
        fill, ink = ROLES[name]
        shape = "round,pad=0,rounding_size=0.3"
        ax.add_patch(FancyBboxPatch((x - width / 2, y - 1), width, 2, boxstyle=shape, fc=fill))
        say(x, y + 0.4, text, color=ink, weight="bold", size=11)
        say(x, y - 0.45, detail, color=ink)

    say(0.3, -0.9, "Two models, one token, one reward; only one model learns", ha="left", size=10.2, weight="bold")
    say(11, -2.3, QUESTION + " " + "".join(reading.pieces[:place]) + "_", family="monospace", size=12)
    point((8.5, -2.9), (6, -4.2)), point((13.5, -2.9), (16, -4.2))
    role(6, -5.3, "base", "theta", "starts as base, learns", 7.6)
    role(16, -5.3, "anchor", "the anchor", "fine-tuned, frozen", 7.6)
    padlock(ax, 19.1, -5.2)
    first_choices(ax, 3.6, -7.1, reading, "base", place), first_choices(ax, 13.6, -7.1, reading, "anchor", place)
    point((6.6, -9.9), (8.4, -11.3)), point((15.4, -9.9), (13.6, -11.3))
    say(4, -10.7, f"weight 1 - alpha\n(here {1 - ALPHA})"), say(18, -10.7, f"weight alpha\n(here {ALPHA})")
    role(11, -12.4, "mixture", "average of their logits, then softmax", "one policy, one chance for each token", 13.6)
    first_choices(ax, 8.6, -14.2, reading, "mixture", place)
    point((11, -16.9), (11, -17.9))
    say(11.4, -17.4, "draw one, append it, go on", ha="left", size=9)
    say(11, -18.6, "".join(reading.pieces), family="monospace", size=9)
    point((11, -19.1), (11, -20.1))
    say(11, -20.9, "reward 1 if right and boxed, else 0", size=11, weight="bold")
    ax.plot([4.6, 1, 1], [-20.9, -20.9, -5.3], color=THETA[0], lw=3)
    point((1, -5.3), (2.1, -5.3), color=THETA[0], lw=3)
    say(0.45, -13, "gradient: into theta only", rotation=90, color=THETA[0])
    return ax.figure


def token_frames(reading: Reading, alone: Mapping[str, Sequence[str]], columns: int = 27) -> Iterator[Figure]:
    """Three policies answering side by side, a figure a token; below, what each holds likely after the mixture's text.

    alone: the tokens of "base" and "anchor", each answering for itself."""
    texts, decided = {**alone, "mixture": reading.pieces}, reading.decided()
    for place in range(len(reading.pieces) + 1):
        ax = canvas(columns + 4.6, 17.6)
        for role, top in zip(ROLES, (-1.2, -4.1, -7), strict=True):
            box(ax, 2.2, top, role, *ROLES[role], ROLES[role][0], width=4, family=None, size=8.5)
            starts = lines_of(texts[role], columns)
            for k, piece in enumerate(texts[role][: place if place < len(reading.pieces) else None]):
                line = max(n for n, start in enumerate(starts) if start <= k)
                won = ROLES[decided[k]] if role == "mixture" and decided[k] else (PALE, "black")
                box(ax, 5.1 + k - starts[line], top - 1.1 * line, piece, *won, size=9.5)
        if place < len(reading.pieces):
            ax.text(0.2, -10.7, f"What comes next after the mixture's text (alpha {ALPHA})?", size=9, weight="bold")
            for role, x in zip(ROLES, (1, 11.5, 22), strict=True):
                box(ax, x + 1.5, -11.9, role, *ROLES[role], ROLES[role][0], width=4, family=None, size=8.5)
                first_choices(ax, x, -13.2, reading, role, place, long=5.5, size=9.5)
        else:
            ax.text(0.2, -11.5, FINDING, size=10, linespacing=1.6)
            ax.text(0.2, -14.6, "Blue: base decided. Orange: the anchor did. Grey: they agree.", size=10)
        yield ax.figure


def example() -> tuple[Reading, dict[str, list[str]]]:
    """The course's example before any training: what base and anchor's mixture answers, read with both, and the tokens
    that each of the two answers alone."""
    tokenizer, theta, ref = load_tokenizer("tiny-base"), load_model("tiny-base"), load_model("tiny-anchor")
    prompt, mixture = encode_prompt(tokenizer, QUESTION), Mixture([theta, ref], [1 - ALPHA, ALPHA])
    base, anchor, both = (rollout(m, [prompt], temperature=0).texts(tokenizer)[0] for m in (theta, ref, mixture))
    return read_with_both(theta, ref, tokenizer, prompt, both, ALPHA), {"base": list(base), "anchor": list(anchor)}


def main(folder: str | Path = "docs/pictures") -> None:
    """Draw all pictures again."""
    (reading, alone), folder = example(), Path(folder)
    who_decided_strip(reading, FINDING, NOTE).savefig(folder / "who-decided.png")
    two_models_diagram(reading).savefig(folder / "two-models.png")
    frames = []
    for figure in token_frames(reading, alone):
        figure.savefig(folder / "token-by-token.png")
        frames.append(Image.open(folder / "token-by-token.png").convert("P", palette=Image.Palette.ADAPTIVE, colors=64))
        plt.close(figure)
    pauses = [2500 if who else 350 for who in reading.decided()] + [6000]  # ms
    frames[0].save(folder / "token-by-token.gif", append_images=frames[1:], save_all=True, duration=pauses, loop=0)


if __name__ == "__main__":
    main()
