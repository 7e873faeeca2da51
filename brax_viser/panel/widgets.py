"""Base of the panel's controls: enqueues what a person sets, and shows the current values."""

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import viser

from brax_viser.panel import words
from brax_viser.panel.actions import PageActions, ReplayActions, SteeringActions, TrialActions
from brax_viser.panel.view import PanelView

TYPING_SECONDS = 0.6
"""s without a key after which what was typed is complete."""


@dataclass(frozen=True)
class PanelTools:
    """The objects that controls are made with."""

    server: viser.ViserServer
    enqueue: Callable[[Callable[[], object]], None]  # queues an action for the page's loop
    steering: SteeringActions
    actions: PageActions
    replay: ReplayActions
    trials: TrialActions
    relayed: bool = False  # whether the page is one person's own: nothing is written or compiled


class Widgets:
    """Some of the panel's controls, on the server and shared by all pages. Their callbacks only
    enqueue."""

    def __init__(self, tools: PanelTools):
        self._server, self._enqueue = tools.server, tools.enqueue
        self._steering, self._actions = tools.steering, tools.actions
        self._replay = tools.replay
        self._notes: dict[str, viser.GuiHtmlHandle] = {}  # on numbers that were typed, by label
        self._numbers: dict[str, float] = {}  # as last shown, by label

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        raise NotImplementedError

    def _on_click(self, handle: Any, action: Callable[[], object]) -> None:
        """Connects a button, or a group of one, to an action."""

        @handle.on_click
        async def _(event: viser.GuiEvent) -> None:
            self._enqueue(action)

    def _on_click_by(self, handle: Any, action: Callable[[int], object]) -> None:
        """Connects a button to an action that gets the page's client id."""

        @handle.on_click
        async def _(event: viser.GuiEvent) -> None:
            if event.client_id is not None:
                self._enqueue(functools.partial(action, event.client_id))

    def _on_pick(self, handle: Any, actions: Mapping[str, Callable[[], object]]) -> None:
        """Connects a group of buttons to actions, by label."""

        @handle.on_click
        async def _(event: viser.GuiEvent) -> None:
            self._enqueue(actions[event.target.value])

    def _on_pick_by(
        self, handle: Any, action: Callable[[Any, int], object], of: Callable[[Any], Any]
    ) -> None:
        """Connects a group of buttons to one action, which gets the meaning of the button's label
        and the page's client id."""

        @handle.on_click
        async def _(event: viser.GuiEvent) -> None:
            if event.client_id is not None:
                self._enqueue(functools.partial(action, of(event.target.value), event.client_id))

    def _on_change(
        self, handle: Any, action: Callable[[Any], object], of: Callable[[Any], Any]
    ) -> None:
        """Connects a control that a person sets to an action.

        Args:
            handle: the control.
            action: called with the converted value.
            of: converts the control's value.
        """

        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            # Without a client, the value was set by our own `show`.
            if event.client is not None:
                self._enqueue(functools.partial(action, of(handle.value)))

    def _on_change_by(
        self, handle: Any, action: Callable[[Any, int], object], of: Callable[[Any], Any]
    ) -> None:
        """Connects a control to an action that gets the page's client id as well."""

        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            if event.client is not None and event.client_id is not None:
                self._enqueue(functools.partial(action, of(handle.value), event.client_id))

    def _on_number(
        self,
        handle: Any,
        action: Callable[[Any], object],
        of: Callable[[float], Any] = float,
        limits: tuple[float, float] | Callable[[], tuple[float, float]] | None = None,
    ) -> None:
        """Connects a slider, or a number that is typed. Adds the limits to its hint, and below it a
        note, which says what is wrong with a number.

        Args:
            handle: the control, which was added last.
            action: called with the converted value.
            of: converts the control's value.
            limits: the least and the most, or a function that returns them; None: those of the
                handle. A field that viser knows the limits of, such as a slider's, goes to the
                nearest one when it is left.
        """
        within = limits if callable(limits) else lambda: limits or (handle.min, handle.max)
        if not callable(limits):  # they are known
            low, high = within()
            handle.hint = f"{handle.hint} From {low:g} to {high:,g}."
        note = self._notes[handle.label] = self._server.gui.add_html("", visible=False)
        dragged = isinstance(handle, viser.GuiSliderHandle)
        last = deque([handle.value], maxlen=2)  # as a person has set it: before, and now

        def use(value: float) -> None:
            low, high = within()
            nearest = lambda number: min(max(number, low), high)  # noqa: E731
            said = ""
            if nearest(value) != value:
                used = None if dragged else self._numbers.get(handle.label)  # a slider snaps back
                said = f"{value:g} is not used" + (f", {used:g} is" if used is not None else "")
            else:
                self._enqueue(functools.partial(action, of(value)))
                if dragged and value == nearest(last[0]) != last[0]:
                    said = f"{value:g} is used instead of {last[0]:g}"
            note.visible = bool(said)
            if said:
                note.content = words.note(f"{said}: it must be {low:g} to {high:,g}.", warning=True)

        def at_once(value: float) -> bool:
            last.append(value)
            low, high = within()
            return dragged and low <= value <= high

        self._when_complete(handle, use, at_once)

    def _on_text(self, handle: Any, action: Callable[[str], object]) -> None:
        """Connects a text that is typed."""
        use = lambda value: self._enqueue(functools.partial(action, value))  # noqa: E731
        self._when_complete(handle, use)

    def _when_complete(
        self,
        handle: Any,
        use: Callable[[Any], object],
        at_once: Callable[[Any], bool] = lambda value: False,
    ) -> None:
        """Calls `use` with a control's value when no key has been pressed for a moment, as each key
        is an update. Where `at_once` says so, it is called without waiting."""
        waiting: list[asyncio.TimerHandle] = []

        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            if event.client is None:  # set by our own `show`
                return
            while waiting:
                waiting.pop().cancel()
            seconds = 0.0 if at_once(handle.value) else TYPING_SECONDS
            waiting.append(asyncio.get_running_loop().call_later(seconds, use, handle.value))

    def _look(self, field: str) -> Callable[[Any], None]:
        """Returns a function that changes one field of `Look`."""
        return lambda value: self._actions.look(**{field: value})

    def _show_number(self, handle: Any, value: float) -> None:
        # Written only if the value was changed elsewhere, so that a person can go on typing.
        if self._numbers.get(handle.label) != value:
            self._numbers[handle.label] = value
            self._set(handle, value=value)

    def _set(self, handle: Any, **values: object) -> None:
        for attribute, value in values.items():
            # Compared with the widget, not with the last value sent: a person may have changed it.
            if getattr(handle, attribute) != value:
                setattr(handle, attribute, value)


def labels(choices: Sequence[Any], *names: str) -> dict[str, Any]:
    """Maps the panel's names to the choices, in order."""
    return dict(zip(names, choices, strict=True))


def label_of(labels: Mapping[str, Any], value: Any) -> str:
    """Returns the name of a choice."""
    return next(label for label, meaning in labels.items() if meaning == value)
