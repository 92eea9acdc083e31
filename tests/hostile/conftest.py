"""What the tests of bad inputs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Reports hold halves of characters, which are among the bad inputs, as escapes: pytest-xdist cannot send them."""
    outcome = yield
    report = outcome.get_result()
    report.sections = [(_printable(title), _printable(text)) for title, text in report.sections]
    if report.failed:
        report.longrepr = _printable(str(report.longrepr))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
