"""params.yaml is complete and documented, and a wrong setting is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from refine import settings
from refine.errors import SettingError
from refine.settings import ObjectiveSettings, Section, Settings
from refine.settings.arms import OWN_ARMS
from refine.settings.evaluation import RegistrySettings
from refine.settings.training import MidSettings, OptimizerSettings, PostSettings, TestTimeSettings

FREE_FORM = {"data", "model.config"}  # lists of sources, and a config.json


def _leaves(section: type[Section], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        path = prefix + name
        if path in FREE_FORM:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= _leaves(field.annotation, path + ".")
        else:
            found[path] = field
    return found


@pytest.fixture
def params(checkout):
    return checkout / "params.yaml"


def test_every_setting_is_in_params_yaml(params):
    values = yaml.safe_load(params.read_text())
    missing = []
    for path in _leaves(Settings):
        here: Any = values
        for part in path.split("."):
            here = here.get(part, ...) if isinstance(here, dict) else ...
        if here is ...:
            missing.append(path)
    assert not missing, f"add to params.yaml, with their unit: {missing}"


def test_every_setting_has_a_description():
    undescribed = [path for path, field in _leaves(Settings).items() if not field.description]
    assert not undescribed


def test_each_phase_has_the_paper_s_arms_by_default():
    for section in (MidSettings, PostSettings, TestTimeSettings):
        own = OWN_ARMS[section.phase()]
        assert section.model_fields["arms"].default == tuple(arm for arm in own if not arm.endswith("focus"))


def test_test_time_training_has_the_optimizer_settings_of_the_phases():
    shared = OptimizerSettings.model_fields
    assert set(shared) <= set(MidSettings.model_fields) & set(TestTimeSettings.model_fields)
    assert all(TestTimeSettings.model_fields[name].default == MidSettings.model_fields[name].default for name in shared)


def test_the_objective_s_defaults_are_the_paper_s():
    o = ObjectiveSettings()
    assert (o.positions, o.rollout_length, o.rollouts, o.reward, o.selection) == (8, 5, 1, "cosine", "entropy")
    assert (o.nsp_weight, o.ntp_weight, o.temperature, o.ratio_clip, o.dual_clip) == (0.2, 1.0, 1.0, 0.2, 3.0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.mid.stepz=3", "unknown setting 'training.mid.stepz' (did you mean 'steps'?)"),
        ("sed=3", "unknown setting 'sed' (did you mean 'seed'?)"),
        ("trainin.mid.steps=3", "no section 'trainin' (did you mean 'training'?)"),
        ("documents.sequence_length=-1", "'documents.sequence_length' is -1"),
        ("training.mid.objective.reward=cosin", "'cosine', 'binary' or 'hybrid'"),
        ("training.mid.objective.group=position", "needs rollouts of 2 or more"),
        ("training.mid.objective.rollout_length=5000", "leave no place for a rollout in 4096 tokens"),
        ("training.mid.length=24", "training.mid.objective: min_prefix 20 and rollout_length 5 leave no place"),
        ("training.mid.arms=[sft, sft]", "names an arm twice"),
        ("model={}", "model.checkpoint and model.config are both empty"),
        ("data.train=[{kind: package, texts: plays, wrk: 1}]", "wrk' (did you mean 'works'?)"),
        ("training.mid.learning_rate=.inf", "'training.mid.learning_rate' is inf: input should be a finite number"),
        ("training.mid.objective.nsp_weight=.nan", "'training.mid.objective.nsp_weight' is nan"),
        ("training.mid.adam_betas=[0.9, 1.0]", "'training.mid.adam_betas.1' is 1.0: input should be less than 1"),
        ("training.test_time.adam_betas=[-0.1, 0.9]", "'training.test_time.adam_betas.0' is -0.1"),
        ("registry.guards={val/loss: .inf}", "guards"),
        ("model.config.norm_eps=.nan", "'model.config': norm_eps is nan: expected a finite number"),
        ("seed=4294967296", "'seed' is 4294967296: input should be less than or equal to 4294967295"),
        ("registry.model_name=../../x", "'registry.model_name': '../../x' begins with a full stop"),
        ("registry.model_name=a/b", "'registry.model_name': 'a/b' holds '/'"),
        ("seed", "expected section.key=value"),
        ("seed=[", "not a YAML value"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(params, override, said):
    with pytest.raises(SettingError) as refused:
        settings.load(params, (override,))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_override_changes_just_that_setting(params):
    plain, changed = settings.load(params), settings.load(params, ("training.mid.steps=7",))
    assert changed.training.mid.steps == 7
    assert changed.model_copy(update={"training": plain.training}) == plain


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "expected sections"),
        ("{}", "settings 'seed', 'data', .* and 'registry' are missing"),
        ("seed: 1\nx: 1", "are missing .and 1 more"),
    ],
)
def test_a_broken_settings_file_is_one_error(tmp_path, text, said):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(SettingError, match=said):
        settings.load(tmp_path / "params.yaml")


def test_a_missing_settings_file_says_where_to_run(tmp_path):
    with pytest.raises(SettingError, match="no such settings file"):
        settings.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("metric", "wrong", "right"), [("val/loss", "maximise", "minimise"), ("eval/a/512/score", "minimise", "maximise")]
)
def test_a_goal_that_would_crown_the_worst_is_refused(metric, wrong, right):
    with pytest.raises(SettingError, match=rf"goal '{wrong}' would make the worst '{metric}' champion: use '{right}'"):
        settings.validated(RegistrySettings, {"metric": metric, "goal": wrong})
    assert settings.validated(RegistrySettings, {"metric": metric, "goal": right}).goal == right


def test_no_number_of_any_section_may_be_infinite():
    sections, found = [Section], set[type[Section]]()
    while sections:
        here = sections.pop()
        found.add(here)
        sections += [inner for inner in here.__subclasses__() if inner not in found]
    assert len(found) > 10
    assert all(section.model_config["allow_inf_nan"] is False for section in found)


def test_a_key_given_twice_is_refused_with_its_line(params, tmp_path):
    lines = params.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("seed:"))
    (tmp_path / "params.yaml").write_text("\n".join([*lines, "seed: 7"]))
    said = rf"params.yaml: .*line {len(lines) + 1}: key 'seed' is given twice \(first in line {number + 1}\)"
    with pytest.raises(SettingError, match=said):
        settings.load(tmp_path / "params.yaml")
    with pytest.raises(SettingError, match=r"override .*line 1: key 'steps' is given twice"):
        settings.load(params, ("training.mid={steps: 1, steps: 2}",))
