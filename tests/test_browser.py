"""The mixture in the browser: docs/browser in a headless Chromium, compared with torch and with the package."""

import json
from pathlib import Path

import pytest
import torch
from browser import Server, find_chromium

from logitmix_lite.hf import Mixture
from logitmix_lite.models import load_model, load_tokenizer
from logitmix_lite.rollout import rollout
from logitmix_lite.tasks import encode_prompt
from logitmix_lite.tasks.load import load_task

PAGE = Path(__file__).resolve().parents[1] / "docs" / "browser"
CHROMIUM = find_chromium()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
EXAMPLE = "18-19-4+19-2?"
DONE = "new Promise(go => { const look = () => document.body.dataset.done ? go() : setTimeout(look, 20); look(); })"
LINES = (
    "[...document.querySelectorAll('.text')].map(x => Array.from(x.querySelectorAll('b'), b => b.innerText).join(''))"
)


@pytest.fixture(scope="module")
def page():
    """The page's address."""
    server = Server(PAGE)
    yield server.address
    server.close()


@pytest.fixture(scope="module")
def models():
    return {"base": load_model("tiny-base", device="cpu"), "anchor": load_model("tiny-anchor", device="cpu")}


def with_models(script: str) -> str:
    """A script that runs with the page's own modules and both models."""
    return (
        "Promise.all([import('./model.js'), import('./mixture.js')]).then(async ([{ load }, { Writer }]) => {"
        " const models = { base: await load('weights/base'), anchor: await load('weights/anchor') };"
        f" {script} }})"
    )


def questions(count: int) -> list[str]:
    return [EXAMPLE, *(problem.question for problem in load_task("chain", train=1, validation=1, test=count - 1).test)]


@torch.no_grad()
def test_logits_are_those_of_torch(page, browser, models):
    texts = [EXAMPLE + "18-19=-1;-1-4=-5;-5+19=14;14-2=12; \\boxed{12}", "7+5?answer 12", "1", *questions(4)]
    browser.open(page)
    found = browser.run(with_models(
        f"return {json.dumps(texts)}.map(text => Object.fromEntries(Object.entries(models).map(([name, model]) => {{"
        " const cache = model.newCache();"
        " return [name, model.tokenizer.encode(text).map(id => [...model.step(id, cache)])]; })))"
    ))  # fmt: skip
    tokenizer = load_tokenizer("tiny-base")
    for text, by_name in zip(texts, found, strict=True):
        for name, logits in by_name.items():
            expected = models[name](torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
            assert expected.std() > 1  # else closeness would say little
            torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rule", ["logit", "prob"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
def test_greedy_lines_are_those_of_the_package(page, browser, models, rule, alpha):
    asked, tokenizer = questions(8), load_tokenizer("tiny-base")
    browser.open(page)
    found = browser.run(with_models(
        f"return {json.dumps(asked)}.map(question => {{"
        f" const writer = new Writer(models, question, {{ alpha: {alpha}, rule: '{rule}' }});"
        " while (!writer.done) writer.next(); return writer.text; })"
    ))  # fmt: skip
    mixture = Mixture(list(models.values()), [1 - alpha, alpha], rule)
    prompts = [encode_prompt(tokenizer, question) for question in asked]
    assert found == rollout(mixture, prompts, temperature=0).texts(tokenizer)


def test_samples_follow_the_mixture(page, browser):
    """Drawn 2,000 times, a character's share is its probability, within four standard errors."""
    browser.open(page)
    found = browser.run(
        "import('./mixture.js').then(({ draw, mix }) => {"
        " const p = mix(Float32Array.of(1, 2, 3), Float32Array.of(3, 1, 0), 0.3, 'prob'), counts = [0, 0, 0];"
        " for (let k = 0; k < 2000; k++) counts[draw(p, Math.random())]++; return counts; })"
    )
    expected = 0.7 * torch.tensor([1.0, 2, 3]).softmax(0) + 0.3 * torch.tensor([3.0, 1, 0]).softmax(0)
    error = (expected * (1 - expected) / 2000).sqrt()
    assert ((torch.tensor(found) / 2000 - expected).abs() < 4 * error).all()


def test_the_page_shows_three_answers_and_who_decided(page, browser):
    browser.open(page)
    browser.run(DONE)
    lines = browser.run(LINES)
    assert lines[0].startswith("18-19=1;1-4=-3") and lines[1].endswith("\\boxed{20}■")
    assert lines[2] == "18-19=-1;-1-4=-5;-5+19=14;14-2=12;␣\\boxed{12}■"
    verdicts = browser.run("[...document.querySelectorAll('.verdict')].map(x => x.textContent)")
    assert verdicts[:2] == ["✘ wrong, and not boxed", "✘ boxed, but wrong"]
    assert verdicts[2].startswith("✔ right and boxed: of 46 characters both agree on 43, base decided 1, the anchor 2")
    # the line's first minus is the anchor's: base would have written 1
    token = "document.querySelectorAll('.text')[2].children[6]"
    assert browser.run(f"[{token}.className, {token}.innerText.split(/\\s+/).join('')]") == ["token anchor", "-1·"]
    assert "After …18-19= came -" in browser.run("document.querySelector('#thoughts').textContent")
    assert browser.run("document.querySelectorAll('#answers .token.base').length") > 0


def test_what_the_page_says_to_try(page, browser):
    for alpha, rule, end in ((0.75, "logit", "{12}"), (0.5, "logit", "{14}"), (0.75, "prob", "{20}")):
        browser.open(f"{page}/#chain=18-19-4%2B19-2&alpha={alpha}&rule={rule}")
        browser.run(DONE)
        lines = browser.run(LINES)
        assert lines[2].endswith(f"\\boxed{end}■") and (lines[1] == lines[2]) == (rule == "prob")


def test_controls(page, browser):
    answered = "document.querySelector('#says').textContent"
    browser.open(f"{page}/#chain=3%2B4-5&alpha=0.25&rule=prob")
    browser.run(DONE)
    assert browser.run(answered).startswith("3+4-5 is 2.")
    assert "vote, alpha 0.25" in browser.run("document.querySelector('#answers').textContent")
    browser.run(f"delete document.body.dataset.done; document.querySelector('#another').click(); {DONE}")
    assert not browser.run(answered).startswith("3+4-5")
    for _ in range(2):
        browser.run("delete document.body.dataset.done; document.querySelector('[value=sampled]').click()")
        browser.run("document.querySelector('[type=submit]').click()")
        browser.run(DONE)
    browser.run("document.querySelector('#chain').value = '2*x'; document.querySelector('[type=submit]').click()")
    assert browser.run(answered) == "Type whole numbers with + and - between them, such as 18-19-4+19-2."


@pytest.mark.parametrize("width", [390, 1280])
def test_no_errors_no_network_no_sideways_scrolling(page, browser, width):
    browser.errors.clear(), browser.requests.clear()
    browser.open(page, width)
    browser.run(DONE)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.errors == []
    own = [f"{page}/{path.relative_to(PAGE)}" for path in PAGE.iterdir() if path.is_file()]
    own += [f"{page}/", *(f"{page}/weights/{name}/" for name in ("base", "anchor"))]
    asked = [url for url in browser.requests if not url.startswith(("data:", "about:"))]
    assert len(asked) >= 9 and all(url in own or url.rpartition("/")[0] + "/" in own[-2:] for url in asked), asked


def test_a_line_costs_each_token_once(page, browser):
    """Its time is about twice that of the bare multiplications of its tokens; without a KV cache it would be 60 times.

    Both are timed in turns, so that a busy machine slows them alike. Where nothing else runs a line takes 0.2 s."""
    browser.open(page)
    line, bare = browser.run(with_models(
        "const a = models.base.weights['model.layers.0.mlp.up_proj.weight'];"
        " const products = Object.values(models.base.weights).reduce((sum, tensor) => sum + tensor.length, 0) * 2;"
        " let best = [1e9, 1e9], sum = 0;"
        " for (let turn = 0; turn < 10; turn++) {"
        "  const times = [performance.now()];"
        f" const writer = new Writer(models, '{EXAMPLE}'); while (!writer.done) writer.next();"
        f" times.push(performance.now()); const tokens = {len(EXAMPLE)} + writer.tokens.length - 1;"
        "  for (let n = products * tokens; n > 0; n -= a.length) for (let i = 0; i < a.length; i++) sum += a[i] * a[i];"
        "  times.push(performance.now()); best = best.map((t, k) => Math.min(t, times[k + 1] - times[k])); }"
        " return sum > 0 && best"
    ))  # fmt: skip
    print(f"a line of both models: {line:.0f} ms; its multiplications: {bare:.0f} ms")
    assert line < 15 * bare
