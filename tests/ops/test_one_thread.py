"""Small work on a CPU runs on one thread, and what follows it on as many as before."""

import pytest
import torch

from refine.ops.one_thread import SMALL, one_thread_if_small


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("work", "device", "inside"), [(SMALL, "cpu", 1), (SMALL + 1, "cpu", 3), (1, "cuda", 3)])
def test_only_small_work_on_a_cpu_is_on_one_thread(three_threads, work, device, inside):
    with one_thread_if_small(work, torch.device(device)):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 3


def test_the_threads_are_back_after_an_error_and_after_one_within_another(three_threads):
    with pytest.raises(KeyError), one_thread_if_small(1, torch.device("cpu")):
        with one_thread_if_small(1, torch.device("cpu")):
            pass
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 3
