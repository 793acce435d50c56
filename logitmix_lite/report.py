"""Tables and figures from recorded runs: read metrics, average over seeds, draw, write a page."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t as student

from .runs import read_config, read_metrics
from .stats import contingency, interval
from .sweep import ARMS

# Colours of different lightness and different line styles: the arms of a figure stay apart when printed in grey.
STYLES = {
    "fixed": ("#0b3c8c", "-", "o"),
    "fixed-0.25": ("#3f7fd1", (0, (4, 1)), "<"),
    "fixed-0.75": ("#7fb2e5", (0, (2, 1)), ">"),
    "adaptive": ("#1b9e77", "--", "s"),
    "prob": ("#8c6bb1", ":", "^"),
    "base-anchor": ("#66a61e", (0, (5, 1, 1, 1)), "P"),
    "grpo-kl": ("#e6862e", "-.", "D"),
    "grpo-kl-0.01": ("#f2b705", (0, (3, 1, 1, 1)), "d"),
    "grpo-kl-0.1": ("#a6500c", (0, (1, 2)), "p"),
    "grpo-anchor": ("#6e6e6e", (0, (6, 2)), "X"),
    "grpo": ("#9a9a9a", (0, (1, 1)), "v"),
    "wise-ft": ("#d01c8b", (0, (3, 2)), "*"),
}
# What the paper's figures compare: accuracy over steps of these arms.
FIGURES = {
    "figures 2 to 5: fixed mixing and KL-GRPO": ["fixed", "grpo-kl", "grpo-kl-0.01", "grpo-kl-0.1"],
    "figure 3: GRPO without KL": ["fixed", "grpo-anchor", "grpo"],
    "figure 6: fixed and adaptive": ["fixed", "adaptive"],
    "figure 8: the anchor": ["fixed", "base-anchor"],
    "figure 9: logit and probability mixing": ["fixed", "prob"],
    "the weight of the anchor": ["fixed", "fixed-0.25", "fixed-0.75"],
    "averaged weights": ["fixed", "wise-ft"],
}


def load_runs(folder: str | Path) -> pd.DataFrame:
    """Every line of every training run below `folder`, with its arm, method, seed and run; ValueError if there is none.

    The arm is read from the folder's name as `sweep` gives it; other runs count under their method."""
    tables = []
    for path in sorted(Path(folder).rglob("metrics.jsonl")):
        config = read_config(path.parent)
        if config.get("command") == "train":
            named = {name: config[name] for name in ("preset", "method", "seed", "init", "anchor", "test_size")}
            arm = path.parent.name.rsplit("-seed", 1)[0]
            named |= {"arm": arm if arm in ARMS else config["method"], "run": str(path.parent.relative_to(folder))}
            tables.append(pd.DataFrame(read_metrics(path.parent)).assign(**named))
    if not tables:
        raise ValueError(f"no training runs below {folder}: make some with `train` or `sweep`")
    return pd.concat(tables, ignore_index=True)


def mean_and_band(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean of `column` over seeds at each step, and the half width of its 95 % t-interval (nan for one seed)."""
    groups = runs.dropna(subset=[column]).groupby("step")[column]
    table = groups.agg(["mean", "std", "count"])
    table["half"] = (
        student.ppf(0.975, (table["count"] - 1).where(table["count"] > 1)) * table["std"] / table["count"] ** 0.5
    )
    return table


def plot_curves(
    runs: pd.DataFrame, column: str = "accuracy", label: str = "held-out greedy accuracy", ax=None
) -> Figure:
    """One line an arm over steps; thin lines are seeds, the band is a 95 % interval of their mean."""
    ax = ax or plt.subplots(figsize=(6.4, 4), layout="constrained")[1]
    for arm in [name for name in STYLES if name in set(runs["arm"])]:
        colour, line, marker = STYLES[arm]
        mine = runs[runs["arm"] == arm]
        table = mean_and_band(mine, column)
        for _, seed in mine.dropna(subset=[column]).groupby("seed"):
            ax.plot(seed["step"], seed[column], color=colour, lw=0.7, alpha=0.4)
        count = int(table["count"].max())
        ax.plot(table.index, table["mean"], color=colour, ls=line, marker=marker, ms=5, lw=2,
                label=f"{ARMS[arm].label} ({count} seed{'s' * (count > 1)})")  # fmt: skip
        ax.fill_between(
            table.index, table["mean"] - table["half"], table["mean"] + table["half"], color=colour, alpha=0.15
        )
    ax.set(xlabel="RL step", ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    if runs[column].dropna().between(0, 1).all():
        ax.set_ylim(-0.02, 1.02)
    return ax.figure


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: accuracy and format rate of the test problems before and after, each with its 95 % interval."""
    rows = []
    for arm in [name for name in STYLES if name in set(runs["arm"])]:
        tested = runs[runs["arm"] == arm].dropna(subset=["accuracy"])
        first, last = (tested.loc[tested.groupby("run")["step"].agg(pick)] for pick in ("idxmin", "idxmax"))
        rows.append({
            "method": ARMS[arm].label,
            "seeds": len(last),
            "steps": int(last["step"].max()),
            "accuracy before": with_interval(first, "accuracy"),
            "accuracy after": with_interval(last, "accuracy"),
            "boxed before": with_interval(first, "test_format_rate"),
            "boxed after": with_interval(last, "test_format_rate"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def with_interval(runs: pd.DataFrame, column: str) -> str:
    """Mean of a share over runs and its 95 % interval: Student's t over seeds; Wilson's over problems for a single run
    and for runs that all agree, as before the first step."""
    mean = runs[column].mean()
    if runs[column].nunique() > 1:
        half = mean_and_band(runs.assign(step=0), column)["half"].iloc[0]
        low, high = max(0, mean - half), min(1, mean + half)
    else:
        problems = int(runs["test_size"].iloc[0])
        low, high = interval(round(mean * problems), problems)
    return f"{mean:.1%} ({low:.1%} to {high:.1%})"


def complementarity(folder: str | Path) -> pd.DataFrame:
    """Tables 1 to 3: a row a mixing run, from its grades of theta and ref, each alone, on the test problems.

    Rates in percent; gaps in percentage points; counts of problems. Right means right by last number or box, as the
    paper grades answers apart from format."""
    rows = []
    for path in sorted(Path(folder).rglob("grades.json")):
        grades = json.loads(path.read_text())
        if "theta" not in grades or read_config(path.parent)["method"] == "grpo-kl":
            continue
        policies = ("theta", "ref")
        bits = {(who, rate): [bit == "1" for bit in text] for who in policies for rate, text in grades[who].items()}
        share = {key: 100 * sum(values) / len(values) for key, values in bits.items()}
        counts = contingency(bits["theta", "number"], bits["ref", "number"])
        one = counts["first only"] + counts["second only"]
        rows.append({
            "run": path.parent.name,
            "boxed, ref": share["ref", "formatted"], "boxed, theta": share["theta", "formatted"],
            "right, ref": share["ref", "number"], "right, theta": share["theta", "number"],
            "format gap": share["ref", "formatted"] - share["theta", "formatted"],
            "answer gap": share["theta", "number"] - share["ref", "number"],
            "both": counts["both"], "theta only": counts["first only"], "ref only": counts["second only"],
            "neither": counts["neither"], "exactly one": f"{one} ({one / len(bits['theta', 'number']):.1%})",
        })  # fmt: skip
    return pd.DataFrame(rows).round(1)


def report(folder: str | Path, out: str | Path) -> Path:
    """Write report.md with its figures and a CSV of all lines to `out`; returns the page's path."""
    runs, out = load_runs(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs.to_csv(out / "runs.csv", index=False)
    page = [f"# Runs of {', '.join(sorted(set(runs['preset'])))}\n", table(summary(runs)), ""]

    def draw(name: str, chosen: pd.DataFrame, column="accuracy", label="held-out greedy accuracy") -> None:
        figure = plot_curves(chosen, column, label)
        figure.savefig(out / f"{name}.png", dpi=150)
        plt.close(figure)
        page.append(f"![{label}]({name}.png)\n")

    present = set(runs["arm"])
    groups = {title: arms for title, arms in FIGURES.items() if len(present & set(arms)) > 1}
    if len(present) > 4:
        for title, arms in groups.items():
            page.append(f"## {title[0].upper()}{title[1:]}\n")
            draw(title.split(":")[0].replace(" ", "-"), runs[runs["arm"].isin(arms)])
    else:
        draw("accuracy", runs)
    for name, label in {"reward": "reward of the rollouts", "entropy": "entropy, nats a token"}.items():
        draw(name, runs, name, label)
    if (runs["method"] == "adaptive").any():
        draw("alpha", runs[runs["method"] == "adaptive"], "alpha", "alpha, weight of the reference (figure 7)")
    who = complementarity(folder)
    if len(who):
        page += ["## Tables 1 to 3: theta and ref, each alone, after training\n", table(who), ""]
    page.append(
        "Thin lines are seeds. Bands and brackets are 95 % t-intervals of the mean over seeds; for one run, or runs "
        "that all agree, brackets are Wilson's interval over the test problems. All lines: [runs.csv](runs.csv)."
    )
    (out / "report.md").write_text("\n".join(page) + "\n")
    return out / "report.md"


def table(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
