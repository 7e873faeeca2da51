"""Tests twins in MuJoCo: how closely they follow the training's physics, and what they report."""

import contextlib
import dataclasses
import functools
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import viser
from brax import envs
from brax.envs.wrappers.training import VmapWrapper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mujoco import mjx

from benchmarks.twin import Stepped
from brax_viser import Viewer, VisualizedEnv
from brax_viser.device import host_call
from brax_viser.device.adapters import adapter_for
from brax_viser.host.pacing import Pacer
from brax_viser.model.grid import grid_of
from brax_viser.model.physics import varied
from brax_viser.model.robot import Model
from brax_viser.model.rotations import angle_between
from brax_viser.page.channels import TWIN_LEISURE
from brax_viser.page.playback import Player
from brax_viser.panel.twins import PLOT_EVERY, TwinFolder
from brax_viser.panel.widgets import PanelTools
from brax_viser.process import MORE
from brax_viser.processes import messages
from brax_viser.records.frame import Coordinates, Frame, Ghost, joined
from brax_viser.records.view import View, beside
from brax_viser.scene.ghosts import Ghosts
from brax_viser.twins.drift import GAP_SECONDS, MOST_POINTS, DriftLog
from brax_viser.twins.twins import Twins
from brax_viser.twins.worker import MOST_AT_ONCE, Simulated, TwinSettings, TwinWorker
from tests.conftest import Page, eventually
from tests.sample import SwiftCartPole
from tests.support import Probe
from tests.test_detail import NUM_ENVS, Rollout, suite_env
from tests.toy import Toy

AIR = 100.0  # m: higher than an ant falls within 50 steps


def env_of(name: str, backend: str) -> Any:
    return envs.get_environment(name, backend=backend)


def ant_with_its_own_solver() -> Any:
    """Returns an ant on mjx with the solver iterations of its model file. Brax's environment allows
    only one, after which rounding alone decides where a limit is met."""
    env, made = env_of("ant", "mjx"), env_of("ant", "generalized").sys.mj_model.opt
    how = {"opt.iterations": made.iterations, "opt.ls_iterations": made.ls_iterations}
    env.sys = env.sys.tree_replace(how)
    return env


@pytest.fixture(scope="module")
def stepped() -> Stepped:
    return Stepped(ant_with_its_own_solver())


@pytest.fixture(scope="module")
def ants() -> tuple[Any, list[Frame]]:
    """Returns (adapter, frames of 40 steps of 4 ants on the ground), stepped by MuJoCo, which needs
    no compilation: as after `mjx.step`, poses are those at the start of the last substep."""
    adapter = adapter_for(ant_with_its_own_solver())
    model, rng, none = adapter.mujoco_model(), np.random.default_rng(0), np.zeros(4, np.float32)
    robots = [mujoco.MjData(model) for _ in none]
    for data in robots:
        data.qpos[:] = adapter.init_qpos + rng.uniform(-0.1, 0.1, model.nq)
    frames = []
    for number in range(1, 41):
        for data in robots:
            if number % 5 == 1:
                data.ctrl[:] = rng.uniform(-1, 1, model.nu)
            mujoco.mj_step(model, data, adapter.substeps)
        of = {x: np.stack([getattr(d, x) for d in robots]) for x in ("qpos", "qvel", "ctrl")}
        pos, rot = (np.float32([getattr(d, x)[1:] for d in robots]) for x in ("xpos", "xquat"))
        counted = np.full(4, number, np.int32)
        frames.append(
            Frame(
                role="train",
                env_steps=number,
                env_index=np.arange(4, dtype=np.int32),
                num_envs=4,
                link_pos=pos,
                link_rot=rot,
                reward=none,
                episode_return=none,
                episode_length=counted,
                since_termination=counted,
                finite=np.ones(4, bool),
                coordinates=Coordinates.of(of),
            )
        )
    return adapter, frames


@pytest.fixture
def twins(ants):
    made = []

    def make(adapter: Any = ants[0], **kwargs: Any) -> Twins:
        twins = Twins(adapter.mujoco_model(), adapter.substeps, lags=adapter.native, **kwargs)
        made.append(twins)
        return twins

    yield make
    for twins in made:
        twins.close()


def test_without_contact_mjx_and_twin_agree_to_a_millimetre_over_50_steps(stepped, capsys):
    """Covers eight motors and a free joint, with MJX's solver, integrator and time step."""
    drift = stepped.drift(50, 4, lift=AIR)
    assert not drift.touches.any()
    assert drift.seconds[-1, 0] == pytest.approx(50 * 0.05)
    with capsys.disabled():
        print(f"\nin the air, 50 steps: {drift.worst.max():.1e} m, {drift.joints.max():.1e} rad")
    assert drift.worst.max() < 1e-3
    assert drift.joints.max() < 1e-3
    assert np.isinf(drift.passed).all()


def test_with_contact_twins_part_slowly_and_pass_the_threshold_once(stepped, twins, capsys):
    """MJX and MuJoCo solve the same problem, but legs that hit the ground amplify differences."""
    twin_worker = twins(stepped.adapter)
    frames = stepped.frames(40, 4)
    ghosts = [twin_worker.follow([frame], range(3), {})[0] for frame in frames]
    worst = np.array([np.nanmax(ghost.bodies) for ghost in ghosts])
    with capsys.disabled():
        at = {steps: f"{worst[steps]:.1e}" for steps in (1, 5, 10, 20, 39)}
        print(f"\non the ground, m after so many steps: {at}")
    assert twin_worker.touching(range(3)).any() or worst[10] > 0
    assert worst[:6].max() < 1e-3
    assert (np.diff([ghost.seconds[0] for ghost in ghosts]) > 0).all()
    for env in range(3):
        passed = np.array([ghost.passed[env] for ghost in ghosts])
        parted = np.array([ghost.bodies[env] > twin_worker.limit for ghost in ghosts])
        if parted.any():
            first = int(np.argmax(parted))
            assert np.isinf(passed[:first]).all()
            assert (passed[first:] == pytest.approx(ghosts[first].seconds[env])).all()
        else:
            assert np.isinf(passed).all()


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("substeps", [1, 3])
def test_twins_take_the_steps_that_mujoco_takes(ants, substeps, lags):
    """Follows MuJoCo itself: an ant in the air. `mj_step` leaves the links' poses at those before
    its step."""
    model = ants[0].mujoco_model()
    data, rng, frames = mujoco.MjData(model), np.random.default_rng(0), []
    data.qpos[2] = 5.0
    for frame in ants[1][:12]:
        data.ctrl[:] = rng.uniform(-1, 1, model.nu)
        mujoco.mj_step(model, data, substeps)
        if not lags:
            mujoco.mj_kinematics(model, data)
        now = Coordinates.of({x: getattr(data, x)[None].copy() for x in ("qpos", "qvel", "ctrl")})
        pos, rot = (x[None, 1:].astype(np.float32) for x in (data.xpos, data.xquat))
        known = {"env_index": np.zeros(1, np.int32), "link_pos": pos, "link_rot": rot}
        frames.append(dataclasses.replace(frame, coordinates=now, **known))
    for size in (1, 4, 12):
        twins = Twins(model, substeps, lags=lags)
        starts = range(0, len(frames), size)
        ghosts = [x for at in starts for x in twins.follow(frames[at : at + size], [0], {})]
        twins.close()
        seconds = substeps * model.opt.timestep * np.arange(len(frames))
        np.testing.assert_allclose([ghost.seconds[0] for ghost in ghosts], seconds, rtol=1e-6)
        assert max(ghost.bodies[0] for ghost in ghosts) < 1e-5
        assert max(ghost.joints[0] for ghost in ghosts) < 1e-5


def test_a_twin_has_the_changes_that_the_environments_code_made():
    adapter = adapter_for(env_of("humanoid", "positional"))
    model, made = adapter.mujoco_model(), adapter.mj_model
    assert (model.opt.timestep, adapter.substeps) == (pytest.approx(0.0015), 10)
    np.testing.assert_allclose(model.actuator_gear[:, 0], adapter.base.sys.actuator.gear)
    assert model.actuator_gear[0, 0] == 350 and made.actuator_gear[0, 0] == 100
    assert made.opt.timestep == pytest.approx(0.003)  # the caller's own model is unchanged
    fast = adapter_for(env_of("ant", "mjx"))
    assert (fast.mujoco_model().opt.iterations, fast.mj_model.opt.iterations) == (1, 4)


@pytest.mark.parametrize("backend", ["mjx", "generalized", "spring", "positional"])
def test_the_control_is_the_input_of_the_physics(backend):
    """The pendulum's environment scales actions of -1 to 1 to controls of -3 to 3."""
    env = env_of("inverted_pendulum", backend)
    adapter = adapter_for(env)
    given = []

    def step(state, action):
        state, ctrl = adapter.step(env, state, action)
        return state, adapter.detail(state, action, ctrl)["ctrl"]

    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 2))
    for action in ([[0.5], [-1.0]], [[0.1], [0.0]]):
        state, ctrl = jax.jit(jax.vmap(step))(state, jnp.array(action))
        given.append(np.asarray(ctrl))
    np.testing.assert_allclose(given, [[[1.5], [-3.0]], [[0.3], [0.0]]], rtol=1e-6)
    assert "pipeline_step" not in vars(env)


@pytest.mark.parametrize("where", ["inside a vmap", "twice"])
def test_a_control_that_cannot_be_seen_is_not_invented_and_can_be_given(where):
    class Twice(type(env_of("inverted_pendulum", "spring"))):  # type: ignore[misc]
        def step(self, state, action):
            return super().step(super().step(state, action), action)

    bare = env_of("inverted_pendulum", "spring")
    env = VmapWrapper(bare) if where == "inside a vmap" else Twice(backend="spring")
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    for ctrl_fn in (None, lambda action: 3.0 * action):
        adapter = adapter_for(env, ctrl_fn)
        if where == "twice":
            state = jax.jit(jax.vmap(env.reset))(keys)
            step = functools.partial(adapter.step, env)
            _, ctrl = jax.vmap(step)(state, jnp.ones((2, 1)))
        else:
            _, ctrl = adapter.step(env, env.reset(keys), jnp.ones((2, 1)))
        assert (ctrl is None) if ctrl_fn is None else (np.asarray(ctrl) == 3.0).all()


def test_a_reset_within_a_stretch_or_a_missing_step_restarts_a_twin(ants, twins):
    frames, twin_worker, seen = ants[1], twins(), []
    for step, frame in enumerate(frames[:20]):
        length = np.array([step % 7, step, step, step]) + 1
        frame = dataclasses.replace(frame, episode_length=length)
        seen.append(twin_worker.follow([frame], range(2), {})[0].seconds[:2] / 0.05)
    counted = np.round(seen).astype(int)
    assert counted[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6] * 2 + [0, 1, 2, 3, 4, 5]
    assert counted[:, 1].tolist() == list(range(20))

    # The episode's length alone does not show this: it may be that of another episode.
    skipped = twins()
    skipped.follow([frames[0]], [0], {})
    later = dataclasses.replace(frames[5], episode_length=frames[0].episode_length + 1)
    assert skipped.follow([later], [0], {})[0].seconds[0] == 0.0

    missing = twins()
    kept = [frames[i] for i in (0, 1, 2, 5, 6, 6)]
    ghosts = [missing.follow([frame], range(3), {})[0] for frame in kept]
    steps = [round(float(ghost.seconds[0] / 0.05)) for ghost in ghosts]
    assert steps == [0, 1, 2, 0, 1, 1]  # the same frame again, while held: no further step
    np.testing.assert_array_equal(ghosts[3].link_pos[:3], kept[3].link_pos[:3])
    np.testing.assert_array_equal(ghosts[4].link_pos, ghosts[5].link_pos)


def test_twins_restart_on_demand_and_every_n_steps(ants, twins):
    _, frames = ants
    twin_worker = twins()
    twin_worker.every = 4
    steps = []
    for index, frame in enumerate(frames[:14]):
        if index == 11:
            twin_worker.restart()
        steps.append(round(float(twin_worker.follow([frame], [1], {})[0].seconds[1] / 0.05)))
    assert steps == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0, 1, 2]


def test_only_requested_robots_have_twins_and_nonfinite_ones_have_none(ants, twins):
    _, frames = ants
    twin_worker = twins()
    twin_worker.follow([frames[0]], [0, 2], {})
    ghost = twin_worker.follow([frames[1]], [0, 2], {})[0]
    assert ghost.there.tolist() == [True, False, True, False]
    assert np.isnan(ghost.link_pos[1]).all() and np.isnan(ghost.bodies[1])
    broken = frames[2].coordinates
    assert broken is not None
    qpos = broken.qpos.copy()
    qpos[0, 0] = np.nan
    frame = dataclasses.replace(frames[2], coordinates=dataclasses.replace(broken, qpos=qpos))
    assert twin_worker.follow([frame], [0, 2], {})[0].there.tolist() == [False, False, True, False]
    assert twin_worker.follow([frames[3]], [0, 2], {})[0].seconds[0] == 0.0


def test_a_twin_that_explodes_counts_as_parted_and_restarts(ants, twins):
    """MuJoCo resets it to the model's initial state and time 0, which would look sound."""
    adapter, frames = ants
    twin_worker = twins()
    twin_worker.follow([frames[0]], [0], {})
    given = frames[1].coordinates
    assert given is not None
    wild = dataclasses.replace(given, ctrl=np.full_like(given.ctrl, 1.0))
    for moment in twin_worker._moments.values():
        moment.state[1 + adapter.mj_model.nq :] = 1e9  # rad/s
    ghost = twin_worker.follow([dataclasses.replace(frames[1], coordinates=wild)], [0], {})[0]
    assert not np.isfinite(ghost.link_pos[0]).any()
    assert ghost.passed[0] == pytest.approx(0.05)
    ghost = twin_worker.follow([frames[2]], [0], {})[0]
    assert ghost.seconds[0] == 0.0 and np.isfinite(ghost.link_pos[0]).all()


def with_events(frames: list[Frame]) -> list[Frame]:
    """Returns the frames with events: one env is reset, one is not finite for a while, a step is
    missing, and one is seen twice."""
    changed = []
    for step, frame in enumerate(frames):
        coordinates = frame.coordinates
        assert coordinates is not None
        qpos = coordinates.qpos.copy()
        qpos[2, 0] = np.nan if step in (5, 6) else qpos[2, 0]
        length = np.array([step, step % 4, step, step]) + 1
        coordinates = dataclasses.replace(coordinates, qpos=qpos)
        changed.append(dataclasses.replace(frame, episode_length=length, coordinates=coordinates))
    return [*changed[:9], changed[8], *changed[10:]]


@given(
    sizes=st.lists(st.integers(1, 7), min_size=14, max_size=14),
    every=st.sampled_from([None, 3]),
    threads=st.sampled_from([0, 2]),
)
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_many_steps_at_once_give_the_same_as_one_by_one(ants, twins, sizes, every, threads):
    frames = with_events(ants[1][:14])
    one, many = twins(), twins(threads=threads)
    one.every = many.every = every
    alone = [one.follow([frame], [0, 1, 2], {})[0] for frame in frames]
    together: list[Ghost] = []
    for size in sizes:
        if part := frames[len(together) : len(together) + size]:
            together += many.follow(part, [0, 1, 2], {})
    assert len(together) == len(frames)
    for a, b in zip(alone, together, strict=True):
        assert a.there[:2].all() and not a.there[3]
        for name in ("there", "seconds", "passed"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        for name in ("link_pos", "link_rot", "root", "bodies", "joints"):
            # The solver starts from its last solution, which is carried over from one call to the
            # next only approximately.
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-5)
    counted = np.array([np.round(ghost.seconds / 0.05) for ghost in together])
    if every is None:
        assert counted[:, 0].tolist() == [*range(9), 8, 0, 1, 2, 3]
        assert counted[:, 1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 0, 1, 0, 1]
    else:
        assert counted[:9, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert [ghost.there[2] for ghost in together[4:8]] == [True, False, False, True]
    assert counted[7, 2] == 0


def test_a_twin_that_explodes_within_a_batch_restarts_at_the_next_step(ants, twins):
    adapter, frames = ants
    twin_worker = twins()
    twin_worker.follow(frames[:1], [0, 1], {})
    twin_worker._moments[0].state[1 + adapter.mj_model.nq :] = 1e9  # rad/s
    ghosts = twin_worker.follow(frames[1:6], [0, 1], {})
    assert not np.isfinite(ghosts[0].link_pos[0]).any()
    assert ghosts[0].passed[0] == pytest.approx(0.05)
    steps = np.array([np.round(ghost.seconds[:2] / 0.05) for ghost in ghosts])
    assert steps.tolist() == [[1, 1], [0, 2], [1, 3], [2, 4], [3, 5]]
    assert all(np.isinf(ghost.passed[0]) for ghost in ghosts[1:])
    np.testing.assert_allclose(ghosts[4].link_pos[0], frames[5].link_pos[0], atol=1e-3)


def test_a_restart_makes_no_new_mjdata(ants, twins, monkeypatch):
    """Robots that are learning fall all the time, and an MjData takes longer to make than many
    steps."""
    twin_worker = twins()
    monkeypatch.setattr(mujoco, "MjData", None)
    for frame in ants[1][:8:2]:
        assert twin_worker.follow([frame], [0, 1], {})[0].seconds[0] == 0.0


def test_a_twin_has_its_environments_own_masses(ants, twins):
    adapter, frames = ants
    heavy = {1: {"body_mass": 3.0 * adapter.mj_model.body_mass}}
    twin_worker = twins()
    ghosts = [twin_worker.follow([frame], range(3), heavy)[0] for frame in frames[:8]]
    assert ghosts[-1].bodies[1] > 10 * max(ghosts[-1].bodies[0], 1e-4)
    assert adapter.mj_model.body_mass[1] < varied(adapter.mj_model, heavy[1]).body_mass[1]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_do_not_depend_on_the_number_of_threads(ants, twins, threads):
    _, frames = ants
    one, other = twins(threads=0), twins(threads=threads)
    for frame in frames[:5]:
        a, b = (t.follow([frame], range(3), {})[0] for t in (one, other))
        np.testing.assert_array_equal(a.link_pos, b.link_pos)


NICE_TRAINING = """
import os, sys, time, mujoco
from brax_viser.twins.twins import Twins

def nicenesses():
    tasks = map(int, os.listdir("/proc/self/task"))
    return {task: os.getpriority(os.PRIO_PROCESS, task) for task in tasks}

os.nice(int(sys.argv[1]))
before = nicenesses()
twins = Twins(mujoco.MjModel.from_xml_string("<mujoco/>"), 1, lags=False, threads=2)
time.sleep(0.1)  # the thread that made them has ended, but may still be listed
after = nicenesses()
print([after[task] for task in after if task not in before])
print([task for task in before if after[task] != before[task]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness by thread")
@pytest.mark.parametrize("training", [0, 4, 15])
def test_only_the_stepping_threads_are_nicer_than_the_training(training):
    command = [sys.executable, "-c", NICE_TRAINING, str(training)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    nicer = min(os.nice(0) + training + MORE, 19)
    assert printed.splitlines() == [str([nicer] * 2), "[]"]


def test_mocap_bodies_are_where_the_training_has_them(twins):
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody>
        <body name="hand" mocap="true"><geom size="0.1" contype="0" conaffinity="0"/></body>
        <body name="ball"><freejoint/><geom size="0.1"/></body>
        </worldbody></mujoco>"""
    )
    twin_worker = Twins(model, 2, lags=False, threads=0)
    for step in range(3):
        mocap = np.array([[[step, 0.0, 0.0]]], np.float32)
        turn = np.array([[[1.0, 0, 0, 0]]], np.float32)
        qpos = np.array([[0, 0, 5, 1, 0, 0, 0]], np.float32)
        coordinates = Coordinates(qpos, np.zeros((1, 6), np.float32), None, None, mocap, turn)
        links = np.concatenate([mocap, qpos[:, None, :3]], axis=1)
        ghost = twin_worker.follow([frame_of(step, coordinates, links)], [0], {})[0]
        np.testing.assert_allclose(ghost.link_pos[0, 0], [step, 0, 0])
    assert ghost.root[0] > 0  # the ball falls, and it is the roaming link
    twin_worker.close()


def frame_of(
    step: int, coordinates: Coordinates | None, links: np.ndarray, ghost: Ghost | None = None
) -> Frame:
    count = len(links)
    ones = np.ones(count, np.float32)
    return Frame(
        role="train",
        env_steps=step,
        env_index=np.arange(count, dtype=np.int32),
        num_envs=count,
        link_pos=links.astype(np.float32),
        link_rot=np.tile(np.array([1, 0, 0, 0], np.float32), (*links.shape[:2], 1)),
        reward=ones,
        episode_return=ones,
        episode_length=np.full(count, step, np.int32),
        since_termination=np.full(count, 1 << 20, np.int32),
        finite=ones > 0,
        coordinates=coordinates,
        ghost=ghost,
    )


def ghost_of(links: np.ndarray, seconds: float, bodies: float = 0.0) -> Ghost:
    count = len(links)
    rot = np.tile(np.array([1, 0, 0, 0], np.float32), (*links.shape[:2], 1))
    numbers = [np.full(count, x, np.float32) for x in (seconds, bodies, bodies, bodies, np.inf)]
    return Ghost(np.ones(count, bool), links.astype(np.float32), rot, *numbers)


def test_a_ghost_is_interpolated_between_steps_but_jumps_at_a_restart():
    player = Player(dt=0.1)
    links = np.zeros((1, 1, 3))
    for step, (x, seconds) in enumerate([(0.0, 0.0), (1.0, 0.1), (2.0, 0.2), (0.0, 0.0)]):
        ghost = ghost_of(links + x, seconds)
        player.add(frame_of(step + 1, None, links, ghost), now=0.0)
    seen = {}
    for tick in range(31):
        view = player.play(0.01 * tick, 1.0, sending=False, following=False)
        assert view is not None and view.ghost is not None
        seen[tick] = float(view.ghost[0][0, 0, 0])
    assert seen[5] == pytest.approx(0.5, abs=0.02) and seen[15] == pytest.approx(1.5, abs=0.02)
    assert seen[25] == pytest.approx(2.0)  # it waits there, and then jumps to its start
    assert seen[30] == pytest.approx(0.0)


def test_a_ghost_that_is_not_there_is_hidden_and_so_is_one_without_a_finite_pose():
    server = viser.ViserServer(port=0, verbose=False)
    ball = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body><freejoint/><geom size="0.1"/></body></worldbody></mujoco>'
    )
    links, rot = np.ones((4, 1, 3), np.float32), np.zeros((4, 1, 4), np.float32)
    rot[..., 0] = 1
    grid = grid_of(ball, ball.qpos0, (5, 1), None)
    model = Model.of(ball, grid, (links[0], rot[0]), 0.02)
    ghosts = Ghosts(server, "/ghosts", model, np.zeros((5, 3), np.float32), 1.0)
    there = dataclasses.replace(ghost_of(links, 0.1), there=np.array([True, False, True, True]))
    poses = links.copy()
    poses[2] = np.nan
    frame, none = frame_of(1, None, links, there), np.zeros(4, bool)
    view = View(frame, links, rot, none, 0.0, 0.0, (poses, rot))
    covered = np.array([False, False, False, True, False])  # a robot that is not shown itself
    ghosts.draw(view, covered, np.zeros((5, 3), np.float32), 0.0)
    assert ghosts.robots is not None
    (handle,) = ghosts.robots.handles
    assert (handle.batched_positions[:, 2] == 1.0).tolist() == [True] + [False] * 4
    assert (handle.batched_positions[1:, 2] < -1000).all()  # out of sight
    server.stop()


def test_ghosts_survive_the_joining_of_devices_and_of_processes(ants, twins):
    _, frames = ants
    twin_worker = twins()
    frame = dataclasses.replace(frames[0], ghost=twin_worker.follow([frames[0]], [0, 2], {})[0])

    def part(rows: list[int]) -> Frame:
        def pick(x: Any) -> Any:
            if dataclasses.is_dataclass(x):
                return dataclasses.replace(
                    x, **{f.name: pick(getattr(x, f.name)) for f in dataclasses.fields(x)}
                )
            return x[rows] if isinstance(x, np.ndarray) else x

        return pick(frame)

    order = np.array([2, 0, 1], np.int32)
    whole = joined([part([0, 1]), part([2])], order)
    assert whole is not None and whole.ghost is not None and whole.coordinates is not None
    assert whole.ghost.there.tolist() == [True, True, False]
    np.testing.assert_array_equal(whole.coordinates.qpos, frame.coordinates.qpos[order])
    without = dataclasses.replace(part([2]), coordinates=None, ghost=None)
    mixed = joined([part([0, 1]), without], order)
    assert mixed is not None and mixed.ghost is None and mixed.coordinates is None

    views = []
    for rows in ([0, 1], [2]):
        own = part(rows)
        assert own.ghost is not None
        ghost = (own.ghost.link_pos, own.ghost.link_rot)
        hidden = np.zeros(len(rows), bool)
        views.append(View(own, own.link_pos, own.link_rot, hidden, 0.0, 0.0, ghost))
    both = beside(views, order)
    assert both.ghost is not None and both.frame.ghost is not None
    assert both.frame.ghost.there.tolist() == [True, True, False]
    np.testing.assert_array_equal(both.ghost[0][0], frame.ghost.link_pos[2])


class TestTwinWorker:
    @pytest.fixture
    def simulated(self, ants):
        adapter = ants[0]
        return Simulated(adapter.mujoco_model(), adapter.substeps, adapter.native)

    @pytest.fixture
    def twin_worker(self):
        twin_worker: TwinWorker[str] = TwinWorker()
        yield twin_worker
        twin_worker.close()

    def taken(self, twin_worker: TwinWorker[str], count: int) -> list[tuple[str, Frame]]:
        found: list[tuple[str, Frame]] = []
        eventually(lambda: found.extend(twin_worker.take()) or len(found) >= count, "all are back")
        return found

    def test_frames_come_back_in_order_with_or_without_ghosts(self, twin_worker, ants, simulated):
        frames = ants[1][:6]
        for index, frame in enumerate(frames):
            key, rows = ("one", [0, 1]) if index % 2 else ("other", [])
            twin_worker.send(key, frame, rows, simulated, {}, TwinSettings(), 60.0)
        assert twin_worker.pending("one")
        twin_worker.start()
        back = self.taken(twin_worker, 6)
        assert [frame.env_steps for _, frame in back] == [f.env_steps for f in frames]
        assert [key for key, _ in back] == ["other", "one"] * 3
        assert [frame.ghost is not None for _, frame in back] == [False, True] * 3
        assert not twin_worker.pending("one") and not twin_worker.pending("other")
        cost = twin_worker.cost()
        assert cost.step_seconds > 0 and cost.skipped == 0 and cost.share > 0

    def test_a_frame_that_has_waited_too_long_comes_back_without_a_ghost(self, ants, simulated):
        now = [0.0]
        twin_worker: TwinWorker[str] = TwinWorker(clock=lambda: now[0])
        for frame in ants[1][:3]:
            twin_worker.send("one", frame, [0], simulated, {}, TwinSettings(), 1.0)
        now[0] = 1.5
        twin_worker.send("one", ants[1][3], [0], simulated, {}, TwinSettings(), 1.0)
        twin_worker.start()
        back = self.taken(twin_worker, 4)
        assert [frame.ghost is not None for _, frame in back] == [False, False, False, True]
        assert twin_worker.cost().skipped == 0.75
        twin_worker.close()

    @pytest.fixture
    def taken_at_once(self, monkeypatch):
        """Lists how many steps each call of `Twins.follow` was given."""
        counts: list[int] = []
        follow = Twins.follow

        def counting(self, frames, *args):
            counts.append(len(frames))
            return follow(self, frames, *args)

        monkeypatch.setattr(Twins, "follow", counting)
        return counts

    def test_waiting_steps_are_taken_together_unless_something_has_changed(
        self, twin_worker, ants, simulated, taken_at_once
    ):
        far = TwinSettings(limit=9.0)
        own: dict[int, Any] = {}
        plan = [("one", [0], TwinSettings())] * 3 + [("one", [0, 1], TwinSettings())] * 2
        plan += [("one", [0, 1], far)] * 2 + [("other", [0, 1], far)] + [("other", [], far)] * 2
        for frame, (key, rows, how) in zip(ants[1], plan, strict=False):
            twin_worker.send(key, frame, rows, simulated, own, how, 60.0)
        twin_worker.start()
        back = self.taken(twin_worker, len(plan))
        assert taken_at_once == [3, 2, 2, 1]
        assert [frame.env_steps for _, frame in back] == [f.env_steps for f in ants[1][:10]]
        assert [key for key, _ in back] == [key for key, _, _ in plan]
        steps = [frame.ghost and round(float(frame.ghost.seconds[0] / 0.05)) for _, frame in back]
        assert steps == [0, 1, 2, 3, 4, 5, 6, 0, None, None]

    def test_frames_handed_over_are_taken_together_after_go(
        self, twin_worker, ants, simulated, taken_at_once
    ):
        twin_worker.start()
        own: dict[int, Any] = {}
        for count in (3, 2):
            eventually(lambda: twin_worker._idle, "it has nothing to do")
            for frame in ants[1][:count]:
                twin_worker.send("one", frame, [0], simulated, own, TwinSettings(), 60.0)
                time.sleep(0.02)
            assert not twin_worker.take()
            twin_worker.go()
            self.taken(twin_worker, count)
        assert taken_at_once == [3, 2]

    def test_a_step_with_leisure_waits_for_others_but_not_forever(
        self, twin_worker, ants, simulated, taken_at_once
    ):
        twin_worker.start()
        own: dict[int, Any] = {}
        at_leisure = functools.partial(
            twin_worker.send, "one", simulated=simulated, own=own, settings=TwinSettings()
        )
        for frame in ants[1][:3]:
            at_leisure(frame, [0], patience=60.0, leisure=1.5)
            twin_worker.go()
            time.sleep(0.02)
        assert not twin_worker.take() and not taken_at_once
        self.taken(twin_worker, 3)
        assert taken_at_once == [3]
        for frame in ants[1][3 : 4 + MOST_AT_ONCE]:  # a full batch does not wait for more
            at_leisure(frame, [0], patience=60.0, leisure=60.0)
            twin_worker.go()
        self.taken(twin_worker, MOST_AT_ONCE)
        assert taken_at_once[1:] == [MOST_AT_ONCE] and twin_worker.pending("one")

    def test_late_frames_are_not_batched_with_frames_still_in_time(
        self, ants, simulated, taken_at_once
    ):
        now = [0.0]
        twin_worker: TwinWorker[str] = TwinWorker(clock=lambda: now[0])
        own: dict[int, Any] = {}
        for frame, patience in zip(ants[1], (1.0, 1.0, 3.0, 3.0), strict=False):
            twin_worker.send("one", frame, [0], simulated, own, TwinSettings(), patience)
        now[0] = 2.0
        twin_worker.start()
        back = self.taken(twin_worker, 4)
        assert [frame.ghost is not None for _, frame in back] == [False, False, True, True]
        assert taken_at_once == [2] and twin_worker.cost().skipped == 0.5
        twin_worker.close()

    def test_a_fault_is_reported_and_the_frames_go_on(self, twin_worker, ants, simulated):
        bare = dataclasses.replace(ants[1][0], coordinates=None)
        twin_worker.start()
        for frame in (bare, ants[1][1]):
            twin_worker.send("one", frame, [0], simulated, {}, TwinSettings(), 60.0)
            twin_worker.go()
        back = self.taken(twin_worker, 2)
        assert [frame.ghost for _, frame in back] == [None, None]
        assert twin_worker.fault is not None and "AssertionError" in twin_worker.fault

    def test_settings_and_another_physics_take_effect_with_the_next_step(
        self, twin_worker, ants, simulated
    ):
        adapter, frames = ants
        made = Simulated(adapter.mj_model, 5, True)
        twin_worker.start()
        every, far = TwinSettings(every=1), TwinSettings(limit=1e-9)
        plan = [(simulated, every)] * 4 + [(made, far)] * 2 + [(made, TwinSettings())]
        for frame, (what, how) in zip(frames, plan, strict=False):
            twin_worker.send("one", frame, [0], what, {}, how, 60.0)
        twin_worker.go()
        ghosts = [frame.ghost for _, frame in self.taken(twin_worker, 7)]
        steps = [round(float(ghost.seconds[0] / 0.05)) for ghost in ghosts if ghost]
        assert steps == [0, 1, 0, 1, 0, 1, 2]
        assert ghosts[5] is not None and ghosts[5].passed[0] == pytest.approx(0.05)


def test_drift_is_kept_for_a_while_and_interrupted_between_stretches(monkeypatch):
    log, links = DriftLog(), np.zeros((3, 1, 3))
    assert log.curves(None) is None
    for step in range(1, 5):
        values = ghost_of(links, 0.1 * step)
        values.bodies[:] = [step, 2 * step, np.nan]
        log.add(frame_of(step, None, links, values), 0.1)
    frame = frame_of(5, None, links, values)
    log.add(frame, 0.1)
    log.add(frame, 0.1)  # the same frame again, while held
    curves = log.curves(1)
    assert curves is not None
    np.testing.assert_allclose(curves.seconds, [-0.4, -0.3, -0.2, -0.1, 0.0], atol=1e-9)
    np.testing.assert_allclose(curves.median[1], [1.5, 3, 4.5, 6, 6])
    np.testing.assert_allclose(curves.selected[1], [2, 4, 6, 8, 8])
    log.add(frame_of(5 + round(GAP_SECONDS / 0.1) + 1, None, links, values), 0.1)
    curves = log.curves(None)
    assert curves is not None and np.isnan(curves.median[1]).tolist() == [False] * 5 + [True, False]
    assert np.isnan(curves.selected).all()
    for step in range(100, 100 + 2 * MOST_POINTS):
        log.add(frame_of(step, None, links, values), 0.1)
    # The panel asks several times a second: known medians must not be computed again.
    monkeypatch.setattr("brax_viser.twins.drift._median", None)
    curves = log.curves(None)
    assert curves is not None and len(curves.seconds) == MOST_POINTS


def test_a_verdict_outlives_the_restart_of_a_twin_and_forgets_robots_that_have_none_any_more():
    log, links, step = DriftLog(), np.zeros((3, 1, 3)), itertools.count(1)

    def add(seconds: float, *bodies: float, passed: float = np.inf, **how: bool) -> None:
        values = ghost_of(links, seconds)
        values.bodies[:], values.passed[1] = bodies, passed
        log.add(frame_of(next(step), None, links, values), 0.1, **how)

    assert log.verdict(0.1) is None
    add(0.0, 0.0, 0.0, 0.0)
    assert log.verdict(0.1) is None, "no step has been taken"
    add(0.1, 0.01, 0.02, 0.0)
    add(0.2, 0.01, 0.05, 0.0)
    told = log.verdict(0.1)
    assert told is not None and (told.twins, told.parted, told.env) == (3, 0, 1)
    assert (told.seconds, told.distance) == pytest.approx((0.2, 0.05))
    add(0.3, 0.01, 0.4, 0.0, passed=0.3)
    add(0.4, 0.2, 0.6, 0.0, passed=0.3)
    add(0.0, 0.0, 0.0, 0.0)  # all begin again
    add(0.1, 0.0, 0.01, 0.0)
    told = log.verdict(0.1)
    assert told is not None and (told.twins, told.parted, told.env) == (3, 2, 1)
    assert (told.seconds, told.distance) == pytest.approx((0.3, 0.6))
    told = log.verdict(0.5)
    assert told is not None and told.parted == 1, "by another limit"
    for seconds in (0.2, 0.3, 0.0, 0.1):  # another run is over
        add(seconds, 0.0, 0.01, 0.0)
    told = log.verdict(0.1)
    assert told is not None and (told.parted, told.seconds) == (0, pytest.approx(0.3))
    add(0.2, 0.0, np.nan, 0.0, passed=0.2)  # MuJoCo has lost it
    told = log.verdict(0.1)
    assert told is not None and (told.parted, told.env, told.distance) == (1, 1, np.inf)
    assert told.seconds == pytest.approx(0.2)
    add(0.0, 0.0, 0.0, 0.0, as_made=True)
    assert log.verdict(0.1) is None, "other physics are judged from the start"
    links = links[:1]
    for number in range(MOST_POINTS + 1):
        values = ghost_of(links, 0.1 * number)
        log.add(frame_of(next(step), None, links, values), 0.1, as_made=True)
    told = log.verdict(0.1)
    assert told is not None and told.twins == 1


def test_a_curve_without_a_number_does_not_spoil_the_others():
    server, links = viser.ViserServer(port=0, verbose=False), np.zeros((3, 1, 3))
    log = DriftLog()
    for step in range(1, 5):
        values = ghost_of(links, 0.1 * step)
        # The second env's twin starts later: its line begins with NaN.
        values.bodies[:] = [step, 2 * step if step > 2 else np.nan, np.nan]
        log.add(frame_of(step, None, links, values), 0.1)
    tools = PanelTools(server, lambda action: None, *(Mock() for _ in range(4)))
    folder = TwinFolder(tools)

    def shown(env: int | None) -> list[str]:
        """Returns the labels of the plotted curves, each of which must have a number."""
        for _ in range(PLOT_EVERY):
            folder._show_curves(log.curves(env))
        found = []
        for plot in (folder._metres, folder._radians):
            for series, line in zip(plot.series[1:], plot.data[1:], strict=True):
                if series.get("show", True) and plot.visible:
                    assert np.isfinite(line).any(), series
                    low, high = plot.scales["y"]["range"]
                    assert low <= np.nanmin(line) and np.nanmax(line) <= high
                    found.append(series["label"])
        return found

    assert shown(None) == ["Root, median", "All links, median", "Joints, median"]
    both = ["Root, median", "Root, selected", "All links, median", "All links, selected"]
    assert shown(1) == [*both, "Joints, median", "Joints, selected"]
    assert shown(None) == ["Root, median", "All links, median", "Joints, median"]
    server.stop()


def test_angles_are_measured_the_shorter_way_round():
    one = np.array([[1.0, 0, 0, 0], [np.cos(0.25), np.sin(0.25), 0, 0]])
    np.testing.assert_allclose(angle_between(one, -one), 0, atol=1e-7)
    np.testing.assert_allclose(angle_between(one[:1], one[1:]), 0.5)


@pytest.fixture(params=(*host_call.MECHANISMS, host_call.LAUNCH))
def mechanism(request, monkeypatch):
    monkeypatch.setenv(host_call.VARIABLE, request.param)


@pytest.fixture
def patient(monkeypatch):
    """Makes the page wait for twins, however long they take on a busy machine."""
    monkeypatch.setattr("brax_viser.page.channels.TWIN_PATIENCE", np.inf)


class Slider(Toy):
    """The toy's cart, stepped by MJX."""

    def __init__(self) -> None:
        super().__init__()
        self.stepped = mjx.put_model(self.model)

    def reset(self, rng: jax.Array) -> Any:
        qpos = jax.random.uniform(rng, (1,), minval=-0.04, maxval=0.04)
        data = mjx.make_data(self.model).replace(qpos=qpos)
        return self.state(mjx.kinematics(self.stepped, data), {}, {})

    def step(self, state: Any, action: jax.Array) -> Any:
        data = mjx.step(self.stepped, state.pipeline_state.replace(ctrl=action))
        return self.state(data, state.metrics, state.info)


@pytest.mark.usefixtures("page", "mechanism", "patient")
def test_a_viewers_twins_stand_where_the_robots_do_and_cost_nothing_while_off(viewer):
    rollout = Rollout(viewer, Slider())
    rollout.step()
    rollout.step()
    assert viewer.drift() is None
    viewer.twins, viewer.selected_env = 2, 3
    for _ in range(8):
        frame = rollout.step()
    assert frame.ghost is not None and frame.env_index.tolist() == [0, 1, 2, 3]
    assert frame.ghost.there.tolist() == [
        True,
        False,
        False,
        True,
    ]  # the selected env is among them
    assert frame.detail is not None and frame.detail.env == 3
    drift = viewer.drift()
    assert drift is not None and drift.env_index.tolist() == [0, 3]
    assert drift.bodies.max() < 1e-5 and drift.seconds.min() > 0.1
    block = Probe(viewer).scene.blocks["train"]
    assert block._ghosts.robots is not None
    robots, ghosts = block.robots.handles, block._ghosts.robots.handles
    where = [np.reshape(handles[-1].batched_positions, (4, -1, 3)) for handles in (robots, ghosts)]
    np.testing.assert_allclose(where[0][[0, 3]], where[1][[0, 3]], atol=1e-4)
    assert (where[1][[1, 2], :, 2] < -1000).all()  # out of sight
    without = rollout.frame_bytes[1]
    viewer.twins = 0
    rollout.step()
    frame = rollout.step()
    assert frame.ghost is None and viewer.drift() is None
    detail = rollout.frame_bytes[-1]
    assert without < detail < rollout.frame_bytes[-3]


@pytest.fixture(scope="module")
def pendulums() -> Iterator[Rollout]:
    """A rollout in a viewer of its own, compiled once for the tests that follow."""
    with Viewer(port=0) as viewer:
        yield Rollout(viewer, SwiftCartPole("spring"))


@pytest.fixture
def rollout(pendulums) -> Iterator[Rollout]:
    """The rollout after a reset, with a page and without twins."""
    viewer = pendulums.viewer
    with contextlib.closing(Page(viewer)):
        viewer.mode = "every_step"
        pendulums.reset()
        yield pendulums
        viewer.twins = 0


@pytest.mark.usefixtures("patient")
def test_twins_need_consecutive_steps_and_the_page_says_so(rollout):
    viewer = rollout.viewer
    viewer.twins = 4
    rollout.step()
    assert rollout.step().ghost is not None
    viewer.mode = "latest"
    block = Probe(viewer).scene.blocks["train"]

    def drawn_without() -> bool:
        rollout.state = rollout._step(rollout.state, jnp.zeros((NUM_ENVS, 1)))
        jax.block_until_ready(rollout.state)
        return block.frame is not None and block.frame.coordinates is None

    eventually(drawn_without, "a frame comes without coordinates")
    assert block.frame is not None and block.frame.ghost is None
    said = Probe(viewer).panel.twins._note
    eventually(lambda: "consecutive" in said.content, "the page says why there are none")


@pytest.mark.usefixtures("patient")
def test_steps_of_a_stretch_have_leisure_and_steps_shown_at_once_have_none(rollout, monkeypatch):
    viewer = rollout.viewer
    twin_worker, given = Probe(viewer).twin_worker, []
    send = twin_worker.send
    monkeypatch.setattr(twin_worker, "send", lambda *args: (given.append(args[-1]), send(*args)))
    viewer.twins = 2

    def handed_on(leisure: float) -> bool:
        rollout.state = rollout._step(rollout.state, jnp.zeros((NUM_ENVS, 1)))
        jax.block_until_ready(rollout.state)
        return given[-1:] == [leisure]

    eventually(lambda: handed_on(0.0), "every step goes on at once")
    viewer.mode = "realtime"
    for following, leisure in ((False, TWIN_LEISURE), (True, 0.0)):
        monkeypatch.setattr(Pacer, "following", following)
        eventually(lambda leisure=leisure: handed_on(leisure), f"{following=}: {leisure} s")


@pytest.mark.usefixtures("page")
def test_the_page_says_so_when_a_control_is_not_known(viewer):
    viewer.mode, viewer.twins = "every_step", 4
    bare = VmapWrapper(env_of("inverted_pendulum", "spring"))
    env = VisualizedEnv(bare, grid=(2, 1), viewer=viewer)
    state = env.reset(jax.random.split(jax.random.PRNGKey(0), 3))
    step = jax.jit(env.step)
    for _ in range(2):
        state = jax.block_until_ready(step(state, jnp.zeros((3, 1))))
    said = Probe(viewer).panel.twins._note
    eventually(lambda: "ctrl_fn" in said.content, "the page says what is missing")
    assert viewer.drift() is None


@pytest.mark.usefixtures("page", "patient")
def test_playgrounds_environments_have_twins(viewer):
    rollout = Rollout(viewer, suite_env("CartpoleBalance"))
    viewer.twins = 4
    for _ in range(6):
        frame = rollout.step()
    drift = viewer.drift()
    assert frame.ghost is not None and drift is not None
    assert drift.bodies.max() < 1e-4 and drift.seconds.min() > 0.04


def test_coordinates_survive_the_transfer_from_another_process(ants):
    from brax_viser.records.packet import Packet
    from brax_viser.records.protocol import size_of

    layout = (("link_pos", (1, 3)), ("link_rot", (1, 4)), ("reward", ()), ("episode_return", ()))
    layout += (("episode_length", ()), ("since_termination", ()), ("finite", ()))
    layout += (("qpos", (2,)), ("qvel", (1,)), ("ctrl", (1,)))
    detail = (("qpos", (2,)), ("qvel", (1,)))
    rows = np.arange(2 * size_of(layout), dtype=np.float32)
    rows = np.concatenate([rows, np.zeros(3, np.float32)])
    drawn = np.array([4], np.int32)
    source = SimpleNamespace(number=0, kind="an ant")
    packet = Packet(source, "train", 0, 7, drawn, drawn, 20, layout, rows, 0, None, detail)
    message = messages.decode_from_worker(messages.encode(messages.step_of(packet, sending=True)))
    assert isinstance(message, messages.Step)
    for received in (packet, messages.packet_of(message, None, 1)):
        frame = received.open()
        assert frame.detail is None and frame.coordinates is not None
        start = size_of(layout) - 4
        np.testing.assert_array_equal(frame.coordinates.qpos, [[start, start + 1]])
        np.testing.assert_array_equal(frame.coordinates.ctrl, [[start + 3]])


@pytest.mark.parametrize("count", [-1, 1000, 2.5, True])
def test_a_bad_number_of_twins_is_refused(viewer, count):
    with pytest.raises(ValueError, match="0 to 256"):
        viewer.twins = count


@pytest.mark.parametrize(("settings", "words"), [({"every": 0}, "at least 1"), ({"limit": 0}, "m")])
def test_bad_settings_are_refused(viewer, settings, words):
    with pytest.raises(ValueError, match=words):
        viewer.twin_settings = TwinSettings(**settings)
