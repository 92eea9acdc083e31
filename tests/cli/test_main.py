"""The command as a user first meets it.

Verbs that have no test file here: `prepare` is tested in test_data.py, `report` and models:/NAME@ALIAS in
test_evaluate.py, `pretrain` in tests/phases/test_pretraining.py, `up`, `down` and `worker` in tests/services.
"""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from refine.cli.main import VERBS, main


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "refine.cli.main", *arguments], capture_output=True, text=True)


def test_help_imports_nothing_heavy_so_that_it_answers_at_once():
    heavy = "{'torch', 'transformers', 'mlflow', 'prefect', 'datasets', 'dvc', 'pydantic', 'numpy', 'rich'}"
    program = (
        "import sys; from refine.cli.main import cli; cli.main(['--help'], standalone_mode=False); "
        f"found = {heavy} & set(sys.modules); sys.exit(f'imported {{found}}' if found else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_help_lists_every_verb():
    listed = _run("--help").stdout
    assert all(verb in listed for verb in VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_its_own_help(verb):
    module, name = VERBS[verb][0].split(":")
    assert getattr(importlib.import_module(module), name).help


def test_a_mistyped_verb_names_the_nearest():
    ran = _run("evalute")
    assert ran.returncode != 0
    assert "did you mean 'evaluate'?" in ran.stderr


def test_an_error_that_a_user_can_correct_is_one_line_without_a_traceback(capsys, monkeypatch):
    from refine.cli import main as cli_main
    from refine.errors import SettingError

    def refuse(**_):
        raise SettingError("setting 'x' is wrong")

    monkeypatch.setattr(cli_main.cli, "main", refuse)
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: setting 'x' is wrong\n"
