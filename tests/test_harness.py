"""A mixture goes through EleutherAI's lm-eval as any Hugging Face model does, and gets our own numbers there."""

import json

import pytest
import torch
import yaml

from logitmix_lite import Mixture, evaluate, load_model, load_task, load_tokenizer

lm_eval = pytest.importorskip("lm_eval")

BOX = {"function": "regex", "regex_pattern": "boxed\\{(-?\\d+)\\}"}
GENERATE = {
    "task": "chain_generate",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 64, "do_sample": False},
    "filter_list": [{"name": "box", "filter": [BOX, {"function": "take_first"}]}],
    "metric_list": [{"metric": "exact_match"}],
}
CHOOSE = {
    "task": "chain_choose",
    "output_type": "multiple_choice",
    "doc_to_text": "{{work}}",
    "doc_to_choice": ["\\boxed", "so "],
    "target_delimiter": "",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture(scope="module")
def mixture():
    return Mixture([load_model("tiny-base"), load_model("tiny-anchor")], weights=[0.4, 0.6]).eval()


def test_lm_eval_agrees_with_our_own_evaluation(tmp_path, mixture):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer, problems = load_tokenizer("tiny-base"), load_task("chain", train=1, validation=1, test=40).test
    documents = tmp_path / "documents.jsonl"
    rows = [
        {"question": p.question, "answer": p.answer, "work": p.question + p.solution.split("\\boxed")[0]}
        for p in problems
    ]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task in (GENERATE, CHOOSE):
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(documents)}}}
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump(task | data | {"test_split": "test"}))

    model = HFLM(pretrained=mixture, tokenizer=tokenizer, batch_size=8, max_length=128)
    found = lm_eval.simple_evaluate(
        model, tasks=["chain_generate", "chain_choose"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )["results"]  # fmt: skip

    ours = evaluate(mixture, tokenizer, problems, max_new_tokens=64, batch=40)
    assert 0 < ours.accuracy < 1
    assert found["chain_generate"]["exact_match,box"] == pytest.approx(ours.accuracy)

    def log_likelihood(context, continuation):
        ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
        with torch.no_grad():
            logp = mixture(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
        return logp[len(tokenizer(context)["input_ids"]) - 1 :].sum()

    boxes = [log_likelihood(row["work"], "\\boxed") > log_likelihood(row["work"], "so ") for row in rows]
    assert found["chain_choose"]["acc,none"] == pytest.approx(sum(boxes) / len(boxes))
