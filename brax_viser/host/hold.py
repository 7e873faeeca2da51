"""Holds the training at a step and advances it by steps, like a debugger."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from brax_viser.host.steps import ShardSteps

Key = tuple[str, int]
"""(role, shard): one device's part of a rollout."""


@dataclass(frozen=True)
class HoldCommand:
    """The state of the hold that all processes of one training must adopt."""

    version: int = 0  # grows with each change; each version is obeyed only once
    paused: bool = False
    target: float = 0
    until_env: int | None = None
    since: float = -1
    stepped: str = "train"
    raises: bool = True


@dataclass
class _Part:
    """How far one device's part of a rollout is, and whether it waits."""

    steps: ShardSteps  # in this process, those that its calls count
    blocked: bool = False


@dataclass
class Hold:
    """Where the training must wait. XLA's threads call `wait`; any thread calls the rest.

    Steps are counted in one rollout, the one that is shown; the other rollout runs freely while a
    step is under way, and otherwise waits as well. All devices stop at the same step: those that
    wait go on to the step of a device that turns out to be further. Between these steps there may
    be a collective, in which the further device waits for the others; NCCL and XLA give up after a
    while.
    """

    clock: Callable[[], float] = time.monotonic
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _paused: bool = False
    _target: float = 0  # step of the stepped rollout at which its parts wait
    _raises: bool = True  # whether a part that is further raises the target
    _sharded: set[str] = field(default_factory=set)  # roles of which several devices have parts
    _pending: int | None = None  # steps to take, counted from the first call of `wait`
    _until_env: int | None = None  # continue until this environment next terminates
    _since: float = -1  # that termination must come after this step
    _stepped: str = "train"
    _parts: dict[Key, _Part] = field(default_factory=dict)
    _refreshed: int = 0
    _interrupts: int = 0
    _interrupted: bool = False  # the next call of `wait` ends the training
    _closed: bool = False
    fell: tuple[str, int] | None = None  # rollout and step of the last awaited termination
    _version: int = 0  # of the orders that are given
    _obeyed: int = -1  # version of the last orders obeyed
    # (s held in total, up to the last release; s, start of the current hold, or None). A pair, so
    # it can be read without the lock: each call from the device reads the clock several times.
    _pauses: tuple[float, float | None] = (0.0, None)

    def training_clock(self) -> float:
        """Returns the time, in s, of a clock that stands still while the training is held."""
        held, since = self._pauses
        return (self.clock() if since is None else since) - held

    @property
    def paused(self) -> bool:
        """Whether the training must stop, or may only advance by steps."""
        return self._paused

    @property
    def held(self) -> bool:
        """Whether the training is standing still."""
        return self._pauses[1] is not None

    @property
    def until_env(self) -> int | None:
        """The environment until whose next termination the training continues, if any."""
        return self._until_env

    def pause(self, role: str = "train", *, here: bool = False) -> None:
        """Holds the training at the next step of the furthest device, or where each device next
        calls if that must be `here`; `step` counts steps of `role`."""
        with self._changed:
            # A hold at a NaN stays one: its device must not go on.
            self._raises = not here and (self._raises or not self._paused)
            self._paused, self._target, self._until_env = True, 0, None
            self._stepped, self._pending = role, None
            self._version += 1
            # A shard that was released but has not woken up yet stays held.
            self._raise()
            self._settle()

    def resume(self) -> None:
        """Lets the training continue."""
        with self._changed:
            self._release()

    def step(self, count: int = 1, role: str = "train") -> None:
        """Advances a held training by `count` steps of a rollout, then holds it again; a running
        training is only held."""
        if not self._paused:
            self.pause(role)
            return
        self._go_on(role, count, None)

    def run_to_termination(self, env: int, role: str = "train") -> None:
        """Continues until `terminated` reports that this environment's episode has ended."""
        self.pause(role)
        self._go_on(role, None, env)

    def terminated(self, role: str, env_steps: int) -> None:
        """Holds again: the awaited environment has ended its episode with this step."""
        with self._changed:
            if role != self._stepped or self._until_env is None or env_steps <= self._since:
                return
            self.fell = role, env_steps
            # Other devices may be further along.
            self._target, self._until_env = max(env_steps, self._furthest(role)), None
            self._version += 1

    def refresh(self) -> None:
        """Has the waiting shards push their step again, as other environments must be shown."""
        with self._changed:
            self._refreshed += 1
            self._changed.notify_all()

    def interrupt(self) -> bool:
        """Ends the training if it is held or about to be, by a KeyboardInterrupt in `wait`.
        Returns whether it does."""
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
        """Releases all shards; none is held again."""
        with self._changed:
            self._closed = True
            self._release()

    def counts(self, role: str) -> bool:
        """Whether each step of this rollout must be reported, because it is being stepped."""
        return self._paused and role == self._stepped

    def wait(
        self, role: str, shard: int, steps: ShardSteps, refreshed: int, *, sharded: bool = False
    ) -> bool:
        """Waits at a step while the training is held there.

        Args:
            role: the rollout.
            shard: the device's part of it.
            steps: the part's steps: `env_steps` is the number of this one.
            refreshed: `refreshes` as read before the selection was.
            sharded: whether several devices, which must stop at the same step, have a part each.

        Returns:
            Whether to push this step again, because other environments must be shown.

        Raises:
            KeyboardInterrupt: the training must end.
        """
        with self._changed:
            part = self._parts.setdefault((role, shard), _Part(steps))
            part.steps = steps
            if sharded:
                self._sharded.add(role)
            if self._interrupted and self._paused:
                self._release()
                raise KeyboardInterrupt
            if self._pending is not None and role == self._stepped:
                self._target, self._pending = steps.env_steps + self._pending - 1, None
                self._version += 1
            self._raise((role, shard))
            # The threads that wait check again: this part may have been the last one under way.
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
        """Forgets the parts and the target of the last training: another one begins."""
        with self._changed:
            self._parts.clear()
            self._sharded.clear()
            self._target, self._pending, self._until_env = 0, None, None
            self._interrupted = False
            self._version += 1

    @property
    def orders(self) -> HoldCommand:
        """The command that the training's other processes must `obey`."""
        with self._changed:
            return HoldCommand(
                self._version,
                self._paused,
                self._target,
                self._until_env,
                self._since,
                self._stepped,
                self._raises,
            )

    def disobey(self) -> None:
        """Lets the training continue: contact with the leader is lost."""
        with self._changed:
            self._obeyed = -1
            self._release()

    def obey(self, orders: HoldCommand) -> None:
        """Adopts the state of another process's hold, once per version."""
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
            self._raises = orders.raises
            self._settle()

    def parts(self) -> dict[Key, tuple[int, bool]]:
        """Returns, for each part of a rollout, its last known step and whether it waits."""
        with self._changed:
            return {key: (part.steps.env_steps, part.blocked) for key, part in self._parts.items()}

    def heard(self, parts: Mapping[Key, tuple[int, bool]], gone: Iterable[Key] = ()) -> None:
        """Adopts what another process reports of its parts, and drops the `gone` ones."""
        with self._changed:
            for key in gone:
                self._parts.pop(key, None)
            for key, (env_steps, blocked) in parts.items():
                self._parts[key] = _Part(ShardSteps(env_steps), blocked)
            self._raise()
            self._settle()

    def _settle(self) -> None:
        """Re-evaluates, after a change, which shards must wait, and the training clock."""
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
            return part.steps.env_steps >= self._target
        stepped = [p.steps.env_steps for (r, _), p in self._parts.items() if r == self._stepped]
        return min(stepped, default=0) >= self._target

    def _go_on(self, role: str, count: int | None, env: int | None) -> None:
        with self._changed:
            self._stepped, self._until_env, self._raises = role, env, True
            known = self._furthest(role)
            waits = any(p.blocked for (r, _), p in self._parts.items() if r == role)
            self._since = known if waits else -1
            # The step is known only while a part waits; otherwise count from the next `wait`.
            self._target = known + count if waits and count is not None else math.inf
            self._pending = None if waits else count
            self._version += 1
            self._stand_still_no_more()
            self._changed.notify_all()

    def _raise(self, key: Key | None = None) -> None:
        """Has the waiting devices go on to the step of the furthest; `key` is about to wait too."""
        at = [
            part.steps.env_steps
            for other, part in self._parts.items()
            if other[0] == self._stepped and (part.blocked or other == key)
        ]
        may = self._paused and self._raises and self._stepped in self._sharded
        if may and max(at, default=0) > self._target:
            self._target = max(at)
            self._version += 1

    def _furthest(self, role: str) -> int:
        return max([p.steps.env_steps for (r, _), p in self._parts.items() if r == role], default=0)

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
