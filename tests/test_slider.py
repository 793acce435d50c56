"""The slider that needs no kernel: what it carries, and, where there is a Node, what its script draws."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from logitmix_lite.lab.slider import slider

SHARES = {"theta": [[0.25, 0.75], [0.25, 0.75], [0.25, 0.75]], "mixed": [[0.25, 0.75], [0.4567, 0.5433], [1, 0]]}
DRAWN = slider("alpha", [0, 0.5, 1], ["a", '</script>"'], SHARES, ["#00f", "#0f0"])

# As much of a page as the script touches: elements with a style, a text and children, and one container.
PAGE = """
class Element {
  constructor() { this.style = {}; this.children = []; this.textContent = ""; }
  appendChild(child) { this.children.push(child); return child; }
}
const box = new Element();
box.dataset = {shown: process.argv[2]};
globalThis.document = {createElement: () => new Element(),
  querySelectorAll: name => name === "div.frames:empty" ? [box] : []};
eval(process.argv[3]);
const rows = () => box.children.slice(3).map(row => [row.children[0].textContent,
  ...row.children[1].children.map(line => [line.children[0].style.width, line.children[1].textContent])]);
const [title, input] = box.children, seen = [];
for (const k of [input.value, 0, 2]) { input.value = k; input.oninput(); seen.push([title.textContent, rows()]); }
console.log(JSON.stringify([input.max, seen]));
"""


class Parts(HTMLParser):
    """The container's data, the script, and every tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.script = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.shown = dict(attributes).get("data-shown") or self.shown

    def handle_data(self, data):
        self.script += data


def test_it_carries_every_frame_and_leaves_nothing_without_a_script():
    parts = Parts(DRAWN.data)
    assert parts.tags == ["div", "script"]  # whatever characters the names hold
    shown = json.loads(parts.shown)
    assert shown["values"] == [0, 0.5, 1] and shown["names"] == ["a", '</script>"'] and shown["start"] == 1
    assert shown["groups"][1] == {"label": "mixed", "colour": "#0f0", "frames": [[0.25, 0.75], [0.457, 0.543], [1, 0]]}
    assert DRAWN.data.replace(f"<script>{parts.script}</script>", "").endswith("></div>")


@pytest.mark.skipif(not shutil.which("node"), reason="no Node to run the script")
def test_its_script_draws_the_frame_that_the_slider_stands_at():
    parts = Parts(DRAWN.data)
    command = ["node", "-e", PAGE, "page", parts.shown, parts.script]
    found = subprocess.run(command, capture_output=True, text=True)
    assert not found.stderr
    last, ((title, rows), first, end) = json.loads(found.stdout)
    assert last == 2 and title == "alpha 0.50"
    assert rows == [["a", ["22.0%", "0.25"], ["40.2%", "0.46"]], ['</script>"', ["66.0%", "0.75"], ["47.8%", "0.54"]]]
    assert first[0] == "alpha 0.00" and first[1][0][2] == ["22.0%", "0.25"]
    assert end[0] == "alpha 1.00" and end[1][0][2] == ["88.0%", "1.00"] and end[1][1][2] == ["0.0%", "0.00"]


@pytest.mark.parametrize("shares", [[[0.5, 0.5]], [[0.5], [0.5], [0.5]], [[1.5, 0], [0, 1], [0, 1]]])
def test_frames_that_do_not_fit_are_refused(shares):
    with pytest.raises(ValueError, match=r"'theta' needs shares in \[0, 1\], 3 values by 2 names"):
        slider("alpha", [0, 0.5, 1], ["a", "b"], {"theta": shares}, ["#00f"])
