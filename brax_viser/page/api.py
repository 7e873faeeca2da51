"""Answers programs, and the time bar's script: what a training is doing, commands to hold it or to
switch the view off, and to replay its episodes."""

import functools
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from brax_viser.host.state import SharedState
from brax_viser.page.access import Role
from brax_viser.page.snapshot import Snapshots
from brax_viser.page.steering import Steering
from brax_viser.page.timeline import Timeline

PREFIX = "/api/"
"""Beginning of the paths that are answered here."""

TIMELINE = "timeline"
REPLAY = "replay/"
"""Beginning of the paths of the time bar's commands, after `PREFIX`."""

MOST_DIGITS = 15
"""Most digits of a number in an address."""

HEADER = "X-Brax-Viser"
"""A header that commands must carry, of any value. A page of another site can have a browser send
its cookies here, but not a header of its own."""


class Api:
    """The requests below `PREFIX`. Called on viser's loop."""

    def __init__(
        self,
        shared: SharedState,
        steering: Steering,
        timeline: Timeline,
        place: str,
        snapshots: Snapshots,
        own_refused: Callable[[], str | None] = lambda: None,
    ):
        """Answers from now on.

        Args:
            shared: the shared state.
            steering: carries out commands.
            timeline: what the time bar shows.
            place: address of the page, without a token.
            snapshots: takes pictures.
            own_refused: returns why a page can have no replay of its own; None if it can.
        """
        self._snapshots = snapshots
        self._shared, self._steering, self._place = shared, steering, place
        self._timeline, self._own_refused = timeline, own_refused
        self._commands: dict[str, Callable[[Mapping[str, str]], None]] = {
            "hold": lambda query: steering.pause(),
            "resume": lambda query: steering.resume(),
            "step": lambda query: steering.step(int(query.get("n", "1"))),
            "switch": self._switch,
        }
        for name in timeline.commands:
            self._commands[REPLAY + name] = functools.partial(timeline.carry_out, name)

    def answer(
        self, name: str, query: Mapping[str, str], role: Role, *, has_header: bool
    ) -> tuple[HTTPStatus, str]:
        """Returns the status and the text of a response, in JSON.

        Args:
            name: the path after `PREFIX`.
            query: the address's.
            role: what the request's token allows.
            has_header: whether it has `HEADER`.
        """
        command = self._commands.get(name)
        if command is not None:
            if role != "steering" or not has_header:
                why = "this token only allows to look on" if has_header else f"no header {HEADER}"
                return HTTPStatus.FORBIDDEN, _text({"error": why})
            try:
                command(query)
            except ValueError as error:
                return HTTPStatus.BAD_REQUEST, _text({"error": str(error)})
        elif name == "snapshot":
            return self._snapshot(query, has_header=has_header)
        elif name not in ("status", TIMELINE):
            known = ", ".join(["status", "snapshot", *self._commands, TIMELINE])
            return HTTPStatus.NOT_FOUND, _text({"error": f"no {name!r}: there are {known}"})
        if name == TIMELINE or name.startswith(REPLAY):
            told = self._timeline.told(query, steers=role == "steering")
            return HTTPStatus.OK, _text({**told, "own_refused": self._own_refused()})
        return HTTPStatus.OK, _text(self.status())

    def _snapshot(self, query: Mapping[str, str], *, has_header: bool) -> tuple[HTTPStatus, str]:
        if not has_header:  # a picture costs the machine some work
            return HTTPStatus.FORBIDDEN, _text({"error": f"no header {HEADER}"})
        number = query.get("id", "")
        if number and not (number.isdecimal() and len(number) <= MOST_DIGITS):
            return HTTPStatus.BAD_REQUEST, _text({"error": f"id={number!r}: must be a number"})
        status, told = self._snapshots.answer(int(number) if number else None, self.status)
        return status, _text(told)

    def _switch(self, query: Mapping[str, str]) -> None:
        on = query.get("on", "")
        if on not in ("0", "1"):
            raise ValueError(f"on={on!r}: must be 0 or 1")
        self._steering.set_streaming(on == "1")

    def status(self) -> dict[str, Any]:
        """Returns what the training is doing, in JSON's types."""
        shared = self._shared
        now = shared.clock()
        told, reading = shared.progress.view(now), shared.reading()
        source = reading.shown.get("train")
        rewards = told.rewards
        return {
            "url": self._place,
            "env": source.adapter.name if source is not None else None,
            "backend": source.adapter.backend if source is not None else None,
            "trainer": told.algorithm,
            "phase": told.phase,
            "held": shared.hold.held,
            "hold_seconds": shared.hold_limit.seconds,
            "hold_seconds_left": shared.hold_limit.left,
            "num_steps": told.num_steps,
            "num_timesteps": told.num_timesteps,
            "steps_per_second": round(told.steps_per_second, 1),
            "elapsed_seconds": round(told.elapsed, 1),
            "remaining_seconds": None if told.remaining is None else round(told.remaining, 1),
            "reward": None if rewards is None else round(rewards.newest, 4),
            "reward_kind": None if rewards is None else rewards.kind,
            "streaming": reading.control.streaming,
            "mode": reading.control.mode,
            "watched": reading.control.watched,
            "recording": reading.control.recording,
            "cost": round(reading.cost.share(now), 5),
            "selected_env": reading.selected_env,
            "nonfinite": [str(found) for found in reading.findings],
            "fault": reading.fault,
            "error": told.error,
            "saved": told.saved,
        }


def _text(value: object) -> str:
    return json.dumps(value) + "\n"
