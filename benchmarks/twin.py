"""Measures how far MuJoCo drifts from each Brax environment's physics under the same controls.

python -m benchmarks.twin
"""

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax import envs

from brax_viser.device.adapters import adapter_for
from brax_viser.records.frame import COORDINATES, Coordinates, Frame
from brax_viser.twins.twins import DRIFT_LIMIT, Twins

BACKENDS = ("mjx", "generalized", "spring", "positional")
ENVS = (
    "ant",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "swimmer",
    "walker2d",
)
"""All of Brax's environments that have a robot: `fast` has none."""

NUM_ENVS, STEPS, EARLY, SEED = 16, 50, 10, 0


@dataclass(frozen=True, eq=False)
class Drift:
    """The drift of several environments over consecutive steps: arrays [T, N]."""

    seconds: np.ndarray  # s since both were equal
    root: np.ndarray  # m
    bodies: np.ndarray  # m
    joints: np.ndarray  # rad
    worst: np.ndarray  # m, the worst of all links
    passed: np.ndarray  # s after which the threshold was passed; inf: not yet
    touches: np.ndarray  # bool, whether MuJoCo has found any contact so far


class Stepped:
    """An environment that is stepped without a trainer, compiled once."""

    def __init__(self, env: Any):
        self.env, self.adapter = env, adapter_for(env)
        adapter = self.adapter

        def reset(key: jax.Array, lift: jax.Array) -> Any:
            state = env.reset(key)
            if mujoco.mjtJoint.mjJNT_FREE.value not in adapter.mj_model.jnt_type:
                return state
            old = state.pipeline_state
            return state.replace(pipeline_state=env.pipeline_init(old.q.at[2].add(lift), old.qd))

        def step(state: Any, action: jax.Array) -> tuple[Any, dict[str, Any]]:
            state, ctrl = adapter.step(env, state, action)
            fields = adapter.detail(state, action, ctrl)
            known = {name: fields[name] for name in COORDINATES if name in fields}
            return state, {**adapter.payload(state), **known}

        self._reset = jax.jit(jax.vmap(reset, in_axes=(0, None)))
        self._step = jax.jit(jax.vmap(step))

    def frames(
        self, steps: int, num_envs: int, *, seed: int = SEED, lift: float = 0.0
    ) -> Iterator[Frame]:
        """Yields a frame per step under random actions, each kept for five steps.

        Args:
            steps: number of steps.
            num_envs: number of environments.
            seed: seed of resets and actions.
            lift: m by which robots with a free joint are lifted before the start.
        """
        state = self._reset(jax.random.split(jax.random.PRNGKey(seed), num_envs), lift)
        rng, none = np.random.default_rng(seed), np.zeros(num_envs, np.float32)
        action = none
        for number in range(1, steps + 1):
            if number % 5 == 1:
                action = rng.uniform(-1, 1, (num_envs, self.env.action_size)).astype(np.float32)
            state, fields = self._step(state, jnp.asarray(action))
            host = {name: np.asarray(value, np.float32) for name, value in fields.items()}
            yield Frame(
                role="train",
                env_steps=number,
                env_index=np.arange(num_envs, dtype=np.int32),
                num_envs=num_envs,
                link_pos=host["link_pos"],
                link_rot=host["link_rot"],
                reward=host["reward"],
                episode_return=none,
                episode_length=np.full(num_envs, number, np.int32),
                since_termination=np.full(num_envs, number, np.int32),
                finite=np.ones(num_envs, bool),
                coordinates=Coordinates.of(host),
            )

    def drift(self, steps: int = STEPS, num_envs: int = NUM_ENVS, **how: Any) -> Drift:
        """Returns how far the environment's twins drift from it.

        Args:
            steps: number of steps after the one from which the twins start.
            num_envs: number of environments.
            how: further arguments of `frames`.

        Raises:
            ValueError: the control that goes to the physics is not known.
        """
        adapter, rows = self.adapter, range(num_envs)
        twins = Twins(adapter.mujoco_model(), adapter.substeps, lags=adapter.native)
        found, worst, touches = [], [], []
        try:
            for frame in self.frames(steps + 1, num_envs, **how):
                assert frame.coordinates is not None
                if frame.coordinates.ctrl is None and adapter.mj_model.nu:
                    raise ValueError(f"{adapter.name}: its control is not known")
                (ghost,) = twins.follow([frame], rows, {})
                found.append(ghost)
                worst.append(np.linalg.norm(ghost.link_pos - frame.link_pos, axis=-1).max(axis=-1))
                touches.append(twins.touching(rows))
        finally:
            twins.close()
        names = ("seconds", "root", "bodies", "joints", "passed")
        values = {name: np.stack([getattr(ghost, name) for ghost in found[1:]]) for name in names}
        ever = np.logical_or.accumulate(np.stack(touches), axis=0)[1:]
        return Drift(**values, worst=np.stack(worst)[1:], touches=ever)


def line_of(name: str, backend: str, drift: Drift) -> str:
    """Returns one line of the table."""
    early, last = min(EARLY, len(drift.root)) - 1, len(drift.root) - 1

    def median(measure: str, step: int) -> str:
        values = getattr(drift, measure)[step]
        known = values[np.isfinite(values)]
        return f"{np.median(known):.1e}" if len(known) else "-"

    passed = drift.passed[-1]
    parted = np.isfinite(passed)
    when = f"{np.median(passed[parted]):.2f}" if parted.any() else "-"
    cells = (
        name,
        backend,
        median("bodies", early),
        median("root", last),
        median("bodies", last),
        median("joints", last),
        f"{parted.sum()} of {len(parted)}",
        when,
        f"{drift.touches[-1].mean():.0%}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", nargs="+", default=ENVS, choices=ENVS)
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--num-envs", type=int, default=NUM_ENVS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Brax System")
    print(
        f"{args.num_envs} envs each, {args.steps} steps of random actions, median over the envs; "
        f"parted: {DRIFT_LIMIT} m or more, the mean over all links"
    )
    head = (
        "Env",
        "Backend",
        f"Links after {EARLY}, m",
        "Root, m",
        "Links, m",
        "Joints, rad",
        "Parted",
        "After, s",
        "Touched",
    )
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name in args.envs:
        for backend in args.backends:
            try:
                env = envs.get_environment(name, backend=backend)
            except (ValueError, NotImplementedError) as error:
                print(f"| {name} | {backend} | not of Brax: {str(error).splitlines()[0][:60]} |")
                continue
            drift = Stepped(env).drift(args.steps, args.num_envs)
            print(line_of(name, backend, drift), flush=True)


if __name__ == "__main__":
    main()
