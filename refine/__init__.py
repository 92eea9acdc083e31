"""REFINE: reinforced fast weights with next-sequence prediction (arXiv 2602.16704).

The rooms, from the ground up: ``settings`` and ``ops``; ``models``; ``objective`` and ``data``;
``evaluation``; ``training``; ``tracking`` and ``services``; ``cli`` on top. Imports only go down.
"""

import os

__version__ = "0.1.0"

# Between two loops, OpenMP's threads wait by spinning, by default 300000 rounds. On a machine that has other work they
# take the cores from the threads that they wait for. 1000 rounds cost an idle machine nothing. The variable is read as
# torch is loaded, so it is set here, for this process and those that it starts.
SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
if not any(name in os.environ for name in SPINNING):
    os.environ[SPINNING[0]] = "1000"
