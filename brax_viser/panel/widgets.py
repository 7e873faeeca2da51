"""Base of the panel's controls: enqueues what a person sets, and shows the current values."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import viser

from brax_viser.panel.actions import PageActions, SteeringActions


@dataclass(frozen=True)
class PanelTools:
    """The objects that controls are made with."""

    server: viser.ViserServer
    enqueue: Callable[[Callable[[], object]], None]  # queues an action for the page's loop
    steering: SteeringActions
    actions: PageActions


class Widgets:
    """Some of the panel's controls, on the server and shared by all pages. Their callbacks only
    enqueue."""

    def __init__(self, tools: PanelTools):
        self._server, self._enqueue = tools.server, tools.enqueue
        self._steering, self._actions = tools.steering, tools.actions
        self._numbers: dict[str, float] = {}  # as last shown, by label

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
        self, handle: Any, action: Callable[[Any], object], of: Callable[[float], Any] = float
    ) -> None:
        """Connects a number that can be typed. Each key is an update, so values between "2" and
        "0.5" come as well: a value out of the limits is ignored as unfinished."""

        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            value = float(handle.value)
            if event.client is not None and handle.min <= value <= handle.max:
                self._enqueue(functools.partial(action, of(value)))

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
