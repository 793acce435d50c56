"""Mixture against its members: generation, logits, caches, LoRA routing, saving, gradients."""

import pytest
import torch
from conftest import ARCHITECTURES, make_lora_pair, make_mixture, make_model
from oracles import PAIR_RULES, mixed
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline
from transformers.modeling_layers import GradientCheckpointingLayer

from logitmix_lite.fast.rows import pad_rows
from logitmix_lite.hf import CACHE, Mixture
from logitmix_lite.mixture import positions
from logitmix_lite.rollout import completion_logprobs, rollout

PROMPTS = [[5, 7, 9, 11, 3], [8, 2], [4, 4, 6]]
IDS, MASK = pad_rows(PROMPTS, 0, left=True)
BATCH = dict(input_ids=IDS, attention_mask=MASK)
KINDS = ["pair", "lora", "bare", "late"]


def logits_of(model, **batch):
    """Logits at the real tokens of a batch. GPT-2 alone takes no positions from the mask; a Mixture must."""
    batch = batch or BATCH
    given = {} if isinstance(model, Mixture) else dict(position_ids=positions(batch["attention_mask"]))
    with torch.no_grad():
        return model(**batch, **given).logits[batch["attention_mask"].bool()]


def close(ours, expected, tolerance=1e-5):
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


def generate(model, do_sample=False, seed=3, **kwargs):
    torch.manual_seed(seed)
    return model.generate(**BATCH, max_new_tokens=10, do_sample=do_sample, **kwargs)


def tokenizer(order=1):
    """28 words and two special tokens; order -1 numbers the words the other way round."""
    vocabulary = {f"w{k}": k for k in range(2, 30)[::order]}
    vocabulary = {"<pad>": 0, "<eos>": 1} | dict(zip(vocabulary, range(2, 30), strict=True))
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", padding_side="left")


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_mixture_of_one_generates_as_its_member(arch, do_sample):
    model = make_model(arch)
    text = generate(model, do_sample)
    assert text[:, IDS.shape[1] :].unique().numel() > 3  # the model does not just repeat itself
    assert torch.equal(generate(Mixture([model]), do_sample), text)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_ends_of_alpha_are_theta_and_ref(arch):
    mixture = make_mixture(arch=arch)
    for alpha, member in enumerate(mixture.models):
        mixture.alpha = alpha
        assert mixture.alpha == alpha and mixture.weights == (1 - alpha, alpha)
        for do_sample in (False, True):
            assert torch.equal(generate(mixture, do_sample), generate(member, do_sample))
    assert not torch.equal(*(generate(member) for member in mixture.models))


@pytest.mark.parametrize("rule", PAIR_RULES)
def test_theta_equal_to_ref_makes_alpha_irrelevant(rule):
    expected = logits_of(make_model()).log_softmax(-1)
    for alpha in (0, 0.3, 1):
        mixture = Mixture([make_model(), make_model()], [1 - alpha, alpha], rule)
        close(logits_of(mixture).log_softmax(-1), expected)


@pytest.mark.parametrize("weights", [[0.7, 0.3], [0.2, 0.5, 0.3], [1, 0.5, -0.5]])
def test_forward_follows_the_formula(weights):
    members = [make_model(arch, dtype="float64") for arch in ("llama", "gpt2", "qwen3")[: len(weights)]]
    logits = [logits_of(member) for member in members]
    expected = sum(w * x for w, x in zip(weights, logits, strict=True))
    close(logits_of(Mixture(members, weights)), expected, 1e-9)
    if min(weights) > 0:
        expected = sum(w * x.softmax(-1) for w, x in zip(weights, logits, strict=True)).log()
        close(logits_of(Mixture(members, weights, "prob")), expected, 1e-9)


def test_members_with_padded_output_matrices_share_the_smaller_vocabulary():
    members = [make_model("qwen2", vocab=30), make_model("qwen2", vocab=38, seed=1)]
    for first, last in (members, members[::-1]):
        mixture = Mixture([first, last], [0.4, 0.6])
        close(logits_of(mixture), 0.4 * logits_of(first)[:, :30] + 0.6 * logits_of(last)[:, :30])
        assert mixture.config.vocab_size == 30 and generate(mixture, do_sample=True).max() < 30
        with mixture.using([0, 1]):  # one member alone keeps to the shared tokens too
            assert generate(mixture, do_sample=True, temperature=9.0).max() < 30


@pytest.mark.parametrize("rule", PAIR_RULES)
def test_a_large_theta_anchored_by_a_small_ref(tmp_path, rule):
    """Of one family, with other hidden sizes, depths and padded vocabularies: sampled, scored, trained, saved."""
    theta, ref = make_model("qwen2", vocab=38, width=32, layers=3), make_model("qwen2", vocab=30, seed=1)
    ref.requires_grad_(False)
    mixture = Mixture([theta, ref], [0.4, 0.6], rule).eval()
    rollouts = rollout(mixture, [[5, 6, 7], [8, 9]], samples=4, max_new_tokens=6, seed=0)
    prompts = torch.arange(8) // 4
    args = rollouts.prompt_ids[prompts], rollouts.prompt_mask[prompts], rollouts.completions, rollouts.mask
    logp = completion_logprobs(mixture, *args)
    close(logp, rollouts.logps)
    ids, seen = torch.cat([args[0], args[2]], -1), torch.cat([args[1], args[3]], -1)
    with torch.no_grad():  # by hand, from whole sequences without a cache
        places = (seen.cumsum(-1) - 1).clamp(min=0)
        logits = [m(ids, attention_mask=seen, position_ids=places).logits[..., :30] for m in (theta, ref)]
    expected = mixed(rule, logits, (0.4, 0.6))[:, 2:-1].gather(-1, args[2][..., None]).squeeze(-1) * args[3]
    close(logp.double(), expected)
    logp.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in theta.parameters())
    mixture.save_pretrained(tmp_path / "mixture")
    close(logits_of(Mixture.from_pretrained(tmp_path / "mixture")), logits_of(mixture))


@pytest.mark.parametrize("kind", ["lora", "bare"])
@torch.no_grad()
def test_mixing_hidden_states_is_mixing_logits_on_a_shared_head(kind):
    mixture = make_mixture(kind, [0.3, 0.7], dtype="float64")
    theta, ref = mixture.hidden(**BATCH)
    head = mixture.models[0].lm_head
    mixed = logits_of(mixture)
    close(mixed, (0.3 * head(theta) + 0.7 * head(ref))[MASK.bool()], 1e-9)
    close(mixed, head(0.3 * theta + 0.7 * ref)[MASK.bool()], 1e-9)
    assert mixture.shared_head and not torch.allclose(theta, ref)


@pytest.mark.parametrize("blocks", [None, [1, 2], [1]])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_routed_lora_equals_peft(arch, blocks):
    model = make_lora_pair(arch=arch, layers=3, blocks=blocks)
    expected = {}
    for name in ("theta", "ref"):
        model.set_adapter(name)
        expected[name] = logits_of(model)
    with model.disable_adapter():
        expected[None] = logits_of(model)
    for names in [("theta", "ref"), ("ref", "theta"), ("theta", None), (None, "ref"), ("theta", None, "ref")]:
        mixture, alone = Mixture([model], adapters=names), torch.eye(len(names)).tolist()
        for weights, name in zip(alone, names, strict=True):
            with mixture.using(weights):
                close(logits_of(mixture), expected[name])
        for use_cache in (True, False):  # with a cache, the members' rows run stacked in one pass
            mixed = logits_of(mixture, **BATCH, use_cache=use_cache)
            close(mixed, sum(expected[name] for name in names) / len(names))
    assert not torch.allclose(expected["theta"], expected["ref"])


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("rule", PAIR_RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_nothing(kind, rule, name):
    mixture = make_mixture(kind, rule=rule)
    assert torch.equal(generate(mixture, use_cache=True), generate(mixture, use_cache=False))
    whole, cache, steps = mixture(**BATCH, use_cache=False).logits, None, []
    with torch.no_grad():
        for end in range(1, IDS.shape[1] + 1):
            out = mixture(IDS[:, end - 1 : end], MASK[:, :end], **{name: cache}, use_cache=True)
            cache = getattr(out, CACHE)
            steps.append(out.logits)
    close(torch.cat(steps, 1)[MASK.bool()], whole[MASK.bool()])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["pair", "lora"])
def test_a_padded_row_equals_the_row_alone(kind, arch):
    mixture = make_mixture(kind, arch=arch)
    texts = generate(mixture)
    for k, prompt in enumerate(PROMPTS):
        row = torch.tensor([prompt])
        alone = logits_of(mixture, input_ids=row, attention_mask=torch.ones_like(row))
        batch = mixture(**BATCH).logits[k, -len(prompt) :]
        close(batch, alone)
        text = mixture.generate(input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=10, do_sample=False)
        assert texts[k, -10:].tolist()[: text.shape[1] - len(prompt)] == text[0, len(prompt) :].tolist()


def test_different_tokenizers_are_refused(tmp_path):
    for name, order in {"a": 1, "same": 1, "b": -1}.items():
        make_model().save_pretrained(tmp_path / name)
        tokenizer(order).save_pretrained(tmp_path / name)
    a, same, b = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("a", "same", "b"))
    Mixture([a, same])
    with pytest.raises(ValueError, match="different tokenizers"):
        Mixture([a, b])


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(tmp_path, kind):
    make_model().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    mixture = make_mixture(kind, [0.25, 0.75], "prob", **({} if kind == "pair" else dict(base=base)))
    mixture.save_pretrained(tmp_path / "mix")
    expected = logits_of(mixture)
    for loader in (Mixture, AutoModelForCausalLM):
        loaded = loader.from_pretrained(tmp_path / "mix")
        assert isinstance(loaded, Mixture) and loaded.weights == (0.25, 0.75) and loaded.rule == "prob"
        assert torch.equal(logits_of(loaded), expected) and torch.equal(generate(loaded), generate(mixture))
    (tmp_path / "base").rename(tmp_path / "moved")
    assert torch.equal(logits_of(Mixture.from_pretrained(tmp_path / "mix", backbone=tmp_path / "moved")), expected)


def test_pipeline():
    mixture, words = make_mixture(), tokenizer()
    pipe = pipeline("text-generation", model=mixture, tokenizer=words)
    text = pipe("w5 w7 w9", max_new_tokens=6, do_sample=False, return_full_text=False)[0]["generated_text"]
    ids = mixture.generate(torch.tensor([[5, 7, 9]]), max_new_tokens=6, do_sample=False)[0, 3:]
    assert text.split() == words.decode(ids, skip_special_tokens=True).split() != []


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_only_theta_gets_a_gradient_and_it_carries_one_minus_alpha(kind, alpha):
    mixture = make_mixture(kind, dtype="float64")
    theta = "members.0." if kind == "pair" else ".theta."
    mixture.requires_grad_(True)
    assert [state.requires_grad for state in mixture.hidden(**BATCH)] == [True, False]
    for name, parameter in mixture.named_parameters():
        parameter.requires_grad_(theta in name)
    direction = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    grads = []
    for weights in ([1 - alpha, alpha], [1, 0]):
        mixture.zero_grad()
        with mixture.using(weights):
            value = (mixture(**BATCH).logits[MASK.bool()] @ direction).sum()
        if value.requires_grad:
            value.backward()
        grads.append({name: p.grad for name, p in mixture.named_parameters() if p.grad is not None})
    mixed, alone = grads
    assert alone and all(theta in name for name in alone) and mixed.keys() == (alone.keys() if alpha < 1 else set())
    for name, grad in mixed.items():
        close(grad, (1 - alpha) * alone[name], 1e-4)  # norms compute in float32


def test_weights_that_the_rule_does_not_take():
    for rule, weights, match in [
        ("logit", [1], "as many weights"),
        ("logit", [0.5, 0.3, 0.2], "as many weights"),
        ("median", [0.5, 0.5], "unknown rule"),
        ("prob", [0.5, 0.6], "sum to 1"),
        ("prob", [1.5, -0.5], "nonnegative"),
        ("logit", [0, 0], "every weight is 0"),
        ("contrastive", [0.5, 0.5], "contrastive"),
    ]:
        with pytest.raises(ValueError, match=match):
            make_mixture(weights=weights, rule=rule)


def test_alpha_and_adapters_that_cannot_be():
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            make_mixture().alpha = alpha
    with pytest.raises(ValueError, match="no adapter named .*other"):
        Mixture([make_lora_pair()], adapters=["theta", "other"])
    with pytest.raises(ValueError, match="one PEFT model"):
        Mixture([make_model()], adapters=["theta"])


def test_using_restores_the_weights():
    mixture = make_mixture()
    with pytest.raises(KeyError), mixture.using([1, 0]):
        assert mixture.weights == (1, 0) and mixture.running == [0]
        raise KeyError
    with pytest.raises(ValueError, match="as many weights"), mixture.using([1]):
        pass
    assert mixture.weights == (0.6, 0.4) and mixture.running == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["qwen2", "gpt2"])
def test_recomputed_activations_give_the_same_gradient(kind, arch):
    """Each block of theta runs twice; with adapters, both times on theta's. GPT-2 has dropout, which stays off."""
    results = []
    for recompute in (False, True):
        mixture = make_mixture(kind, arch=arch)
        if recompute:
            mixture.gradient_checkpointing_enable()
        blocks = [m for m in mixture.models[0].modules() if isinstance(m, GradientCheckpointingLayer)]
        calls = []
        blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        inner = next(m for name, m in blocks[-1].named_modules() if name in ("mlp",))
        inner.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append("mlp") if torch.is_grad_enabled() else None
        )
        mixture(**BATCH).logits[MASK.bool()].log_softmax(-1)[:, 3].sum().backward()
        results.append({name: p.grad for name, p in mixture.named_parameters() if p.grad is not None})
        assert calls.count("mlp") == 1 + recompute
    plain, recomputed = results
    assert plain.keys() == recomputed.keys() and any(g.abs().max() > 1e-3 for g in plain.values())
    for name in plain:
        close(recomputed[name], plain[name])
