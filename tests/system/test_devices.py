"""One training process per device, however many runs there are; a device is free once its process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from refine.errors import SettingError
from refine.system.devices import device_slots, devices, shared_variables
from tests.conftest import wait_for

HOLDER = """
import sys, time
from refine.system.devices import device_slots
with device_slots(1, "first", print):
    open(sys.argv[1], "w").close()
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch):
    """Locks in a folder of the test, and two devices."""
    monkeypatch.setenv("REFINE_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("REFINE_DEVICES", "2")


def test_devices_can_be_counted_and_named(monkeypatch):
    assert devices() == ["0", "1"]
    monkeypatch.setenv("REFINE_DEVICES", "1,3")
    assert devices() == ["1", "3"]
    monkeypatch.delenv("REFINE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert devices() == ["2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("refine.system.devices._cores", lambda: 8)
    assert devices() == ["cpu0", "cpu1"], "an empty list hides all GPUs"
    monkeypatch.setattr("refine.system.devices._cores", lambda: 1)
    assert devices() == ["cpu0"]


def test_trainings_on_the_cpu_share_its_cores(monkeypatch):
    monkeypatch.delenv("REFINE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("refine.system.devices._cores", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with device_slots(1, "one", print) as first, device_slots(1, "another", print) as second:
        assert first == second == {"OMP_NUM_THREADS": "4"}
    with device_slots(2, "both", print) as variables:
        assert variables == {"OMP_NUM_THREADS": "9"}
    monkeypatch.setenv("REFINE_DEVICES", "3")
    with device_slots(1, "one of three", print) as variables:
        assert variables == {"OMP_NUM_THREADS": "3"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with device_slots(1, "as the user wants", print) as variables:
        assert variables == {}


@pytest.mark.parametrize("value", ["all", "0", "-1", "0,x"])
def test_a_variable_that_names_no_devices_is_refused(monkeypatch, value):
    monkeypatch.setenv("REFINE_DEVICES", value)
    with pytest.raises(SettingError, match="REFINE_DEVICES is"):
        devices()


def test_as_many_train_at_once_as_there_are_devices(tmp_path):
    running, most, lock = [], [], threading.Lock()

    def train(n: int) -> None:
        with device_slots(1, f"run {n}", lambda line: None):
            with lock:
                running.append(n)
                most.append(len(running))
            time.sleep(0.2)
            with lock:
                running.remove(n)

    threads = [threading.Thread(target=train, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(most) == 5 and max(most) == 2


def test_a_run_on_two_devices_waits_for_both_and_names_their_holder(tmp_path):
    said: list[str] = []
    order: list[str] = []

    def both() -> None:
        with device_slots(2, "wide", said.append):
            order.append("wide")

    with device_slots(1, "narrow", said.append):
        thread = threading.Thread(target=both)
        thread.start()
        assert wait_for(lambda: said)
        with device_slots(1, "another", said.append):  # a waiting run holds no device
            order.append("another")
    thread.join(timeout=10)
    assert order == ["another", "wide"] and "wide: waits for 2 devices; held by narrow" in said[0]


def test_a_run_that_asks_for_too_many_devices_gets_all():
    with device_slots(8, "wide", print):
        pass


def test_the_device_of_a_killed_run_is_free_at_once(tmp_path, monkeypatch, checkout):
    monkeypatch.setenv("REFINE_DEVICES", "1")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "held")], env={**os.environ, "PYTHONPATH": str(checkout)}
    )
    assert wait_for((tmp_path / "held").exists)
    taken: list[float] = []

    def second() -> None:
        with device_slots(1, "second", lambda line: None):
            taken.append(time.monotonic())

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.5)
    assert not taken
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = time.monotonic()
    thread.join(timeout=10)
    assert taken and taken[0] - killed < 3


def test_what_restricts_a_process_to_one_device_is_known_beforehand_unless_that_is_a_gpu(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("refine.system.devices._gpus", lambda: 0)
    with device_slots(1, "first", print) as first, device_slots(1, "second", print) as second:
        assert shared_variables() == first == second and set(first) == {"OMP_NUM_THREADS"}
    monkeypatch.setattr("refine.system.devices._gpus", lambda: 2)
    assert shared_variables() is None
