"""Which threads let the training go first."""

import os
import sys

NICENESS = 5
"""Added to a thread's own, it gets a quarter of a processor that a thread of the training wants as
well. What counts is that XLA's, when there is something to do for them again, take the processor at
once: between equals they wait. With much more, what a callback waits for, Python's lock, could stay
for long with a thread that another program keeps from running."""


def give_way() -> None:
    """The calling thread lets others go first, and so do those that it starts from now on.

    Nothing is done where niceness is not a thread's but the whole process's: anywhere but on Linux.
    """
    if sys.platform == "linux":
        os.nice(NICENESS)
