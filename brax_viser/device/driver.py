"""What copying needs of a device's driver."""

from typing import Any, Protocol


class Driver(Protocol):
    """The functions of a device's driver that copying needs. All numbers are its own handles."""

    devices: int
    """How many there are."""

    def address(self, buffer: Any) -> int: ...
    def context(self) -> tuple[int, int]:
        """Returns the calling thread's context and the number of its device."""
        ...

    def enter(self, context: int) -> None:
        """Makes the context the calling thread's, which only copies and waits."""
        ...

    def allocate(self, nbytes: int) -> int:
        """Returns the address of new host memory that the device can write to; never freed."""
        ...

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Has the device copy from its memory to the host's, after what the stream has to do."""
        ...

    def event(self) -> int: ...
    def record(self, event: int, stream: int) -> None: ...
    def has_reached(self, event: int) -> bool:
        """Returns whether the stream has reached the event."""
        ...

    def wait(self, event: int) -> None:
        """Returns once the stream has reached the event; other Python threads run meanwhile."""
        ...

    def seconds_between(self, start: int, stop: int) -> float: ...
