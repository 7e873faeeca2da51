"""Tests that a robot taken out of a training goes on as it would have, until disturbed."""

import threading
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax import envs
from mujoco import mjx

from brax_viser.device.adapters import adapter_for
from brax_viser.records.frame import Detail
from brax_viser.sandbox.runner import SandboxThread
from brax_viser.sandbox.simulation import Sandbox
from brax_viser.sandbox.transplant import Policy, Transplant
from tests.conftest import eventually

FREE = """
<mujoco>
  <option timestep=".002" integrator="implicitfast"/>
  <worldbody>
    <geom type="plane" size="5 5 .1"/>
    <body name="box" pos="0 0 HEIGHT">
      <freejoint/>
      <geom type="box" size=".2 .2 .1" mass="2" friction=".5 .005 .0001"/>
      <body name="arm" pos=".2 0 .1">
        <joint name="arm" type="hinge" axis="0 1 0" damping=".1"/>
        <geom type="capsule" fromto="0 0 0 0 0 .3" size=".02" mass=".3"
              contype="0" conaffinity="0"/>
        <body name="hand" pos="0 0 .3">
          <joint type="hinge" axis="0 1 0" damping=".01"/>
          <geom type="sphere" size=".03" mass=".05" contype="0" conaffinity="0"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator> <position joint="arm" kp="20" ctrlrange="-2 2"/> </actuator>
</mujoco>
"""
BOX, ARM, HAND = 1, 2, 3


def detail(qpos: Any, qvel: Any, ctrl: Any = None, action: Any = None) -> Detail:
    arrays = [None if x is None else np.array(x, np.float32) for x in (qpos, qvel, ctrl, action)]
    return Detail(0, arrays[0], arrays[1], arrays[2], None, None, None, arrays[3], {})  # type: ignore[arg-type]


def box(height: float = 1.0, velocity: Any = (0, 0, 0), gravity: float = 1.0) -> Sandbox:
    model = mujoco.MjModel.from_xml_string(FREE.replace("HEIGHT", str(height)))
    sandbox = Sandbox(model, substeps=5)
    qvel = np.zeros(model.nv)
    qvel[:3] = velocity
    sandbox.fork([detail(model.qpos0, qvel, ctrl=[0.0])])
    sandbox.set_gravity(gravity)
    return sandbox


def momentum(sandbox: Sandbox) -> np.ndarray:
    """Returns the momentum of all moving bodies, in kg m/s."""
    mujoco.mj_forward(sandbox.model, sandbox.data)
    mujoco.mj_subtreeVel(sandbox.model, sandbox.data)
    return sandbox.data.subtree_linvel[0] * sandbox.model.body_subtreemass[0]


def steps(sandbox: Sandbox, seconds: float) -> None:
    for _ in range(round(seconds / sandbox.dt)):
        sandbox.step()
        assert sandbox.trouble is None


class Pendulum:
    """Brax's inverted pendulum, and a sandbox of it that is driven by a hand-made policy."""

    def __init__(self, backend: str):
        self.env: Any = envs.get_environment("inverted_pendulum", backend=backend)
        adapter = adapter_for(self.env)
        self.model, substeps = adapter.mujoco_model(), adapter.substeps
        self.sandbox = Sandbox(self.model, substeps, transplant=Transplant(adapter))
        self.sandbox.policy = Policy(balance, GAINS)

    def at(self, angle: float) -> Detail:
        qpos = np.array([0, angle], np.float32)
        seen = {"": np.array([0, angle, 0, 0], np.float32)}
        action = np.full(1, 0.25, np.float32)
        return Detail(0, qpos, np.zeros(2, np.float32), None, None, None, None, action, seen)


GAINS = np.array([0.3, 6.0, 0.5, 1.0], np.float32)


def balance(params, deterministic=False):
    return lambda obs, key: (jnp.clip(params @ obs, -1, 1)[None], {})


@pytest.mark.parametrize("backend", ["mjx", "generalized"])
def test_a_pendulum_is_balanced_by_its_policy_and_falls_when_limp(backend):
    pendulum = Pendulum(backend)
    sandbox = pendulum.sandbox
    sandbox.fork([pendulum.at(0.1)])
    assert sandbox.driver == "policy" and sandbox.drivers == ("policy", "still", "limp")
    assert sandbox.pose.reward is None
    # The last action is known, and so is the control that the environment made of it.
    np.testing.assert_allclose(sandbox.data.ctrl, [0.75], rtol=1e-6)
    steps(sandbox, 5)
    assert abs(sandbox.data.qpos[1]) < 0.05
    assert sandbox.pose.reward == 1 and not sandbox.pose.done
    assert sandbox.time == pytest.approx(5, abs=sandbox.dt)
    sandbox.reset()
    assert sandbox.time == 0 and sandbox.data.qpos[1] == np.float32(0.1)
    sandbox.driver = "limp"
    steps(sandbox, 1)
    assert abs(sandbox.data.qpos[1]) > 0.2
    assert sandbox.pose.done and sandbox.pose.trouble is None  # reported only: the sandbox goes on

    def get_up(own: Sandbox) -> None:
        own.data.qpos[1] = own.data.qvel[1] = 0
        own.step()

    thread = SandboxThread(sandbox, speed=0)
    thread.start()
    thread.do(get_up).result(timeout=60)
    assert not thread.pose.done and thread.ended, "it stands, and would have ended all the same"
    thread.do(lambda own: own.reset()).result(timeout=60)
    assert not thread.ended
    thread.close()


def test_with_the_trainings_solver_an_ant_moves_as_in_the_training():
    env = envs.get_environment("ant", backend="mjx")
    adapter = adapter_for(env)
    model, substeps = adapter.mujoco_model(), adapter.substeps
    assert substeps == 5 and (model.opt.iterations, model.opt.ls_iterations) == (1, 4)
    assert adapter.mj_model.opt.iterations == 4  # the file's own value differs
    random = np.random.default_rng(0)
    step = jax.jit(lambda state: mjx.step(env.sys, state))
    qvel = 0.1 * random.normal(size=model.nv)
    state = mjx.make_data(env.sys)
    state = state.replace(qpos=jnp.array(adapter.init_qpos), qvel=jnp.array(qvel))
    details = [detail(state.qpos, state.qvel, np.zeros(8))]
    for _ in range(6):
        ctrl = random.uniform(-1, 1, 8).astype(np.float32)
        for _ in range(substeps):
            state = step(state.replace(ctrl=jnp.array(ctrl)))
        details.append(detail(state.qpos, state.qvel, state.ctrl))
    sandbox = Sandbox(model, substeps)
    sandbox.fork(details)
    sandbox.driver = "replay"
    assert sandbox.time == pytest.approx(-6 * 0.05)
    for expected in details[1:]:
        sandbox.step()
        np.testing.assert_allclose(sandbox.data.qpos, expected.qpos, atol=2e-3)
        np.testing.assert_allclose(sandbox.data.qvel, expected.qvel, atol=0.1)
        np.testing.assert_array_equal(sandbox.data.ctrl, expected.ctrl)
    assert sandbox.time == pytest.approx(0, abs=1e-9)
    # Replay starts again at the first step, with the same result since nothing was changed.
    first = sandbox.step()
    assert first.time == pytest.approx(-5 * 0.05)
    np.testing.assert_allclose(sandbox.data.qpos, details[1].qpos, atol=1e-3)


def test_replayed_actions_become_controls_when_the_training_keeps_none():
    pendulum = Pendulum("spring")
    sandbox = pendulum.sandbox
    sandbox.fork([pendulum.at(0.0), pendulum.at(0.01), pendulum.at(0.02)])
    sandbox.driver = "replay"
    sandbox.step()
    np.testing.assert_allclose(sandbox.data.ctrl, [0.75], rtol=1e-6)
    assert sandbox.pose.reward == 1
    sandbox.fork([pendulum.at(0.0)])
    with pytest.raises(ValueError, match="at least two steps"):
        sandbox.driver = "replay"


def test_still_keeps_the_controls_and_limp_cuts_off_the_servos():
    sandbox = box(gravity=0)
    sandbox.fork([detail(sandbox.model.qpos0, np.zeros(8), ctrl=[0.5])])
    steps(sandbox, 1)
    assert sandbox.data.ctrl[0] == 0.5 and sandbox.data.qpos[7] == pytest.approx(0.5, abs=0.02)
    sandbox.driver = "limp"
    sandbox.step()
    sandbox.step()
    # A servo with a control of 0 would pull at it.
    assert sandbox.data.actuator_force[0] == 0
    sandbox.driver = "still"
    sandbox.step()
    sandbox.step()
    assert sandbox.data.actuator_force[0] != 0


def test_without_gravity_a_thrown_body_moves_in_a_straight_line():
    sandbox = box(velocity=(1, 0.5, 2), gravity=0)
    steps(sandbox, 1)
    np.testing.assert_allclose(sandbox.data.qpos[:3], [1, 0.5, 3], atol=1e-3)
    sandbox.reset()
    sandbox.set_gravity(2)
    before = momentum(sandbox)
    steps(sandbox, 0.1)
    np.testing.assert_allclose(
        momentum(sandbox) - before, [0, 0, -0.1 * 2 * 9.81 * 2.35], rtol=1e-6
    )
    sandbox.set_gravity(1)
    np.testing.assert_array_equal(sandbox.model.opt.gravity, [0, 0, -9.81])


def test_a_push_changes_the_momentum_by_its_impulse_and_once():
    sandbox = box(gravity=0)
    impulse = np.array([1.0, -2.0, 0.5])
    sandbox.push(BOX, 0.25 * impulse)
    sandbox.push(BOX, 0.75 * impulse)
    sandbox.step()
    np.testing.assert_allclose(momentum(sandbox), impulse, atol=2e-3)
    sandbox.step()
    np.testing.assert_allclose(momentum(sandbox), impulse, atol=2e-3)


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_a_push_moves_a_heavier_body_proportionally_less(factor):
    sandbox = box(gravity=0)
    sandbox.set_mass(2.0)
    sandbox.set_mass(factor)  # relative to the original masses
    sandbox.push(BOX, np.array([0, 1.0, 0]))
    sandbox.step()
    assert momentum(sandbox)[1] == pytest.approx(1, rel=1e-3)
    total = float(sandbox.model.body_subtreemass[0])
    assert total == pytest.approx(2.35 * factor)
    alone = box(gravity=0)
    alone.push(BOX, np.array([0, 1.0, 0]))
    alone.step()
    np.testing.assert_allclose(sandbox.data.qvel[:6] * factor, alone.data.qvel[:6], atol=0.01)


def test_values_derived_from_masses_match_a_model_built_with_them():
    sandbox = box()
    steps(sandbox, 0.1)
    before = sandbox.data.qpos.copy(), sandbox.data.qvel.copy(), sandbox.data.time
    sandbox.set_mass(3.0, ARM)
    after = sandbox.data.qpos.copy(), sandbox.data.qvel.copy(), sandbox.data.time
    np.testing.assert_equal(after, before)
    xml = FREE.replace("HEIGHT", "1").replace('mass=".3"', 'mass=".9"')
    expected = mujoco.MjModel.from_xml_string(xml)
    for name in ("body_mass", "body_inertia", "body_subtreemass", "dof_invweight0", "dof_M0"):
        got = getattr(sandbox.model, name)
        np.testing.assert_allclose(got, getattr(expected, name), rtol=1e-6, err_msg=name)
    sandbox.set_mass(1.0)
    np.testing.assert_array_equal(sandbox.model.body_mass, sandbox._original.body_mass)
    for factor, body in ((0.1, None), (float("nan"), None), (1.0, 0), (1.0, 4)):
        with pytest.raises(ValueError, match="must be from"):
            sandbox.set_mass(factor, body)


def test_twice_the_friction_halves_the_sliding_distance_of_a_box():
    ways = []
    for factor in (0.25, 0.5):
        sandbox = box(height=0.1, velocity=(1.5, 0, 0))
        sandbox.set_mass(0.2, ARM)  # less top-heavy
        sandbox.set_friction(3.0)
        sandbox.set_friction(factor)
        steps(sandbox, 1)
        assert abs(sandbox.data.qvel[0]) < 0.01
        ways.append(sandbox.data.qpos[0])
    # The floor's friction of 1 exceeds the box's, so it counts: v^2 / (2 mu g).
    assert ways[0] == pytest.approx(1.5**2 / (2 * 0.25 * 9.81), rel=0.15)
    assert ways[1] == pytest.approx(ways[0] / 2, rel=0.15)


def test_a_dragged_body_comes_along_and_is_released():
    sandbox = box()
    point, target = np.array([0, 0, 0.1]), np.array([0.3, 0.2, 1.5])
    sandbox.drag(BOX, point, target)
    steps(sandbox, 3)
    drag = sandbox.pose.drag
    assert drag is not None
    np.testing.assert_array_equal(drag[1], target.astype(np.float32))
    # It hangs below the target by as much as the spring gives.
    np.testing.assert_allclose(drag[0], target - [0, 0, 9.81 / 12**2], atol=0.01)
    sandbox.release()
    assert sandbox.step().drag is None
    steps(sandbox, 0.3)
    assert sandbox.data.qvel[2] < -1


def test_a_light_hand_that_is_dragged_does_not_tremble():
    sandbox = box(gravity=0)
    target = sandbox.data.xpos[HAND] + np.array([0.3, 0, -0.1])
    sandbox.drag(HAND, np.zeros(3), target)
    way = []
    for _ in range(300):
        way.append(sandbox.step().link_pos[HAND - 1])
    assert sandbox.trouble is None
    np.testing.assert_allclose(way[100:], np.tile(target, (200, 1)), atol=0.02)
    speeds = np.linalg.norm(np.diff(way, axis=0), axis=1) / sandbox.dt
    assert speeds.max() < 6 and speeds[-100:].max() < 0.2


def test_divergence_is_reported_and_a_reset_helps():
    sandbox = box()
    steps(sandbox, 0.1)
    last = sandbox.pose
    sandbox.push(BOX, np.array([1e9, 0, 0]))
    pose = sandbox.step()
    assert pose.trouble is not None and "diverged, 0.10 s after the fork" in pose.trouble
    np.testing.assert_array_equal(pose.link_pos, last.link_pos)
    assert sandbox.step() is pose  # it does not move any more
    sandbox.reset()
    steps(sandbox, 0.1)
    np.testing.assert_allclose(sandbox.pose.link_pos, last.link_pos)


def test_a_nan_counts_as_divergence():
    sandbox = box()
    sandbox.data.qvel[:] = np.nan
    assert "NaN" in (sandbox.step().trouble or "")


def test_nothing_of_the_training_is_changed():
    env = envs.get_environment("inverted_pendulum", backend="mjx")
    adapter = adapter_for(env)
    attributes = dict(vars(env))
    leaves = [np.array(x) for x in jax.tree.leaves(env.sys)]
    before = np.zeros(mujoco.mj_sizeModel(adapter.mj_model), np.uint8)
    mujoco.mj_saveModel(adapter.mj_model, None, before)
    model, substeps = adapter.mujoco_model(), adapter.substeps
    sandbox = Sandbox(model, substeps, transplant=Transplant(adapter))
    sandbox.policy = Policy(balance, GAINS)
    start = detail([0.0, 0.1], [0.0, 0.0], [0.0], [0.0])
    kept = [x.copy() for x in (start.qpos, start.qvel)]
    sandbox.fork([start])
    sandbox.set_gravity(0.5)
    sandbox.set_mass(2.0)
    sandbox.set_friction(0.5)
    sandbox.push(1, np.ones(3))
    steps(sandbox, 0.2)
    after = np.zeros_like(before)
    mujoco.mj_saveModel(adapter.mj_model, None, after)
    np.testing.assert_array_equal(after, before)
    assert vars(env) == attributes
    for x, y in zip(jax.tree.leaves(env.sys), leaves, strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_equal([start.qpos, start.qvel], kept)


def test_an_environment_whose_code_cannot_be_used_runs_without_its_policy():
    from tests.test_transplant import Counting

    env = Counting()
    env.times = 2
    adapter = adapter_for(env)
    sandbox = Sandbox(adapter.mujoco_model(), adapter.substeps, transplant=Transplant(adapter))
    sandbox.policy = Policy(balance, GAINS)
    sandbox.fork([detail([0.0, 0.1], [0.0, 0.0], None, [0.0])])
    assert sandbox.driver == "still" and "2 times" in (sandbox.no_policy or "")
    steps(sandbox, 0.1)
    with pytest.raises(ValueError, match="2 times"):
        sandbox.driver = "policy"


def test_states_and_arguments_that_do_not_fit_the_model_are_refused():
    sandbox = box()
    nq, nv = sandbox.model.nq, sandbox.model.nv
    for details, says in (
        ([], "at least the moment"),
        ([detail(np.zeros(nq - 1), np.zeros(nv))], "shapes"),
        ([detail(np.full(nq, np.nan), np.zeros(nv))], "not finite"),
    ):
        with pytest.raises(ValueError, match=says):
            sandbox.fork(details)
    for do in (
        lambda: sandbox.push(0, np.zeros(3)),
        lambda: sandbox.push(1, np.full(3, np.nan)),
        lambda: sandbox.drag(1, np.zeros(2), np.zeros(3)),
        lambda: setattr(sandbox, "driver", "dance"),
        lambda: setattr(sandbox, "driver", "policy"),
    ):
        with pytest.raises(ValueError, match=r"must be|needs"):
            do()


def test_actions_are_repeated_as_often_as_in_the_training():
    pendulum = Pendulum("mjx")
    adapter = adapter_for(pendulum.env)
    model, substeps = adapter.mujoco_model(), adapter.substeps
    transplant = pendulum.sandbox._transplant
    assert transplant is not None
    sandbox = Sandbox(model, substeps, repeat=3, transplant=transplant)
    sandbox.policy = Policy(balance, GAINS)
    sandbox.fork([pendulum.at(0.1)])
    controls = []
    for _ in range(6):
        sandbox.step()
        controls.append(float(sandbox.data.ctrl[0]))
    assert controls[0] == controls[1] == controls[2] != controls[3]
    assert controls[3] == controls[4] == controls[5]


class Clock:
    """A clock, in s, that the test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_thread_steps_the_sandbox_by_the_clock_and_runs_calls_given_to_it():
    clock, sandbox = Clock(), box(gravity=0)
    thread = SandboxThread(sandbox, speed=0, clock=clock)
    thread.start()
    try:
        names = thread.do(lambda own: (threading.current_thread().name, own.time))
        assert names.result(timeout=60) == ("brax_viser sandbox", 0)
        refused = thread.do(lambda own: own.set_gravity(7.0))
        assert "must be from" in str(refused.exception(timeout=60))
        thread.set_speed(0.5).result(timeout=60)
        thread.do(lambda own: None).result(timeout=60)  # from here on it waits, at 0 s
        clock.now = 0.201
        eventually(lambda: thread.pose.time >= 0.1 - 1e-9, "0.1 s of the robot's have gone by")
        assert thread.pose.time == pytest.approx(0.1)
        # After a long delay it does not rush to catch up.
        clock.now = 1000.0
        thread.do(lambda own: None).result(timeout=60)
        eventually(lambda: thread.pose.time >= 0.225, "it makes up for a little")
        assert thread.pose.time < 0.3
        thread.do(lambda own: own.push(BOX, np.array([1e9, 0, 0])))
        clock.now += 0.03
        thread.do(lambda own: None)
        eventually(lambda: thread.pose.trouble, "it has diverged")
        thread.do(lambda own: own.reset()).result(timeout=60)
        assert thread.pose.trouble is None
    finally:
        thread.close()
    assert thread.fault is None and not thread._thread.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_that_ends_the_thread_is_reported():
    thread = SandboxThread(box())
    thread.start()
    thread.do(lambda own: own.data.nonsense)
    eventually(lambda: thread.fault is not None, "the fault is told")
    assert isinstance(thread.fault, AttributeError)
    thread.close()


def test_a_held_training_does_not_block_the_sandbox():
    """Holds it in a callback on the same CPU, as a paused training is held."""
    held, go_on = threading.Event(), threading.Event()

    def hold(x):
        held.set()
        go_on.wait(60)
        return x

    @jax.jit
    def train(x):
        return jax.pure_callback(hold, jax.ShapeDtypeStruct(x.shape, x.dtype), x @ x)

    thread = threading.Thread(target=lambda: jax.block_until_ready(train(jnp.ones((8, 8)))))
    thread.start()
    try:
        assert held.wait(30)
        pendulum = Pendulum("mjx")
        pendulum.sandbox.fork([pendulum.at(0.1)])
        steps(pendulum.sandbox, 0.2)
        assert not go_on.is_set()
    finally:
        go_on.set()
        thread.join(timeout=30)
