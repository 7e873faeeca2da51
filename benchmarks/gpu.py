"""Measures what watching costs on a GPU: stock PPO and the same PPO watched, in turn.

python -m benchmarks.gpu
python -m benchmarks.gpu --cases CartpoleBalance/warp/2048 --minutes 4

Each training has a process of its own, so that neither disturbs what the other keeps on the device
(Warp keeps 32 CUDA graphs in a process, by the addresses of a step's buffers). All compile first,
side by side where the card's memory allows; then one trains an epoch while the others wait.
The watched one goes through the modes without recompiling, with a client in a process of its own.

A row counts only if the viewer had no fault and frames came where some must: other rows say
INVALID, and why. All train with the same seed, so that parameters can be compared after each epoch;
a third training, stock again, says how much speed and parameters differ without us. On a GPU they
may: three trainings of the first case compute with operations that XLA makes deterministic, which
are too slow to be measured, and so do others of which not all are identical. MuJoCo Warp stores
contacts in the order in which they are found, so that its trainings may differ all the same.

Where Warp steps, stock and watched also take turns in one process, to see what it captures then;
`--together` has all do so.

Processes that take steps without learning say how long the host takes to enqueue them ("dispatch":
a watched program is kept within 8 steps of the device, a bare one is not), how soon the switch
acts, and whether a hold is exact to the step.

A case that fails leaves the others alone. The exit code is 1 if something failed or is invalid.
"""

import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal

import tyro
from rich.console import Console

from benchmarks.gpu_worker import MODES, Case
from benchmarks.overhead import in_words

CASES = (
    Case("ant", "positional", 4096, 5, 5),
    Case("Go1JoystickFlatTerrain", "warp", 8192, 1, 5),
    Case("ant", "mjx", 2048, 5, 5),
)
"""What matters most comes first: time may be up before the last one."""

SMALL_CASES = (
    Case("inverted_pendulum", "generalized", 8, 2, 5),
    Case("inverted_pendulum", "generalized", 64, 2, 5),
    Case("ant", "positional", 64, 1, 5),
)
"""For `--platform cpu`."""

ALIKE = "--xla_gpu_deterministic_ops=true"
"""Has XLA compute the same bits each time, and not choose among kernels by their speed."""

ALIKE_EPOCHS = 3
"""Epochs that are compared with these operations."""

TURNS = 4
"""Pairs of epochs of two trainings that take turns in one process."""

COMPILING_SHARE = 0.5
"""Of the time that is left, after which what is ready is measured, while the others stand still."""

STILL_SECONDS = 1.0
"""After which a process that was stopped has nothing more to do on the device."""

ROOMY = 30 << 30
"""Bytes that JAX may take of a card on which all cases fit at once."""

LEAST_PUSHED = 0.95
"""Least share of the steps that must arrive in modes that show every step."""

FIRST_STEPS = 10
"""Steps that may pass unseen besides: of an epoch, those before the program asks again."""

WANTED = {"closed": 0.99, "off": 0.99, "realtime": 0.985, "every_step": 0.97}
"""Least speed on a GPU, of the stock trainer's, by mode."""

SWITCH_SECONDS = 0.2
"""Within which the switch must act."""


@dataclass(frozen=True)
class Settings:
    """Options of the benchmark."""

    platform: Literal["cuda", "cpu"] = "cuda"
    """"cpu" shows with a small case that the benchmark itself works."""
    only: str = ""
    """Measure only the cases whose names contain this."""
    cases: tuple[str, ...] = ()
    """Cases of your own instead, such as CartpoleBalance/warp/2048 or ant/spring/4096."""
    pairs: int | None = None
    """Epochs in each mode, instead of each case's own number."""
    learn: bool = True
    """Whether to train. Steps without learning are taken in any case, on a GPU in the first one."""
    steps: int = 100
    """Steps of the pairs that do not learn."""
    minutes: float = 6.0
    """After which nothing more is begun."""
    patience: float = 120.0
    """s that one epoch may take at most."""
    together: bool = False
    """Whether the trainings that are compared share a process."""
    side_by_side: bool | None = None
    """Whether all cases compile at once; None: if the card has room for them."""


class Failed(RuntimeError):
    """What keeps a case from being measured."""


class Late(Failed):
    """A process has not answered yet."""


def told(error: Exception) -> str:
    """Returns an error in words."""
    return str(error) if isinstance(error, Failed) else "".join(traceback.format_exception(error))


class Worker:
    """One training, or two, in a process of its own, told line by line what to do."""

    def __init__(self, kind: str, case: Case, settings: Settings, flags: str = ""):
        environ = {**os.environ, "JAX_PLATFORMS": settings.platform}
        if settings.platform == "cuda":
            # What calls the host needs a CPU beside the card, and one card is measured.
            environ["JAX_PLATFORMS"] = "cuda,cpu"
            environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
        # Several processes share the device.
        environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {flags}".strip()
        self.name = f"{case.name}, process {kind!r}"
        self._patience = settings.patience
        # Not a pipe: nothing would empty it.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        command = [sys.executable, "-m", "benchmarks.gpu_worker", kind]
        self._process = subprocess.Popen(
            [*command, json.dumps(asdict(case)), str(settings.steps)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._lines.put(line)
        self._lines.put(None)

    def hear(self, timeout: float) -> dict[str, Any]:
        """Returns the next line of results. Raises Failed if the process has ended, or says nothing
        for `timeout` s."""
        try:
            line = self._lines.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            raise Late(f"{self.name}: no answer within {timeout:.0f} s\n{self.errors()}") from None
        if line is None:
            code = self._process.wait()
            raise Failed(f"{self.name} has ended, exit code {code}\n{self.errors()}")
        return json.loads(line)

    def tell(self, what: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `hear` says why
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()

    def do(self, what: str) -> dict[str, Any]:
        """Has it do something. Returns the results, or raises as `hear` does."""
        self.tell(what)
        return self.hear(self._patience)

    def errors(self, most: int = 12) -> str:
        """Returns the last lines of the process's error output."""
        self._errors.seek(0)
        return "\n".join(f"    {line}" for line in self._errors.read().splitlines()[-most:])

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Side:
    """One of two trainings in one process."""

    def __init__(self, worker: Worker, name: str):
        self._worker, self._name, self._begun = worker, name, False

    def begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._worker.tell(f"{self._name} begin")

    def hear(self, timeout: float) -> dict[str, Any]:
        """Begins, unless it has, and returns the first results."""
        self.begin()
        return self._worker.hear(timeout)

    def do(self, what: str) -> dict[str, Any]:
        return self._worker.do(f"{self._name} {what}")

    def errors(self) -> str:
        return self._worker.errors()

    def pause(self) -> None:
        self._worker.pause()

    def go_on(self) -> None:
        self._worker.go_on()

    def stop(self) -> None:
        self._worker.stop()


@dataclass
class Run:
    """All that is said, and by when."""

    settings: Settings
    until: float  # s, time.monotonic
    unlike: list[Case] = field(default_factory=list)  # parameters were not identical
    skipped: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # what failed or is invalid
    slow: list[str] = field(default_factory=list)  # what is slower than wanted
    console: Console = field(default_factory=lambda: Console(width=200))

    def say(self, words: str = "") -> None:
        self.console.print(words, highlight=False, markup=False, soft_wrap=True)

    def fail(self, what: str, why: str) -> None:
        self.wrong.append(what)
        self.say(f"{what}: FAILED: {why}")

    def invalid(self, name: str, row: str, why: str, watched: Worker | Side) -> None:
        """Prints a row that says nothing, and, once, the last words of the watched process."""
        first = not any(other.startswith(name) for other in self.wrong)
        self.wrong.append(f"{name}: {row}")
        self.say(f"{row:<12}INVALID: {why}")
        if first:
            self.say(watched.errors())

    def judged(self, name: str, mode: str, speed: float) -> str:
        """Says whether a median speed is as wanted, and notes what is not; empty where none is."""
        least = WANTED.get(mode) if self.settings.platform == "cuda" else None
        if least is None:
            return ""
        if speed < least:
            self.slow.append(f"{name}: {mode}, {speed:.4f} of {least}")
        return f"{'reached' if speed >= least else 'MISSED'}: {least}"

    @property
    def left(self) -> float:
        """s."""
        return self.until - time.monotonic()

    def has_time(self, what: str) -> bool:
        """Whether something more may begin; if not, notes what is skipped."""
        if self.left > 0:
            return True
        self.skipped.append(what)
        return False

    def worker(self, kind: str, case: Case, flags: str = "") -> Worker:
        return Worker(kind, case, self.settings, flags)


def invalid(mode: str, sides: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns why results of the watched program in one mode say nothing; None if they do."""
    last = sides[-1]
    if last["fault"] is not None:
        return f"the viewer has failed: {last['fault']}"
    if last["way"] == "never called":
        return "the program has never called the host"
    steps, frames, nbytes = (sum(s[key] for s in sides) for key in ("steps", "frames", "bytes"))
    if mode in ("every_step", "worst") and frames < LEAST_PUSHED * steps - FIRST_STEPS:
        return f"{frames} frames came in {steps} steps"
    if mode in ("realtime", "latest", "twins") and not frames:
        return f"no frame came in {steps} steps"
    if mode == "recording" and not nbytes:
        return f"nothing came in {steps} steps"
    if mode in ("off", "no_page") and frames:
        return f"{frames} frames came, although nothing is shown"
    return None


COLUMNS = {
    "frames per step": lambda s: f"{sum(x['frames'] for x in s) / sum(x['steps'] for x in s):.2f}",
    "page, frames/s": lambda s: f"{median(x['at_page'] / x['walltime'] for x in s):.1f}",
    "counted, %": lambda s: f"{median(100 * x['spent'] / x['walltime'] for x in s):.1f}",
    "called by": lambda s: s[-1]["way"],
}
"""Of the watched program's results in one mode."""


def per_step(sides: Sequence[Mapping[str, Any]], key: str = "walltime") -> list[float]:
    """Returns us per step."""
    return [1e6 * side[key] / side["steps"] for side in sides]


class Job:
    """Some processes, and what they measure."""

    run: Run
    case: Case
    name: str
    sides: Sequence[Worker | Side] = ()
    _heard = 0  # sides that have compiled

    def start(self) -> None:
        """Starts the processes, which begin to compile."""
        raise NotImplementedError

    def wait(self, timeout: float) -> None:
        """Waits until all have compiled. Raises Late if they have not after `timeout` s: it may be
        called again."""
        until = time.monotonic() + timeout
        for side in self.sides[self._heard :]:
            self._compiled(self._heard, side.hear(until - time.monotonic()))
            self._heard += 1

    def _compiled(self, which: int, results: dict[str, Any]) -> None:
        """Receives what each side tells first."""

    def measure(self) -> None:
        """Prints each row as soon as it is there."""
        raise NotImplementedError

    def pause(self) -> None:
        """Has the processes stand still until `go_on`."""
        for side in self.sides:
            side.pause()

    def go_on(self) -> None:
        for side in self.sides:
            side.go_on()

    def stop(self) -> None:
        for side in self.sides:
            side.stop()


class Trainings(Job):
    """Stock PPO, the same watched, and stock again."""

    HEAD = (
        "mode",
        "speed: median, 95 % interval (min to max)",
        "wanted",
        "us per step: stock, watched",
    )
    WIDTHS = (12, 44, 17, 28, 16, 16, 11, 23, 30)

    def __init__(self, run: Run, case: Case):
        self.run, self.case = run, case
        where = ", in one process" * run.settings.together
        self.name = f"{case.name}: PPO, 64 environments drawn, {case.pairs} pairs{where}"

    def start(self) -> None:
        if self.run.settings.together:
            both = self.run.worker("train-both", self.case)
            self.stock, self.watched = Side(both, "stock"), Side(both, "watched")
        else:
            self.stock = self.run.worker("train", self.case)
            self.watched = self.run.worker("train-watched", self.case)
        self.again = self.run.worker("train", self.case)
        self.sides = self.stock, self.watched, self.again
        self.digests: tuple[list[str], ...] = ([], [], [])

    def _compiled(self, which: int, results: dict[str, Any]) -> None:
        self.digests[which].append(results["parameters"])

    def _pairs(self, mode: str | None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Returns results of stock and of watched, in turn; or of stock again without a mode."""
        other = 1 if mode else 2
        pairs = []
        for _ in range(self.case.pairs):
            pair = self.stock.do("on"), self.sides[other].do(mode or "on")
            for which, side in zip((0, other), pair, strict=True):
                self.digests[which].append(side["parameters"])
            pairs.append(pair)
        return pairs

    def measure(self) -> None:
        run = self.run
        graphs = "graphs per step: stock, watched"
        run.say(_row([*self.HEAD, *COLUMNS, graphs], self.WIDTHS))
        for mode in (None, *MODES):
            name = mode or "stock again"
            if not run.has_time(f"{self.case.name}: {name}"):
                continue
            pairs = self._pairs(mode)
            stock, own = ([pair[i] for pair in pairs] for i in (0, 1))
            if mode is not None and (why := invalid(mode, own)) is not None:
                run.invalid(self.case.name, mode, why, self.watched)
                continue
            us = per_step(stock), per_step(own)
            ratios = [a / b for a, b in zip(*us, strict=True)]
            columns = [of(own) if mode else "" for of in COLUMNS.values()]
            both = ", ".join(f"{median(side):.0f}" for side in us)
            graphs = captured(stock, own)
            wanted = run.judged(self.case.name, name, median(ratios))
            run.say(_row([name, in_words(ratios), wanted, both, *columns, graphs], self.WIDTHS))
        run.say(f"parameters: {self._verdict()}")
        run.say()

    def _verdict(self) -> str:
        """Says whether all have learned the same, after having stock again catch up if needed."""
        stock, watched, again = self.digests
        ours = differs(stock, watched)
        while ours is not None and len(again) <= ours and self.run.left > 0:
            again.append(self.again.do("on")["parameters"])
        if ours is not None or differs(stock, again) is not None:
            self.run.unlike.append(self.case)
        return compared(stock, watched, again)


class InTurn(Job):
    """Stock and watched PPO that take turns in one process: what Warp captures then."""

    def __init__(self, run: Run, case: Case):
        self.run, self.case = run, case
        self.name = f"{case.name}: PPO, stock and watched in turn in one process"

    def start(self) -> None:
        both = self.run.worker("train-both", self.case)
        stock, watched = self.sides = Side(both, "stock"), Side(both, "watched")
        stock.begin()  # the other one compiles once this one has: Warp can't capture both at once
        self.stock, self.watched = stock, watched

    def measure(self) -> None:
        pairs = [(self.stock.do("on"), self.watched.do("off")) for _ in range(TURNS)]
        own = [pair[1] for pair in pairs]
        if (why := invalid("off", own)) is not None:
            return self.run.invalid(self.name, "off", why, self.watched)
        us = [per_step([pair[i] for pair in pairs]) for i in (0, 1)]
        ratios = [a / b for a, b in zip(*us, strict=True)]
        graphs = captured([pair[0] for pair in pairs], own)
        both = ", ".join(f"{median(side):.0f}" for side in us)
        self.run.say(f"off: {in_words(ratios)}; us per step {both}; graphs per step {graphs}\n")


def captured(stock: Sequence[Mapping[str, Any]], watched: Sequence[Mapping[str, Any]]) -> str:
    """Returns, in words, how many graphs were captured per step."""
    both = (sum(s["captures"] for s in side) for side in (stock, watched))
    steps = sum(side["steps"] for side in stock)
    return ", ".join(f"{count / steps:.2f}" for count in both)


def differs(one: Sequence[str], other: Sequence[str]) -> int | None:
    """Returns the first epoch in which both differ, of those that both have."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), None)


def compared(stock: Sequence[str], watched: Sequence[str], again: Sequence[str]) -> str:
    """Says in words what the digests of parameters, epoch by epoch, have shown."""
    ours, theirs = differs(stock, watched), differs(stock, again)
    both = min(len(stock), len(again))
    control = (
        f"two stock trainings are identical in {both} epochs"
        if theirs is None
        else f"two stock trainings differ from epoch {theirs + 1} on"
    )
    if ours is None:
        return f"identical in {min(len(stock), len(watched))} epochs; {control}"
    if theirs is not None and theirs <= ours:
        return f"not comparable: stock and watched differ from epoch {ours + 1} on, but {control}"
    if both <= ours:
        return f"not known: differ from epoch {ours + 1} on, which stock again did not come to"
    return f"DIFFERENT from epoch {ours + 1} on; {control}"


class Steps(Job):
    """Steps without learning: bare, and watched."""

    HEAD = ("", "us per step (min to max)", "ratio", "dispatch, us per step")
    WIDTHS = (12, 36, 8, 24, 16, 16, 11, 23)

    def __init__(self, run: Run, case: Case):
        self.run, self.case = run, case
        self.name = f"{case.name}: {run.settings.steps} steps in one program"

    def start(self) -> None:
        kinds = ("steps", "steps-watched")
        self.bare, self.watched = self.sides = [self.run.worker(k, self.case) for k in kinds]

    def measure(self) -> None:
        run = self.run
        run.say(_row([*self.HEAD, *COLUMNS], self.WIDTHS))
        for mode in MODES[:-1]:
            if not run.has_time(f"{self.name}: {mode}"):
                continue
            pairs = [(self.bare.do("on"), self.watched.do(mode)) for _ in range(self.case.pairs)]
            bare, own = ([pair[i] for pair in pairs] for i in (0, 1))
            if mode == MODES[0]:
                run.say(self._row("bare", bare, bare))
            if (why := invalid(mode, own)) is not None:
                run.invalid(self.name, mode, why, self.watched)
                continue
            run.say(self._row(mode, bare, own, [of(own) for of in COLUMNS.values()]))
        for what, check in (("switch", self._switch), ("hold", self._hold)):
            if run.has_time(f"{self.name}: {what}"):
                check()
        run.say()

    def _row(
        self,
        name: str,
        bare: Sequence[Mapping[str, Any]],
        own: Sequence[Mapping[str, Any]],
        columns: Sequence[str] = (),
    ) -> str:
        us, dispatch = per_step(own), median(per_step(own, "dispatch"))
        words = f"{median(us):.0f} ({min(us):.0f} to {max(us):.0f})"
        ratio = median(per_step(bare)) / median(us)
        return _row([name, words, f"{ratio:.3f}", f"{dispatch:.0f}", *columns], self.WIDTHS)

    def _switch(self) -> None:
        found = self._check("switch")
        if found is None:
            return
        words = []
        for way, what in (("on", "first frame"), ("off", "last frame")):
            ms = [1000 * s for s in found[way]]
            words.append(f"{what} {median(ms):.0f} ms after it is {way} (at most {max(ms):.0f})")
        late = max(median(found["on"]), median(found["off"])) > SWITCH_SECONDS
        self._say("switch", "; ".join(words), "TOO LATE" if late else "in time")

    def _hold(self) -> None:
        found = self._check("hold")
        if found is None:
            return
        (first, third), (counted, carried) = found["held"][-1], found["end"]
        words = (
            f"{len(found['held'])} times; the last at {first[0]} (its frame is of {first[1]}, its "
            f"state's counter {first[2]}), three steps on {third[0]} ({third[1]}, {third[2]}); at "
            f"the end {counted}, counter {carried}"
        )
        verdict = "exact" if exact(found) else f"NOT EXACT: {found['held']}"
        self._say("hold", words, verdict)

    def _check(self, what: str) -> dict[str, Any] | None:
        """Returns what a check has found; None if it has failed, which is printed."""
        found = self.watched.do(what)
        why = found.get("error") or found["fault"]
        if why is not None:
            self.run.invalid(self.name, what, why, self.watched)
        return found if why is None else None

    def _say(self, what: str, words: str, verdict: str) -> None:
        if verdict not in ("in time", "exact"):
            self.run.wrong.append(f"{self.name}: {what}")
        self.run.say(f"{what:<{self.WIDTHS[0]}}{verdict}: {words}")


class Alike(Job):
    """The three trainings once more, with operations that XLA makes deterministic."""

    def __init__(self, run: Run, case: Case):
        self.run, self.case = run, replace(case, training_steps=1)
        self.name = f"{case.name}: parameters with {ALIKE}"

    def start(self) -> None:
        kinds = ("train", "train-watched", "train")
        self.sides = [self.run.worker(kind, self.case, ALIKE) for kind in kinds]
        self.digests: list[list[str]] = [[], [], []]

    def _compiled(self, which: int, results: dict[str, Any]) -> None:
        self.digests[which].append(results["parameters"])

    def measure(self) -> None:
        own = []
        for _ in range(ALIKE_EPOCHS):
            if self.run.left < 0:
                break
            results = [
                side.do(mode)
                for side, mode in zip(self.sides, ("on", "every_step", "on"), strict=True)
            ]
            own.append(results[1])
            for digests, result in zip(self.digests, results, strict=True):
                digests.append(result["parameters"])
        verdict = compared(*self.digests)
        # Two stock trainings that differ say nothing of watching.
        if not verdict.startswith(("identical", "not comparable")):
            self.run.wrong.append(self.name)
        self.run.say(f"parameters: {verdict}\n")
        if own and (why := invalid("every_step", own)) is not None:
            self.run.invalid(self.name, "every_step", why, self.sides[1])


def exact(found: Mapping[str, Any]) -> bool:
    """Whether each hold was where the state's own counter says, and three steps were three."""
    held = found["held"]
    alike = all(len(set(at)) == 1 for pair in held for at in pair)
    three = all(later[0] == first[0] + 3 for first, later in held)
    return bool(held) and alike and three and found["end"][0] == found["end"][1]


def _row(words: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{w:<{width}}" for w, width in zip(words, widths, strict=False)).rstrip()


def chosen(settings: Settings) -> list[Case]:
    """Returns the cases to measure. Raises SystemExit if there are none, or one can't be read."""
    cuda = settings.platform == "cuda"
    cases = list(CASES if cuda else SMALL_CASES)
    if settings.cases:
        try:
            parts = [case.split("/") for case in settings.cases]
            cases = [Case(env, physics, int(count), 2, 5) for env, physics, count in parts]
        except ValueError:
            raise SystemExit("--cases: must be such as ant/spring/4096, each") from None
    found = [case for case in cases if settings.only in case.name]
    if not found:
        names = "; ".join(case.name for case in cases)
        raise SystemExit(f"--only {settings.only}: must be part of one of {names}")
    return [replace(case, pairs=settings.pairs or case.pairs) for case in found]


def look(settings: Settings) -> dict[str, Any]:
    """Returns what JAX says of the device. Raises SystemExit if it finds none."""
    worker = Worker("look", CASES[0], settings)
    try:
        return worker.hear(settings.patience)
    except Failed as failed:
        if settings.platform == "cpu":
            raise SystemExit(str(failed)) from None
        hint = (
            "No GPU that JAX can use. Its plugin comes with `pip install 'jax[cuda13]'`, or cuda12."
        )
        raise SystemExit(
            f"{hint} `--platform cpu` tries small cases.\n{driver()}\n{failed}"
        ) from None
    finally:
        worker.stop()


def driver() -> str:
    """Returns, in words, what the driver says of the card."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.split("\n")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return f"nvidia-smi: {found[0].strip() or 'finds no card'}"


def missing(run: Run, case: Case) -> str | None:
    """Returns why a case can't be measured; None if it can. Has Playground fetch its models, before
    several processes do so at once."""
    if not case.is_playground:
        return None
    if importlib.util.find_spec("mujoco_playground") is None:
        return "MuJoCo Playground is not installed: pip install 'brax_viser[playground]'"
    worker = run.worker("load", case)
    try:
        worker.hear(min(run.settings.patience, run.left))
    except Failed as error:
        return str(error)
    finally:
        worker.stop()
    return None


def perform(run: Run, jobs: Sequence[Job]) -> None:
    """Has all jobs compile at once, then measures one after the other. Those that compile for long
    go on compiling when what was ready has been measured."""
    absent: dict[str, str | None] = {}
    started, begun = [], time.monotonic()
    try:
        # Those of Playground start last, as their models are looked for first.
        for job in sorted(jobs, key=lambda job: job.case.is_playground):
            if not run.has_time(job.name):
                continue
            if job.case.name not in absent:
                absent[job.case.name] = missing(run, job.case)
            if (why := absent[job.case.name]) is not None:
                run.fail(job.name, why)
                continue
            job.start()
            started.append(job)
        # What comes first has the rest of the time if the others are not ready.
        compiled_by = time.monotonic() + COMPILING_SHARE * max(run.left, 0.0)
        # Of those in turn the second begins when the first one has compiled and was heard.
        heard_first = sorted(started, key=lambda job: not isinstance(job, InTurn))
        ready = [job for job in heard_first if _compiles(run, job, compiled_by, last=False)]
        late = [job for job in started if job not in ready and job.sides]
        run.say(f"compiled within {time.monotonic() - begun:.0f} s")
        for job in late:
            job.pause()
        if late:
            time.sleep(STILL_SECONDS)
        for job in jobs:
            if job in ready:
                _measure(run, job)
        for job in jobs:
            if job in late and run.has_time(job.name):
                job.go_on()  # the others stand still
                if _compiles(run, job, run.until, last=True):
                    _measure(run, job)
    finally:
        for job in jobs:
            job.stop()


def _compiles(run: Run, job: Job, until: float, *, last: bool) -> bool:
    """Whether a job has compiled by `until`, s. If that is the `last` time it is waited for, or if
    it never will, says so and stops it."""
    try:
        job.wait(until - time.monotonic())
    except Failed as error:
        if last or not isinstance(error, Late):
            job.stop()
            job.sides = ()
            run.fail(job.name, str(error))
        return False
    return True


def _measure(run: Run, job: Job) -> None:
    if not run.has_time(job.name):
        return
    run.say(job.name)
    try:
        job.measure()
    # Any other error is of the benchmark itself, or of what a process has told.
    except Exception as error:
        run.fail(job.name, told(error))
    job.stop()


def main(arguments: Sequence[str]) -> int:
    begun = time.monotonic()
    settings = tyro.cli(Settings, description=__doc__, args=arguments)
    cases = chosen(settings)
    run = Run(settings, begun + 60 * settings.minutes)
    found = look(settings)
    cuda = settings.platform == "cuda"
    run.say(f"{found['kind']}; jax {found['jax']}")
    if cuda:
        run.say(driver())
    # Those that do not learn come first, as they compile soonest and say most.
    jobs: list[Job] = [Steps(run, case) for case in (cases[:1] if cuda else cases)]
    if settings.learn:
        jobs += [Trainings(run, case) for case in cases]
        jobs += [InTurn(run, case) for case in cases if case.physics == "warp" and cuda]
        jobs += [Alike(run, case) for case in cases[:1] if cuda]
    at_once = settings.side_by_side
    if at_once is None:
        at_once = cuda and found["memory"] >= ROOMY
    for group in [jobs] if at_once else [[job] for job in jobs]:
        perform(run, group)
    unlike = [case for case in run.unlike if not (cuda and case == cases[0])]
    # Warp's last: stock trainings on it may differ.
    again: list[Job] = [Alike(run, c) for c in sorted(unlike, key=lambda c: c.physics == "warp")]
    for group in [again] if at_once else [[job] for job in again]:
        perform(run, group)
    for what, names in (
        ("Skipped, as time is up", run.skipped),
        ("Failed or invalid", run.wrong),
        ("Slower than wanted", run.slow),
    ):
        run.say(f"{what}: {'; '.join(dict.fromkeys(names)) or 'nothing'}")
    run.say(f"{time.monotonic() - begun:.0f} s in all")
    return int(bool(run.wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
