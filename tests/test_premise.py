"""The premise of the method, measured on the tiny models, where it is known to hold."""

import csv
import json
from pathlib import Path

import pytest

from logitmix_lite import evaluate, load_preset, load_tokenizer
from logitmix_lite.__main__ import main
from logitmix_lite.fingerprints import hardware
from logitmix_lite.lab.premise import choose, expectation, premise, premise_table
from logitmix_lite.lab.study import compare
from logitmix_lite.models import make_mixture
from logitmix_lite.stats import interval


def test_one_decoding_gives_what_each_length_would():
    preset = load_preset("tiny", test_size=60)
    task, tokenizer = preset.problems(), load_tokenizer("tiny-base")
    mixture = make_mixture("base", "tiny-anchor", "tiny-base", 0.25)
    found = premise(mixture, tokenizer, task, task.test, lengths=(24, 64), batch=25)
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


def test_the_command_measures_any_pair(tmp_path, capsys):
    """The tables and all files are there, and `compare`, which counts the recorded answers anew, agrees."""
    out, sizes = tmp_path / "premise.json", ["--train-size", "10", "--validation-size", "4", "--test-size", "6"]
    words = ["premise", *sizes, "--alpha", "0.25", "--out", str(out)]
    with pytest.raises(SystemExit, match="error: lengths are numbers of tokens separated by commas, got '8,x'"):
        main([*words, "--lengths", "8,x"])
    assert not list(tmp_path.iterdir())
    main([*words, "--lengths", "64,24"])
    said, found = json.loads(capsys.readouterr().out), json.loads(out.read_text())
    config = {"base": "tiny-base", "anchor": "tiny-anchor", "alpha": 0.25, "validation_size": 4, "hardware": hardware()}
    assert config.items() <= found["config"].items()
    assert said.pop("chosen") == found["chosen"] and found["chosen"]["max_new_tokens"] in (24, 64)
    assert list(said) == ["validation-24", "validation-64", "test-24", "test-64"]
    for where in said:
        table = {row["policy"]: row for row in found[where]["policies"]}
        answers = {name: tmp_path / f"premise-{where}-{name}.jsonl" for name in table}
        again = compare(answers["theta"], answers["ref"], "formatted")
        assert again["problems"] == table["ref"]["problems"] == (4 if "validation" in where else 6)
        assert again["difference"] == pytest.approx(said[where]["format_gap"])
        assert 0 < table["mixture"]["length"] <= int(where.split("-")[1])
    assert said["test-64"]["format_gap"] > 0.5  # six problems are few, but the anchor boxes all of them and base none
    with pytest.raises(SystemExit, match="premise.json is there already"):
        main(words)


def test_only_validation_problems_choose():
    """Where both gaps are above 0 the best mixture counts; else the pair that comes nearest."""

    def found(form, reason, right):
        return {"format_gap": form, "reasoning_gap": reason, "policies": [{}, {}, {"correct": right}]}

    one = {"validation-160": found(0.5, 0.1, 0.3), "validation-320": found(0.2, 0.2, 0.4), "test-160": found(1, 1, 1)}
    two = {"config": {}, "validation-160": found(0.9, -0.1, 0.9), "chosen": {}}
    assert choose({"one": one, "two": two}) == {
        "anchor": "one", "max_new_tokens": 320, "smaller_gap": 0.2, "mixture": 0.4
    }  # fmt: skip
    nearest = choose({"two": two, "three": {"validation-64": found(0.1, -0.2, 0.95)}})
    assert (nearest["anchor"], nearest["smaller_gap"]) == ("two", -0.1)


def test_the_recorded_premise_is_what_the_page_says():
    """The table in data/README.md, from the files of the visit."""
    data = Path(__file__).parents[1] / "data"
    page = (data / "README.md").read_text(encoding="utf-8")
    for anchor in ("human-200", "human-4000", "short-1000"):
        found = json.loads((data / "results/gpu/premise" / f"{anchor}.json").read_text(encoding="utf-8"))["test-320"]
        for k, name in enumerate(("base", f"anchor `{anchor}`", f"base and `{anchor}`, alpha 0.5")):
            row = found["policies"][k]
            shares = " | ".join(f"{100 * row[rate]:.1f} %" for rate in ("formatted", "number", "correct"))
            assert f"| {name} | {shares} | {row['length']:.0f} |" in page


def test_the_recorded_premise_on_choices_is_what_the_page_says():
    """Tables and intervals in data/README.md, from the file; what is chosen follows from the validation problems."""
    data = Path(__file__).parents[1] / "data"
    page = (data / "README.md").read_text(encoding="utf-8")
    found = json.loads((data / "results/qwen-mmlu/premise.json").read_text(encoding="utf-8"))
    lengths = sorted(key for key in found if key not in ("config", "chosen"))
    assert lengths == sorted(f"{split}-{n}" for split in ("test", "validation") for n in (16, 64, 200, 512))
    shown = 0
    for where in lengths:
        split, length = where.split("-")
        assert not found[where]["holds"]
        for name, row in zip(("base", "anchor", "both, alpha 0.5"), found[where]["policies"], strict=True):
            for rate in ("formatted", "correct", "number"):
                wilson = interval(round(row[rate] * row["problems"]), row["problems"])
                assert row[f"{rate}_95"] == pytest.approx(wilson, abs=1e-4)
            shares = " | ".join(
                f"{100 * row[rate]:.1f} % ({100 * row[f'{rate}_95'][0]:.1f} to {100 * row[f'{rate}_95'][1]:.1f})"
                for rate in ("formatted", "number", "correct")
            )
            shown += f"| {name} | {row['problems']} {split} | {length} | {shares} | {row['length']:.0f} |" in page
            if name != "base":  # a higher limit changes nothing
                assert row["correct"] == found[f"{split}-16"]["policies"][1 if name == "anchor" else 2]["correct"]
    section = page[page.index("## results/qwen-mmlu/") :].split("\n## ")[0]
    assert shown == sum(line.startswith("| ") and "%" in line for line in section.splitlines()) > 0
    assert all(row["truncated"] == 0 for row in found["test-16"]["policies"][1:])
    assert found["chosen"] == choose({found["config"]["anchor"]: found})
    with (data / "results/qwen-mmlu/letters-test-16.csv").open() as file:
        letters = list(csv.DictReader(file))
    for k, name in enumerate(("anchor", "mixture"), 1):
        right = sum(row["gold"] == row[name] for row in letters)
        assert right / len(letters) == found["test-16"]["policies"][k]["correct"]
    says = {name: sum(row[name] == "D" for row in letters) for name in ("anchor", "mixture", "gold")}
    words, differ = " ".join(section.split()), sum(row["anchor"] != row["mixture"] for row in letters)
    assert f"another letter than the anchor for {differ} of the 200" in words
    assert "D is right {gold} times, the anchor says it {anchor} times, the mixture {mixture}".format(**says) in words
    made = json.loads((data / "results/qwen-mmlu/settings.json").read_text(encoding="utf-8"))
    made = vars(load_preset("qwen-0.5b", **made))
    assert all(made[name] == value for name, value in found["config"].items() if name in made)
