"""Runs policies from one start, each in a separate MuJoCo simulation, and keeps what they did as
episodes.

Unlike a sandbox these do not run by the clock, so that they can be played at any speed, back and
forth, as recorded episodes are. JAX is imported when they run, not with this module.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from brax_viser.records.environment import Environment
from brax_viser.records.episode import Episode, Summary
from brax_viser.records.frame import COORDINATES, Detail
from brax_viser.sandbox.trained import Trained

if TYPE_CHECKING:  # these modules import JAX, which would delay the page
    from brax_viser.sandbox.simulation import Pose, Sandbox

TRIAL_SECONDS = 10.0
"""s of robot time after which a trial ends, if the environment has not ended it before."""


class PolicyStore(Protocol):
    """Kept policies of one training."""

    def steps(self) -> tuple[int, ...]:
        """Returns the env steps that each policy was trained for, ascending. Called on viser's
        loop."""
        ...

    def get(self, num_steps: int) -> Trained:
        """Returns a policy. Called on any thread.

        Raises:
            KeyError: it is not kept any more.
            ValueError: it cannot be used; the message says why.
        """
        ...

    def environment(self) -> Environment | None:
        """Returns an environment that the policies can drive; None: the one on screen. Called on
        any thread, and may take seconds.

        Raises:
            ValueError: it cannot be made; the message says why.
        """
        ...


def read(env: Any) -> Environment:
    """Reads an environment of Brax or MuJoCo Playground, for `PolicyStore.environment`.

    Raises:
        TypeError, ValueError: as `VisualizedEnv` does.
    """
    from brax_viser.device.adapters import adapter_for

    return adapter_for(env)


@dataclass(frozen=True, eq=False)
class Start:
    """The state that all policies of a trial begin with."""

    env: int  # index of the environment that is shown
    own: Mapping[str, np.ndarray]  # fields in which its model differs from the shared one
    detail: Detail | None = None  # None: what the environment's own reset returns


@dataclass(frozen=True, eq=False)
class Trial:
    """What two policies did from the same start."""

    policies: tuple[str, str]  # as they were chosen, such as "Newest"
    episodes: tuple[Episode, Episode]


class Stage:
    """An environment whose policies can be tried. One thread calls all methods."""

    def __init__(self, environment: Environment):
        """Copies the environment.

        Raises:
            ValueError: its code cannot be run on MuJoCo; the message says why.
        """
        from brax_viser.sandbox.transplant import Transplant

        self.environment = environment
        self._transplant: Transplant = Transplant(environment)  # type: ignore[arg-type]

    def try_out(
        self,
        policies: Sequence[Trained],
        start: Start,
        seed: int,
        *,
        seconds: float = TRIAL_SECONDS,
        given_up: Callable[[], bool] = lambda: False,
    ) -> list[Episode]:
        """Runs each policy, deterministic where it can be, until the environment ends the episode.

        Args:
            policies: at least one.
            start: the state that all begin with.
            seed: of the reset, and of the random numbers of policies and environment: the same for
                all.
            seconds: the longest an episode may be, s of robot time.
            given_up: whether the result is not wanted any more; asked after each step.

        Returns:
            An episode for each policy; fewer if it was given up.

        Raises:
            ValueError: the environment's code cannot be run on MuJoCo, or the start is of another
                model.
        """
        from brax_viser.model.physics import varied
        from brax_viser.sandbox.simulation import Sandbox
        from brax_viser.sandbox.transplant import Policy

        environment, detail = self.environment, start.detail or self._reset(start.env, seed)
        model = varied(environment.mujoco_model(), start.own)
        repeat = environment.repeat
        substeps = max(environment.substeps // repeat, 1)
        found = []
        for trained in policies:
            sandbox = Sandbox(
                model, substeps, repeat=repeat, transplant=self._transplant, seed=seed
            )
            sandbox.policy = Policy(trained.make_policy, trained.params)
            sandbox.fork((detail,), info=detail.info)
            if sandbox.driver != "policy":
                raise ValueError(sandbox.no_policy or "no policy can drive this environment")
            poses = _run(sandbox, round(seconds / sandbox.dt), given_up)
            if given_up():
                break
            found.append(_episode(poses, trained.num_steps, start, sandbox.dt))
        return found

    def _reset(self, env: int, seed: int) -> Detail:
        """Returns the first state of an episode, by the environment's own reset."""
        import jax

        adapter: Any = self.environment

        def first(key: jax.Array) -> dict[str, Any]:
            state = self._transplant.env.reset(key)
            return adapter.detail(state, None, info=state.info)

        device = self._transplant.device
        with jax.default_device(device):
            fields = jax.jit(first)(jax.device_put(jax.random.PRNGKey(seed), device))
        return Detail.of(env, {name: np.asarray(x, np.float32) for name, x in fields.items()})


def _run(sandbox: "Sandbox", most_steps: int, given_up: Callable[[], bool]) -> list["Pose"]:
    """Returns the start and what follows, until the episode ends or the simulation diverges."""
    poses = [sandbox.pose]
    while len(poses) <= most_steps and not (poses[-1].done or given_up()):
        pose = sandbox.step()
        if pose.trouble is not None:  # and nothing has moved
            if len(poses) == 1:
                raise ValueError(pose.trouble)
            poses[-1] = dataclasses.replace(poses[-1], trouble=pose.trouble)
            break
        poses.append(pose)
    return poses


def _episode(poses: Sequence["Pose"], num_steps: int, start: Start, dt: float) -> Episode:
    """Makes an episode of the poses of a trial."""
    last, steps = poses[-1], poses[1:]
    reward = np.array([pose.reward for pose in steps], np.float32)
    known = {"reward": reward}
    for name in ("action", *COORDINATES):
        values = [getattr(pose.detail, name) for pose in steps]
        if name not in ("qpos", "qvel") and values[0] is not None and values[0].size:
            known[name] = np.stack(values)
    ended = "terminated" if last.done else "nonfinite" if last.trouble else "truncated"
    total = float(reward.sum(dtype=np.float32))
    return Episode(
        Summary(num_steps, start.env, num_steps, 0.0, len(steps), total, ended, ("random",)),
        dt,
        qpos=np.stack([pose.detail.qpos for pose in poses]),
        qvel=np.stack([pose.detail.qvel for pose in poses]),
        link_pos=np.stack([pose.link_pos for pose in poses]),
        link_rot=np.stack([pose.link_rot for pose in poses]),
        steps=known,
        model=dict(start.own),
    )
