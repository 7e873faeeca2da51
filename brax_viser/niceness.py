"""Which threads let the training go first."""

import contextlib
import os
import sys

NICENESS = 10
"""Added to a thread's own, it gets a tenth of a processor that a thread of the training wants as
well. What counts is that XLA's, when there is something to do for them again, take the processor at
once: between equals they wait."""

MORE = 5
"""On top of it, for threads that never hold Python's lock: for others, a callback may have to wait,
and where further programs take the processors they must get on. With the most that there is, 19,
what steps twins would not keep up beside a training that takes all processors."""


def give_way(niceness: int = NICENESS) -> None:
    """The calling thread lets others go first, and so do those that it starts from now on.

    Besides, when there is something to do for it again, it waits until a processor is free or its
    turn has come, where it would have interrupted who is at work (SCHED_BATCH, man 7 sched). Its
    share remains the same.

    Nothing is done where niceness is not a thread's but the whole process's: anywhere but on Linux.
    """
    if sys.platform == "linux":
        os.nice(niceness)
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # and not what a person has chosen
            with contextlib.suppress(OSError):  # a sandbox need not know it, as gVisor does not
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
