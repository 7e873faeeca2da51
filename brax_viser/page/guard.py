"""Checks what pages send before viser acts on it.

A page that sends what no page of viser sends is disconnected, with one line in the log. A number
that is too large only costs the page its entry, as a person may have typed it.
"""

import dataclasses
import functools
import logging
import types
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import viser

from brax_viser.compat import ViserGate
from brax_viser.page.access import Role

log = logging.getLogger("brax_viser")

MOST_CHARACTERS = 20_000
"""Most characters of a text."""

LARGEST = 2.0**53
"""Largest number that pages can send exactly."""

MOST_ELEMENTS = 1000
"""Most elements of a list, or of all lists within one another."""

MOST_BYTES = 1 << 30
"""Most bytes of an upload."""

MOST_PARTS = 10_000
"""Most parts of an upload; a page's have half a megabyte each."""

MOST_UPLOADS = 4
"""Most uploads of a page at once; a page sends one file after the other."""

FROM_PAGES = frozenset(
    "ViewerCameraMessage ScenePointerMessage SceneNodeClickMessage SceneNodeDragMessage "
    "TransformControlsUpdateMessage TransformControlsDragStartMessage "
    "TransformControlsDragEndMessage GuiUpdateMessage GuiButtonHoldMessage CommandTriggerMessage "
    "LocalStorageGetItemResponseMessage GetRenderResponseMessage".split()
)
"""Messages that pages send. Not among them is `ShareUrlRequest`, for a public address."""

FOR_SCRIPTS = frozenset(
    "GuiFormSubmitMessage GuiFormDirtyMessage FileTransferStartUpload FileTransferPart".split()
)
"""Messages of widgets that only a script can have added: taken while there is such a widget."""

FROM_ONLOOKERS = frozenset(
    "ViewerCameraMessage LocalStorageGetItemResponseMessage GetRenderResponseMessage".split()
)
"""What an onlooker's page may send: its camera, and answers."""

Handler = Callable[[int, Any], Awaitable[None]]


LOOKING_ON = (
    "This page was opened by the onlookers' address: it shows everything, and changes nothing but "
    "its own camera."
)


class Refused(Exception):
    """A message that no page of viser sends; the text says why."""


class Guard:
    """Stands between the connections of one server and viser's handlers. On viser's loop only."""

    def __init__(self, gate: ViserGate, role_of: Callable[[Any], Role | None]):
        """Begins to check.

        Args:
            gate: the parts of viser.
            role_of: what a page may do, by the request that has opened its websocket.
        """
        self._gate, self._role_of = gate, role_of
        # Numbers of pages, which are never used again.
        self._gone: set[int] = set()
        self._steering: set[int] = set()
        self._told: set[int] = set()  # onlookers that have been told that they are
        gate.on_connect(self._connected)
        gate.put_between(self._guarded)

    def is_onlooker(self, client: int) -> bool:
        """Whether a page may change nothing."""
        return client not in self._steering

    def _connected(self, client: int, connection: Any) -> None:
        if self._role_of(connection.request) == "steering":
            self._steering.add(client)

    def _guarded(self, handle: Handler, is_pages: bool) -> Handler:
        async def guarded(client: int, message: Any) -> None:
            if is_pages and type(message).__name__ in FOR_SCRIPTS:
                return  # it has been checked, and handled, as what all pages share is
            try:
                if self._is_taken(client, message) and self._is_allowed(client, message):
                    await handle(client, message)
            # Whatever a page has sent, the others' server goes on.
            except Exception as error:
                self._disconnect(client, type(message).__name__, error)

        return guarded

    def _disconnect(self, client: int, kind: str, error: Exception) -> None:
        connection = self._gate.connection(client)
        if connection is None or client in self._gone:
            return
        self._gone.add(client)
        why = str(error) if isinstance(error, Refused) else repr(error)
        log.warning("a page was disconnected, as it sent a wrong %s: %s", kind, why[:200])
        self._gate.server.get_event_loop().create_task(connection.close(1008, "wrong message"))

    def _is_taken(self, client: int, message: Any) -> bool:
        """Whether viser may act on a message. Raises Refused if no page would send it."""
        kind = type(message).__name__
        if client in self._gone:
            return False
        if kind in FOR_SCRIPTS:
            check(message)
            return self._is_expected(client, message)
        if kind not in FROM_PAGES:
            raise Refused("pages do not send it")
        if kind == "GuiUpdateMessage":
            return self._is_update(client, message)
        check(message)
        return True

    def _is_allowed(self, client: int, message: Any) -> bool:
        """Whether a page may do what it asks for. An onlooker's is told that it may not, and shown
        the value of a widget that it has changed."""
        if client in self._steering or type(message).__name__ in FROM_ONLOOKERS:
            return True
        handle = self._widget(client, getattr(message, "uuid", None))
        if handle is not None:
            self._gate.show_value(client, handle)
        page = self._gate.server.get_clients().get(client)
        if page is not None and client not in self._told:
            self._told.add(client)
            page.add_notification("You are looking on", LOOKING_ON, auto_close_seconds=8.0)
        return False

    def _is_expected(self, client: int, message: Any) -> bool:
        """Whether a script has added the form or the button for uploads that a message is of.
        Raises Refused if an upload is larger than it may be."""
        if hasattr(message, "uuid"):
            return self._gate.has_container(message.uuid)
        handle = self._gate.widget(self._gate.server, message.source_component_uuid)
        is_asked_for = isinstance(handle, viser.GuiUploadButtonHandle)
        if type(message).__name__ == "FileTransferPart":
            return is_asked_for and self._is_part(client, message)
        if message.size_bytes > MOST_BYTES or message.part_count > MOST_PARTS:
            raise Refused(f"uploads have at most {MOST_BYTES:,} bytes, in {MOST_PARTS:,} parts")
        return is_asked_for and self._may_begin(client, message)

    def _may_begin(self, client: int, message: Any) -> bool:
        """Whether an upload begins. Raises Refused if its page has begun too many."""
        uploads = self._gate.uploads()
        if sum(one["client_id"] == client for one in uploads.values()) >= MOST_UPLOADS:
            raise Refused(f"a page has at most {MOST_UPLOADS} uploads at once")
        # Viser forgets the uploads of pages that it knows, which have told their camera.
        is_known = client in self._gate.server.get_clients()
        return is_known and message.transfer_uuid not in uploads

    def _is_part(self, client: int, message: Any) -> bool:
        """Whether a part is of an upload that its page has begun. Raises Refused if all parts have
        more bytes than were declared."""
        upload = self._gate.uploads().get(message.transfer_uuid)
        if upload is None or upload["client_id"] != client:
            return False
        if upload["transferred_bytes"] + len(message.content) > upload["total_bytes"]:
            raise Refused(f"an upload has more than the {upload['total_bytes']:,} bytes declared")
        return True

    def _is_update(self, client: int, message: Any) -> bool:
        """Whether a widget takes a new value. Raises Refused for anything but a value."""
        if not isinstance(message.uuid, str):
            raise Refused("uuid is not what it should be")
        handle = self._widget(client, message.uuid)
        if handle is None:
            return False  # it may just have been removed
        if set(message.updates) != {"value"}:
            raise Refused(f"a page changes the value of a widget, not its {[*message.updates]}")
        value, widget = message.updates["value"], self._gate.state_of(handle)
        check_kind(value, widget.value)
        if is_possible(value, widget.props):
            return True
        self._gate.show_value(client, handle)
        return False

    def _widget(self, client: int, uuid: Any) -> Any | None:
        server = self._gate.server
        owners: list[Any] = [server, server.get_clients().get(client)]
        for owner in owners:
            if owner is not None and isinstance(uuid, str):
                handle = self._gate.widget(owner, uuid)
                if handle is not None:
                    return handle
        return None


def check(message: Any) -> None:
    """Checks that each field of a message is of its type, finite, and not too large.

    Raises:
        Refused: one is not.
    """
    for name, hint in hints_of(type(message)).items():
        if not fits(getattr(message, name), hint):
            raise Refused(f"{name} is not what it should be")


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """Returns the types of the fields of a message."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, finite, and not too large."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple | list) or len(value) > MOST_ELEMENTS:
            return False
        hints = args[:1] * len(value) if args[1:] == (Ellipsis,) else args
        return len(value) == len(hints) and all(map(fits, value, hints))
    if hint in (int, float):
        return is_number(value)
    if hint is str:
        return isinstance(value, str) and len(value) <= MOST_CHARACTERS
    if hint in (bool, bytes, type(None)):
        return isinstance(value, hint)
    return is_sound(value)


def is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(value) <= LARGEST  # which NaN and infinities are not


def is_sound(value: Any, left: int = MOST_ELEMENTS) -> bool:
    """Whether a value of any type is finite and not too large."""
    if isinstance(value, tuple | list):
        return len(value) <= left and all(is_sound(x, left // max(len(value), 1)) for x in value)
    if isinstance(value, str):
        return len(value) <= MOST_CHARACTERS
    return value is None or isinstance(value, bool) or is_number(value)


def check_kind(value: Any, before: Any) -> None:
    """Checks that a widget's new value is of the same kind as the one before.

    Raises:
        Refused: it is not.
    """
    if isinstance(before, bool):
        same = isinstance(value, bool)
    elif isinstance(before, int | float):
        same = isinstance(value, int | float) and not isinstance(value, bool)
    elif isinstance(before, str):
        same = isinstance(value, str) and len(value) <= MOST_CHARACTERS
    elif isinstance(before, tuple):
        same = isinstance(value, tuple | list) and len(value) <= MOST_ELEMENTS
        same = same and all(isinstance(x, str) or is_number(x) for x in value)
        same = same and (not before or len({type(x) is str for x in (*value, before[0])}) <= 1)
    else:
        same = before is None and is_sound(value)
    if not same:
        raise Refused(f"a widget's value was {type(before).__name__}")


def is_possible(value: Any, props: Any) -> bool:
    """Whether pages can be sent a widget's value: one of its options, or a number that is exact."""
    options = getattr(props, "options", None)
    if isinstance(value, str) and isinstance(options, tuple | list):
        return value in options
    # What is below the least or above the most is left to what the widget is for: a person who
    # types 0.5 has typed 0 before.
    numbers = value if isinstance(value, tuple | list) else (value,)
    return all(isinstance(x, bool | str) or x is None or is_number(x) for x in numbers)
