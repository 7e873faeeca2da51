"""Where a replay is, and how it goes on from there. Pure logic over a clock."""

from dataclasses import dataclass

from brax_viser.page.episode_frames import ALMOST
from brax_viser.panel.limits import REPLAY_SPEED


@dataclass
class Playhead:
    """A position in what is played, s of robot time, that moves on or back while it plays."""

    position: float = 0.0
    playing: bool = False
    backwards: bool = False  # which way it plays
    speed: float = 1.0  # robot seconds per second
    loop: bool = True  # whether it begins again where it is over
    _now: float | None = None  # s, when it moved last

    def begin(self) -> None:
        """Goes to the beginning, and on from there."""
        self.position, self.backwards = 0.0, False

    def play(self, seconds: float, *, backwards: bool = False) -> None:
        """Plays; what is over begins again.

        Args:
            seconds: how long all of it is; 0: not known yet (see `known`), or from the beginning.
            backwards: whether towards the beginning.
        """
        self.playing, self.backwards, self._now = True, backwards, None
        over = self.position <= ALMOST if backwards else self.position >= seconds - ALMOST
        if over:
            self.position = seconds if backwards else 0.0

    def known(self, seconds: float) -> None:
        """What is played is there now: it is played from here on, backwards from its end."""
        self._now = None
        if self.playing and self.backwards and not self.position:
            self.position = seconds

    def seek(self, position: float, seconds: float) -> None:
        """Goes to a position, or the nearest that there is, and pauses."""
        self.playing = False
        self.position = min(max(float(position), 0.0), seconds)

    def set_speed(self, speed: float) -> None:
        """Sets robot seconds per second. Raises ValueError if it is out of its limits."""
        REPLAY_SPEED.check("speed", speed)
        self.speed = float(speed)

    def advance(self, now: float, seconds: float | None) -> None:
        """Moves to where it is at a time.

        Args:
            now: s.
            seconds: how long all of it is; None: not known yet, so that it stays where it is.
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
