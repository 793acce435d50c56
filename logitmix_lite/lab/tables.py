"""Numbers from recorded runs: over seeds and problems, the paper's tables, and what its claims come to."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # Student's quantiles

from ..methods import known, named
from ..records import read_config, read_metrics
from ..stats import bootstrap_interval, contingency, interval

MARGIN = 0.02  # "at least as good" may be this much worse, "about as good" this far apart
SIZEABLE = 0.05  # claim (ii): from this share of the problems on
RATES = ("correct", "formatted", "number")


def load_runs(folder: str | Path) -> pd.DataFrame:
    """Every line of every training run below `folder`, with its arm, method, seed and run; ValueError if there is none.

    A folder named as `sweep` names it gives the arm; other runs count under their method."""
    lines = []
    for path in sorted(Path(folder).rglob("metrics.jsonl")):
        config = read_config(path.parent)
        if config.get("command") == "train":
            settings = ("preset", "method", "seed", "init", "anchor", "lr", "offset", "scale", "test_size")
            whose = {name: config[name] for name in settings}
            whose |= {"arm": arm_of(path.parent, config), "run": str(path.parent.relative_to(folder))}
            lines += [line | whose for line in read_metrics(path.parent)]
    if not lines:
        raise ValueError(f"no training runs below {folder}: make some with `train` or `sweep`")
    return pd.DataFrame(lines)


def arm_of(run: Path, config: dict) -> str:
    """The method that a run is a curve of, by the name that `sweep` gives its folder; else as config.json has it.

    Runs recorded while methods with settings of their own had no name are told apart by their folder alone."""
    arm = run.name.rsplit("-seed", 1)[0]
    arm = arm if arm in known() else config["method"]
    named(arm)
    return arm


def measured_rarely(runs: pd.DataFrame, column: str) -> bool:
    """Whether `column` was measured after some training steps only."""
    return runs.dropna(subset=[column])["step"].nunique() < runs["step"].nunique() - 1  # step 0 is before training


def smoothed(runs: pd.DataFrame, column: str, smooth: int) -> pd.DataFrame:
    """`runs` with the mean of `column` over the last `smooth` steps of each run in its place (fewer at its start)."""
    found = runs.dropna(subset=[column])
    if found.empty or measured_rarely(runs, column):
        return found
    rolling = found.groupby("run")[column].rolling(smooth, min_periods=1).mean()
    return found.assign(**{column: rolling.droplevel(0)})


def mean_and_band(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean of `column` over seeds at each step, and the half width of its 95 % t-interval (nan for one seed)."""
    groups = runs.dropna(subset=[column]).groupby("step")[column]
    table = groups.agg(["mean", "std", "count"])
    quantile = stdtrit((table["count"] - 1).where(table["count"] > 1), 0.975)
    table["half"] = quantile * table["std"] / table["count"] ** 0.5
    return table


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: accuracy and format rate of the test problems before and after, each with its 95 % interval."""
    rows = []
    for arm in [name for name in known() if name in set(runs["arm"])]:
        tested = runs[runs["arm"] == arm].dropna(subset=["accuracy"])
        first, last = (tested.loc[tested.groupby("run")["step"].agg(pick)] for pick in ("idxmin", "idxmax"))
        row = {"method": known()[arm].label, "seeds": len(last), "steps": int(last["step"].max())}
        for name, column in (("accuracy", "accuracy"), ("boxed", "test_format_rate")):
            row |= {f"{name} before": with_interval(first, column), f"{name} after": with_interval(last, column)}
        rows.append(row)
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


def load_grades(folder: str | Path) -> pd.DataFrame:
    """Who solved which test problem in the end: a row for each training run below `folder` and policy in its
    grades.json ("mixture", "theta", "ref"), with arm, seed, and for each rate an array of 0 and 1, one a problem."""
    rows = []
    for path in sorted(Path(folder).rglob("grades.json")):
        config = read_config(path.parent)
        whose = {
            "run": str(path.parent.relative_to(folder)),
            "arm": arm_of(path.parent, config),
            "seed": config["seed"],
        }
        for policy, rates in json.loads(path.read_text(encoding="utf-8")).items():
            bits = {rate: np.array(list(text), int) for rate, text in rates.items()}
            rows.append(whose | {"method": config["method"], "policy": policy} | bits)
    return pd.DataFrame(rows)


def complementarity(folder: str | Path, rate: str = "correct") -> pd.DataFrame:
    """Tables 1 to 3: a row a mixing run, from its grades of theta and ref, each alone, on the test problems.

    rate: what counts as right: "correct", right and boxed, as in the paper; "number", boxed or not.
    Rates in percent; gaps in percentage points; the rest counts problems."""
    grades, rows = load_grades(folder), []
    mixing = [arm for arm, method in known().items() if method.mixes]
    for run, policies in grades[grades["arm"].isin(mixing)].groupby("run") if len(grades) else []:
        policies = policies.set_index("policy")
        if "ref" not in policies.index:
            continue
        theta, ref = policies.loc["theta"], policies.loc["ref"]
        counts = contingency(theta[rate], ref[rate])
        one = counts["first only"] + counts["second only"]
        boxed, right = ([100 * who[column].mean() for who in (ref, theta)] for column in ("formatted", rate))
        rows.append({
            "run": run,
            "boxed, ref": boxed[0], "boxed, theta": boxed[1], "right, ref": right[0], "right, theta": right[1],
            "format gap": boxed[0] - boxed[1], "answer gap": right[1] - right[0],
            "both": counts["both"], "theta only": counts["first only"], "ref only": counts["second only"],
            "neither": counts["neither"], "exactly one": f"{one} ({one / len(theta[rate]):.1%})",
        })  # fmt: skip
    return pd.DataFrame(rows).round(1)


def complementarity_of_arms(folder: str | Path, rate: str = "correct") -> pd.DataFrame:
    """`complementarity` with a row an arm, the means of its seeds; "exactly one" is a number of problems."""
    who = complementarity(folder, rate)
    if who.empty:
        return who
    arm = who["run"].map(load_grades(folder).drop_duplicates("run").set_index("run")["arm"])
    seeds = arm.value_counts()
    means = who.drop(columns=["run", "exactly one"]).groupby(arm).mean()
    means = means.loc[[name for name in known() if name in means.index]]
    means = means.assign(**{"exactly one": means["theta only"] + means["ref only"]}).round(1)
    means.insert(0, "method", [known()[name].label for name in means.index])
    means.insert(1, "seeds", seeds)
    return means.reset_index(drop=True)


def solved(grades: pd.DataFrame, arm: str, policy: str = "mixture", rate: str = "correct") -> pd.DataFrame:
    """`load_grades` of one arm and policy as a table of 0 and 1: a row a seed, a column a test problem."""
    chosen = grades[(grades["arm"] == arm) & (grades["policy"] == policy)].set_index("seed")[rate]
    return pd.DataFrame(dict(chosen)).T


def ended(grades: pd.DataFrame, arm: str, policy: str = "mixture") -> dict:
    """What an arm ends with: percent right and boxed, its 95 % interval over seeds and problems, and the seeds."""
    values = solved(grades, arm, policy).to_numpy(float)
    low, high = bootstrap_interval(values)
    shares = {"right": 100 * values.mean(), "low": 100 * low, "high": 100 * high}
    return {"arm": known()[arm].label, "answers with": policy} | shares | {"seeds": len(values)}


def apart(grades: pd.DataFrame, first: tuple[str, str], second: tuple[str, str]) -> dict:
    """By how many points one (arm, policy) ends ahead of another, on the same problems and the seeds that both have."""
    values = (solved(grades, *first) - solved(grades, *second)).dropna().to_numpy(float)
    low, high = bootstrap_interval(values)
    points = {"points": 100 * values.mean(), "low": 100 * low, "high": 100 * high}
    return {"difference": f"{' '.join(first)} - {' '.join(second)}"} | points | {"seeds": len(values)}


def verdicts(folder: str | Path) -> pd.DataFrame:
    """A row for each claim of the paper that the runs and the mixing table in `folder` say something about.

    Effects are differences of shares of the test problems, in percentage points; their 95 % intervals are over seeds
    and problems together, or over problems alone where there is one seed. A claim is supported where the whole interval
    agrees with it, not supported where all of it contradicts it, undecided otherwise."""
    grades, rows = load_grades(folder), []

    def add(claim: str, effect: float, low: float, high: float, seeds, above=0.0, below=None) -> None:
        """above: all of an interval that supports the claim is; below: and below this, where given."""
        agrees = low > above and (below is None or high < below)
        contradicts = high < above or (below is not None and low > below)
        verdict = "supported" if agrees else "not supported" if contradicts else "undecided"
        points = {"effect": effect, "low": low, "high": high}
        rows.append({"claim": claim} | {k: round(100 * v, 1) for k, v in points.items()} | {"seeds": seeds})
        rows[-1]["verdict"] = verdict

    def compare(claim: str, first: pd.DataFrame, second: pd.DataFrame, above=0.0, below=None) -> None:
        seeds = first.index.intersection(second.index)
        if len(seeds):
            values = (first.loc[seeds] - second.loc[seeds]).to_numpy(float)
            add(claim, values.mean(), *bootstrap_interval(values), len(seeds), above, below)

    def of(*what: str) -> pd.DataFrame:
        return solved(grades, *what) if len(grades) else pd.DataFrame()

    theta, ref = ({rate: of("fixed", who, rate) for rate in RATES} for who in ("theta", "ref"))
    compare("(i) ref boxes more often than theta", ref["formatted"], theta["formatted"])
    for rate, words in (("correct", "right and boxed"), ("number", "right, boxed or not")):
        compare(f"(i) theta is {words} more often than ref", theta[rate], ref[rate])
        one = (theta[rate] != ref[rate]).astype(float)
        compare(f"(ii) exactly one of them is {words}", one, 0 * one, SIZEABLE)
    for path in sorted(Path(folder).glob("mixing*.csv")):
        add(*mixing_claim(path), 1)
    baselines = [arm for arm, method in known().items() if method.kl and len(of(arm))]
    # the best of the three beta, among those with the most seeds: a single run may be best by luck
    best = max(baselines, key=lambda arm: (len(of(arm)), of(arm).to_numpy(float).mean()), default="grpo-kl")
    compare(f"(iv) fixed mixing at least equals {known()[best].label}", of("fixed"), of(best), -MARGIN)
    compare("(v) adaptive is about as good as fixed", of("adaptive"), of("fixed"), -MARGIN, MARGIN)
    compare("(vi) an SFT anchor beats a base anchor", of("fixed"), of("base-anchor"))
    return pd.DataFrame(rows)


def mixing_claim(path: Path) -> tuple[str, float, float, float]:
    """Claim (iii) from a mixing table: by how much logit mixing at its best beats probability mixing at its best, with
    Newcombe's interval, which takes the two shares for independent."""
    table = pd.read_csv(path)
    (logit, prob) = (rows.loc[rows["accuracy"].idxmax()] for _, rows in table.groupby("rule"))
    effect = logit["accuracy"] - prob["accuracy"]
    down = np.hypot(logit["accuracy"] - logit["accuracy_low"], prob["accuracy_high"] - prob["accuracy"])
    up = np.hypot(logit["accuracy_high"] - logit["accuracy"], prob["accuracy"] - prob["accuracy_low"])
    decoding = "sampled" if "sampled" in path.stem else "greedy"
    peaks = f"alpha {logit['alpha']:g} against {prob['alpha']:g}"
    return f"(iii) logit mixing peaks higher, {decoding} ({peaks})", effect, effect - down, effect + up
