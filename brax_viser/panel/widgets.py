"""Controls of the panel, and how they and what they stand for keep in step."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import viser

from brax_viser.panel.actions import PageActions, SteeringActions


@dataclass(frozen=True)
class PanelTools:
    """What controls are made with."""

    server: viser.ViserServer
    enqueue: Callable[[Callable[[], object]], None]  # has the page's loop do something
    steering: SteeringActions
    actions: PageActions


class Widgets:
    """Some of the panel's controls, on the server and shared by all pages. Callbacks only
    enqueue."""

    def __init__(self, tools: PanelTools):
        self._server, self._enqueue = tools.server, tools.enqueue
        self._steering, self._actions = tools.steering, tools.actions
        self._numbers: dict[str, float] = {}  # as last shown, by label

    def _on_click(self, handle: Any, action: Callable[[], object]) -> None:
        """For a button, or a group of one."""

        @handle.on_click
        async def _(event: viser.GuiEvent) -> None:
            self._enqueue(action)

    def _on_click_by(self, handle: Any, action: Callable[[int], object]) -> None:
        """The same, of an action that is told the page's client id."""

        @handle.on_click
        async def _(event: viser.GuiEvent) -> None:
            if event.client_id is not None:
                self._enqueue(functools.partial(action, event.client_id))

    def _on_pick(self, handle: Any, actions: Mapping[str, Callable[[], object]]) -> None:
        """For a group of buttons: what each does, by its label."""

        @handle.on_click
        async def _(event: viser.GuiEvent) -> None:
            self._enqueue(actions[event.target.value])

    def _on_change(
        self, handle: Any, action: Callable[[Any], object], of: Callable[[Any], Any]
    ) -> None:
        """For a control that a person sets.

        Args:
            handle: the control.
            action: is called with what it is set to.
            of: makes that of the control's value.
        """

        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            # Without a client it is our own `show` that has set the value.
            if event.client is not None:
                self._enqueue(functools.partial(action, of(handle.value)))

    def _on_change_by(
        self, handle: Any, action: Callable[[Any, int], object], of: Callable[[Any], Any]
    ) -> None:
        """The same, of an action that is told the page's client id."""

        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            if event.client is not None and event.client_id is not None:
                self._enqueue(functools.partial(action, of(handle.value), event.client_id))

    def _on_number(
        self, handle: Any, action: Callable[[Any], object], of: Callable[[float], Any] = float
    ) -> None:
        """A number that can be typed. Each key is an update, so what is on its way from "2" to
        "0.5" comes too: what is out of the limits is not meant yet."""

        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            value = float(handle.value)
            if event.client is not None and handle.min <= value <= handle.max:
                self._enqueue(functools.partial(action, of(value)))

    def _look(self, field: str) -> Callable[[Any], None]:
        """Changes one of the fields of `Look`."""
        return lambda value: self._actions.look(**{field: value})

    def _show_number(self, handle: Any, value: float) -> None:
        # Not while a person types: only what has been changed otherwise.
        if self._numbers.get(handle.label) != value:
            self._numbers[handle.label] = value
            self._set(handle, value=value)

    def _set(self, handle: Any, **values: object) -> None:
        for attribute, value in values.items():
            # Compared with the widget, not with what was last sent: a person may have changed it.
            if getattr(handle, attribute) != value:
                setattr(handle, attribute, value)


def labels(choices: Sequence[Any], *names: str) -> dict[str, Any]:
    """What choices are called in the panel: one name for each, in their order."""
    return dict(zip(names, choices, strict=True))


def label_of(labels: Mapping[str, Any], value: Any) -> str:
    """What a choice is called that means `value`."""
    return next(label for label, meaning in labels.items() if meaning == value)
