"""The guard of a command that must not outlive its parent: `python -I guard.py PARENT_PID COMMAND ...`.

`refine.system.processes` starts this file by its path. It uses only the standard library, so it starts in about 20 ms.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1  # linux/prctl.h; as in refine.system.processes
PARENT_VARIABLE = "REFINE_DIES_WITH"  # as in refine.system.processes


def main(parent: str, command: list[str]) -> None:
    """Run `command` to its end. Exit with its code, or with 128 + the number of the signal that ended it."""
    threading.Thread(target=kill_group_when_parent_dies, daemon=True).start()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_guard,
            env=dict(os.environ, **{PARENT_VARIABLE: parent}),
        )
    except OSError as error:
        sys.exit(f"error: cannot start {command[0]}: {error.strerror}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the command gets it too: wait for its end
    os._exit(shells_code(child.wait()))


def shells_code(code: int) -> int:
    """An exit code as a shell gives it: 128 + N instead of -N, if signal N ended the command."""
    return code if code >= 0 else 128 - code


def die_with_guard() -> None:
    """Called by the command: on Linux the kernel ends it when the guard ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def kill_group_when_parent_dies() -> None:
    """Only the parent holds the other end of standard input open, so end of file means that the parent died."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
