"""Counts the steps of a rollout, as its devices report them: the one count that all read."""

from dataclasses import dataclass, field

from brax_viser.records.protocol import FRESH


@dataclass(eq=False)
class ShardSteps:
    """The steps of one device's part of a rollout."""

    env_steps: int = 0  # batched steps reported so far
    skip: int = 0  # as let pass by the last answer
    went_on: int = 0  # part of env_steps: by `go_on`, since the last `count`
    idle_skip: int = 0  # as last let pass outside a stretch
    resets: int = 0


@dataclass(eq=False)
class Steps:
    """The steps of a rollout. Written with the shared state's lock held; read by any thread."""

    of: dict[int, ShardSteps] = field(default_factory=dict)  # by shard
    env_steps: int = 0  # batched steps reported so far, by any device
    told: int = 0  # batched steps already counted by the progress
    _reset_steps: list[int] = field(default_factory=lambda: [0])

    @property
    def last_reset(self) -> tuple[int, int]:
        """How often the rollout was reset, and its steps at the last reset."""
        # A copy: another device may add itself by its first call during this iteration.
        resets = max([own.resets for own in list(self.of.values())], default=0)
        return resets, self._reset_steps[resets]

    def tell(self) -> int:
        """Returns the batched steps since `tell` was last called."""
        before, self.told = self.told, self.env_steps
        return self.told - before

    def count(self, shard: int, countdown: int) -> int:
        """Adds the steps taken since a shard's last call and returns their number.

        Args:
            shard: the device.
            countdown: the state's countdown; FRESH right after a reset.
        """
        own = self.of.get(shard)
        if own is None:
            own = self.of[shard] = ShardSteps()
        if countdown == FRESH:
            # The number of granted steps taken before the reset is unknown: none is counted. All
            # shards are reset at the same step and must agree on its number.
            own.resets += 1
            if own.resets == len(self._reset_steps):
                self._reset_steps.append(self.env_steps)
            own.env_steps, steps = self._reset_steps[own.resets] + 1, 1
        else:
            # The countdown is above 0 when the device calls early because something turned NaN.
            early = countdown if 0 < countdown <= own.skip else 0
            steps = own.skip + 1 - early
            own.env_steps += steps
            steps += own.went_on
        own.went_on = 0
        if own.env_steps > self.env_steps:
            self.env_steps = own.env_steps
        return steps

    def go_on(self, own: ShardSteps) -> None:
        """Counts one more step of a shard, in place of `count`."""
        own.env_steps += 1
        own.went_on += 1
        if own.env_steps > self.env_steps:
            self.env_steps = own.env_steps
