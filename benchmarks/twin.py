"""How far MuJoCo gets from each Brax environment's own physics, given the same controls.

python -m benchmarks.twin
"""

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax import envs

from brax_viser.adapters import Adapter, adapter_for
from brax_viser.frame import COORDINATES, Coordinates, Frame
from brax_viser.twin import DRIFT_LIMIT, Twins

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
"""All of Brax that have a robot: `fast` has none."""

NUM_ENVS, STEPS, SEED = 16, 50, 0


@dataclass(frozen=True, eq=False)
class Drift:
    """Of several environments, over consecutive steps: arrays [T, N]."""

    seconds: np.ndarray  # s since both were the same
    root: np.ndarray  # m
    bodies: np.ndarray  # m
    joints: np.ndarray  # rad
    worst: np.ndarray  # m, of all links
    passed: np.ndarray  # s after which the threshold was passed; inf: not yet
    touches: np.ndarray  # bool, whether MuJoCo has found any contact so far


def frames_of(
    env: Any, adapter: Adapter, steps: int, num_envs: int, *, seed: int = SEED, scale: float = 1.0
) -> Iterator[Frame]:
    """What environments do under random actions, each held for five steps.

    Args:
        env: is stepped without a trainer.
        adapter: of it.
        steps: how many.
        num_envs: how many of it, at once.
        seed: of resets and actions.
        scale: of actions, which are within it.
    """

    def step(state: Any, action: jax.Array) -> tuple[Any, dict[str, Any]]:
        state, ctrl = adapter.step(env, state, action)
        fields = adapter.detail(state, action, ctrl)
        return state, {
            **adapter.payload(state),
            **{k: fields[k] for k in COORDINATES if k in fields},
        }

    keys = jax.random.split(jax.random.PRNGKey(seed), num_envs)
    state, step = jax.jit(jax.vmap(env.reset))(keys), jax.jit(jax.vmap(step))
    rng = np.random.default_rng(seed)
    size = env.action_size
    none = np.zeros(num_envs, np.float32)
    action = none
    for number in range(1, steps + 1):
        if number % 5 == 1:
            action = rng.uniform(-scale, scale, (num_envs, size)).astype(np.float32)
        state, fields = step(state, jnp.asarray(action))
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
            coordinates=Coordinates(*(host.get(name) for name in COORDINATES)),  # type: ignore[arg-type]
        )


def drift_of(env: Any, *, steps: int = STEPS, num_envs: int = NUM_ENVS, **how: Any) -> Drift:
    """Steps an environment and its twins.

    Args:
        env: whose.
        steps: after the one from which the twins start.
        num_envs: how many.
        how: see `frames_of`.

    Raises:
        ValueError: the control that goes to the physics is not known.
    """
    adapter = adapter_for(env)
    twins = Twins(adapter.mujoco_model(), adapter.substeps, lags=adapter.native)
    rows, found, worst, touches = range(num_envs), [], [], []
    try:
        for frame in frames_of(env, adapter, steps + 1, num_envs, **how):
            assert frame.coordinates is not None
            if frame.coordinates.ctrl is None and adapter.mj_model.nu:
                raise ValueError(f"{adapter.name}: its control is not known")
            ghost = twins.follow(frame, rows, {})
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
    """One line of the table."""
    last = [np.nanmedian(getattr(drift, n)[-1]) for n in ("root", "bodies", "joints")]
    passed = drift.passed[-1]
    kept = np.isinf(passed).mean()
    when = f"{np.median(passed[np.isfinite(passed)]):.2f}" if kept < 1 else "-"
    touched = drift.touches[-1].mean()
    return (
        f"| {name} | {backend} | {drift.seconds[-1].max():.2f} | {last[0]:.2g} | {last[1]:.2g} | "
        f"{'-' if np.isnan(last[2]) else f'{last[2]:.2g}'} | {1 - kept:.0%} | {when} | {touched:.0%} |"
    )


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
        f"threshold {DRIFT_LIMIT} m of the mean over all links"
    )
    print("| Env | Backend | s | Root, m | Links, m | Joints, rad | Passed | After, s | Touched |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.envs:
        for backend in args.backends:
            try:
                env = envs.get_environment(name, backend=backend)
            except (ValueError, NotImplementedError) as error:
                print(f"| {name} | {backend} | not of Brax: {str(error).splitlines()[0][:60]} |")
                continue
            drift = drift_of(env, steps=args.steps, num_envs=args.num_envs)
            print(line_of(name, backend, drift), flush=True)


if __name__ == "__main__":
    main()
