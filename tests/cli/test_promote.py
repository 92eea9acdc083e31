"""`refine promote` prints the verdict and its reasons. tests/tracking/test_champion.py tests the rule itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from refine.cli.main import cli
from refine.tracking import champion, connection


@pytest.mark.parametrize(
    ("accepted", "options", "line", "code"),
    [
        (True, [], "sample version 3 (sft): champion", 0),
        (True, ["--dry-run"], "sample version 3 (sft): would be champion", 0),
        (False, [], "sample version 3 (sft): refused", 1),
    ],
)
def test_the_verdict_is_printed_and_a_refusal_is_exit_code_1(accepted, options, line, code, monkeypatch, checkout):
    asked = []

    def promote(client, rule, version, dry_run):
        asked.append((rule.metric, version, dry_run))
        challenger = SimpleNamespace(name="sample", label="3 (sft)")
        return SimpleNamespace(challenger=challenger, accepted=accepted, reasons=["val/loss 3.4 against 3.5"])

    monkeypatch.chdir(checkout)
    monkeypatch.setattr(connection, "connect", lambda: None)
    monkeypatch.setattr(champion, "promote", promote)
    ran = CliRunner().invoke(cli, ["promote", "3", "--set", "registry.metric=val/loss", *options])
    assert ran.exit_code == code and ran.output.splitlines() == [line, "  val/loss 3.4 against 3.5"]
    assert asked == [("val/loss", "3", bool(options))]
