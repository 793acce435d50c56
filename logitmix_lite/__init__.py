"""Logit averaging inside GRPO (arXiv:2605.20555): a frozen SFT policy and a trainable one, mixed token by token."""

from .config import load_preset
from .evaluate import evaluate
from .grpo import group_advantages, grpo_loss, kl_k3, token_distributions, token_logprobs
from .hf import Mixture
from .mixing import contrastive, dexperts, mix_logits, mix_probs, product_of_experts
from .models import load_model, load_policy, load_tokenizer
from .rollout import rollout
from .tasks.load import load_task
from .tasks.rewards import boxed, grade
from .train import train

__all__ = [
    "Mixture", "boxed", "contrastive", "dexperts", "evaluate", "grade", "group_advantages", "grpo_loss", "kl_k3",
    "load_model", "load_policy", "load_preset", "load_task", "load_tokenizer", "mix_logits", "mix_probs",
    "product_of_experts", "rollout", "token_distributions", "token_logprobs", "train",
]  # fmt: skip
