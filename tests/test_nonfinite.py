"""Checks that a NaN or an Inf in any field is reported, and holds the training if requested."""

import itertools
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs
from brax.io import model
from brax.training.agents.ppo import train as ppo

from brax_viser import Viewer, VisualizedEnv
from brax_viser.cli import app as cli
from brax_viser.host.control import REACTION_SECONDS
from brax_viser.host.findings import Finding, Findings, explained
from brax_viser.panel.training import ALL_NONFINITE, DISMISS, SHOW_NONFINITE
from brax_viser.panel.words import head, notices
from brax_viser.processes import messages
from tests.conftest import Page, eventually
from tests.sample import Turning, TurningReward
from tests.support import Probe
from tests.test_training import SMALL

NUM_ENVS, LAST = 64, 63
FOREVER = 2**30
RED = "#e03131"


class Loop:
    """A rollout of 64 environments, any field of which can turn non-finite; for all tests."""

    def __init__(self, viewer: Viewer):
        self.viewer = viewer
        env = VisualizedEnv(Turning("positional"), grid=(2, 2), viewer=viewer)
        self.env = envs.training.wrap(env, episode_length=100)
        self._reset = jax.jit(self.env.reset)
        self._steps = jax.jit(self._take)
        self.state: Any = None
        self._thread: threading.Thread | None = None

    def _take(self, state: envs.State, count: jax.Array) -> envs.State:
        action = jnp.zeros((NUM_ENVS, 1))
        return jax.lax.fori_loop(0, count, lambda _, s: self.env.step(s, action), state)

    def begin(self) -> int:
        """Resets, takes the first step, and returns how many steps the viewer knows of."""
        self.state = self._reset(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
        self.turn()
        self.steps()
        return self.viewer.stats().env_steps

    def turn(self, field: str = "reward", env: Any = (), at=0, until=FOREVER, value=np.nan) -> None:
        """Adds `value` to `field` of `env` (all by default) while its step is in [at, until)."""
        info = {name: np.array(self.state.info[name]) for name in ("at", "until", "value")}
        place = Turning.FIELDS.index(field)
        info["at"][env, place], info["until"][env, place] = at, until
        info["value"][env, place] = value
        info = {name: jnp.asarray(x) for name, x in info.items()}
        self.state = self.state.replace(info={**self.state.info, **info})

    def steps(self, count: int = 1) -> None:
        self.state = jax.block_until_ready(self._steps(self.state, jnp.int32(count)))

    def run(self, count: int) -> None:
        """Takes `count` steps on a separate thread."""
        self._thread = threading.Thread(target=self.steps, args=(count,), daemon=True)
        self._thread.start()

    def ends(self) -> None:
        """Waits until the steps of `run` have been taken."""
        assert self._thread is not None
        eventually(lambda: not self._thread.is_alive(), "all steps are taken")


@pytest.fixture(scope="module")
def one_loop() -> Iterator[Loop]:
    with Viewer(port=0) as viewer:
        yield Loop(viewer)


@pytest.fixture
def loop(one_loop: Loop) -> Iterator[Loop]:
    viewer = one_loop.viewer
    viewer.streaming, viewer.mode, viewer.hold_on_nan = True, "realtime", False
    viewer.selected_env = None
    one_loop.begin()
    viewer.dismiss_nonfinite()
    yield one_loop
    viewer.hold_on_nan = False
    viewer.resume()
    assert Probe(viewer).shared.fault is None


@pytest.fixture
def even_pace(loop: Loop, monkeypatch) -> None:
    """Lets 1 ms pass whenever the time is read, however busy the machine is."""
    hold = Probe(loop.viewer).shared.hold
    start, reads = hold.clock(), itertools.count()
    monkeypatch.setattr(hold, "clock", lambda: start + 1e-3 * next(reads))


def page_says(viewer: Viewer) -> str:
    view = Probe(viewer).panel_view(0.0)
    return head(view) + notices(view)


@pytest.mark.usefixtures("even_pace")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
def test_a_nonfinite_reward_is_reported_at_its_step_without_a_page(loop, streaming, value, kind):
    loop.viewer.streaming = streaming
    before = loop.begin()
    loop.turn("reward", LAST, at=117, value=value)
    calls = Probe(loop.viewer).shared.meter.calls
    loop.steps(200)
    (found,) = loop.viewer.nonfinite
    assert (found.role, found.env, found.fields) == ("train", LAST, (("reward", kind),))
    assert found.env_steps == before + 116 and found.exact and found.others == 0
    assert str(found).startswith(f"env 63: reward turned {kind} at step ")
    assert Probe(loop.viewer).shared.meter.calls - calls < 100, "it is asked at each step"
    # The step count stays right although one call came before its time.
    assert before + 116 <= loop.viewer.stats().env_steps <= before + 200


@pytest.mark.parametrize("field", ["link_pos", "qvel", "observation"])
@pytest.mark.parametrize("mode", ["realtime", "every_step"])
def test_other_nonfinite_fields_are_reported_soon(loop, field, mode):
    page = Page(loop.viewer)
    loop.viewer.mode = mode
    before = loop.begin()
    loop.turn(field, 40, at=30)
    loop.steps(28)
    assert loop.viewer.nonfinite == ()
    eventually(lambda: not loop.steps(20) and loop.viewer.nonfinite, "it is told")
    found = loop.viewer.nonfinite[0]
    assert found.env == 40 and field in dict(found.fields) and found.env_steps >= before + 29
    if mode == "every_step":  # each step is checked
        assert found.exact and found.env_steps == before + 29
    page.close()


def test_the_page_turns_red_and_keeps_naming_the_finding_until_it_is_dismissed(loop, caplog):
    viewer = loop.viewer
    assert RED not in page_says(viewer)
    with caplog.at_level(logging.WARNING, logger="brax_viser"):
        loop.turn("reward", 37, at=10, until=13)
        loop.steps(300)  # the steps from 13 on are finite again
        for _ in range(3):
            says = page_says(viewer)
            assert RED in says.split("&#9679;")[0], "the dot is not red"
            assert f"Env 37: reward turned NaN at step {viewer.nonfinite[0].step:,}" in says
            loop.steps(20)
        loop.turn("reward", 38, at=viewer_steps(loop) + 5)
        loop.steps(20)
    assert [r.message for r in caplog.records] == [str(viewer.nonfinite[0])]
    press(viewer, SHOW_NONFINITE)
    assert viewer.selected_env == 37
    press(viewer, ALL_NONFINITE)
    assert Probe(viewer).shared.selection.rule == "nan"
    viewer.select("first")
    press(viewer, DISMISS)
    assert viewer.nonfinite == () and RED not in page_says(viewer)
    loop.steps(20)
    assert viewer.nonfinite == (), "what was dismissed is told again"
    loop.turn("reward", 9, at=viewer_steps(loop) + 5)
    loop.steps(20)
    assert [found.env for found in viewer.nonfinite] == [9]


def press(viewer: Viewer, button: str) -> None:
    """Presses a button below the NaN and Inf findings, and waits until it has taken effect."""
    probe = Probe(viewer)
    probe.use(probe.panel.training._nonfinite, button)
    eventually(lambda: not len(probe.inbox), "it is taken")
    probe.now(lambda: None)


def viewer_steps(loop: Loop) -> int:
    """Returns how many steps the environments have counted."""
    return int(loop.state.info["t"][0])


@pytest.mark.parametrize("field", Turning.FIELDS)
@pytest.mark.parametrize("mode", ["realtime", "every_step"])
def test_the_training_is_held_at_the_exact_step_and_the_env_is_selected(loop, field, mode):
    viewer, page = loop.viewer, Page(loop.viewer)
    viewer.mode, viewer.hold_on_nan = mode, True
    before = loop.begin()
    loop.turn(field, LAST, at=117)
    loop.run(200)
    eventually(lambda: viewer.stats().held, "held")
    assert viewer.stats().env_steps == viewer.nonfinite[0].env_steps == before + 116
    assert viewer.nonfinite[0].env == viewer.selected_env == LAST
    assert viewer.nonfinite[0].exact and field in dict(viewer.nonfinite[0].fields)
    eventually(lambda: LAST in viewer.stats().drawn_envs, "it is drawn")
    assert "Held at step" in page_says(viewer)
    viewer.step(3)
    eventually(lambda: viewer.stats().env_steps == before + 119 and viewer.stats().held, "stepped")
    viewer.resume()
    loop.ends()
    page.close()


def test_the_training_is_held_once_and_again_after_the_box_is_ticked_again(loop):
    loop.viewer.hold_on_nan = True
    loop.begin()
    loop.turn("reward", 3, at=20, until=40)
    loop.turn("reward", 5, at=60)
    loop.run(100)
    eventually(lambda: loop.viewer.stats().held, "held")
    loop.viewer.resume()
    loop.ends()
    box = Probe(loop.viewer).panel.watch._hold_on_nan
    Probe(loop.viewer).use(box, True)
    Probe(loop.viewer).now(lambda: None)
    eventually(lambda: not len(Probe(loop.viewer).inbox), "done")
    loop.turn("reward", 3, at=150)
    loop.run(100)
    eventually(lambda: loop.viewer.stats().held, "held again")
    assert loop.viewer.selected_env == 3 and viewer_steps(loop) == 101
    assert loop.viewer.nonfinite[-1].env == 3, "the page says why it is held"
    loop.viewer.resume()
    loop.ends()


def test_observations_that_are_inf_by_design_are_reported_once_and_hide_nothing(loop):
    loop.begin()
    loop.turn("observation", slice(None), value=np.inf)
    calls, start = Probe(loop.viewer).shared.meter.calls, time.monotonic()
    loop.steps(300)
    per_step = (time.monotonic() - start) / 300
    (found,) = loop.viewer.nonfinite
    assert (found.env, found.others, found.is_inf_observed) == (0, LAST, True)
    # Where a step takes as long as the viewer may take to react, it is asked at each step.
    asked = Probe(loop.viewer).shared.meter.calls - calls
    assert asked < 150 or per_step > REACTION_SECONDS / 3, "it is asked at each step"
    loop.viewer.hold_on_nan, calls = True, Probe(loop.viewer).shared.meter.calls
    asked_since = lambda: not loop.steps() and Probe(loop.viewer).shared.meter.calls > calls  # noqa: E731
    eventually(asked_since, "the device knows that it may be held")
    loop.turn("observation", 27, value=np.nan, at=viewer_steps(loop) + 50)
    loop.run(100)
    eventually(lambda: loop.viewer.stats().held, "held")
    assert loop.viewer.selected_env == 27
    assert [str(f).split(":")[0] for f in loop.viewer.nonfinite] == ["env 0", "env 27"]
    loop.viewer.resume()
    loop.ends()


def test_stock_ppo_is_held_when_a_reward_turns_nan_and_its_assertion_is_explained(viewer, page):
    viewer.hold_on_nan = True
    env = VisualizedEnv(TurningReward("positional"), grid=(2, 2), viewer=viewer)
    failed: list[BaseException] = []

    def train() -> None:
        try:
            ppo.train(
                environment=env, **dict(SMALL, num_timesteps=2_000, num_evals=2, num_eval_envs=4)
            )
        except AssertionError as error:
            failed.append(error)

    training = threading.Thread(target=train)
    training.start()
    eventually(lambda: viewer.stats().held, "held", 300)
    (found,) = viewer.nonfinite
    assert found.env_steps == 12 or found.role == "eval"
    channels = Probe(viewer).channels

    def shown() -> Any:
        view = channels[found.role].view if found.role in channels else None
        return view is not None and view.frame.env_steps == found.env_steps

    eventually(shown, "seen")
    frame = channels[found.role].view.frame
    row = frame.env_index.tolist().index(found.env)
    assert viewer.selected_env == found.env and np.isnan(frame.reward[row])
    viewer.resume()
    training.join(timeout=300)
    assert not training.is_alive(), "it is held again"
    assert Probe(viewer).shared.fault is None
    words = explained(failed[0], viewer.nonfinite)
    assert "a NaN is not even equal to itself" in words and str(found) in words


def test_the_command_line_reports_it_and_saves_no_nonfinite_policy(tmp_path):
    code = (
        "from brax import envs; from tests.sample import TurningReward;"
        "envs.register_environment('turning', TurningReward);"
        "from brax_viser.cli import main; main()"
    )
    args = "train turning --backend positional --num-envs 16 --num-timesteps 1 --port 0"
    done = subprocess.run(
        [sys.executable, "-c", code, *args.split(), *"--save-dir saved --no-keep-open".split()],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    told = re.findall(r"env \d+: reward turned NaN at step [\d,]+$", done.stderr, re.MULTILINE)
    assert len(told) == 1, done.stderr
    assert "a NaN is not even equal to itself" in said
    assert "No policy was saved: those that were handed out have a NaN or an Inf." in said


def test_the_newest_finite_policy_is_saved_not_a_later_one(tmp_path, capsys):
    outcome = cli._Run()
    outcome.hand_out({"w": jnp.ones(3)}, 100)
    outcome.hand_out({"w": 2 * jnp.ones(3), "steps": 7}, 200)
    outcome.hand_out({"w": jnp.array([1.0, jnp.nan, 3.0])}, 300)
    cli._save(str(tmp_path), outcome)
    np.testing.assert_array_equal(model.load_params(str(tmp_path / "policy"))["w"], [2, 2, 2])
    assert "the newest finite one, of step 200" in " ".join(capsys.readouterr().out.split())
    outcome.hand_out({"w": jnp.ones(3)}, 400)
    cli._save(str(tmp_path), outcome)
    np.testing.assert_array_equal(model.load_params(str(tmp_path / "policy"))["w"], [1, 1, 1])
    assert "NaN" not in capsys.readouterr().out


def finding(*fields: tuple[str, str], **kwargs: Any) -> Finding:
    return Finding("train", 7, fields, 3, 12_345, **kwargs)


def test_findings_are_worded_no_stronger_than_what_is_known():
    reward, speed, obs = ("reward", "NaN"), ("qvel", "NaN"), ("observation/state", "Inf")
    assert str(finding(reward, others=1)) == (
        "env 7: reward turned NaN at step 12,345, and 1 more env with it"
    )
    assert str(finding(reward, speed, obs)) == (
        "env 7: reward and velocities turned NaN and observation state turned Inf at step 12,345"
    )
    assert str(finding(speed, exact=False)) == "env 7: velocities found NaN at step 12,345"
    assert str(finding(reward, speed, exact=False)) == (
        "env 7: reward turned NaN at step 12,345 (velocities NaN, too)"
    )


def test_findings_of_another_process_survive_encoding():
    report = messages.Report({}, 0.0, 0, 0, None, None, found=((0, finding(("reward", "NaN"))),))
    assert messages.decode_from_worker(messages.encode(report)) == report


def test_an_error_unrelated_to_nan_keeps_its_own_message():
    assert explained(ValueError("no such thing"), ()) == "ValueError: no such thing"
    found = Findings()
    assert found.add(None, finding(("reward", "NaN")))
    assert "First not finite: env 7" in explained(ValueError("odd"), found.told)
