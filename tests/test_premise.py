"""The premise of the method, measured on the tiny models, where it is known to hold."""

from pathlib import Path

from logitmix_lite import evaluate, load_preset, load_tokenizer
from logitmix_lite.lab.premise import expectation, premise, premise_table
from logitmix_lite.models import make_mixture


def test_one_decoding_gives_what_each_length_would():
    preset = load_preset("tiny", test_size=60)
    task, tokenizer = preset.problems(), load_tokenizer("tiny-base")
    mixture = make_mixture("base", "tiny-anchor", "tiny-base", 0.25)
    found = premise(mixture, tokenizer, task, task.test, lengths=(24, 64))
    for length, policies in found.items():
        for name, weights in {"theta": (1, 0), "ref": (0, 1), "mixture": (0.75, 0.25)}.items():
            with mixture.using(weights):
                alone = evaluate(mixture, tokenizer, task.test, max_new_tokens=length)
            assert policies[name].grades == alone.grades and policies[name].lengths == alone.lengths
            assert policies[name].truncated == alone.truncated and policies[name].completions == alone.completions
    told = expectation(found[64])
    assert told["holds"] and told["format_gap"] > 0.9 and told["format_gap_95"][0] < told["format_gap"]
    assert sum(count for name, count in told.items() if ":" in name) == 60
    assert not expectation(found[24])["holds"]  # nobody comes to an answer within 24 tokens
    rows = {row["policy"]: row for row in premise_table(found[64])}
    assert rows["mixture"]["correct"] > max(rows["theta"]["correct"], rows["ref"]["correct"])
    assert rows["ref"]["formatted_95"][0] <= rows["ref"]["formatted"] <= rows["ref"]["formatted_95"][1]


def test_the_recorded_premise_is_what_the_page_says():
    """The table in data/README.md, from the files of the visit."""
    import json

    data = Path(__file__).parents[1] / "data"
    page = (data / "README.md").read_text(encoding="utf-8")
    for anchor in ("human-200", "human-4000", "short-1000"):
        found = json.loads((data / "results/gpu/premise" / f"{anchor}.json").read_text(encoding="utf-8"))["test-320"]
        for k, name in enumerate(("base", f"anchor `{anchor}`", f"base and `{anchor}`, alpha 0.5")):
            row = found["policies"][k]
            shares = " | ".join(f"{100 * row[rate]:.1f} %" for rate in ("formatted", "number", "correct"))
            assert f"| {name} | {shares} | {row['length']:.0f} |" in page
