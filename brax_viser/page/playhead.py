"""Keeps the position of a replay, and moves it as it plays. Pure logic over a clock."""

from dataclasses import dataclass

from brax_viser.page.episode_frames import ALMOST
from brax_viser.panel.limits import REPLAY_SPEED


@dataclass
class Playhead:
    """A position in a recording, s of robot time, that moves forwards or backwards while it
    plays."""

    position: float = 0.0
    playing: bool = False
    backwards: bool = False  # which way it plays
    speed: float = 1.0  # robot seconds per second
    loop: bool = True  # whether it starts over at the end
    _now: float | None = None  # s, when it moved last

    def begin(self) -> None:
        """Goes to the beginning, to play forwards."""
        self.position, self.backwards = 0.0, False

    def play(self, seconds: float, *, backwards: bool = False) -> None:
        """Plays; starts over if it is at the end.

        Args:
            seconds: length of the recording; 0 if it is not known yet (see `known`).
            backwards: whether to play towards the beginning.
        """
        self.playing, self.backwards, self._now = True, backwards, None
        over = self.position <= ALMOST if backwards else self.position >= seconds - ALMOST
        if over:
            self.position = seconds if backwards else 0.0

    def known(self, seconds: float) -> None:
        """Takes the length of a recording that has been read now: played backwards, it begins at
        its end."""
        self._now = None
        if self.playing and self.backwards and not self.position:
            self.position = seconds

    def seek(self, position: float, seconds: float) -> None:
        """Goes to a position, or to the nearest end of the recording, and pauses."""
        self.playing = False
        self.position = min(max(float(position), 0.0), seconds)

    def set_speed(self, speed: float) -> None:
        """Sets robot seconds per second. Raises ValueError if it is outside its limits."""
        REPLAY_SPEED.check("speed", speed)
        self.speed = float(speed)

    def advance(self, now: float, seconds: float | None) -> None:
        """Moves the position on to a time.

        Args:
            now: s.
            seconds: length of the recording; None: not known yet, so that the position stays.
        """
        before, self._now = self._now, now
        if not self.playing or before is None or seconds is None:
            return
        moved = (now - before) * self.speed
        self.position = min(self.position, seconds) + (-moved if self.backwards else moved)
        if self.position >= 0 if self.backwards else self.position < seconds:
            return
        if self.loop:
            self.position %= seconds or 1.0
        else:
            self.position, self.playing = (0.0 if self.backwards else seconds), False
