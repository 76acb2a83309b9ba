"""How long the threads of a parallel operation wait for the next one before they sleep."""

from __future__ import annotations

import os

#: Turns of a waiting thread. A small encoder's step is thousands of operations, and waking a thread takes longer than many of them:
#: measured on 2 cores of an Intel Xeon, 4 layers x 256, a step took 24% less time than with threads that sleep at once. Where another
#: process wants the same cores it took 27% more; threads that never sleep make it ten times slower there.
SPINS = 5000


def wait_briefly() -> None:
    """Have OpenMP's threads sleep only after a short wait; no effect once torch is imported.

    An environment that says how threads wait, by either variable, stays as it is: the number would undo an ``OMP_WAIT_POLICY`` of the user's.
    Changes no result. `SPINS` is what GNU's OpenMP reads, which torch is built with on Linux.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
