"""The paper's methods in about 100 lines of plain Hugging Face: to learn them from, and to check the package against.

One completion at a time, one pass over the whole text for every token: no caches, batches, masks or shared backbones.
It is slow and simple on purpose. Equations are numbered as in the paper.

| method                         | theta starts from | mixed with ref | rule      | alpha      | beta |
|--------------------------------|-------------------|----------------|-----------|------------|------|
| algorithm 1, fixed             | base              | yes            | logits    | constant   | 0    |
| algorithm 2, adaptive          | base              | yes            | logits    | `adapted`  | 0    |
| probability mixing             | base              | yes            | "prob"    | constant   | 0    |
| KL-GRPO, the canonical recipe  | anchor            | no             |           |            | > 0  |
| GRPO                           | anchor or base    | no             |           |            | 0    |
"""

from math import exp

import numpy as np
import torch


class Policy:
    """pi_mix of theta and ref, or of theta alone where ref is None. All that follows needs only its log-probs."""

    def __init__(self, theta, ref=None, alpha=0.0, rule="logit"):
        self.theta, self.ref, self.alpha, self.rule = theta, ref, alpha, rule

    def logprobs(self, ids, temperature=1.0):
        """Log-probs of every possible next token after each place of `ids`: `[T, V]`, with a gradient to theta."""
        text = torch.tensor([ids])
        logits = self.theta(input_ids=text, use_cache=False).logits[0]
        if self.ref is not None:
            with torch.no_grad():
                l_ref = self.ref(input_ids=text, use_cache=False).logits[0]
            if self.rule == "prob":
                logits = ((1 - self.alpha) * logits.softmax(-1) + self.alpha * l_ref.softmax(-1)).log()
            else:
                logits = (1 - self.alpha) * logits + self.alpha * l_ref  # equation 1
        return (logits / temperature).log_softmax(-1)  # equation 2

    def of_completion(self, prompt, text, temperature):
        """Log-probs of a completion's tokens: the terms of equation 3. Place t predicts the token at place t + 1."""
        found = self.logprobs(prompt + text, temperature)[len(prompt) - 1 : -1]
        return found[torch.arange(len(text)), text]

    @torch.no_grad()
    def sample(self, prompt, uniform, temperature, ends):
        """A completion, one token for each number in `uniform`: the one where the summed probabilities pass it."""
        text = []
        for u in uniform:
            below = self.logprobs(prompt + text, temperature)[-1].exp().double().cumsum(-1)
            text.append(int((below <= u * below[-1]).sum()))
            if text[-1] in ends:
                break
        return text

    @torch.no_grad()
    def greedy(self, prompt, length, ends):
        """The completion of the most likely token at each place."""
        text = []
        while len(text) < length and not (text and text[-1] in ends):
            text.append(int(self.logprobs(prompt + text)[-1].argmax()))
        return text


def advantages(rewards, eps_adv=1e-4):
    """Equation 4, for the completions of one prompt."""
    rewards = np.array(rewards, dtype=float)
    return (rewards - rewards.mean()) / (rewards.std() + eps_adv)


def clipped(logp, old_logp, advantage, clip):
    """Equation 6 for one completion, from log-probs of its tokens; for KL-GRPO, theta's own."""
    rho = (logp - old_logp).exp()  # equation 5
    return -torch.minimum(rho * advantage, rho.clamp(1 - clip, 1 + clip) * advantage).mean()


def k3(logp, ref_logp):
    """The KL estimate of GRPO for one completion."""
    difference = ref_logp - logp
    return (difference.exp() - difference - 1).mean()


def adapted(mixed, theta, offset, scale):
    """Equations 8 and 9: alpha from which validation problems the mixture and theta alone solve."""
    gain = np.mean([m and not t for m, t in zip(mixed, theta, strict=True)])
    forgetting = np.mean([t and not m for m, t in zip(mixed, theta, strict=True)])
    return 1 / (1 + exp(-(gain - forgetting - offset) / scale)), gain


def train(
    theta, ref, batches, validation, reward, *, settings, ends, seed, mixes=True, rule="logit", adaptive=False, beta=0.0
):  # fmt: skip
    """Train theta in place, and return one dict of metrics a step.

    batches: for each step a list of (prompt, answer), prompts as token ids. validation: such a list. reward(text,
    answer): 1 if the completion `text` (token ids) is right and boxed, else 0. settings: lr, samples and so on."""
    parameters = [p for p in theta.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0)
    alpha, lines, temperature = settings.alpha if mixes else 0.0, [], settings.temperature
    for step, batch in enumerate(batches, start=1):
        policy = Policy(theta, ref if mixes else None, alpha, rule)
        # Sample G completions of each prompt from the mixture, and compare them with each other.
        uniform = np.random.default_rng([seed, step]).random((len(batch) * settings.samples, settings.max_new_tokens))
        rollouts, rewards = [], []
        for prompt, answer in batch:
            rows = uniform[len(rollouts) : len(rollouts) + settings.samples]
            group = [policy.sample(prompt, row, temperature, ends) for row in rows]
            rewards.append([reward(text, answer) for text in group])
            rollouts += [(prompt, text, a) for text, a in zip(group, advantages(rewards[-1]), strict=True)]
        # theta_old and ref stay what they are here; theta moves, `epochs` times.
        with torch.no_grad():
            old = [policy.of_completion(prompt, text, temperature) for prompt, text, _ in rollouts]
            anchor = [Policy(ref).of_completion(prompt, text, temperature) if beta else None
                      for prompt, text, _ in rollouts]  # fmt: skip
        for epoch in range(settings.epochs):
            total = 0.0
            for (prompt, text, advantage), old_logp, ref_logp in zip(rollouts, old, anchor, strict=True):
                logp = policy.of_completion(prompt, text, temperature)
                loss = clipped(logp, old_logp, advantage, settings.clip)
                loss = (loss + beta * k3(logp, ref_logp) if beta else loss) / len(rollouts)
                loss.backward()
                total += loss.item()
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm).item()
            optimizer.step()
            optimizer.zero_grad()
            if epoch == 0:
                line = {"alpha": alpha, "reward": np.mean(rewards), "loss": total, "grad_norm": norm}
        if adaptive:  # equation 7: a greedy decode of each validation problem by the mixture, and by theta alone
            solved = [
                [reward(p.greedy(prompt, settings.max_new_tokens, ends), answer) for prompt, answer in validation]
                for p in (policy, Policy(theta))
            ]
            alpha, line["gain"] = adapted(*solved, settings.offset, settings.scale)
        lines.append(line)
    return lines
