"""Collects the private names of other packages that this one uses.

Each function says for which versions the name is known, and what happens without it. Packages are
imported only when a function is called, so that the page can start before JAX and Brax are loaded.
"""

import contextlib
import importlib
import threading
import types
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

JAX_CALLED_DIRECTLY = ("0.9.", "0.10.", "0.11.", "0.12.")
"""Prefixes of the jax versions for which the emission tests have passed with direct calls: see
`benchmarks.versions`. With other versions the host is called by `io_callback`."""

JAX_KEEPS_CALLS = (0, 11)
"""The first jax whose persistent compilation cache takes programs that call the host."""

VISER_LOOPS = ("1.1.",)
"""Prefixes of the viser versions whose loop that sends to one page is known:
`AsyncMessageBuffer._window_loop` is run with our own buffer. Others keep theirs, with a warning."""

VISER_RECORDINGS = ("1.1.",)
"""Prefixes of the viser versions whose format of recordings is known, so that exported pages are
made smaller."""


def callback_lowering() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the functions by which jax lowers a callback and places it, jax 0.9 to 0.12.

    Raises:
        ImportError: this jax keeps one elsewhere; the host is then called by `io_callback`.
    """
    from jax._src.callback import _callback_op_sharding
    from jax.interpreters.mlir import emit_python_callback

    return emit_python_callback, _callback_op_sharding


def is_divided_by_xla(context: Any) -> bool:
    """Whether XLA itself divides the program that is being lowered among several devices, jax 0.9
    to 0.12; elsewhere it need not be known, as only launches ask
    (`host_call.launches_are_known`)."""
    from jax._src.sharding_impls import ShardingContext

    axes = context.module_context.axis_context
    return isinstance(axes, ShardingContext) and axes.num_devices > 1


def opaque_trace_state() -> object:
    """Returns an object that is equal at two points of a program that are in the same trace: from
    `jax.core` in jax 0.9, from `jax.extend.core` since 0.10."""
    for home in ("jax.extend.core", "jax.core"):
        found = getattr(importlib.import_module(home), "get_opaque_trace_state", None)
        if found is not None:
            return found()
    raise ImportError("this jax has no get_opaque_trace_state")


def distributed_state() -> Any:
    """Returns the state of `jax.distributed`, jax 0.9 to 0.12: `process_id`, `num_processes`,
    `coordinator_address`, and `client`, the key-value store. jax gives no public access to it, nor
    to the numbers without initialising the devices, which is left to the user.

    Raises:
        ImportError: this jax keeps it elsewhere; a training of several processes cannot be shown.
    """
    from jax._src.distributed import global_state

    return global_state


def brax_environments() -> Mapping[str, Any]:
    """Returns the environments registered with Brax 0.12 to 0.14, by name; without this table the
    command line finds no Brax environment by its name."""
    from brax import envs

    return envs._envs


def pmap_axis_of(trainer: ModuleType) -> str | None:
    """Returns the name that a trainer of Brax 0.12 to 0.14 gives its axis of devices; None if it
    has none: its first epoch is then compiled twice, as without us."""
    return getattr(trainer, "_PMAP_AXIS_NAME", None)


def unpmap_of(trainer: ModuleType) -> Callable[[Any], Any]:
    """Returns the function that removes the axis of devices from a trainer's parameters, Brax 0.12
    to 0.14; the identity if the trainer has none, as it then has no such axis."""
    return getattr(trainer, "_unpmap", lambda params: params)


def playground_stepper() -> Any:
    """Returns the module whose `step` Playground's environments call, Playground 0.2.

    Raises:
        ImportError: it is elsewhere; the policy then cannot drive a sandbox.
    """
    return importlib.import_module("mujoco_playground._src.mjx_env")


def give_playground_model(env: Any, model: Any) -> bool:
    """Makes a Playground 0.2 environment step another `mjx.Model`. Returns whether it now does:
    environments that keep their model under another name do not."""
    env._mjx_model = model
    return env.mjx_model is model


CLOSE_SECONDS = 1.0
"""Timeout for a page's part in closing. With websockets' own, a stalled client would take 10 s."""

PING_SECONDS = 20.0
"""s between two pings to a page, and in which it must answer, or else reconnect as a new page."""

_serving = threading.Lock()


@contextlib.contextmanager
def asking_before_viser(
    respond: Callable[[Any, Any, Callable[[], Any]], Any],
    taken: Callable[[Any], Callable[[Any], Awaitable[None]] | None] = lambda connection: None,
    **settings: Any,
) -> Iterator[bool]:
    """Makes viser's servers that are created within this context, viser 1.1, send what `respond`
    returns or has awaited, given (connection, request, a function that returns viser's response);
    None opens a websocket, which is served by what `taken` returns, or by viser if that is None.
    `settings` are further arguments of websockets' `serve`, such as its log or its encryption.

    Yields:
        Whether they do: not with other versions, nor where viser calls websockets differently.
    """
    import viser

    module: Any = importlib.import_module("viser.infra._infra")
    real: Any = getattr(module, "websockets", None)
    known = viser.__version__.startswith(VISER_LOOPS) and hasattr(real, "asyncio")
    if not known:
        yield False
        return
    used: list[bool] = []

    def serve(handler: Any, *args: Any, process_request: Any, **kwargs: Any) -> Any:
        async def handle(connection: Any) -> None:
            await (taken(connection) or handler)(connection)

        def process(connection: Any, request: Any) -> Any:
            return respond(connection, request, lambda: process_request(connection, request))

        used.append(True)
        changed = {"ping_interval": PING_SECONDS, "ping_timeout": PING_SECONDS}
        changed |= {"process_request": process, "close_timeout": CLOSE_SECONDS, **settings}
        return real.asyncio.server.serve(handle, *args, **kwargs, **changed)

    class Server:
        def __getattr__(self, name: str) -> Any:
            return serve if name == "serve" else getattr(real.asyncio.server, name)

    class Websockets:
        asyncio = types.SimpleNamespace(server=Server())

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    # Viser's thread looks the name up once, while the server's constructor waits for it.
    with _serving:
        module.websockets = Websockets()
        try:
            yield True
        finally:
            module.websockets = real
    if not used:
        raise RuntimeError(f"viser {viser.__version__} does not call websockets as expected")


def limit_messages(connection: Any, size: int) -> None:
    """Has a websocket end for a message of more than `size` bytes, websockets 13 to 16; viser takes
    50 MB, of which it makes Python objects before anything can be checked."""
    if hasattr(connection.protocol, "max_message_size"):
        connection.protocol.max_message_size = size
    else:  # before websockets 15
        connection.protocol.max_size = size


def accepted(server: Any) -> int:
    """Returns how many connections a websockets server has, including those that negotiate
    encryption, Python 3.11 to 3.13; 0 if unknown."""
    listening = getattr(server, "server", None)
    transports = getattr(listening, "_clients", None)  # since Python 3.12
    return getattr(listening, "_active_count", 0) if transports is None else len(transports)


def read_at_most(transport: Any, size: int) -> None:
    """Has asyncio's own transport of Python 3.11 to 3.13 read `size` bytes at once, instead of
    256 kB. An encrypted connection's keeps to its own."""
    if hasattr(transport, "max_size"):
        transport.max_size = size


def limit_requests(protocol: Any, most: int, refusal: Callable[[Exception], bytes]) -> None:
    """Has a new connection of websockets 13 to 16 take requests of `most` bytes in all, instead of
    8,192 in each of 128 lines, and answer before an error ends it.

    Args:
        protocol: the connection's `ServerProtocol`, which has read nothing yet.
        most: bytes.
        refusal: returns the answer for an error; empty if there has been one.
    """
    from websockets.streams import StreamReader

    class Reader(StreamReader):
        left = most

        def read_line(self, m: int) -> Any:
            line = yield from super().read_line(self.left)
            self.left -= len(line)
            return line

    ends = protocol.send_eof

    def answers_and_ends() -> None:
        error = protocol.handshake_exc
        answer = refusal(error.__cause__ or error) if error is not None else b""
        if answer:
            protocol.writes.append(answer)
        ends()

    protocol.send_eof = answers_and_ends
    protocol.reader = Reader()
    protocol.parser = protocol.parse()
    next(protocol.parser)


@contextlib.contextmanager
def without_viser_banner() -> Iterator[None]:
    """Suppresses the banner of viser's servers that are created within this context, as its address
    may be the wrong one. Rich captures this thread alone: output of other threads is not lost."""
    import rich

    console = rich.get_console()
    console.begin_capture()
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # what is printed to may be closed, or full
            console.end_capture()


def stop_viser(server: Any) -> None:
    """Stops a `viser.ViserServer` without the message that it prints on its loop's thread. Rich's
    capture is limited to that thread, on which nothing else is printed, and ends with it."""
    import rich

    with contextlib.suppress(RuntimeError):  # already stopped
        server.get_event_loop().call_soon_threadsafe(rich.get_console().begin_capture)
    server.stop()


def set_together(handle: Any, arrays: Mapping[str, Any]) -> bool:
    """Sets arrays of a scene node by one message, which costs half of one for each.

    Returns False, and sets nothing, with versions of viser that are not in `VISER_LOOPS`, and where
    viser's own way has more to do: the node is removed, or an array changes its shape or type.

    Args:
        handle: of the scene node.
        arrays: new values by the names of viser's properties; they are copied.
    """
    import viser
    from viser import _messages as messages

    node = getattr(handle, "_impl", None)
    if not viser.__version__.startswith(VISER_LOOPS) or node is None or node.removed:
        return False
    stored = [getattr(node.props, name) for name in arrays]
    if any(
        (old.shape, old.dtype) != (new.shape, new.dtype)
        for old, new in zip(stored, arrays.values(), strict=True)
    ):
        return False
    for old, new in zip(stored, arrays.values(), strict=True):
        old[:] = new
    # Copies, because viser's thread may still be sending when the next picture is drawn.
    copies = {name: new.copy() for name, new in arrays.items()}
    node.api._queue_scene_message(messages.SceneNodeUpdateMessage(node.name, copies))
    return True


class ViserGate(NamedTuple):
    """The parts of viser between connections and handlers, viser 1.1."""

    server: Any  # the `viser.ViserServer`
    websockets: Any

    def put_between(self, guard: Callable[[Any, bool], Any]) -> None:
        """Replaces each handler of incoming messages, now and for later pages, by `guard` of it and
        whether it is a single page's. Each message comes to that of all pages first, then there."""
        websockets = self.websockets
        websockets._handle_incoming_message = guard(websockets._handle_incoming_message, False)

        def connected(connection: Any) -> None:
            connection._handle_incoming_message = guard(connection._handle_incoming_message, True)

        websockets.on_client_connect(connected)

    def on_connect(self, function: Callable[[int, Any], object]) -> None:
        """Calls a function with the number and the websocket of each page that connects, before it
        is heard."""

        def connected(connection: Any) -> None:
            function(connection.client_id, self.connection(connection.client_id))

        self.websockets.on_client_connect(connected)

    def show_value(self, client: int, widget: Any) -> None:
        """Sends a page the value of an input that holds, as it may show another."""
        from viser._messages import GuiUpdateMessage

        page = self.server.get_clients().get(client)
        if page is not None:
            message = GuiUpdateMessage(widget._impl.uuid, {"value": widget._impl.value})
            page._websock_connection.queue_message(message)

    def connection(self, client: int) -> Any | None:
        """Returns the websocket of a page; None if it is gone."""
        return self.websockets._live_connections.get(client)

    def widget(self, owner: Any, uuid: str) -> Any | None:
        """Returns an input of the panel, of the server or of a page."""
        return owner.gui._gui_input_handle_from_uuid.get(uuid)

    def state_of(self, widget: Any) -> Any:
        """Returns what an input holds: its `value`, and its `props`."""
        return widget._impl

    def has_container(self, uuid: str) -> bool:
        """Whether the panel has this folder, form or the like."""
        return uuid in self.server.gui._container_handle_from_uuid

    def uploads(self) -> Mapping[str, Any]:
        """Returns the files on their way: "client_id", "total_bytes", "transferred_bytes"."""
        return self.server.gui._current_file_upload_states


def viser_gate(server: Any) -> ViserGate | None:
    """Returns these parts of a `viser.ViserServer`; None with other versions, whose pages' messages
    are not checked."""
    import viser

    websockets = getattr(server, "_websock_server", None)
    names = ("_handle_incoming_message", "_live_connections", "on_client_connect")
    known = viser.__version__.startswith(VISER_LOOPS)
    known = known and all(hasattr(websockets, name) for name in names)
    return ViserGate(server, websockets) if known else None


class ViserLoop(NamedTuple):
    """The parts of viser that show which messages a page has received."""

    server: Any  # the websocket server
    buffer: Any  # messages to all pages
    buffer_class: Any
    question: Any  # a message that a page answers in its turn, or None
    answer: Any  # its answer, or None
    move: Any  # the message that moves a scene node, or None


_LOOP = ("window_generator", "_window_loop")
_STATE = ("message_from_id", "message_counter", "generator_cursors", "buffer_lock")


def viser_loop(server: Any) -> ViserLoop | None:
    """Returns these parts of a `viser.ViserServer`; None if viser's version is not in
    `VISER_LOOPS`, or lacks one of the names that are needed."""
    import viser

    if not viser.__version__.startswith(VISER_LOOPS):
        return None
    try:
        from viser import _messages as messages
        from viser.infra._async_message_buffer import AsyncMessageBuffer
    except ImportError:
        return None
    websockets = getattr(server, "_websock_server", None)
    buffer = getattr(websockets, "_broadcast_buffer", None)
    if not all(hasattr(AsyncMessageBuffer, name) for name in _LOOP):
        return None
    if not all(hasattr(buffer, name) for name in _STATE):
        return None
    return ViserLoop(
        websockets,
        buffer,
        AsyncMessageBuffer,
        getattr(messages, "LocalStorageGetItemRequestMessage", None),
        getattr(messages, "LocalStorageGetItemResponseMessage", None),
        getattr(messages, "SceneNodeUpdateMessage", None),
    )
