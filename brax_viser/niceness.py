"""Which threads let the training go first."""

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

    Nothing is done where niceness is not a thread's but the whole process's: anywhere but on Linux.
    """
    if sys.platform == "linux":
        os.nice(niceness)
