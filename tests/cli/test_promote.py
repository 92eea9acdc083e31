"""`refine promote` prints the verdict and its reasons. tests/tracking/test_champion.py tests the rule itself."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from refine.cli.main import cli
from refine.tracking import champion, connection

promote_verb = importlib.import_module("refine.cli.promote")  # the module, whose verb has the same name


@pytest.mark.parametrize(
    ("accepted", "options", "before", "line", "code"),
    [
        (True, [], 2, "sample version 3 (sft): champion", 0),
        (True, [], None, "sample version 3 (sft): champion", 0),
        (True, [], 3, "sample version 3 (sft): champion", 0),
        (True, ["--dry-run"], 2, "sample version 3 (sft): would be champion", 0),
        (False, [], 2, "sample version 3 (sft): refused", 1),
    ],
)
def test_the_verdict_is_printed_and_a_refusal_is_exit_code_1(
    accepted, options, before, line, code, monkeypatch, checkout
):
    """Prefect, which may notify, is told of a new champion only."""
    asked, told = [], []

    def promote(client, rule, version, dry_run):
        asked.append((rule.metric, version, dry_run))
        challenger = SimpleNamespace(name="sample", label="3 (sft)", number=3)
        old = None if before is None else SimpleNamespace(number=before)
        reasons = ["val/loss 3.4 against 3.5"]
        return SimpleNamespace(challenger=challenger, champion=old, accepted=accepted, reasons=reasons)

    monkeypatch.chdir(checkout)
    monkeypatch.setattr(connection, "connect", lambda: None)
    monkeypatch.setattr(champion, "promote", promote)
    monkeypatch.setattr(promote_verb, "tell_prefect", told.append)
    ran = CliRunner().invoke(cli, ["promote", "3", "--set", "registry.metric=val/loss", *options])
    assert ran.exit_code == code and ran.output.splitlines() == [line, "  val/loss 3.4 against 3.5"]
    assert asked == [("val/loss", "3", bool(options))]
    assert len(told) == (accepted and not options and before != 3)


@pytest.mark.parametrize(
    ("address", "said"), [("", ""), ("http://127.0.0.1:9/api", "nobody is notified: Prefect server")]
)
def test_a_promotion_holds_where_no_server_can_be_told(address, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", address)
    promote_verb.tell_prefect(SimpleNamespace(champion=None, challenger=None, reasons=[]))
    printed = capsys.readouterr().err
    assert printed.startswith(said) and printed.count("\n") == bool(said)
