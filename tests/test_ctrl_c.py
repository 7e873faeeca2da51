"""Ctrl-C during `brax-viser train`, as a user presses it."""

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import websockets.sync.client
from brax.io import model
from viser import _messages as messages

from benchmarks.client import SUBPROTOCOL, answers_to, hello, messages_of
from brax_viser.cli.ctrl_c import IMPATIENCE
from tests.conftest import eventually

COMMAND = Path(sys.executable).with_name("brax-viser")

SECONDS = 60.0
"""s. Far less than an epoch or a compilation takes to finish on a busy machine."""

LONG = "--trainer ars --backend spring --num-envs 4 --num-timesteps 500000000"
SHORT = "--trainer ars --backend spring --num-envs 4 --num-timesteps 1"


class Training:
    """A process of `brax-viser train`, its output, and a page that watches it."""

    def __init__(self, arguments: str, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [COMMAND, *f"train {arguments} --port 0 --grid 2 2 --save-dir saved".split()],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Background jobs of a shell ignore Ctrl-C, and their children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline()]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def watch(self, *words: str, stops: bool = False) -> None:
        """Keeps a page open until it has sent all of `words`; with `stops`, interrupts the training
        then, and reads on until the page has said so. When only "Held at step" is left, it
        presses "Hold training", and interrupts the held training before the page closes."""
        address = self.lines[0].split("//")[1].strip()
        left, button, pressed = set(words), None, False
        with websockets.sync.client.connect(
            f"ws://{address}", subprotocols=[SUBPROTOCOL], max_size=None, compression=None
        ) as page:
            page.send(hello())
            deadline = time.monotonic() + 400
            while left:
                assert time.monotonic() < deadline, f"still not said: {left}\n{self.output}"
                window = page.recv(timeout=300)
                assert isinstance(window, bytes)
                for answer in answers_to(window):
                    page.send(answer)
                for message in messages_of(window):
                    if message["type"] == "GuiButtonMessage" and "Hold training" in str(message):
                        button = message["uuid"]
                    left = {word for word in left if not re.search(word, str(message))}
                if left == {"Held at step"} and not pressed:
                    press = messages.GuiUpdateMessage(button or "", {"value": True})
                    page.send(msgspec.msgpack.encode(press.as_serializable_dict()))
                    pressed = True
            if pressed or stops:  # before the page closes, which resumes it
                self.interrupt()
            said = ""
            while stops and "The training was stopped in the terminal" not in said:
                window = page.recv(timeout=SECONDS)
                assert isinstance(window, bytes)
                said += str(messages_of(window))

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        code = self.process.wait(timeout=SECONDS)
        self._reader.join(timeout=10)
        for word in ("terminate called", "Fatal Python error", "Traceback"):
            assert word not in self.output, self.output
        return code

    def saved(self) -> bool:
        path = self.folder / "saved" / "policy"
        assert not path.with_name("policy.part").exists()
        if path.exists():
            model.load_params(str(path))
        return path.exists()


@pytest.fixture
def start(tmp_path) -> Iterator:
    started: list[Training] = []

    def begin(arguments: str) -> Training:
        started.append(Training(arguments, tmp_path))
        return started[-1]

    yield begin
    for training in started:
        training.process.kill()
        training.process.wait()


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5, 2.2])
def test_ctrl_c_ends_the_command_during_imports(tmp_path, seconds):
    process = subprocess.Popen(
        [sys.executable, "-m", "brax_viser", "train", "ant", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, output
    assert "Stopped before the training began." in output
    assert "Traceback" not in output


@pytest.mark.parametrize("seconds", [0.5, 8.0])
def test_presses_end_a_command_whose_output_is_stuck(tmp_path, seconds):
    """As in a terminal that Ctrl-S has stopped, or behind a pager that reads no more."""
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(full, b"line\n"):
            pass
    os.set_blocking(full, True)
    process = subprocess.Popen(
        [sys.executable, "-m", "brax_viser", "train", "ant", "--port", "0"],
        cwd=tmp_path,
        stdout=full,
        stderr=full,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        time.sleep(seconds)
        # Two will do, unless both come while one function of C runs: that counts as one press.
        for _ in range(round(SECONDS / (IMPATIENCE + 1.0))):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=IMPATIENCE + 1.0)
                break
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()
        os.close(full)
        os.close(unread)


def test_ctrl_c_ends_a_training_that_compiles(start):
    training = start("ant --num-envs 32")
    training.watch("Compiling the training step", stops=True)
    assert training.end() == 130
    assert "Stopped in mid-training." in training.output
    assert "No policy was saved: the trainer had not handed one out yet." in training.output
    assert not training.saved()


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_a_training_that_steps_without_a_page(start, presses):
    training = start(f"inverted_pendulum {LONG}")
    # Its first evaluation is far off; a page shows that it steps, and closes.
    training.watch("Live")
    for _ in range(presses):
        training.interrupt()
    assert training.end() == 130
    assert "Stopped in mid-training." in training.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_ends_a_training_like_ctrl_c(start, number, code):
    training = start("inverted_pendulum --num-envs 32")
    training.watch("Compiling the training step")
    training.process.send_signal(number)
    assert training.end() == code
    assert "Stopped in mid-training." in training.output
    assert "No policy was saved" in training.output


def test_ctrl_c_ends_a_held_training_and_the_newest_policy_is_saved(start):
    training = start(f"inverted_pendulum {LONG.replace('500000000', '2000000')}")
    training.watch("Evaluation reward", "Held at step")
    assert training.end() == 130
    assert "Stopped in mid-training." in training.output
    assert training.saved() and "Policy saved to saved/policy" in training.output


@pytest.mark.parametrize("patient", [True, False])
def test_ctrl_c_while_the_policy_is_saved_loses_it_only_if_it_is_pressed_again(
    start, tmp_path, patient
):
    disk = tmp_path / "saved" / "policy.part"
    disk.parent.mkdir()
    os.mkfifo(disk)  # a disk that takes nothing until it is read from
    training = start(f"inverted_pendulum {LONG.replace('500000000', '2000000')}")
    training.watch("Evaluation reward")
    training.interrupt()
    eventually(lambda: "Stopped in mid-training." in training.output, "it stops", timeout=SECONDS)
    if not patient:
        time.sleep(IMPATIENCE + 0.1)
    training.interrupt()
    pressed = time.monotonic()
    if patient:
        normalizer, policy = pickle.loads(disk.read_bytes())
        assert len(policy) and float(normalizer.count.lo) > 0
        assert training.end() == 130
        assert "Policy saved to saved/policy" in training.output
        assert "Stopped at once" not in training.output
    else:
        assert training.end() == 130
        assert time.monotonic() - pressed < 5, "at once"
        assert "Stopped at once: nothing more is saved." in training.output
        assert "Policy saved" not in training.output


@pytest.mark.parametrize(("number", "plays"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_ctrl_c_after_the_training_ends_the_command_without_an_error(start, number, plays):
    """As soon as the training is over, while the robots' step is compiled, and once they go on."""
    training = start(f"inverted_pendulum {SHORT}")
    if plays:
        training.watch("Finished, the policy plays on<")
    eventually(lambda: "The page stays open at" in training.output, "it is over", timeout=400)
    training.process.send_signal(number)
    assert training.end() == 0
    assert "Stopped" not in training.output
    assert training.saved()
