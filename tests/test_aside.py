"""Forks a robot of the training into a sandbox on the page, without an effect on the training."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from brax_viser import Viewer
from brax_viser.host.progress import count
from brax_viser.model.framing import framing_camera
from brax_viser.model.robot import Model
from brax_viser.page.commands import Commands
from brax_viser.panel import words
from brax_viser.records.frame import Detail
from brax_viser.records.view import ASIDE
from brax_viser.sandbox.history import MOST_DETAILS, RecentDetails
from brax_viser.sandbox.session import ForkView, SandboxSession, Trained
from brax_viser.sandbox.simulation import Sandbox
from brax_viser.sandbox.transplant import Transplant
from brax_viser.scene.robots import PARKED
from tests.conftest import Page, eventually
from tests.recorded import Kept, recording_of
from tests.sample import SwiftCartPole
from tests.support import Probe, adapter_of
from tests.test_detail import CHOSEN, NUM_ENVS, Rollout, suite_env
from tests.test_twin import frame_of

PENDULUM = "inverted_pendulum"


def leaning(params: Any, deterministic: bool = False) -> Any:
    """Returns a policy that pushes the cart by `params["push"]`."""

    def policy(obs: Any, key: Any) -> Any:
        return jnp.full(1, params["push"]), {}

    return policy


@pytest.fixture(scope="module")
def pendulums() -> Iterator[Rollout]:
    """A rollout in a viewer of its own, compiled once for all tests."""
    with Viewer(port=0) as viewer:
        yield Rollout(viewer, SwiftCartPole("spring"))


@pytest.fixture
def viewer(pendulums) -> Iterator[Viewer]:
    """The viewer of these pendulums, without a selection, a sandbox, twins or a policy."""
    viewer, probe = pendulums.viewer, Probe(pendulums.viewer)
    yield viewer
    told(viewer, lambda do: viewer.close_sandbox())
    probe.now(probe.replay.close)
    viewer.twins, viewer.selected_env, viewer.mode = 0, None, "every_step"
    probe.now(lambda: setattr(probe.sandbox_session, "trained", None))
    eventually(lambda: not probe.server.get_clients(), "the page of this test is gone")


@pytest.fixture
def rollout(pendulums, viewer, page) -> Rollout:
    """The rollout four steps after a reset, with one of its pendulums selected."""
    pendulums.reset()
    viewer.selected_env = CHOSEN
    for _ in range(4):
        pendulums.step()
    return pendulums


def panel(viewer: Viewer) -> Any:
    return Probe(viewer).sandbox_session.panel()


def forked(viewer: Viewer) -> None:
    """Forks the selected robot, and waits until the sandbox is on screen."""
    viewer.fork()
    eventually(lambda: viewer.sandbox and panel(viewer).drivers, "it runs", timeout=60)
    eventually(
        lambda: (b := Probe(viewer).scene.blocks.get(ASIDE)) and b.frame is not None,
        "it is drawn",
    )


def told(viewer: Viewer, what: Callable[[Commands], object]) -> None:
    """Runs a command as the page does, and waits until the sandbox has carried it out."""
    probe = Probe(viewer)
    probe.enqueue(lambda: what(probe.commands))
    probe.now(lambda: None)
    eventually(lambda: not len(probe.inbox), "it is done")
    if viewer.sandbox is not None:
        viewer.sandbox.do(lambda sandbox: None).result(timeout=60)


def test_a_fork_has_the_pose_of_its_robot_and_moves_no_other_robot(viewer, rollout):
    scene = Probe(viewer).scene
    frame, places = scene.blocks["train"].frame, scene.blocks["train"]._origins.copy()
    forked(viewer)
    np.testing.assert_array_equal(scene.blocks["train"]._origins, places)
    block = scene.blocks[ASIDE]
    assert not (np.abs(block._origins[:, :2] - places[:, None, :2]) < 0.5).all(axis=-1).any()
    assert block.drawn_envs.tolist() == [CHOSEN]
    # The title is updated after the robots.
    eventually(lambda: f"sandbox of env {CHOSEN}" in block.title._label.text, "it says whose it is")
    detail = frame.detail
    sandbox = viewer.sandbox.do(lambda sandbox: sandbox).result(timeout=60)
    assert [d.env for d in sandbox._details] == [CHOSEN] * 4
    told(viewer, lambda do: do.set_sandbox(speed=0.0))  # else it would keep running
    viewer.sandbox.do(lambda sandbox: sandbox.reset()).result(timeout=60)
    assert viewer.sandbox.pose.time == 0.0
    # Joints of Brax's spring backend give way; MuJoCo's kinematics follows the coordinates exactly.
    data = mujoco.MjData(sandbox.model)
    data.qpos[:] = detail.qpos
    mujoco.mj_kinematics(sandbox.model, data)
    assert np.abs(data.xpos[1:] - frame.link_pos[frame.env_index == CHOSEN][0]).max() < 0.05
    assert panel(viewer).num_steps == frame.env_steps * NUM_ENVS

    state = rollout.step()  # the training goes on
    assert state.env_steps == frame.env_steps + 1
    assert viewer.stats().drawn_envs == (0, 1, 2, 3)
    told(viewer, lambda do: viewer.close_sandbox())
    assert viewer.sandbox is None and ASIDE not in scene.blocks
    assert rollout.step().env_steps == frame.env_steps + 2


def test_a_sandbox_says_that_a_policy_is_missing_and_is_driven_by_the_newest(viewer, rollout):
    folder = Probe(viewer).panel.sandbox
    forked(viewer)
    assert panel(viewer).drivers == ("replay", "still", "limp")
    eventually(lambda: "hand viewer.policy_params_fn" in folder._facts.content, "it says so")
    viewer.policy_params_fn(1000, leaning, {"push": np.float32(0.0)})
    eventually(lambda: "policy" in panel(viewer).drivers, "there is one to choose")
    told(viewer, lambda do: do.set_sandbox(driver="policy"))

    def way() -> float:
        """Returns how far the cart moves in half a second, m."""
        run = viewer.sandbox
        run.do(lambda sandbox: sandbox.reset()).result(timeout=60)
        steps = round(0.5 / run.do(lambda sandbox: sandbox.dt).result())
        return run.do(lambda s: [s.step() for _ in range(steps)][-1].link_pos[0, 0]).result()

    told(viewer, lambda do: do.set_sandbox(speed=0.0))
    still = way()
    viewer.policy_params_fn(2000, leaning, {"push": np.float32(1.0)})
    eventually(lambda: panel(viewer).policy_steps == 2000, "it has the newer one")
    assert way() > still + 0.02
    eventually(lambda: f"policy of step {count(2000)}" in folder._facts.content, "it says which")
    viewer.policy_params_fn(3000, leaning, {"push": np.float32(-1.0)})
    eventually(lambda: panel(viewer).policy_steps == 3000, "it has the newest")
    assert way() < still - 0.02


def test_pushes_sliders_and_reset_take_effect_in_the_sandbox(viewer, rollout):
    forked(viewer)
    told(viewer, lambda do: do.set_sandbox(driver="limp"))
    told(viewer, lambda do: do.set_sandbox(speed=0.0))
    told(viewer, lambda do: do.reset_sandbox())  # it kept moving, and the rail ends
    run = viewer.sandbox
    before = run.do(lambda s: s.data.qvel[0]).result()
    told(viewer, lambda do: do.set_sandbox(impulse=3.0))
    client = next(iter(Probe(viewer).server.get_clients()))  # its camera looks from (3, 3, 3)
    told(viewer, lambda do: do.push_sandbox("Right", client))
    after = run.do(lambda s: [s.step(), s.data.qvel[0]][1]).result()
    # For a camera that looks along -x and -y, right means -x and +y; the cart moves along x.
    assert after < before - 0.05
    told(viewer, lambda do: do.set_sandbox(gravity=0.0))
    told(viewer, lambda do: do.set_sandbox(friction=2.0))
    told(viewer, lambda do: do.set_sandbox(mass=3.0))
    model = run.do(lambda s: s.model).result()
    made = adapter_of(rollout.env).mj_model
    assert model.opt.gravity[2] == 0.0 and made.opt.gravity[2] < -9
    np.testing.assert_allclose(model.body_mass[1:], 3 * made.body_mass[1:])
    np.testing.assert_allclose(model.geom_friction, 2 * made.geom_friction)
    told(viewer, lambda do: do.reset_sandbox())
    assert run.pose.time <= 0.05
    # A value out of range is refused, and does not end the sandbox.
    told(viewer, lambda do: do.set_sandbox(gravity=99.0))
    assert run.fault is None and panel(viewer).fault is None


def test_a_click_in_the_sandbox_chooses_the_body_to_push_and_weigh(viewer, rollout):
    forked(viewer)
    told(viewer, lambda do: do.set_sandbox(speed=0.0))
    told(viewer, lambda do: do.reset_sandbox())  # the pole is upright there
    scene = Probe(viewer).scene
    block = scene.blocks[ASIDE]
    eventually(lambda: block.frame.detail is viewer.sandbox.pose.detail, "it is drawn there")
    pole = block.place_of(CHOSEN, 1) + np.array([0.0, 0.0, 0.3])
    before_it = scene.scale * (pole + np.array([0, -5.0, 0]))
    told(viewer, lambda do: do.click(before_it, np.array([0, 1.0, 0])))
    assert panel(viewer).body == 2 and viewer.selected_env == CHOSEN
    told(viewer, lambda do: do.set_sandbox(mass=2.0))
    made = adapter_of(rollout.env).mj_model
    model = viewer.sandbox.do(lambda s: s.model).result()
    np.testing.assert_allclose(model.body_mass[1:], made.body_mass[1:] * [1, 2])
    viewer.mode = "every_step"
    note = Probe(viewer).panel.sandbox._body
    eventually(lambda: "pole" in note.content, "the panel names it")


def test_a_handle_follows_the_robot_and_drags_it(viewer, rollout):
    forked(viewer)
    told(viewer, lambda do: do.set_sandbox(driver="limp"))
    told(viewer, lambda do: do.drag_sandbox(True))
    sandbox = Probe(viewer).sandbox_view
    handle = sandbox._handle
    assert handle is not None and panel(viewer).dragged
    block = Probe(viewer).scene.blocks[ASIDE]
    eventually(
        lambda: np.allclose(
            handle._handle.position,
            block.scale * block.place_of(CHOSEN, sandbox.session.body - 1),
            atol=0.05,
        ),
        "it is where the robot is",
    )
    start = float(viewer.sandbox.pose.link_pos[sandbox.session.body - 1, 0])
    way = -1.0 if start > 0 else 1.0  # towards the side with room on the rail
    target = block.origin_of(CHOSEN) + np.array([start + 0.5 * way, 0.0, 0.0])
    Probe(viewer).now(lambda: sandbox._dragged(block.scale * target))
    eventually(
        lambda: way * (viewer.sandbox.pose.link_pos[sandbox.session.body - 1, 0] - start) > 0.3,
        "it is drawn there",
    )
    told(viewer, lambda do: do.drag_sandbox(False))
    assert sandbox._handle is None
    eventually(lambda: viewer.sandbox.pose.drag is None, "it is let go")


def test_only_the_selected_robot_can_be_forked_and_only_once_its_details_are_known(
    pendulums, viewer, page
):
    with pytest.raises(ValueError, match="select it first"):
        viewer.fork()
    pendulums.reset()
    pendulums.step()
    viewer.selected_env = CHOSEN
    with pytest.raises(ValueError, match="not known yet"):
        viewer.fork()
    told(viewer, lambda do: do.fork(0))
    assert "not known yet" in str(Probe(viewer).state.notice)


def test_an_environment_that_cannot_be_forked_does_not_stop_the_training(
    viewer, rollout, monkeypatch, caplog
):
    from brax_viser.sandbox.simulation import Sandbox

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("not today")

    before = viewer.stats().env_steps
    monkeypatch.setattr(Sandbox, "fork", broken)
    viewer.fork()
    eventually(lambda: panel(viewer).fault, "it says so")
    assert "not today" in panel(viewer).fault and viewer.sandbox is None
    assert rollout.step().env_steps == before + 1


def test_twins_and_a_sandbox_are_shown_together_and_another_fork_replaces_it(
    viewer, rollout, monkeypatch
):
    monkeypatch.setattr("brax_viser.page.channels.TWIN_PATIENCE", np.inf)  # show late twins too
    viewer.twins = 4
    rollout.step()
    rollout.step()
    forked(viewer)
    first = viewer.sandbox
    viewer.selected_env = 1
    for _ in range(2):
        rollout.step()
    forked(viewer)
    assert viewer.sandbox is not first
    assert Probe(viewer).scene.blocks[ASIDE].drawn_envs.tolist() == [1]
    frame = rollout.step()
    ghosts = Probe(viewer).scene.blocks["train"]._ghosts.robots
    assert frame.ghost is not None and ghosts is not None
    assert np.asarray(ghosts.handles[0].batched_positions)[0, 2] != PARKED[2]


def test_recent_details_go_back_to_a_missing_step_or_the_start_of_an_episode():
    past = RecentDetails()

    def frame(step: int, length: int, env: int = 0) -> Any:
        detail = Detail(env, *(np.full(1, step),) * 2, *(None,) * 5, {})
        base = frame_of(step, None, np.zeros((3, 1, 3)))
        lengths = np.zeros(3, np.int32)
        lengths[env] = length
        return type(base)(**{**vars(base), "detail": detail, "episode_length": lengths})

    frames = [(1, 1), (2, 2), (4, 4), (5, 5), (6, 6), (7, 1), (8, 2), (9, 3)]
    for step, length in frames:
        past.add(frame(step, length))
    past.add(frame_of(10, None, np.zeros((3, 1, 3))))  # no env was selected then
    steps = lambda f: [int(d.qpos[0]) for d in past.until(f)]  # noqa: E731
    assert steps(frame(9, 3)) == [7, 8, 9]
    assert steps(frame(6, 6)) == [4, 5, 6]  # the frame on screen lags the newest one
    assert steps(frame(9, 3, env=2)) == [9]
    for step in range(100, 100 + 2 * MOST_DETAILS):
        past.add(frame(step, step))
    assert len(steps(frame(99 + 2 * MOST_DETAILS, 0))) == MOST_DETAILS


def test_a_playground_environment_is_forked_and_driven_by_its_policy():
    with Viewer(port=0) as viewer, contextlib.closing(Page(viewer)):
        rollout = Rollout(viewer, suite_env("CartpoleBalance"))
        viewer.selected_env = CHOSEN
        for _ in range(3):
            frame = rollout.step()
        viewer.policy_params_fn(500, leaning, {"push": np.float32(1.0)})
        forked(viewer)
        assert panel(viewer).driver == "policy" and frame.detail is not None
        told(viewer, lambda do: do.set_sandbox(speed=0.0))
        run = viewer.sandbox
        run.do(lambda sandbox: sandbox.reset()).result(timeout=60)
        np.testing.assert_allclose(run.pose.detail.qpos, frame.detail.qpos, atol=1e-6)
        # The policy pushes to the right as hard as it can.
        poses = run.do(lambda s: [s.step() for _ in range(40)]).result(timeout=60)
        assert poses[-1].detail.qvel[0] > frame.detail.qvel[0] + 0.5
        assert all(pose.reward is not None for pose in poses)
        np.testing.assert_allclose(poses[-1].detail.ctrl, 1.0)


class Overtaken(SandboxSession):
    """A session that another thread closes at the worst moment: just before the fork's thread
    writes a result."""

    closes_at = ""  # "_thread" or "_view"

    def _set(self, name: str, value: Any) -> None:
        if name == self.closes_at and threading.current_thread().name == "brax_viser fork":
            self.closes_at = ""
            closing = threading.Thread(target=self.close)
            closing.start()
            closing.join(timeout=0.5)  # close() may have to wait for this write
        self.__dict__[name] = value

    _thread: Any = property(lambda s: s.__dict__["_thread"], lambda s, v: s._set("_thread", v))
    _view: Any = property(lambda s: s.__dict__["_view"], lambda s, v: s._set("_view", v))


def test_of_many_forks_only_the_newest_is_made_while_another_is(rollout, viewer, monkeypatch):
    open_, made, of = threading.Event(), [], Transplant.__init__

    def slow(self: Transplant, adapter: Any) -> None:
        made.append(adapter)
        assert open_.wait(60)
        of(self, adapter)

    monkeypatch.setattr(Transplant, "__init__", slow)
    frame, forks = Probe(viewer).scene.blocks["train"].frame, SandboxSession(lambda: None)
    try:
        for number in range(20):
            forks.fork(adapter_of(rollout.env), [frame.detail], {}, number)
        eventually(lambda: made, "the first is being made")
        assert [thread.name for thread in threading.enumerate()].count("brax_viser fork") == 1
        open_.set()
        eventually(lambda: forks.panel().drivers, "the last one runs")
        assert len(made) <= 2 and forks.panel().num_steps == 19
    finally:
        open_.set()
        forks.close()


@pytest.mark.parametrize("closes_at", ["_thread", "_view"])
def test_closing_a_sandbox_while_it_starts_leaves_nothing_behind(rollout, viewer, closes_at):
    frame = Probe(viewer).scene.blocks["train"].frame
    forks = Overtaken(lambda: None)
    forks.fork(adapter_of(rollout.env), [frame.detail], {}, 20)
    forks.closes_at = closes_at
    running = lambda: {t.name for t in threading.enumerate()}  # noqa: E731
    eventually(lambda: not forks.closes_at, "it is closed")
    eventually(lambda: not {"brax_viser fork", "brax_viser sandbox"} & running(), "threads end")
    assert forks.thread is None and forks.forked is None and forks.panel() == ForkView()


def test_a_policy_received_while_a_sandbox_is_being_built_can_drive_it(rollout, viewer):
    frame = Probe(viewer).scene.blocks["train"].frame
    forks = SandboxSession(lambda: None)
    try:
        forks.fork(adapter_of(rollout.env), [frame.detail], {}, 20)
        forks.hand_out(Trained(1000, leaning, {"push": np.float32(0.0)}))
        eventually(lambda: forks.panel().policy_steps == 1000, "it is known")
        eventually(lambda: "policy" in forks.panel().drivers, "it can drive")
    finally:
        forks.close()


def test_the_page_keeps_running_while_the_sandboxs_robot_is_read(viewer, rollout, monkeypatch):
    open_, begun, of = threading.Event(), threading.Event(), Model.of

    def slow(*args: Any, **kwargs: Any) -> Model:
        begun.set()
        assert open_.wait(120)
        return of(*args, **kwargs)

    before = viewer.stats().env_steps
    monkeypatch.setattr(Model, "of", slow)
    client = next(iter(Probe(viewer).server.get_clients()))
    told(viewer, lambda do: do.fork(client))
    assert begun.wait(60)
    heard = threading.Event()
    Probe(viewer).events.soon(heard.set)
    try:
        assert heard.wait(20)
        assert rollout.step().env_steps == before + 1
        assert ASIDE not in Probe(viewer).scene.blocks
    finally:
        open_.set()
    scene = Probe(viewer).scene
    eventually(lambda: ASIDE in scene.blocks, "it is there")
    eventually(lambda: scene.blocks[ASIDE].frame is not None, "and is drawn", 120)
    camera = next(iter(Probe(viewer).server.get_clients().values())).camera
    middle = scene.scale * scene.blocks[ASIDE].offset
    assert abs(camera.look_at[1] - middle[1]) < abs(middle[1]) / 2, (
        "the camera of its page is there"
    )
    viewer.close_sandbox()

    def sees_all() -> bool:
        pose = framing_camera(scene.scale * scene.bounds, aspect=camera.aspect)
        return ASIDE not in scene.blocks and np.allclose(camera.position, pose.position)

    eventually(sees_all, "the camera is back")


def test_recorded_episodes_are_not_played_out_of_sight_of_a_page_at_the_sandbox(viewer, rollout):
    probe = Probe(viewer)
    scene, client = probe.scene, next(iter(probe.server.get_clients().values()))
    home = tuple(client.camera.position)
    told(viewer, lambda do: do.fork(client.client_id))
    eventually(lambda: viewer.sandbox and panel(viewer).drivers, "it runs", timeout=120)
    at_sandbox = lambda: client.client_id in scene._visitors  # noqa: E731
    eventually(at_sandbox, "the camera of its page is there", timeout=120)
    assert not np.allclose(client.camera.position, home)
    probe.keep(Kept(recording_of(adapter_of(rollout.env).mj_model, 0)))

    def sees_all() -> bool:
        pose = framing_camera(scene.scale * scene.bounds, aspect=client.camera.aspect)
        return np.allclose(client.camera.position, pose.position)

    assert not sees_all()
    probe.now(probe.replay.toggle)
    eventually(sees_all, "the robots that play are in the picture")
    assert viewer.sandbox is not None, "which goes on"
    # A page that has left the sandbox by itself keeps its view.
    probe.now(probe.replay.close)
    probe.now(lambda: probe.sandbox_view.look_at(client.camera))
    eventually(lambda: not sees_all(), "it is at the sandbox again")
    told(viewer, lambda do: do.see_all(client.client_id))
    mine = np.add(home, (0.5, 0.0, 0.0))
    client.camera.position = mine
    probe.now(probe.replay.toggle)
    eventually(lambda: probe.shared.control.replayed, "they play once more")
    np.testing.assert_allclose(client.camera.position, mine)


def test_after_the_training_its_policy_plays_on_until_another_training_begins(viewer, rollout):
    probe = Probe(viewer)
    viewer.policy_params_fn(1000, leaning, {"push": np.float32(0.0)})
    viewer.training_ended()
    eventually(lambda: viewer.sandbox and panel(viewer).driver == "policy", "it plays on")
    assert panel(viewer).env == CHOSEN and not panel(viewer).begins, "from where it was last shown"
    viewer.policy_saved("runs/pendulum/policy")
    said = words.head(probe.panel_view())
    assert (
        "Finished, the policy plays on" in said
        and "runs/pendulum/policy" in said
        and "Live" not in said
    )
    controls = probe.panel.training
    eventually(lambda: controls._hold.disabled and not controls._step.visible, "no hold is left")
    said = "It learned in spring physics: it may do worse here"
    eventually(lambda: said in controls._hold_note.content, "it is said")
    for command in (Commands.toggle_hold, Commands.step, Commands.run_to_next_fall):
        told(viewer, command)
        assert "The training is over" in str(probe.state.notice)
        assert not probe.shared.hold.paused

    def topple(sandbox: Sandbox) -> None:
        sandbox.data.qpos[1] = 1.5

    viewer.sandbox.do(topple).result(timeout=60)
    eventually(lambda: viewer.sandbox.pose.done, "it has fallen")
    eventually(lambda: not viewer.sandbox.pose.done, "and begins again")

    rollout.step()
    eventually(lambda: viewer.sandbox is None, "it makes room for the next training")
    eventually(lambda: not controls._hold.disabled, "which can be held")


def test_after_the_training_any_robot_can_be_forked_at_the_start_of_an_episode(
    pendulums, viewer, page
):
    pendulums.reset()
    frame = pendulums.step()
    viewer.policy_params_fn(1000, leaning, {"push": np.float32(0.0)})
    viewer.training_ended()
    eventually(lambda: viewer.sandbox and panel(viewer).drivers, "it plays on, unselected")
    assert panel(viewer).env == frame.env_index[0] and panel(viewer).begins
    viewer.selected_env = CHOSEN  # its details can't come any more
    forked(viewer)  # perhaps still with the sandbox that plays on
    eventually(lambda: panel(viewer).env == CHOSEN and panel(viewer).drivers, "it is forked")
    assert panel(viewer).begins
    pose = viewer.sandbox.do(lambda sandbox: sandbox.reset() or sandbox.pose).result(timeout=60)
    np.testing.assert_array_equal(pose.detail.qpos, adapter_of(pendulums.env).init_qpos)
    pendulums.step()
    threading.Event().wait(1.5)
    assert viewer.sandbox is not None, "a person's own sandbox is left as it is"
