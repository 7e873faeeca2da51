"""Controls of the panel, and how they and what they stand for keep in step."""

from collections.abc import Callable, Mapping
from typing import Any

import viser

Command = tuple[str, Any]
"""(what, value): what a person has asked for; `viewer` lists them."""


class Widgets:
    """Some of the panel's controls, on the server and shared by all pages. Callbacks only
    enqueue."""

    def __init__(self, server: viser.ViserServer, enqueue: Callable[[Command], None]):
        self._server, self._enqueue = server, enqueue
        self._numbers: dict[str, float] = {}  # as last shown, by label

    def _on_click(self, handle: viser.GuiButtonHandle, name: str) -> None:
        @handle.on_click
        async def _(event: viser.GuiEvent) -> None:
            self._enqueue((name, event.client_id))

    def _on_pick(self, handle: Any, name: str, *, with_client: bool = False) -> None:
        @handle.on_click
        async def _(event: viser.GuiEvent) -> None:
            self._enqueue((name, event.client_id if with_client else event.target.value))

    def _on_change(
        self, handle: Any, name: str, of: Callable[[Any], Any], *, with_client: bool = False
    ) -> None:
        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            # Without a client it is our own `show` that has set the value.
            if event.client is not None:
                value = of(handle.value)
                self._enqueue((name, (value, event.client_id) if with_client else value))

    def _on_number(self, handle: Any, name: str, unit: float = 1.0) -> None:
        """A number that can be typed. Each key is an update, so what is on its way from "2" to
        "0.5" comes too: what is out of the limits is not meant yet."""

        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            value = float(handle.value)
            if event.client is not None and handle.min <= value <= handle.max:
                self._enqueue((name, value * unit))

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


def label_of(labels: Mapping[str, Any], value: Any) -> str:
    """What a choice is called that means `value`."""
    return next(label for label, meaning in labels.items() if meaning == value)
