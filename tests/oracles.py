"""What each rule means for two members, in plain probabilities: a new rule adds its line, and the tests take it up."""

from torch import Tensor

PAIR_RULES = {  # log-probs of the mixed policy up to a constant, from the members' logits and their weights
    "logit": lambda logits, weights: sum(w * x.log_softmax(-1) for w, x in zip(weights, logits, strict=True)),
    "prob": lambda logits, weights: sum(w * x.softmax(-1) for w, x in zip(weights, logits, strict=True)).log(),
}


def mixed(rule: str, logits: list[Tensor], weights) -> Tensor:
    """Log-probs of the mixed policy, `[..., V]`, in float64."""
    return PAIR_RULES[rule]([x.double() for x in logits], weights).log_softmax(-1)
