"""A stage of visit.py: the premise of one anchor, or the choice among all that were measured.

    python tests/gpu/measure.py OUT --preset qwen-0.5b ... --anchor NAME
    python tests/gpu/measure.py OUT --preset qwen-0.5b ... --choose"""

import json
import sys
from pathlib import Path

from logitmix_lite.__main__ import chosen_preset, make_parser
from logitmix_lite.lab.premise import expectation, premise, premise_table
from logitmix_lite.models import load_tokenizer, make_mixture

LENGTHS = (160, 320)
VALIDATION = 200


def measure(out: Path, name: str, flags: list[str]) -> None:
    """Write premise/NAME.json and the answers: on validation and test problems, at each longest completion."""
    tiny = "tiny" in flags
    args = make_parser().parse_args(["train", *flags, "--method", "fixed", "--out", "-"])
    if not tiny:  # more than the runs use; no anchor was trained on any of them
        args.validation_size = VALIDATION
    preset = chosen_preset(args)
    task, tokenizer = preset.problems(), load_tokenizer(preset.base)
    anchor = str(out / "anchors" / name / "final")
    mixture = make_mixture("base", anchor, preset.base, 0.5, rank=preset.lora_rank, dtype=preset.dtype)
    found, folder = {}, out / "premise"
    folder.mkdir(exist_ok=True)
    for split in ("validation", "test"):
        answers = premise(mixture, tokenizer, task, getattr(task, split), (32, 64) if tiny else LENGTHS)
        for length, policies in answers.items():
            found[f"{split}-{length}"] = {"policies": premise_table(policies), **expectation(policies)}
            for policy, e in policies.items():
                with (folder / f"{name}-{split}-{length}-{policy}.jsonl").open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in e.records())
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({where: [round(w["format_gap"], 3), round(w["reasoning_gap"], 3)] for where, w in found.items()}))


def choose(out: Path) -> None:
    """Write chosen.json, by the validation problems: of the anchors and lengths at which the anchor boxes more often
    and base reaches more right numbers, the pair whose mixture is right and boxed most often. Where there is none, the
    one that comes nearest."""
    rows = []
    for path in sorted((out / "premise").glob("*.json")):
        for where, what in json.loads(path.read_text(encoding="utf-8")).items():
            split, length = where.split("-")
            if split == "validation":
                gap, right = min(what["format_gap"], what["reasoning_gap"]), what["policies"][2]["correct"]
                row = {"anchor": path.stem, "max_new_tokens": int(length), "smaller_gap": gap, "mixture": right}
                rows.append(((gap > 0, right if gap > 0 else gap), row))
    best = max(rows, key=lambda pair: pair[0])[1]
    (out / "chosen.json").write_text(json.dumps(best, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(best))


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    if rest[-1] == "--choose":
        choose(Path(folder))
    else:
        at = rest.index("--anchor")
        measure(Path(folder), rest[at + 1], rest[:at] + rest[at + 2 :])
