"""Environments that train without the wrapper are shown with it, and their states stay the same."""

import copy
import functools
import pickle
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax import envs
from brax.envs.base import PipelineEnv
from brax.io import mjcf
from flax.core import FrozenDict
from mujoco import mjx

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device.adapters import adapter_for
from brax_viser.device.episode import EpisodeLog
from brax_viser.device.log_in_info import INFO_KEY
from brax_viser.records.frame import Detail
from envs.cartpole import CartPole
from tests.conftest import Page, eventually
from tests.support import Probe, adapter_of
from tests.test_training import SMALL, assert_identical, train
from tests.toy import State, Toy

NUM_ENVS, NUM_STEPS = 5, 6


@pytest.fixture(scope="module")
def shared():
    """A viewer with an open page, for tests that do not need one of their own."""
    with Viewer(port=0, mode="every_step") as viewer:
        page = Page(viewer)
        yield viewer
        page.close()


def without_log(state: Any) -> Any:
    return state.replace(info={k: v for k, v in state.info.items() if k != INFO_KEY})


def assert_same(one: Any, other: Any) -> None:
    """Compares structure, values, types and weak types."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
        assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None)
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_array_equal(a, b)


def rollout(env: Any) -> list[Any]:
    """Returns the states of a batch before and after each step."""
    actions = jax.random.uniform(jax.random.PRNGKey(1), (NUM_STEPS, NUM_ENVS, 1), minval=-1.0)
    states = [jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))]
    step = jax.jit(jax.vmap(env.step))
    for action in actions:
        states.append(jax.block_until_ready(step(states[-1], action)))
    return states


def assert_shown_and_the_same(make: Any, viewer: Viewer, **settings: Any) -> VisualizedEnv:
    env = VisualizedEnv(make(), grid=(2, 2), viewer=viewer, **settings)
    before = viewer.stats().frames
    watched = rollout(env)
    assert viewer.stats().frames - before == NUM_STEPS, "each step is seen"
    assert Probe(viewer).shared.fault is None
    for ours, bare in zip(watched, rollout(make()), strict=True):
        assert_same(without_log(ours), bare)
    return env


# Done and reward.

DONE = {
    "False": lambda _: False,
    "0": lambda _: 0,
    "0.0": lambda _: 0.0,
    "bool": lambda x: jnp.abs(x) > 0.04,
    "int": lambda x: (jnp.abs(x) > 0.04).astype(jnp.int32),
    "[1]": lambda x: jnp.abs(x[None]) > 0.04,
    "numpy": lambda _: np.bool_(False),
}
REWARD = {
    "1": lambda _: 1,
    "1.0": lambda _: 1.0,
    "True": lambda _: True,
    "[1]": lambda x: x[None],
    "[3]": lambda x: jnp.stack([x, 2 * x, -1.0]),
    "[2, 1]": lambda x: jnp.array([[1], [2]]),
    "dict": lambda x: {"near": x, "alive": 1},
}


@pytest.mark.parametrize(("done", "reward"), list(zip(DONE, REWARD, strict=True)))
def test_done_and_reward_may_be_any_number_or_array_and_the_rewards_sum_is_shown(
    shared, done, reward
):
    make = functools.partial(Toy, done=DONE[done], reward=REWARD[reward])
    env = assert_shown_and_the_same(make, shared)
    first, action = env.reset(jax.random.PRNGKey(2)), 5 * jnp.ones(1)
    state = env.step(first, action)  # outside `jit`, where Python's numbers stay Python's
    bare = make().reset(jax.random.PRNGKey(2))
    assert_same(without_log(first), bare)
    assert_same(without_log(state), make().step(bare, action))
    total = sum(float(np.sum(x)) for x in jax.tree.leaves(state.reward))
    log = state.info[INFO_KEY]
    assert float(log["episode_return"]) == pytest.approx(total, rel=1e-5)
    assert (log["since_termination"] == 0) == np.any(np.asarray(state.done) > 0)


def test_python_numbers_only_at_reset_and_a_batch_inside_are_shown_too(shared):
    class Early(Toy):
        def reset(self, rng):
            return super().reset(rng).replace(done=False, reward=0.0, info={"steps": 0})

    assert_shown_and_the_same(Early, shared)
    env = VisualizedEnv(envs.training.VmapWrapper(Toy(reward=REWARD["[3]"])), viewer=shared)
    state = env.reset(jax.random.split(jax.random.PRNGKey(0), 4))
    state = jax.jit(env.step)(state, jnp.ones((4, 1)))
    assert state.reward.shape == (4, 3)
    assert state.info[INFO_KEY]["episode_return"].shape == (4,)


# Observations.


@jax.tree_util.register_dataclass
@dataclass
class Seen:
    where: Any
    more: Any


OBSERVATIONS = {
    "tuple": (lambda x: (x[None], jnp.ones(2)), {"0": 1, "1": 2}),
    "list": (lambda x: [x[None], x], {"0": 1}),
    "nested": (lambda x: {"a": {"b": x[None]}, "c": [jnp.ones(3)]}, {"a/b": 1, "c/0": 3}),
    "dataclass": (lambda x: Seen(x[None], {"n": jnp.ones(2)}), {"where": 1, "more/n": 2}),
    "frozen": (lambda x: FrozenDict({"a": x[None]}), {"a": 1}),
    "pixels": (lambda x: {"pixels": {"view": x[None]}, "s": x[None]}, {"s": 1}),
    "None": (lambda x: None, {}),
    "number": (lambda x: 1.0, {}),
    "array": (lambda x: x[None], {"": 1}),
}


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_observations_may_be_any_pytree_and_are_named_by_their_paths(shared, kind):
    make, sizes = OBSERVATIONS[kind]
    env = assert_shown_and_the_same(lambda: Toy(obs=make), shared)
    state = env.reset(jax.random.PRNGKey(0))
    fields = adapter_of(env).detail(state, jnp.ones(1))
    seen = Detail.of(0, fields).observation
    assert {name: len(x) for name, x in seen.items()} == sizes
    inspected = adapter_of(env).inspected(state).values()
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in inspected)


def test_nested_observations_reach_the_page(viewer, page):
    viewer.mode, viewer.selected_env = "every_step", 1
    make, sizes = OBSERVATIONS["nested"]
    env = VisualizedEnv(Toy(obs=make), grid=(2, 2), viewer=viewer)
    observation = drawn(env, viewer)[0].detail.observation
    assert {name: len(x) for name, x in observation.items()} == sizes


def drawn(env: VisualizedEnv, viewer: Viewer) -> tuple[Any, Any]:
    """Returns the frame on screen after one step of a batch, and the state after it."""
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
    state = jax.block_until_ready(jax.jit(jax.vmap(env.step))(state, jnp.ones((NUM_ENVS, 1))))
    blocks = Probe(viewer).scene.blocks
    eventually(lambda: (b := blocks.get("train")) and b.frame, "it is drawn")
    return blocks["train"].frame, state


# Models and poses.

ARM = """
<mujoco><option timestep="0.005"><flag contact="disable"/></option><worldbody>
  <body name="mount" pos="0 0 1"><geom size="0.1"/>
    <body name="arm" pos="0.2 0 0"><joint name="a" axis="0 1 0"/><geom size="0.05" pos="0.1 0 0"/>
      <body name="flange" pos="0.3 0 0" quat="0.7 0 0.7 0"><geom size="0.05"/>
        <body name="tip" pos="0.1 0 0"><joint axis="0 0 1"/><geom size="0.04" pos="0.1 0 0"/></body>
      </body></body></body>
</worldbody><actuator><motor joint="a"/></actuator></mujoco>
"""


@functools.cache
def arm_model() -> tuple[mujoco.MjModel, Any]:
    model = mujoco.MjModel.from_xml_string(ARM)
    return model, mjx.put_model(model)


class Tutorial:
    """An environment as in MJX's tutorials. `keep` stores the models on it."""

    action_size, observation_size = 1, 2
    field = "data"

    def __init__(self, keep: Any = lambda env, model, stepped: vars(env).update(m=model)):
        self.stepped = arm_model()[1]
        keep(self, *arm_model())

    def reset(self, rng: jax.Array) -> Any:
        qpos = jax.random.uniform(rng, (2,), minval=-1.0)
        data = mjx.make_data(arm_model()[0]).replace(qpos=qpos)
        return self.state(mjx.kinematics(self.stepped, data))

    def step(self, state: Any, action: jax.Array) -> Any:
        data = mjx.step(self.stepped, state.pipeline_state.replace(ctrl=action))
        return self.state(mjx.kinematics(self.stepped, data))  # poses of this same qpos

    def state(self, data: Any) -> Any:
        return State(data, data.qpos, jnp.zeros(()), jnp.zeros(()))


class Jointless(PipelineEnv):
    """A System in which some bodies have no joints, on MJX by default."""

    def __init__(self, backend: str = "mjx"):
        super().__init__(mjcf.load_model(copy.copy(arm_model()[0])), backend=backend)

    def reset(self, rng: jax.Array) -> Any:
        q = jax.random.uniform(rng, (2,), minval=-1.0)
        return self.state(self.pipeline_init(q, jnp.zeros(2)))

    def step(self, state: Any, action: jax.Array) -> Any:
        after = self.pipeline_step(state.pipeline_state, action)
        return self.state(self.pipeline_init(after.q, after.qd).replace(ctrl=action))

    def state(self, data: Any) -> Any:
        return envs.State(data, data.qpos, jnp.zeros(()), jnp.zeros(()))


class OfTheData(Jointless):
    """The same System, with MJX's own data in the state."""

    def reset(self, rng: jax.Array) -> Any:
        qpos = jax.random.uniform(rng, (2,), minval=-1.0)
        data = mjx.make_data(self.sys.mj_model).replace(qpos=qpos)
        return self.state(mjx.kinematics(self.sys, data))

    def step(self, state: Any, action: jax.Array) -> Any:
        data = mjx.step(self.sys, state.pipeline_state.replace(ctrl=action))
        return self.state(mjx.kinematics(self.sys, data))


@pytest.mark.parametrize("make", [Tutorial, Jointless, OfTheData])
def test_poses_equal_mujocos_wherever_the_state_keeps_them(viewer, page, make):
    viewer.mode, viewer.selected_env = "every_step", 2
    env = VisualizedEnv(make(), grid=(NUM_ENVS, 1), viewer=viewer)
    frame, state = drawn(env, viewer)
    model = arm_model()[0]
    data = mujoco.MjData(model)
    for i in range(NUM_ENVS):
        data.qpos = state.pipeline_state.qpos[i]
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(frame.link_pos[i], data.xpos[1:], atol=1e-5)
        np.testing.assert_allclose(frame.link_rot[i], data.xquat[1:], atol=1e-5)
    np.testing.assert_allclose(frame.detail.qpos, state.pipeline_state.qpos[2])
    np.testing.assert_allclose(frame.detail.ctrl, [1.0])
    assert adapter_of(env).native and adapter_of(env).substeps == 1


def test_jointless_bodies_on_braxs_own_backends_are_refused_with_a_remedy_that_works(shared):
    with pytest.raises(ValueError, match=r"2 links .* 4 bodies .* use backend='mjx'"):
        VisualizedEnv(Jointless("spring"), viewer=shared)


class Slotted:
    __slots__ = ("robot",)


def nested(env: Any, model: Any, stepped: Any) -> None:
    env.robot = Slotted()
    env.robot.robot = {"model": model}


KEEPS = {
    "sys": lambda env, model, stepped: vars(env).update(sys=stepped, mj_model=model),
    "model": lambda env, model, stepped: vars(env).update(model=model, mx=stepped),
    "_mj_model": lambda env, model, stepped: vars(env).update(_mj_model=model, model=stepped),
    "another": lambda env, model, stepped: vars(env).update(robot_of_mine=model),
    "nested": nested,
    "namespace": lambda env, model, stepped: vars(env).update(
        sim=types.SimpleNamespace(part=types.SimpleNamespace(of_it=model))
    ),
    "data": lambda env, model, stepped: vars(env).update(start=mujoco.MjData(model)),
    "beside others": lambda env, model, stepped: vars(env).update(
        mj_model=Toy().model, of_the_arm=model
    ),
}


class Computed(Tutorial):
    @property
    def robot_model(self) -> mujoco.MjModel:
        return arm_model()[0]

    @property
    def other(self) -> Any:
        raise AssertionError("a property of any other name may take long")


class ComputedOnce(Tutorial):
    @functools.cached_property
    def the_MJmodel(self) -> mujoco.MjModel:
        return arm_model()[0]


@pytest.mark.parametrize("make", [Computed, ComputedOnce])
def test_a_mujoco_model_that_a_property_returns_is_found(make):
    assert adapter_for(make(lambda env, model, stepped: None)).mj_model is arm_model()[0]


@pytest.mark.parametrize("where", KEEPS)
def test_the_mujoco_model_is_found_wherever_it_is_kept(where):
    assert adapter_for(Tutorial(KEEPS[where])).mj_model is arm_model()[0]


def test_a_mujoco_model_that_is_passed_in_must_match_the_env(shared):
    bare = Tutorial(lambda env, model, stepped: None)
    with pytest.raises(ValueError, match=r"no MuJoCo model.*mj_model=model"):
        VisualizedEnv(bare, viewer=shared)
    with pytest.raises(TypeError, match=r"must be a mujoco\.MjModel"):
        VisualizedEnv(bare, viewer=shared, mj_model="arm.xml")
    with pytest.raises(ValueError, match=r"has 2 bodies .* what is stepped has 5"):
        VisualizedEnv(bare, viewer=shared, mj_model=Toy().model)
    assert adapter_of(VisualizedEnv(bare, viewer=shared, mj_model=arm_model()[0])).dt == 0.005
    toy = VisualizedEnv(Toy(), viewer=shared, mj_model=arm_model()[0])
    with pytest.raises(ValueError, match=r"\(1, 1, 1\), but its MuJoCo model has \(2, 2, 4\)"):
        toy.reset(jax.random.PRNGKey(0))


# Classes.


def test_a_plain_class_trains_identically_under_stock_ppo(viewer, page):
    viewer.mode = "every_step"
    settings = dict(SMALL, num_timesteps=1_000, num_evals=1)
    assert_identical(train(VisualizedEnv(Toy(), viewer=viewer), settings), train(Toy(), settings))
    assert viewer.stats().frames > 50
    assert Probe(viewer).shared.fault is None


@pytest.mark.parametrize(
    ("attributes", "seconds"),
    [({}, 0.02), ({"n_frames": 5}, 0.1), ({"_n_substeps": 2}, 0.04), ({"dt": 0.06}, 0.06)],
)
def test_the_duration_of_a_step_is_inferred_from_the_envs_attributes(attributes, seconds):
    env = Toy()
    vars(env).update(attributes)
    assert adapter_for(env).dt == pytest.approx(seconds)


class Registered(Toy):
    """An environment that registers its subclasses, and requires a name for each."""

    known: dict[str, type] = {}  # noqa: RUF012

    def __init_subclass__(cls, *, name: str, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if name in Registered.known:
            raise ValueError(f"{name} is taken")
        Registered.known[name] = cls


class Meta(type):
    made: list[str] = []  # noqa: RUF012

    def __init__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]):
        super().__init__(name, bases, members)
        Meta.made.append(name)


class OfMeta(Toy, metaclass=Meta):
    pass


class WithSlots:
    __slots__ = ("model", "toy")
    action_size, observation_size = 1, 2

    def __init__(self):
        self.toy = Toy()
        self.model = self.toy.model

    def reset(self, rng: jax.Array) -> Any:
        return self.toy.reset(rng)

    def step(self, state: Any, action: jax.Array) -> Any:
        return self.toy.step(state, action)


@dataclass(frozen=True)
class Frozen:
    toy: Toy
    action_size: int = 1

    def reset(self, rng: jax.Array) -> Any:
        return self.toy.reset(rng)

    def step(self, state: Any, action: jax.Array) -> Any:
        return self.toy.step(state, action)


class Mine(Registered, name="mine"):
    pass


class WithArguments(Toy):
    def __new__(cls, gain: float):
        return super().__new__(cls)

    def __init__(self, gain: float):
        super().__init__()


CLASSES = [
    Mine,
    OfMeta,
    WithSlots,
    functools.partial(Frozen, Toy()),
    functools.partial(WithArguments, 1.0),
]


@pytest.mark.parametrize("make", CLASSES)
def test_no_subclass_of_the_users_class_is_made(shared, make):
    known, made, subclasses = dict(Registered.known), list(Meta.made), Mine.__subclasses__()
    env = assert_shown_and_the_same(make, shared)
    base, bare = env.unwrapped, env.env
    assert isinstance(base, type(bare)) and base is not bare and base.unwrapped is base
    assert base is env.unwrapped
    before = shared.stats().frames
    base.step(base.reset(jax.random.PRNGKey(0)), jnp.ones(1))
    assert shared.stats().frames == before + 1, "a step of the base is seen"
    assert (Registered.known, Meta.made) == (known, made)
    assert Mine.__subclasses__() == subclasses == []


def test_a_copy_of_the_unwrapped_env_steps_itself(shared):
    env = VisualizedEnv(Toy(), viewer=shared)
    other = copy.copy(env.unwrapped)
    other.made = None, lambda x: 7.0, None
    state = env.reset(jax.random.PRNGKey(0))
    assert float(other.step(state, jnp.ones(1)).reward) == 7.0
    assert float(env.unwrapped.step(state, jnp.ones(1)).reward) < 0.0


def test_a_subclass_of_the_wrapper_may_register_its_own_subclasses(shared):
    class Named(VisualizedEnv):
        def __init_subclass__(cls, *, name: str):
            raise AssertionError(name)

    assert isinstance(Named(Toy(), viewer=shared), envs.Wrapper)


def test_the_unwrapped_env_can_be_wrapped_again_with_another_viewer(shared):
    with Viewer(port=0, mode="every_step") as other:
        page = Page(other)
        env = VisualizedEnv(VisualizedEnv(Toy(), viewer=shared).unwrapped, viewer=other)
        before = shared.stats().frames
        rollout(env)
        assert other.stats().frames == NUM_STEPS and shared.stats().frames == before
        page.close()
    around = envs.training.EpisodeWrapper(env.unwrapped, 10, 1)
    with pytest.raises(ValueError, match="already"):
        VisualizedEnv(around, viewer=shared)


# Copies.


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("make", [Toy, lambda: envs.training.EpisodeWrapper(CartPole(), 9, 1)])
def test_a_copy_shares_the_viewer_and_is_the_same_env(shared, way, make):
    env = VisualizedEnv(make(), grid=(2, 1), viewer=shared)
    _ = env.unwrapped
    other = way(env)
    assert type(other) is type(env) and other is not env and other.viewer is shared
    assert way(shared.progress_fn) == shared.progress_fn
    assert (other.env is env.env) == (way is copy.copy)
    if make is Toy:
        before = shared.stats().frames
        for ours, copied in zip(rollout(env), rollout(other), strict=True):
            assert_same(without_log(ours), without_log(copied))
        assert shared.stats().frames - before == 2 * NUM_STEPS
    else:
        assert other.unwrapped._pipeline is env.unwrapped._pipeline
        jax.eval_shape(other.reset, jax.random.PRNGKey(0))  # a copy is attached while it is traced
        assert adapter_of(other).dt == adapter_of(env).dt


def elsewhere(path: str) -> None:
    """Steps an unpickled env in another process, without a viewer and then with one."""
    env = pickle.loads(Path(path).read_bytes())
    assert env.viewer is None
    states = rollout(env)
    assert INFO_KEY not in states[0].info
    for ours, bare in zip(states, rollout(Toy()), strict=True):
        assert_same(ours, bare)
    with Viewer(port=0, mode="every_step") as viewer:
        page = Page(viewer)
        env.viewer = viewer
        rollout(env)
        assert viewer.stats().frames == NUM_STEPS
        page.close()
    print("the same")


def test_an_env_unpickled_in_another_process_steps_without_a_viewer_until_given_one(
    shared, tmp_path
):
    path = tmp_path / "env.pickle"
    path.write_bytes(pickle.dumps(VisualizedEnv(Toy(), viewer=shared)))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tests.test_inputs import elsewhere; elsewhere({str(path)!r})",
        ],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout


def test_a_watched_state_can_be_stepped_without_a_viewer_and_keeps_its_record(shared):
    env = VisualizedEnv(Toy(), viewer=shared)
    state = env.step(env.reset(jax.random.PRNGKey(0)), jnp.ones(1))
    env.viewer = None
    after = env.step(state, jnp.ones(1))
    assert_same(after.info, state.info)
    assert_same(without_log(after), Toy().step(without_log(state), jnp.ones(1)))


# The record.


def test_braxs_torch_wrapper_carries_the_record(shared, monkeypatch):
    """The wrapper converts mappings and arrays; a stand-in for torch is enough to test that."""
    torch = types.ModuleType("torch")
    torch.Tensor, torch.device = type("Tensor", (), {}), type("device", (), {})
    torch.utils = types.ModuleType("torch.utils")
    torch.utils.dlpack = types.SimpleNamespace(from_dlpack=np.asarray)
    for name, module in (("torch", torch), ("torch.utils", torch.utils)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "brax.io.torch", raising=False)
    from brax.io.torch import jax_to_torch

    env = VisualizedEnv(Toy(), viewer=shared)
    state = env.step(env.reset(jax.random.PRNGKey(0)), jnp.ones(1))
    carried = jax_to_torch(state.info)[INFO_KEY]
    assert EpisodeLog(**carried).episode_length == 1
    monkeypatch.delitem(sys.modules, "brax.io.torch")


@pytest.mark.parametrize("kind", [FrozenDict, dict])
def test_info_keeps_its_type(shared, kind):
    class Own(Toy):
        def reset(self, rng):
            return super().reset(rng).replace(info=kind({"mine": jnp.zeros(())}))

        def step(self, state, action):
            assert type(state.info) is kind and set(state.info) == {"mine"}
            return super().step(state, action)

    env = VisualizedEnv(Own(), viewer=shared)
    assert type(env.step(env.reset(jax.random.PRNGKey(0)), jnp.ones(1)).info) is kind


def test_a_state_without_info_or_physics_is_refused(shared):
    class NoInfo(Toy):
        def reset(self, rng):
            return super().reset(rng).replace(info=None)

    class NoPhysics(Toy):
        def reset(self, rng):
            return super().reset(rng).replace(pipeline_state=jnp.zeros(3))

    for make, words in ((NoInfo, "info=None: must be a dictionary"), (NoPhysics, "no physics")):
        with pytest.raises(ValueError, match=words):
            VisualizedEnv(make(), viewer=shared).reset(jax.random.PRNGKey(0))
