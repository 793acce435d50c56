// Two models, one text: equation 1 of the paper and its alternative, token by token.
import { softmax } from "./model.js";

// The mixed policy's probabilities. alpha is the weight on the anchor.
// "logit": softmax((1 - alpha) * base + alpha * anchor), a product: a token needs the favour of both.
// "prob": (1 - alpha) * softmax(base) + alpha * softmax(anchor), a vote: the favour of one is enough.
export function mix(base, anchor, alpha, rule) {
  if (rule === "logit") return softmax(base.map((logit, token) => (1 - alpha) * logit + alpha * anchor[token]));
  const anchors = softmax(anchor);
  return softmax(base).map((p, token) => (1 - alpha) * p + alpha * anchors[token]);
}

// Whose first choice a token is: "both" (they agree), "base", "anchor", or "mixture" where it is neither's.
export function decider(token, base, anchor) {
  if (token === base) return token === anchor ? "both" : "base";
  return token === anchor ? "anchor" : "mixture";
}

export function largest(numbers) { return numbers.indexOf(numbers.reduce((a, b) => Math.max(a, b))); }

// The token where the cumulative distribution passes `uniform`, a random number in [0, 1).
export function draw(probabilities, uniform) {
  let sum = 0;
  for (let token = 0; token < probabilities.length; token++) if ((sum += probabilities[token]) > uniform) return token;
  return largest(probabilities);
}

// Answers a question with the mixture of two models; each `next()` writes one token. Weight alpha 0 is base alone and
// 1 the anchor alone: both models read along all the same, so that we see what the other would have said.
// random: a function that gives numbers in [0, 1), to sample; without it, the most likely token is written (greedy).
export class Writer {
  constructor({ base, anchor }, question, { alpha = 0.5, rule = "logit", random = null, longest = 64 } = {}) {
    this.models = [base, anchor];
    Object.assign(this, { alpha, rule, random, longest });
    this.caches = this.models.map((model) => model.newCache());
    this.tokens = [];
    this.done = false;
    for (const id of base.tokenizer.encode(question)) this.read(id);
  }

  read(id) { this.logits = this.models.map((model, k) => model.step(id, this.caches[k])); }

  // The next token with all that was thought about it; null where the answer ends.
  next() {
    const { config: { eos_token_id: end }, tokenizer } = this.models[0];
    if (this.done) return null;
    const [base, anchor] = this.logits.map(softmax), mixture = mix(...this.logits, this.alpha, this.rule);
    const id = this.random ? draw(mixture, this.random()) : largest(mixture);
    const token = { id, text: tokenizer.characters[id], probabilities: { base, anchor, mixture } };
    token.choices = { base: largest(base), anchor: largest(anchor), mixture: largest(mixture) };
    token.who = decider(id, token.choices.base, token.choices.anchor);
    this.tokens.push(token);
    this.done = id === end || this.tokens.length === this.longest;
    if (!this.done) this.read(id);
    return token;
  }

  get text() { return this.tokens.filter((t) => t.id !== this.models[0].config.eos_token_id).map((t) => t.text).join(""); }
}
