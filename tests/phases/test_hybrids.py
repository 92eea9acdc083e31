"""The whole way of a tiny hybrid: all phases, test time (weights and adapters), scores, text, lm-eval, MLflow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig

from refine import settings
from refine.cli.generate import generate
from refine.data.prompts.chat import ChatForm
from refine.data.prompts.needles import make_needles
from refine.data.prompts.prompt import load_prompts
from refine.data.tokenizer import load_tokenizer
from refine.evaluation import Inputs, evaluate_model
from refine.evaluation.answers import answer
from refine.models import from_pretrained
from refine.phases.rehearsal import rehearse
from refine.settings.base import validated
from refine.settings.experiment import Settings
from refine.settings.training import TestTimeSettings
from refine.training.freezing import ATTENTION
from refine.training.test_time import TestTimeTrainer
from refine.training.trainer import RefineTrainer

pytestmark = pytest.mark.slow
PROFILES = Path(settings.__file__).parent / "profiles"
OBJECTIVE = {"positions": 3, "rollout_length": 3, "min_prefix": 4}
TEST_TIME = {"arms": ["none", "refine"], "learning_rate": 1e-2, "freeze": "attention", "objective": OBJECTIVE}


def short(name: str, tokenizer: Path) -> Settings:
    """The profile with few sequences and steps, arms at the marks, and frozen attention in post-training."""
    values: dict[str, Any] = settings.load(PROFILES / f"{name}.yaml").model_dump(mode="json")
    values["tokenizer"] = {"path": str(tokenizer)}
    few = {"sequences_per_step": 2, "sequences_per_pass": 2, "objective": OBJECTIVE}
    marked = {"marked": {"selection": "marked"}, "focus": {"selection": "marked", "focus_weight": 0.2}}
    values["training"]["mid"] |= {**few, "arms": ["sft", "focus", "refine", "marked"], "variants": marked}
    of_post = {"nested_marked": marked["marked"], "nested_focus": marked["focus"]}
    values["training"]["post"] |= {**few, "prompt_steps": 1, "arms": ["nested_refine", "nested_focus", "nested_marked"]}
    values["training"]["post"] |= {"variants": of_post, "freeze": "attention"}
    values["training"]["test_time"] = TEST_TIME
    values["questions"]["chat"] = True
    return validated(Settings, values)


PHASES = [
    "start", "mid sft", "mid focus", "mid refine", "mid marked", "post nested_refine", "post nested_focus",
    "post nested_marked", "test time none", "test time refine",
]  # fmt: skip
FLA = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_heads": 2,
    "head_dim": 16,
    "attn": {"layers": [3], "num_heads": 4},
}
OTHERS: dict[str, dict[str, Any]] = {  # without a profile
    "kda": FLA,
    "gated_deltaproduct": {**FLA, "num_householder": 2, "use_forget_gate": True},
    "comba": FLA,
    "qwen3_next": {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        "intermediate_size": 64,
    },
}  # fmt: skip


@pytest.fixture(params=["qwen3.5-0.8b", "olmo-hybrid-7b", "qwen3.5-35b-a3b", "kimi-linear-48b-a3b"])
def trained(request: pytest.FixtureRequest, qwen_tokenizer: Any, tmp_path: Path) -> Path:
    """The folder of a rehearsal, whose models went through every phase."""
    qwen_tokenizer.save_pretrained(tmp_path / "tokenizer")
    lines: list[str] = []
    rehearse(short(request.param, tmp_path / "tokenizer"), tmp_path / "run", lines.append)
    assert [line.partition(":")[0] for line in lines] == PHASES
    return tmp_path / "run"


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_family_goes_through_all_phases(kind: str, qwen_tokenizer: Any, tmp_path: Path) -> None:
    qwen_tokenizer.save_pretrained(tmp_path / "tokenizer")
    values = short("qwen3.5-0.8b", tmp_path / "tokenizer").model_dump(mode="json")
    values["model"]["config"] = {"model_type": kind, **OTHERS[kind]}
    lines: list[str] = []
    rehearse(validated(Settings, values), tmp_path / "run", lines.append)
    assert [line.partition(":")[0] for line in lines] == PHASES
    assert from_pretrained(tmp_path / "run" / "post-nested_marked" / "model").config.model_type == kind


def test_a_hybrid_goes_the_whole_way(
    trained: Path, qwen_tokenizer: Any, client: Any, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained / "post-nested_marked" / "model"
    model, tokenizer = from_pretrained(folder), load_tokenizer(folder)
    before, start = model.state_dict(), from_pretrained(trained / "mid-marked" / "model").state_dict()
    kept = tuple(
        f"model.layers.{number}.{block.names.mixer}."
        for number, block in enumerate(model.model.layers)
        if isinstance(block.mixer, ATTENTION)
    )
    for name in before:
        stays = name.startswith(kept) or name.endswith("e_score_correction_bias")
        assert torch.equal(before[name], start[name]) == stays, name
    prompts = load_prompts(trained / "prepared" / "prompts.parquet")[:2]
    assert ChatForm(tokenizer).holds(prompts[0].prompt)
    _is_scored(folder, tokenizer, prompts)
    _adapts_adapters(model, tokenizer, prompts)
    _writes_and_remembers(folder, trained / "memory")
    _is_asked_by_lm_eval(from_pretrained(folder), tokenizer)
    _is_registered(folder, tokenizer, client, experiment, monkeypatch)


def _is_scored(folder: Path, tokenizer: Any, prompts: list[Any]) -> None:
    needles = make_needles("niah_single_1", 700, 2, tokenizer, seed=1, answer_tokens=4, chat=ChatForm(tokenizer))
    found = evaluate_model(
        folder, Inputs(prompts={("factsqa", 192): prompts, ("niah_single_1", 700): needles}), tokenizer
    )
    scores = {name: value for name, value in found.metrics().items() if name.endswith("/score")}
    assert len(scores) == 2 and all(0 <= value <= 100 and math.isfinite(value) for value in scores.values())


def _adapts_adapters(model: Any, tokenizer: Any, prompts: list[Any]) -> None:
    from refine.training.arguments import RefineArguments

    lora = LoraConfig(r=2, target_modules="all-linear")
    rows = [{"tokens": list(range(3, 60))}]
    args = RefineArguments(output_dir="unused", max_steps=1, use_cpu=True, save_strategy="no", disable_tqdm=True)
    adapted = RefineTrainer(model, args, train_dataset=rows, peft_config=lora).model
    before = [parameter.detach().clone() for parameter in adapted.parameters()]
    adapter = TestTimeTrainer(TestTimeSettings.model_validate({**TEST_TIME, "steps": 2}))
    answers = answer(adapted, tokenizer, prompts, adapter=adapter)
    assert len(answers) == 2 and all(len(done.losses) == 2 for done in adapter.adaptations)
    assert all(torch.equal(one, other) for one, other in zip(adapted.parameters(), before, strict=True))


def _writes_and_remembers(folder: Path, memory: Path) -> None:
    def run(*arguments: object) -> Any:
        done = CliRunner().invoke(generate, [str(folder), *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    text = memory.with_suffix(".txt")
    text.write_text("The sea and the old wind. " * 9)
    ask = ("--prompt", "Who came by night?", "--chat", "--tokens", 8)
    at_once = run("--file", text, *ask).stdout
    assert "wrote" in run("--file", text, "--tokens", 0, "--save-memory", memory).stderr
    assert run("--memory", memory, *ask).stdout == at_once


def _is_asked_by_lm_eval(model: Any, tokenizer: Any) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from refine.evaluation.lm_eval_harness import language_model

    asked = [Instance("loglikelihood", {}, ("The sea and", text), 0) for text in (" the old", " wind")]
    for (score, _), text in zip(language_model(model, tokenizer, 2).loglikelihood(asked), asked, strict=True):
        context, whole = (tokenizer(one)["input_ids"] for one in ("The sea and", "".join(text.args)))
        with torch.no_grad():
            log_probs = model(torch.tensor([whole])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        own = log_probs.gather(1, torch.tensor(whole[len(context) :])[:, None])
        assert score == pytest.approx(float(own.sum()), rel=1e-4)


def _is_registered(folder: Path, tokenizer: Any, client: Any, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    from refine.tracking.registry import register

    run = client.create_run(experiment).info.run_id
    register(client, "m", folder, key="k", run_id=run, experiment_id=experiment, metrics={}, settings={}, tags={})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    assert from_pretrained("models:/m/1").config.model_type == from_pretrained(folder).config.model_type
    loaded = mlflow.pyfunc.load_model("models:/m/1")
    prompt = ChatForm(tokenizer)("Who came by night?")
    [text] = loaded.predict(pandas.DataFrame({"prompt": [prompt]}), params={"max_tokens": 5})["text"].tolist()
    model = from_pretrained(folder)
    read = model.read(torch.tensor([tokenizer(prompt)["input_ids"]]))
    own = model.continue_greedily(read.memory, read.hidden[:, -1], 5, [tokenizer.eos_token_id])
    assert text == tokenizer.decode(own.tokens[0, : int(own.lengths[0])], skip_special_tokens=True)
