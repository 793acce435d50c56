"""A slider that needs no kernel: every frame is computed beforehand and travels with the output, as data of a small
script. It moves in JupyterLab, in Colab and in a rendered page; where scripts are removed, as on GitHub, nothing is
left of it, so draw a picture of a few frames beside it."""

import html
import json
from collections.abc import Mapping, Sequence

import numpy as np
from IPython.display import HTML

# Fills each container that is still empty, so that a second copy of the same output on a page works too.
SCRIPT = """
document.querySelectorAll("div.frames:empty").forEach(box => {
  const shown = JSON.parse(box.dataset.shown);
  const add = (parent, tag, style, text = "") => {
    const made = document.createElement(tag);
    made.style.cssText = style;
    made.textContent = text;
    return parent.appendChild(made);
  };
  const title = add(box, "div", "font-weight:bold");
  const slider = add(box, "input", "display:block;width:95%;margin:6px 0");
  Object.assign(slider, {type: "range", min: 0, max: shown.values.length - 1, value: shown.start});
  slider.ariaLabel = shown.name;
  const legend = add(box, "div", "margin-bottom:6px");
  shown.groups.forEach(group => {
    add(legend, "span", `display:inline-block;width:10px;height:10px;margin-right:4px;background:${group.colour}`);
    add(legend, "span", "margin-right:12px", group.label);
  });
  const width = Math.max(...shown.names.map(name => name.length)) + 1;
  const bars = shown.names.map((name, k) => {
    const row = add(box, "div", "display:flex;align-items:center;margin:5px 0");
    add(row, "div", `width:${width}ch;font:15px monospace`, name);
    const column = add(row, "div", "flex:1");
    return shown.groups.map(group => {
      const line = add(column, "div", "display:flex;align-items:center;height:11px;font-size:10px");
      const bar = add(line, "div", `height:9px;margin-right:4px;background:${group.colour}`);
      return {bar, share: add(line, "span", ""), heights: group.frames.map(frame => frame[k])};
    });
  }).flat();
  slider.oninput = () => {
    title.textContent = `${shown.name} ${shown.values[slider.value].toFixed(2)}`;
    bars.forEach(({bar, share, heights}) => {
      bar.style.width = `${(88 * heights[slider.value]).toFixed(1)}%`;
      share.textContent = heights[slider.value].toFixed(2);
    });
  };
  slider.oninput();
});
"""


def slider(
    name: str, values: Sequence[float], names: Sequence[str], groups: Mapping[str, Sequence], colours: Sequence[str]
) -> HTML:
    """Grouped bars over `names`, moved by a slider for `name` that takes `values` and starts in their middle.

    groups: label to shares in [0, 1], `[len(values), len(names)]`. colours: one a group. Shares keep three digits."""
    frames = {label: np.asarray(shares, float) for label, shares in groups.items()}
    for label, shares in frames.items():
        if shares.shape != (len(values), len(names)) or not ((shares >= 0) & (shares <= 1)).all():
            raise ValueError(
                f"{label!r} needs shares in [0, 1], {len(values)} values by {len(names)} names, got {shares.shape}"
            )
    shown = {
        "name": name, "values": [round(float(value), 3) for value in values], "names": list(names),
        "start": len(values) // 2,
        "groups": [
            {"label": label, "colour": colour, "frames": shares.round(3).tolist()}
            for (label, shares), colour in zip(frames.items(), colours, strict=True)
        ],
    }  # fmt: skip
    data = html.escape(json.dumps(shown), quote=True)
    style = "max-width:560px;padding:8px;background:white;color:black;font:13px sans-serif"
    return HTML(f'<div class="frames" style="{style}" data-shown="{data}"></div><script>{SCRIPT}</script>')
