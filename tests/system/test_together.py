"""Commands that threads run at once end when their block is interrupted, and not when one of them fails."""

from __future__ import annotations

import contextvars
import sys
import threading
import time

import pytest

from refine.system.processes import ProcessFailed, run_in_own_process
from refine.system.together import together

LONG = [sys.executable, "-c", "import time; time.sleep(600)"]


def in_thread(errors: list[BaseException], argv: list[str] = LONG) -> threading.Thread:
    """A thread that runs a command in the context of this one."""

    def run() -> None:
        try:
            run_in_own_process(argv)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
    thread.start()
    return thread


def test_an_interrupt_ends_all_commands_and_those_that_begin_after_it():
    errors: list[BaseException] = []
    with pytest.raises(KeyboardInterrupt), together():
        threads = [in_thread(errors), in_thread(errors)]
        time.sleep(0.5)
        context = contextvars.copy_context()
        raise KeyboardInterrupt
    threads.append(context.run(in_thread, errors))
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [KeyboardInterrupt] * 3


def test_an_error_lets_the_other_commands_come_to_their_ends():
    errors: list[BaseException] = []
    with pytest.raises(ProcessFailed), together():
        thread = in_thread(errors, [sys.executable, "-c", "import time; time.sleep(1)"])
        run_in_own_process([sys.executable, "-c", "raise SystemExit(3)"])
    thread.join(30)
    assert errors == []


def test_outside_the_block_nothing_is_ended_with_others():
    errors: list[BaseException] = []
    thread = in_thread(errors, [sys.executable, "-c", "import time; time.sleep(1)"])
    with pytest.raises(KeyboardInterrupt), together():
        raise KeyboardInterrupt
    thread.join(30)
    assert errors == []
