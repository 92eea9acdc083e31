"""Progress bars of libraries are off in a block, and on again after it."""

from __future__ import annotations

import datasets
from transformers.utils import logging

from refine.system.quiet import no_progress_bars, quiet_libraries


def test_transformers_bars_are_off_in_the_block_and_on_again_after_it():
    logging.enable_progress_bar()
    with no_progress_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with no_progress_bars():
        pass
    assert not logging.is_progress_bar_enabled(), "what the user switched off stays off"
    logging.enable_progress_bar()


def test_a_command_can_silence_libraries_for_good():
    quiet_libraries()
    assert not logging.is_progress_bar_enabled() and datasets.are_progress_bars_disabled()
    logging.enable_progress_bar()
    datasets.enable_progress_bars()
