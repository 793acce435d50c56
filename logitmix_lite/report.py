"""Tables and figures from recorded runs: read metrics, average over seeds, draw, write a page."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t as student

from .runs import read_config, read_metrics
from .stats import interval

# Colours of different lightness and different line styles: the methods stay apart when printed in grey.
STYLES = {
    "fixed": ("#0b3c8c", "-", "o"),
    "adaptive": ("#1b9e77", "--", "s"),
    "prob": ("#8c6bb1", ":", "^"),
    "grpo-kl": ("#e6862e", "-.", "D"),
    "grpo": ("#9a9a9a", (0, (1, 1)), "v"),
}
LABELS = {
    "fixed": "fixed mixing",
    "adaptive": "adaptive mixing",
    "prob": "probability mixing",
    "grpo-kl": "KL-GRPO from the anchor",
    "grpo": "GRPO without KL",
}


def load_runs(folder: str | Path) -> pd.DataFrame:
    """Every line of every training run below `folder`, with its method, seed and run; ValueError if there is none."""
    tables = []
    for path in sorted(Path(folder).rglob("metrics.jsonl")):
        config = read_config(path.parent)
        if config.get("command") == "train":
            named = {name: config[name] for name in ("preset", "method", "seed", "init", "anchor", "test_size")}
            tables.append(pd.DataFrame(read_metrics(path.parent)).assign(**named, run=path.parent.name))
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
    """One line a method over steps; thin lines are seeds, the band is a 95 % interval of their mean."""
    ax = ax or plt.subplots(figsize=(6.4, 4), layout="constrained")[1]
    for method in [m for m in STYLES if m in set(runs["method"])]:
        colour, line, marker = STYLES[method]
        mine = runs[runs["method"] == method]
        table = mean_and_band(mine, column)
        for _, seed in mine.dropna(subset=[column]).groupby("seed"):
            ax.plot(seed["step"], seed[column], color=colour, lw=0.7, alpha=0.4)
        count = int(table["count"].max())
        ax.plot(table.index, table["mean"], color=colour, ls=line, marker=marker, ms=5, lw=2,
                label=f"{LABELS[method]} ({count} seed{'s' * (count > 1)})")  # fmt: skip
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
    """A row a method: accuracy and format rate of the test problems before and after, each with its 95 % interval."""
    rows = []
    for method in [m for m in STYLES if m in set(runs["method"])]:
        tested = runs[runs["method"] == method].dropna(subset=["accuracy"])
        first, last = (tested.loc[tested.groupby("run")["step"].agg(pick)] for pick in ("idxmin", "idxmax"))
        rows.append({
            "method": LABELS[method],
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


def report(folder: str | Path, out: str | Path) -> Path:
    """Write report.md with its figures and a CSV of all lines to `out`; returns the page's path."""
    runs, out = load_runs(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs.to_csv(out / "runs.csv", index=False)
    figures = {
        "accuracy": "held-out greedy accuracy",
        "reward": "reward of the rollouts",
        "entropy": "entropy, nats a token",
    }
    if (runs["method"] == "adaptive").any():
        figures["alpha"] = "alpha, weight of the reference"
    page = [f"# Runs of {', '.join(sorted(set(runs['preset'])))}\n", table(summary(runs)), ""]
    for column, label in figures.items():
        figure = plot_curves(runs, column, label)
        figure.savefig(out / f"{column}.png", dpi=150)
        plt.close(figure)
        page.append(f"![{label}]({column}.png)\n")
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
