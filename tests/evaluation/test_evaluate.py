"""One call scores a model on everything. The record (refine/evaluation/record.py) goes to JSON and back, to metrics and
to a table."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows.preflight import evaluated
from refine.data.prompts.prompt import Prompt, write_prompts
from refine.data.prompts.tasks import PAPER_LONGBENCH, TASKS
from refine.data.tokenizer import by_our_rule
from refine.errors import DataError, ModelError
from refine.evaluation import Evaluation, Inputs, evaluate_model, next_token
from refine.evaluation.answers import answer
from refine.evaluation.evaluate import check_model
from refine.evaluation.scorers import scorer_of

PROMPTS = [
    Prompt(f"The king of {name} is", (name[:1], name), "factsqa", 64, 6) for name in ("old", "sun", "sky", "ships")
]


@pytest.fixture
def inputs(tokenizer):
    torch.manual_seed(3)
    rows = [torch.randint(0, len(tokenizer), (40,)).tolist() for _ in range(5)]
    return Inputs({"val": rows, "second_domain": rows[:3]}, {("factsqa", 64): PROMPTS})


def test_every_score_is_that_of_its_part(model, tokenizer, inputs):
    found = evaluate_model(model, inputs, tokenizer, batch_size=2)
    assert found.next_token["val"] == next_token.evaluate(model, inputs.documents["val"])
    [task] = found.tasks
    answers = answer(model, by_our_rule(tokenizer, "it"), PROMPTS)
    expected = [
        scorer_of(TASKS["factsqa"])(one.text, prompt.answers) for one, prompt in zip(answers, PROMPTS, strict=True)
    ]
    assert list(task.scores) == expected and task.score.samples == 4
    assert task.score.value == pytest.approx(sum(expected) / 4)
    assert list(task.log_probs) == pytest.approx([one.log_prob for one in answers])


@pytest.mark.parametrize("which", ["val", "factsqa at 64"])
def test_a_text_that_positions_do_not_reach_is_named_before_any_is_scored(tokenizer, inputs, which):
    from refine.models import from_config

    fields = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "linear_num_value_heads": 16}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    limit = {"vocab_size": len(tokenizer), "max_position_embeddings": 39 if which == "val" else 60}
    hybrid = from_config({"model_type": "qwen3_5_text", **fields, **sizes, **limit})
    long = replace(PROMPTS[0], prompt_tokens=58)
    seen: list[str] = []
    with pytest.raises(ModelError, match=f"{which} has a text of (40|64) tokens, .* rotary positions allow") as said:
        evaluate_model(hybrid, replace(inputs, prompts={("factsqa", 64): [long]}), tokenizer, progress=seen.append)
    assert not seen and "\n" not in str(said.value)
    plain = from_config({"model_type": "delta_net", "vocab_size": len(tokenizer), "hidden_size": 16, "num_heads": 2})
    assert plain.config.position_limit() is None


def test_metrics_have_their_tracked_names(model, tokenizer, inputs):
    metrics = evaluate_model(model, inputs, tokenizer).metrics()
    assert {"val/loss", "val/accuracy", "val/loss_low", "second_domain/loss", "second_domain/sequences"} <= set(metrics)
    assert {
        f"eval/factsqa/64/{name}" for name in ("score", "score_low", "score_high", "samples", "log_prob", "cut")
    } <= set(metrics)
    assert metrics["eval/factsqa/64/samples"] == 4 and metrics["second_domain/sequences"] == 3
    assert all(isinstance(value, float) for value in metrics.values())


def test_their_names_are_known_from_the_folder_alone(model, tokenizer, inputs, tmp_path):
    (tmp_path / "documents").mkdir()
    for split in ("train", "validation", "second_domain"):
        pq.write_table(pa.table({"tokens": [[1, 2]]}), tmp_path / "documents" / f"{split}.parquet")
    for split in ("", "_train", "_validation"):
        write_prompts(PROMPTS, tmp_path / f"factsqa_64{split}.parquet")
    assert set(evaluate_model(model, inputs, tokenizer).metrics()) == evaluated(tmp_path)


def test_a_record_comes_back_as_it_was_saved(model, tokenizer, inputs, tmp_path):
    found = evaluate_model(model, inputs, tokenizer)
    path = found.save(tmp_path)
    assert Evaluation.load(tmp_path) == Evaluation.load(path) == found
    assert json.loads(path.read_text())["metrics"] == found.metrics()
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_the_table_has_a_count_and_an_interval_for_every_score(model, tokenizer, inputs):
    found = evaluate_model(model, inputs, tokenizer)
    rows = [line.split("|")[1:-1] for line in found.table().splitlines()[2:]]
    assert len(rows) == 6
    for name, value, interval, samples in rows:
        assert name.strip() and " to " in interval and samples.strip()[0].isdigit()
        low, high = map(float, interval.split(" to "))
        assert low <= float(value) <= high


def test_answers_are_written_with_what_was_accepted_and_scored(model, tokenizer, inputs, tmp_path):
    found = evaluate_model(model, inputs, tokenizer, answers_file=tmp_path / "new" / "answers.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new" / "answers.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == list(found.tasks[0].scores)
    assert [line["accepted"] for line in lines] == [list(prompt.answers) for prompt in PROMPTS]
    assert [line["answer"] for line in lines] == [
        one.text for one in answer(model, by_our_rule(tokenizer, "it"), PROMPTS)
    ]


def test_a_folder_is_loaded_with_its_own_tokenizer(model, tokenizer, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found, expected = evaluate_model(tmp_path, inputs, device="cpu"), evaluate_model(model, inputs, tokenizer)
    assert found.model == str(tmp_path) and found.metrics() == pytest.approx(expected.metrics())


def test_an_adapter_s_time_is_reported_beside_the_score(model, tokenizer, inputs):
    @contextmanager
    def adapter(model, tokens):
        yield

    found = evaluate_model(model, inputs, tokenizer, adapter=adapter)
    plain = evaluate_model(model, inputs, tokenizer)
    assert found.metrics()["eval/factsqa/64/adapt_seconds"] > 0
    assert "eval/factsqa/64/adapt_seconds" not in plain.metrics()
    assert found.tasks[0].scores == plain.tasks[0].scores


def test_a_tokenizer_that_does_not_fit_is_refused_before_the_weights_are_read(make_model, tokenizer, inputs, tmp_path):
    make_model(vocab_size=640).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"would not load")
    with pytest.raises(ModelError, match="320 pieces and the model a vocabulary of 640"):
        evaluate_model(tmp_path, inputs, tokenizer)


def test_a_model_that_is_not_there_and_answers_without_a_tokenizer_are_refused(model, tokenizer, inputs, tmp_path):
    with pytest.raises(ModelError, match="neither a checkpoint folder nor a model that the hub gives"):
        check_model(tmp_path / "none", tokenizer)
    with pytest.raises(ModelError, match="needs a tokenizer"):
        evaluate_model(model, inputs)
    assert evaluate_model(model, Inputs(inputs.documents)).metrics()["val/sequences"] == 5


def test_a_file_that_is_no_evaluation_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such evaluation"):
        Evaluation.load(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"model": "x"}')
    with pytest.raises(DataError, match="not an evaluation"):
        Evaluation.load(tmp_path)


def test_the_paper_averages_twelve_of_longbench_s_fourteen_tasks():
    assert len(PAPER_LONGBENCH) == 12 and not {"musique", "gov_report"} & set(PAPER_LONGBENCH)
    assert sum(task.family == "longbench" for task in TASKS.values()) == 14


def test_a_model_that_has_learned_the_answers_scores_one_and_one_that_has_not_scores_nothing(make_model, tokenizer):
    prompts = [
        Prompt(f"{name} lives in", (town,), "factsqa", 64, 8)
        for name, town in (("Ann", "Oxmere"), ("Bob", "Zellick"), ("Cora", "Thornby"))
    ]
    model = make_model()
    inputs = Inputs(prompts={("factsqa", 64): prompts})
    before = evaluate_model(model, inputs, tokenizer).tasks[0]
    rows = [tokenizer(f"{prompt.prompt} {prompt.answers[0]}</s>")["input_ids"] for prompt in prompts]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        losses = [model(tokens := torch.tensor([row]), labels=tokens).loss for row in rows]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    after = evaluate_model(model, inputs, tokenizer).tasks[0]
    assert before.score.value == 0.0 and after.score.value == 1.0
    assert before.log_prob.value < -2 and after.log_prob.value > -0.5


@pytest.mark.parametrize(
    ("values", "said"), [(float("nan"), "val/loss is nan"), (float("inf"), "val/loss is (nan|inf)")]
)
def test_a_score_that_is_not_finite_is_an_error(model, tokenizer, inputs, tmp_path, values, said):
    kept = model.get_output_embeddings().weight.data.clone()
    model.get_output_embeddings().weight.data[3] = values
    with pytest.raises(ModelError, match=said) as error:
        evaluate_model(model, inputs, tokenizer, answers_file=tmp_path / "answers.jsonl")
    model.get_output_embeddings().weight.data.copy_(kept)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
