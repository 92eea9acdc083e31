"""Arms train side by side where there are devices for it; an interrupt ends all, an error starts no further one."""

from __future__ import annotations

import os
import signal

import psutil

from tests.conftest import wait_for
from tests.fixtures.flows import finished, runs

BOTH = {"REFINE_DEVICES": "2"}
HALVES = {"REFINE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # of the CPU's cores


def test_two_arms_train_at_once_and_the_results_keep_their_order(start, plan, calls, workplace):
    plan({"mid none": ["wait for the others", "mid sft", "mid refine"]})  # alone it would wait for ever
    code, out, err = finished(start(**BOTH))
    assert code == 0 and err == "", err
    assert calls()[0] == "start" and sorted(calls()[1:4]) == ["mid none", "mid refine", "mid sft"]
    assert calls()[4:] == ["evaluation", "evaluation"]
    rows = sorted(file.stem for file in (workplace / "results" / "metrics").iterdir())
    assert rows == ["mid-none", "mid-refine", "mid-sft"]
    assert set(runs(workplace)) == {"FINISHED"} and "champion: refine-sample version" in out


def test_an_interrupt_ends_the_trainings_of_all_arms(start, plan, calls):
    plan({"mid none": ["sleep"], "mid sft": ["sleep"]})
    process = start(**BOTH)
    assert wait_for(lambda: len(calls()) == 3, 90)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finished(process)
    assert code != 0 and "Traceback" not in err
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive and sorted(calls()) == ["mid none", "mid sft", "start"]


def test_after_an_error_no_further_arm_starts_and_the_others_end(start, plan, calls, workplace):
    plan({"mid none": ["wait for the others", "mid sft.failed"], "mid sft": ["user error"]})
    process = start(**BOTH)
    assert wait_for(lambda: len(calls()) == 3, 90)
    (workplace / "mid sft.failed.ended").touch()
    code, out, err = finished(process)
    assert code == 1 and err == "error: refine train mid sft: model.config: no such thing\n"
    assert "mid refine" not in calls() and "mid none: trained" in out
    assert "mid none" in runs(workplace)["FINISHED"]


def test_a_device_that_would_be_idle_evaluates_what_is_trained(start, plan, calls, workplace):
    plan({"mid none": ["wait for the others", "evaluation"]})  # if evaluation waited for it, both would wait for ever
    process = start(**HALVES, FORKS="yes")
    assert wait_for(lambda: "evaluation" in calls(), 90)
    living = [one for one in psutil.Process(process.pid).children() if one.status() != psutil.STATUS_ZOMBIE]
    (server,) = [one for one in living if "refine.system.fork_server" in one.cmdline()]
    code, out, err = finished(process)
    assert code == 0 and err == "", err
    assert calls()[0] == "start" and sorted(calls()[1:4]) == ["mid none", "mid refine", "mid sft"]
    assert calls()[4:] == ["evaluation"] * 3 and not server.is_running()
    assert set(runs(workplace)) == {"FINISHED"} and "champion: refine-sample version" in out
