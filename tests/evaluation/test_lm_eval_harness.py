"""lm-eval's tasks run on our models, from the memory, with the scores that lm-eval's own model class gives."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from refine.errors import DataError, SettingError
from refine.evaluation import Evaluation, lm_eval_harness
from refine.evaluation.lm_eval_harness import (
    _scores,
    check_harness,
    evaluate_harness,
    language_model,
    score_continuations,
)

lm_eval = pytest.importorskip("lm_eval")

CHOICES = [
    {"question": f"The {a} {b} is", "choices": ["old", "green and", "a sun", "sky"], "label": i % 4}
    for i, (a, b) in enumerate(
        [("king", "now"), ("blue", "ship"), ("magic", "number"), ("text", "here"), ("old", "sun")]
    )
]
TASK = """
task: kings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/kings.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def tasks(tmp_path):
    """A folder with one YAML task on a file beside it."""
    (tmp_path / "kings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    (tmp_path / "kings.yaml").write_text(TASK.format(folder=tmp_path))
    return tmp_path


def plain(model, context: list[int], after: list[int]) -> tuple[float, bool]:
    logits = model(torch.tensor([context + after])).logits[0, len(context) - 1 : -1].detach().double()
    log_probs = logits.log_softmax(-1)[range(len(after)), after]
    return float(log_probs.sum()), logits.argmax(-1).tolist() == after


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_continuations_score_as_in_a_full_forward_and_shared_contexts_are_read_once(batch_size, model, monkeypatch):
    torch.manual_seed(2)
    contexts = [torch.randint(0, 320, (n,)).tolist() for n in (1, 30, 7)]
    pairs = [(contexts[i % 3], torch.randint(0, 320, (1 + i % 4,)).tolist()) for i in range(11)]
    reading = model.read(torch.tensor([contexts[1]]))
    likeliest = model.continue_greedily(reading.memory, reading.hidden[:, -1], 3).tokens[0].tolist()
    pairs.append((contexts[1], likeliest))
    expected = [plain(model, *pair) for pair in pairs]
    read = []
    own = model.read
    monkeypatch.setattr(
        model, "read", lambda tokens, memory=None, **k: read.append((tokens, memory)) or own(tokens, memory, **k)
    )
    found = score_continuations(model, pairs, batch_size)
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], rel=1e-4)
    assert [hit for _, hit in found] == [hit for _, hit in expected] and found[-1][1]
    assert sum(tokens.shape[0] for tokens, memory in read if memory is None) == 3


def instances(kind: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, 0) for one in arguments]


def test_scores_and_answers_are_those_of_lm_eval_s_own_model_class(model, tokenizer):
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
    ours = language_model(model, tokenizer, 3)
    asked = instances(
        "loglikelihood", [(row["question"], f" {choice}") for row in CHOICES for choice in row["choices"]]
    )
    asked += instances("loglikelihood", [("", "the king"), ("ends with a space ", "sun")])
    for (a, greedy_a), (b, greedy_b) in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert a == pytest.approx(b, rel=1e-4) and greedy_a == greedy_b
    texts = instances("loglikelihood_rolling", [("The grass is green. The sky is blue.",), ("sun",)])
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-4)
    options = {"until": ["e", "\n"], "max_gen_toks": 20, "do_sample": False}
    asked = instances("generate_until", [(row["question"], options) for row in CHOICES])
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_a_local_yaml_task_runs_offline_and_scores_what_it_should(model, tokenizer, tasks):
    [acc] = [one for one in evaluate_harness(model, tokenizer, ["kings"], include=tasks) if one.metric == "acc"]
    right = 0
    for row in CHOICES:
        context = tokenizer(row["question"])["input_ids"]
        scores = [plain(model, context, tokenizer(f" {choice}")["input_ids"])[0] for choice in row["choices"]]
        right += scores.index(max(scores)) == row["label"]
    assert acc.value == pytest.approx(right / 5) and acc.samples == 5 and acc.error is not None
    [few] = [
        one for one in evaluate_harness(model, tokenizer, ["kings"], samples=2, include=tasks) if one.metric == "acc"
    ]
    assert few.samples == 2


@pytest.mark.slow
def test_ruler_s_needles_run_offline(model, tokenizer, tmp_path, monkeypatch):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk, "download", lambda *a, **k: False)  # noise haystacks need no sentences
    tokenizer.save_pretrained(tmp_path)
    saved = type(tokenizer).from_pretrained(tmp_path)
    [score] = evaluate_harness(model, saved, ["niah_single_1"], samples=1, lengths=[1024])
    assert (score.metric, score.value, score.samples) == ("1024", 0.0, 1)


def test_a_task_that_does_not_exist_names_the_nearest():
    with pytest.raises(SettingError, match=r"lm-eval has no task 'piqaa' \(did you mean 'piqa'\?\)"):
        check_harness(["piqaa"])
    assert check_harness([]) is None


def test_a_task_whose_data_cannot_be_had_is_one_line(model, tokenizer):
    with pytest.raises(DataError, match="lm-eval cannot run piqa: ") as refused:
        evaluate_harness(model, tokenizer, ["piqa"])
    assert "\n" not in str(refused.value)


def test_without_lm_eval_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'refine-fast-weights\[harness\]'"):
        check_harness(["piqa"])


def test_sampled_answers_are_refused():
    with pytest.raises(SettingError, match="evaluation here is greedy"):
        lm_eval_harness._generation({"do_sample": True, "temperature": 0.7})
    assert lm_eval_harness._generation({"do_sample": False, "temperature": 1, "until": "\n"}) == (256, ["\n"])


def test_names_that_mlflow_refuses_are_written_with_underscores():
    from mlflow.utils.validation import _validate_metric_name

    values = {"alias": "a", "f1@5,none": 0.5, "f1+5,none": 0.25, "acc,strict-match": 1.0, "acc(é),x": 0.5}
    found = list(_scores({"results": {"t[1]": values}, "n-samples": {"t[1]": {"effective": 4}}}))
    assert [(one.task, one.metric) for one in found][2] == ("t_1_", "acc_strict-match")
    names = Evaluation("m", {}, (), tuple(found), 0.0).metrics()
    assert len([name for name in names if name.endswith("/score")]) == 4
    for name in names:
        _validate_metric_name(name)
