"""Holding the training at a step, and letting it go on by steps, like a debugger."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Key = tuple[str, int]
"""(role, shard): one device's part of a rollout."""


@dataclass(frozen=True)
class HoldCommand:
    """How a training that several processes step is held, as all of them are to hold it."""

    version: int = 0  # grows with each change; the same one is obeyed but once
    paused: bool = False
    target: float = 0
    until_env: int | None = None
    since: float = -1
    stepped: str = "train"


@dataclass
class _Part:
    """What is known of one device's part of a rollout."""

    env_steps: int = 0
    blocked: bool = False


@dataclass
class Hold:
    """Where the training has to wait. XLA's threads call `wait`, anybody the rest.

    Steps are those of one rollout, the one that is shown; the other runs freely while a step is
    on its way and waits as well while none is. Several devices stop at one and the same step.
    """

    clock: Callable[[], float] = time.monotonic
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _paused: bool = False
    _target: float = 0  # steps of the stepped rollout at which its parts wait
    _pending: int | None = None  # steps to take from the one at which the first part comes by
    _until_env: int | None = None  # run on to the next termination of this environment
    _since: float = -1  # steps: that termination must be after this one
    _stepped: str = "train"
    _parts: dict[Key, _Part] = field(default_factory=dict)
    _refreshed: int = 0
    _interrupts: int = 0
    _interrupted: bool = False  # whoever waits next is to end the training
    _closed: bool = False
    _fell: tuple[str, int] | None = None
    _version: int = 0  # of the orders that are given
    _obeyed: int = -1  # of those that were obeyed last
    # (s, in all, up to the last release; s, since when it is held now, or None). A pair, so that
    # it can be read without the lock: the clock is read some times in each call from the device.
    _pauses: tuple[float, float | None] = (0.0, None)

    def training_clock(self) -> float:
        """s: a clock that stands still while the training is held."""
        held, since = self._pauses
        return (self.clock() if since is None else since) - held

    @property
    def paused(self) -> bool:
        """Whether the training is to stop, or to go on by steps alone."""
        return self._paused

    @property
    def held(self) -> bool:
        """Whether the training stands still right now."""
        return self._pauses[1] is not None

    @property
    def until_env(self) -> int | None:
        """The environment whose next termination the training runs on to, if it does."""
        return self._until_env

    def pause(self, role: str = "train") -> None:
        """Holds the training at its next steps that are known of; `role` is what `step` counts."""
        with self._changed:
            self._paused, self._target, self._until_env = True, 0, None
            self._stepped, self._pending = role, None
            self._version += 1
            # Whoever was told to go on, and has not got round to it, stays.
            if any(part.blocked for part in self._parts.values()):
                self._stand_still()

    def resume(self) -> None:
        """Lets the training go on."""
        with self._changed:
            self._release()

    def step(self, count: int = 1, role: str = "train") -> None:
        """Goes on by `count` env steps of a rollout, and holds again. From a training that runs
        it holds it."""
        if not self._paused:
            self.pause(role)
            return
        self._go_on(role, count, None)

    def run_to_termination(self, env: int, role: str = "train") -> None:
        """Goes on until `terminated` says that this environment's episode has ended."""
        self.pause(role)
        self._go_on(role, None, env)

    def terminated(self, role: str, env_steps: int) -> None:
        """The environment that was waited for has ended its episode with this step."""
        with self._changed:
            if role != self._stepped or self._until_env is None or env_steps <= self._since:
                return
            self._fell = role, env_steps
            # Other devices may be further.
            self._target, self._until_env = max(env_steps, self._furthest(role)), None
            self._version += 1

    def refresh(self) -> None:
        """Other environments are to be shown: those who wait are to push once more."""
        with self._changed:
            self._refreshed += 1
            self._changed.notify_all()

    def interrupt(self) -> bool:
        """Ends the training, if it is held or about to be: `wait` raises KeyboardInterrupt.
        Returns whether."""
        with self._changed:
            if not self._paused:
                return False
            if self.held:
                self._interrupts += 1
                self._release()
            else:
                self._interrupted = True
            return True

    def close(self) -> None:
        """Releases everybody, for good."""
        with self._changed:
            self._closed = True
            self._release()

    def counts(self, role: str) -> bool:
        """Whether each step of this rollout has to be known of, because it is being stepped."""
        return self._paused and role == self._stepped

    def wait(self, role: str, shard: int, env_steps: int, refreshed: int) -> bool:
        """Waits at a step while the training is held there.

        Args:
            role: of the rollout.
            shard: the device's part of it.
            env_steps: of the step.
            refreshed: `refreshes` before the selection was looked at.

        Returns:
            Whether to push this step once more, for other environments are to be shown.

        Raises:
            KeyboardInterrupt: the training is to be ended.
        """
        with self._changed:
            part = self._parts.setdefault((role, shard), _Part())
            part.env_steps = env_steps
            if self._interrupted and self._paused:
                self._release()
                raise KeyboardInterrupt
            if self._pending is not None and role == self._stepped:
                self._target, self._pending = env_steps + self._pending - 1, None
                self._version += 1
            # With one more part at its step, there may be nothing on its way any more.
            self._changed.notify_all()
            if not self._must_wait(role, part):
                return False
            interrupts = self._interrupts
            part.blocked = True
            self._stand_still()
            self._changed.wait_for(
                lambda: (
                    not self._must_wait(role, part)
                    or self._refreshed != refreshed
                    or self._interrupts != interrupts
                )
            )
            again = self._must_wait(role, part)
            if not again:
                part.blocked = False
                if not any(p.blocked for p in self._parts.values()):
                    self._stand_still_no_more()
            if self._interrupts != interrupts:
                raise KeyboardInterrupt
            return again

    @property
    def refreshes(self) -> int:
        """How often `refresh` was called."""
        return self._refreshed

    def forget(self) -> None:
        """Another training begins: what is known of the last one's rollouts counts no more."""
        with self._changed:
            self._parts.clear()
            self._target, self._pending, self._until_env = 0, None, None
            self._interrupted = False
            self._version += 1

    @property
    def orders(self) -> HoldCommand:
        """What other processes that step the same training are to `obey`."""
        with self._changed:
            return HoldCommand(
                self._version,
                self._paused,
                self._target,
                self._until_env,
                self._since,
                self._stepped,
            )

    @property
    def fell(self) -> tuple[str, int] | None:
        """Rollout and step of the last termination that was waited for and has come."""
        return self._fell

    def disobey(self) -> None:
        """Whose orders were obeyed is not heard of any more: the training goes on without."""
        with self._changed:
            self._obeyed = -1
            self._release()

    def obey(self, orders: HoldCommand) -> None:
        """Does as another process's hold does, where not done already."""
        with self._changed:
            if orders.version == self._obeyed:
                return
            self._obeyed = orders.version
            if not orders.paused:
                self._release()
                return
            self._paused, self._target = True, orders.target
            self._until_env, self._since = orders.until_env, orders.since
            self._stepped, self._pending = orders.stepped, None
            self._settle()

    def parts(self) -> dict[Key, tuple[int, bool]]:
        """Of each part of a rollout: the step that it is known to be at, and whether it waits."""
        with self._changed:
            return {key: (part.env_steps, part.blocked) for key, part in self._parts.items()}

    def heard(self, parts: Mapping[Key, tuple[int, bool]], gone: Iterable[Key] = ()) -> None:
        """Another process has told of its parts, some of which may be `gone`."""
        with self._changed:
            for key in gone:
                self._parts.pop(key, None)
            for key, (env_steps, blocked) in parts.items():
                self._parts[key] = _Part(env_steps, blocked)
            self._settle()

    def _settle(self) -> None:
        """Something has changed elsewhere: who has to go on does, and the clock with them."""
        blocked = [k for k, p in self._parts.items() if p.blocked and self._must_wait(k[0], p)]
        if blocked:
            self._stand_still()
        else:
            self._stand_still_no_more()
        self._changed.notify_all()

    def _must_wait(self, role: str, part: _Part) -> bool:
        if self._closed or not self._paused:
            return False
        if role == self._stepped:
            return part.env_steps >= self._target
        stepped = [p.env_steps for (r, _), p in self._parts.items() if r == self._stepped]
        return min(stepped, default=0) >= self._target

    def _go_on(self, role: str, count: int | None, env: int | None) -> None:
        with self._changed:
            self._stepped, self._until_env = role, env
            known = self._furthest(role)
            waits = any(p.blocked for (r, _), p in self._parts.items() if r == role)
            self._since = known if waits else -1
            # Steps are known of only while it is held: where it is not, they count from the first.
            self._target = known + count if waits and count is not None else math.inf
            self._pending = None if waits else count
            self._version += 1
            self._stand_still_no_more()
            self._changed.notify_all()

    def _furthest(self, role: str) -> int:
        return max([p.env_steps for (r, _), p in self._parts.items() if r == role], default=0)

    def _release(self) -> None:
        self._paused, self._until_env, self._pending = False, None, None
        self._interrupted = False
        self._version += 1
        self._stand_still_no_more()
        self._changed.notify_all()

    def _stand_still(self) -> None:
        held, since = self._pauses
        if since is None:
            self._pauses = held, self.clock()

    def _stand_still_no_more(self) -> None:
        held, since = self._pauses
        if since is not None:
            self._pauses = held + self.clock() - since, None
