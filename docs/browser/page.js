// The page: reads the controls, lets three writers write, and shows what they thought.
import { load } from "./model.js";
import { Writer, largest } from "./mixture.js";

const find = (selector) => document.querySelector(selector);
const element = (tag, names, ...inside) => {
  const made = Object.assign(document.createElement(tag), { className: names });
  made.append(...inside);
  return made;
};
const shown = (text) => ({ " ": "␣", "<eos>": "■", "<pad>": "∅" })[text] ?? text;
const percent = (p) => (p > 0.9995 ? "100" : (100 * p).toFixed(1)) + "\u00a0%"; // a space that does not break

let models; // { base, anchor }, once they are here
let running = 0; // each run has a number: an older one stops when it sees a newer one

// ---- a run -----------------------------------------------------------------------------------------------------------

function settings() {
  return {
    chain: find("#chain").value.replace(/[\s?=]/g, "").replace(/−/g, "-"),
    alpha: Number(find("#alpha").value),
    rule: find("[name=rule]:checked").value,
    sampled: find("[name=choose]:checked").value === "sampled",
  };
}

async function answer() {
  const run = ++running, { chain, alpha, rule, sampled } = settings();
  find("#alpha-is").value = alpha.toFixed(2);
  if (!models) return;
  if (!/^\d+([+-]\d+)+$/.test(chain)) {
    return say("Type whole numbers with + and - between them, such as 18-19-4+19-2.", true);
  }
  history.replaceState(null, "", "#" + new URLSearchParams({ chain, alpha, rule }));
  const right = solve(chain), product = rule === "logit" ? "product" : "vote";
  say(`${chain} is ${right}.` + (sampled ? "" : " Each answer below is the most likely character, again and again."));
  const rows = [["base", "base", 0], ["anchor", "anchor", 1], ["mixture", `mixture (${product}, alpha ${alpha.toFixed(2)})`, alpha]];
  const random = sampled ? Math.random : null;
  const lines = rows.map(([who, title, weight]) => {
    const writer = new Writer(models, chain + "?", { alpha: weight, rule, random });
    const line = { writer, text: element("div", "text"), verdict: element("span", "verdict") };
    line.section = element("div", `answer ${who}`, element("h3", "", element("span", "name", title), line.verdict), line.text);
    return line;
  });
  find("#answers").replaceChildren(...lines.map((line) => line.section));
  explain(null);
  // One character of each line a frame, so that one can watch them write.
  const hurry = matchMedia("(prefers-reduced-motion: reduce)").matches;
  while (lines.some((line) => !line.writer.done)) {
    if (!hurry) await new Promise(requestAnimationFrame);
    if (run !== running) return;
    for (const line of lines) write(line);
  }
  for (const { writer, verdict } of lines) verdict.textContent = grade(writer.text, right);
  lines[2].verdict.textContent += ": " + shares(lines[2].writer.tokens);
  const { text, writer } = lines[2]; // show the first disagreement in the mixture's answer
  text.children[Math.max(0, writer.tokens.findIndex((token) => token.choices.base !== token.choices.anchor))].click();
  document.body.dataset.done = run; // for tests: all is written
}

function write({ writer, text }) {
  const before = writer.text, token = writer.next();
  if (!token) return;
  const opinion = (who) => element("i", who, token.choices[who] === token.id ? "·" : shown(character(token.choices[who])));
  const button = element("button", `token ${token.who}`, element("b", "", shown(token.text)), opinion("base"), opinion("anchor"));
  button.type = "button";
  button.tabIndex = text.children.length ? -1 : 0; // Tab goes from line to line, the arrows from character to character
  button.ariaLabel = `${token.text}, decided by ${token.who}`;
  button.onclick = () => explain(token, before, button);
  text.append(button);
}

const character = (id) => models.base.tokenizer.characters[id];

// ---- what it means -----------------------------------------------------------------------------------------------------

// What the chain is, from left to right.
function solve(chain) { return chain.match(/[+-]?\d+/g).reduce((sum, term) => sum + Number(term), 0); }

// As `grade` in the package: right needs the right number in a box; without a box, the last number is looked at.
function grade(text, right) {
  const boxed = text.match(/.*\\boxed\{(-?\d+)\}/), last = text.match(/(?<![\w)\]}])-\d+|\d+/g)?.at(-1);
  if (boxed) return Number(boxed[1]) === right ? "✔ right and boxed" : "✘ boxed, but wrong";
  return Number(last) === right && last ? "✘ right, but not boxed" : "✘ wrong, and not boxed";
}

// How many characters each of them decided.
function shares(tokens) {
  const count = (who) => tokens.filter((token) => token.who === who).length;
  return `of ${tokens.length} characters both agree on ${count("both")}, base decided ${count("base")}, `
    + `the anchor ${count("anchor")}, and ${count("mixture")} were nobody's first choice`;
}

// The probabilities behind one character: those that any of the three finds among its two most likely.
function explain(token, before, button) {
  document.querySelectorAll(".token[aria-pressed=true]").forEach((other) => other.removeAttribute("aria-pressed"));
  if (!token) return find("#thoughts").replaceChildren();
  button.ariaPressed = "true";
  const { probabilities } = token, policies = ["base", "anchor", "mixture"];
  const twoBest = (p) => [largest(p), largest(p.map((x, id) => (id === largest(p) ? -1 : x)))];
  const ids = [...new Set([token.id, ...policies.flatMap((who) => twoBest(probabilities[who]))])];
  ids.sort((a, b) => probabilities.mixture[b] - probabilities.mixture[a]);
  const cell = (who, id) => {
    const made = element("td", who, element("span", "", percent(probabilities[who][id])));
    made.style.setProperty("--share", probabilities[who][id]);
    return made;
  };
  const body = ids.map((id) => element("tr", "", element("th", "written", shown(character(id))), ...policies.map((who) => cell(who, id))));
  const head = element("tr", "", element("th", ""), ...policies.map((who) => element("th", "", element("b", who, who))));
  const heading = element("p", "", "After ", element("span", "written", before ? `…${before.slice(-14)}` : "the question"), " came ",
    element("span", "written", shown(token.text)), `. How likely each found what could come next:`);
  find("#thoughts").replaceChildren(heading, element("table", "", head, ...body));
}

function say(words, wrong = false) {
  find("#says").textContent = words;
  find("#says").className = wrong ? "wrong" : "";
}

// ---- controls ------------------------------------------------------------------------------------------------------------

// Four or five numbers below 30: the package's task `chain`.
function randomChain() {
  const number = () => 1 + Math.floor(29 * Math.random()), more = Math.random() < 0.5 ? 3 : 4;
  return number() + Array.from({ length: more }, () => "+-"[Math.floor(2 * Math.random())] + number()).join("");
}

// A link such as #chain=18-19&alpha=0.5&rule=prob sets the controls.
function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  for (const name of ["chain", "alpha"]) if (link.has(name)) find(`#${name}`).value = link.get(name);
  for (const radio of document.querySelectorAll("[name=rule]")) radio.checked = radio.value === (link.get("rule") ?? "logit");
}

find("#controls").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
for (const input of document.querySelectorAll("#alpha, [type=radio]")) input.addEventListener("input", answer);
find("#another").addEventListener("click", () => { find("#chain").value = randomChain(); answer(); });
addEventListener("hashchange", () => { readLink(); answer(); });
find("#answers").addEventListener("keydown", ({ key, target }) => {
  const next = { ArrowLeft: target.previousElementSibling, ArrowRight: target.nextElementSibling }[key];
  next?.focus();
  next?.click();
});

readLink();
try {
  const [base, anchor] = await Promise.all([load("weights/base"), load("weights/anchor")]);
  models = { base, anchor };
  await answer();
} catch (error) {
  say(`The models could not be loaded (${error.message}).`, true);
}
