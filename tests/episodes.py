"""Episodes and trainings made up for tests."""

from collections.abc import Iterable
from pathlib import Path

import mujoco
import numpy as np

from brax_viser.records.episode import Episode, RunInfo, Summary
from brax_viser.runs.folder import RunFolder

POLE = """
<mujoco>
  <worldbody>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0"/>
      <geom size="0.1"/>
      <body name="pole">
        <joint axis="0 1 0"/>
        <geom type="capsule" size="0.02" fromto="0 0 0 0 0 0.6"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slide"/></actuator>
</mujoco>
"""


def run_info(env: str = "Pole", **changes) -> RunInfo:
    """Returns a training of a cart with a pole."""
    model = mujoco.MjModel.from_xml_string(POLE)
    common = dict(env=env, backend="mjx", dt=0.02, num_envs=8, mj_model=model, trainer="PPO")
    return RunInfo(**{**common, "started": 1.7e9, **changes})


def episode(
    recording: int, env: int = 0, *, episode_return: float = 0.0, length: int = 5
) -> Episode:
    """Returns an episode of random numbers, which differ for each recording and env."""
    rng = np.random.default_rng([recording, env])

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return Episode(
        Summary(
            recording, env, recording + 3, 1.5, length, episode_return, "terminated", ("fell",)
        ),
        dt=0.02,
        qpos=numbers(length + 1, 2),
        qvel=numbers(length + 1, 2),
        link_pos=numbers(length + 1, 2, 3),
        link_rot=numbers(length + 1, 2, 4),
        steps={"reward": numbers(length), "metrics/a/b": numbers(length)},
    )


def written(path: Path, recordings: Iterable[int] = (10, 20), *, length: int = 5) -> None:
    """Writes a run directory with two episodes for each recording, two policies and a curve, unless
    it is there; `length` is that of an episode, in steps of 0.02 s."""
    if path.exists():
        return
    run = RunFolder(path, run_info())
    for i in recordings:
        run.add([episode(i, env, length=length) for env in range(2)])
        run.add_policy(i, {"1/params/hidden_0/bias": np.full(8, i, np.float32)})
    run.set_curves({"eval/episode_reward": np.arange(6.0).reshape(3, 2)})
    assert run.close()
    assert run.problem is None
