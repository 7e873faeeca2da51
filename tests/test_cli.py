"""The command line, as a user starts it."""

import importlib
import importlib.metadata
import inspect
import math
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import websockets.sync.client
from brax import envs
from brax.io import model

from benchmarks.client import SUBPROTOCOL, answers_to, hello, messages_of
from benchmarks.start import ROBOTS
from brax_viser.cli.presets import DEFAULT_ENV, TRAINERS, fit_batch, ppo_preset, trainer_settings

COMMAND = Path(sys.executable).with_name("brax-viser")


def run(*args: str, cwd: Path, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *args], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


def test_train_prints_the_address_first_learns_and_saves_the_policy(tmp_path):
    done = run(
        *"train inverted_pendulum --backend spring --num-envs 32 --num-timesteps 1".split(),
        *"--port 0 --grid 2 2 --save-dir saved --no-keep-open".split(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first = done.stdout.splitlines()[0]
    assert re.fullmatch(r"brax_viser: http://127\.0\.0\.1:\d+/\?token=\w+", first)
    assert "Policy saved to saved/policy" in done.stdout
    normalizer, policy, _ = model.load_params(str(tmp_path / "saved" / "policy"))
    assert np.isfinite(np.asarray(normalizer.mean)).all()
    assert "params" in policy


def test_another_trainer_learns_and_saves_its_policy(tmp_path):
    done = run(
        *"train inverted_pendulum --trainer ars --backend spring --num-envs 4".split(),
        *"--num-timesteps 1 --port 0 --grid 2 2 --run-dir saved --no-keep-open".split(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluation reward" in done.stdout
    _, policy = model.load_params(str(tmp_path / "saved" / "policy"))
    assert policy.shape == (4, 1) and np.any(policy != 0)


def test_the_page_shows_robots_and_says_what_it_waits_for_within_seconds(tmp_path):
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    training = subprocess.Popen(
        [COMMAND, "train", "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert training.stdout is not None
    try:
        address = next(line for line in training.stdout if "//" in line).split("//")[1].strip()
        opened = time.monotonic() - started
        with websockets.sync.client.connect(
            f"ws://{address}", subprotocols=[SUBPROTOCOL], max_size=None, compression=None
        ) as page:
            page.send(hello())
            robots = waits = None
            while robots is None or waits is None:
                window = page.recv(timeout=300)
                assert isinstance(window, bytes)
                for answer in answers_to(window):
                    page.send(answer)
                for message in messages_of(window):
                    if str(message.get("name", "")).startswith(ROBOTS):
                        robots = robots or time.monotonic() - started
                    if "Compiling the training step" in str(message):
                        waits = waits or time.monotonic() - started
    finally:
        training.kill()
        training.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(f"page after {opened:.1f} s, robots after {robots:.1f} s, words after {waits:.1f} s")
    print(f"the processor worked for {worked:.1f} s")
    assert robots - opened < 3
    # CPU time: wall time would include the load of other programs.
    assert worked < 15


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("train nosuchenv --port 0", "no environment 'nosuchenv'. `brax-viser envs` lists all."),
        ("train aunt --port 0", "no environment 'aunt'. Did you mean ant?"),
        ("train cheetah --port 0", "Did you mean CheetahRun or halfcheetah?"),
        ("train ant --port 0 --num-timesteps -5", "num_timesteps=-5: must be at least 1"),
        ("train ant --port 0 --num-timesteps 0", "num_timesteps=0: must be at least 1"),
        ("envs unicorn", "no environment 'unicorn'"),
        ("train ant --port 0 --grid 0 4", "every side must be at least 1"),
        ("train ant --port 0 --spacing 0 1", "every distance must be above 0 metres"),
        ("train ant --port 0 --num-envs 0", "num_envs=0: must be at least 1"),
        ("train fast --port 0", "no MuJoCo model"),
        ("train ant --port 0 --backend bullet", "backend should be in"),
        ("train ant --port 0 --trainer dqn", "trainer='dqn': must be one of ppo, sac, apg, es"),
        ("train ant --port 0 --trainer es --num-envs 3", "num_envs=3: must be an even number"),
        ("train ant --port 0 --mode warp", "mode='warp': must be one of"),
    ],
    ids=(
        "unknown misspelt near timesteps none listed grid spacing envs model backend trainer odd "
        "mode"
    ).split(),
)
def test_bad_input_is_reported_without_a_traceback(tmp_path, args, words):
    done = run(*args.split(), cwd=tmp_path, timeout=300)
    assert done.returncode == 2
    assert words in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr
    assert "http://" not in done.stdout + done.stderr, "no page is announced that will not come"


def test_without_warp_the_output_does_not_mention_it():
    script = (
        "import sys; sys.modules['warp'] = None; from brax_viser.cli.app import main; "
        "sys.argv[1:] = ['train', 'nosuchenv', '--port', '0']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "arp" not in done.stdout


def test_environments_are_listed_by_a_part_of_their_names(tmp_path):
    done = run("envs", "pendulum", cwd=tmp_path, timeout=300)
    assert done.returncode == 0
    assert set(done.stdout.split()) >= {"Brax", "inverted_pendulum", "PendulumSwingup"}
    assert "ant" not in done.stdout.split()


def test_the_version_is_printed_at_once(tmp_path):
    for args in (["--version"], ["train", "--version"]):
        done = run(*args, cwd=tmp_path, timeout=300)
        assert done.stdout == f"brax-viser {importlib.metadata.version('brax_viser')}\n"
    assert "--version" in run("--help", cwd=tmp_path, timeout=300).stdout


def test_help_piped_to_a_closed_reader_prints_no_traceback():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "brax_viser", "train", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_every_registered_env_has_a_preset_that_its_trainer_accepts():
    for name in [*envs._envs, "an env of the user's own"]:
        preset = ppo_preset(name).ppo
        assert preset["batch_size"] * preset["num_minibatches"] % preset["num_envs"] == 0
        for num_envs in (1, 7, 64, 4096):
            fitted = fit_batch(preset, num_envs)
            assert fitted["num_envs"] == num_envs
            assert fitted["batch_size"] * fitted["num_minibatches"] % num_envs == 0
    assert DEFAULT_ENV in envs._envs
    with pytest.raises(ValueError, match="num_envs=0: must be at least 1"):
        fit_batch(ppo_preset("ant").ppo, 0)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_accepts_the_settings_of_every_env(trainer):
    train = importlib.import_module(f"brax.training.agents.{trainer}.train").train
    for name in [*envs._envs, "an env of the user's own"]:
        for num_envs, num_timesteps in ((None, None), (2, 1), (64, 5_000)):
            settings = trainer_settings(
                trainer, name, num_envs=num_envs, num_timesteps=num_timesteps
            )
            inspect.signature(train).bind(None, **settings)
            assert settings.get("min_replay_size", 0) < settings.get("num_timesteps", math.inf)
    assert trainer_settings("apg", "ant", num_envs=8, num_timesteps=1000)["policy_updates"] == 4
    assert trainer_settings("es", "ant", num_envs=8)["population_size"] == 4
