"""Connects the processes of one training by encrypted sockets.

ZeroMQ's CURVE mechanism encrypts, and rejects peers that don't know the secret shared by the
training's own processes: both ends' keys are derived from it.
"""

import functools
import hashlib
from typing import Any

import zmq
import zmq.auth.thread
from zmq.utils import z85

DOMAIN = "brax_viser"
"""ZAP domain: selects ZeroMQ's authenticator for these sockets."""

SECONDS_TO_LEAVE = 0.5
"""How long sending the last messages may take when a socket is closed."""

QUEUE = 512
"""Messages that may wait on either side of a connection."""


MOST_BYTES = 1 << 26
"""Most bytes of a message. ZeroMQ reads all before it knows whether the sender has the key."""


@functools.lru_cache(maxsize=8)
def _stretched(secret: bytes) -> bytes:
    """Returns a key that takes a tenth of a second to make, so that a secret cannot be guessed by
    trying many on a recorded handshake."""
    return hashlib.scrypt(secret, salt=b"brax_viser", n=1 << 15, r=8, p=1, maxmem=1 << 26, dklen=32)


def _keys(secret: bytes, whose: str) -> tuple[bytes, bytes]:
    """Returns one end's (public, private) keys in ZeroMQ's Z85 encoding."""
    key, person = _stretched(secret), whose.encode()[:16]
    private = hashlib.blake2b(key, digest_size=32, person=person).digest()
    private = z85.encode(private)
    return zmq.curve_public(private), private


class _OnlyKey:
    """Credentials provider that accepts a single public key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._key


class SocketServer:
    """The leader's end. Used by one thread."""

    def __init__(self, secret: bytes, bind: str):
        """Binds and listens.

        Args:
            secret: shared with the workers.
            bind: address, such as "127.0.0.1" or "*", with or without a port.

        Raises:
            zmq.ZMQError: the address isn't one of this machine's, or its port is in use.
        """
        self._context: Any = zmq.Context()
        self._auth: Any = zmq.auth.thread.ThreadAuthenticator(self._context)
        self._auth.start()
        guest, _ = _keys(secret, "guest")
        self._auth.configure_curve_callback(DOMAIN, credentials_provider=_OnlyKey(guest))
        self._socket = _socket(self._context, zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_publickey, self._socket.curve_secretkey = _keys(secret, "server")
        self._socket.router_mandatory = True
        self._socket.router_handover = True  # a reconnecting worker replaces its old connection
        try:
            if ":" in bind:
                self._socket.bind(f"tcp://{bind}")
                self.port = int(bind.rpartition(":")[2])
            else:
                self.port: int = self._socket.bind_to_random_port(f"tcp://{bind}")
        except zmq.ZMQError:
            self.close()
            raise

    def receive(self, seconds: float) -> list[tuple[int, bytes]]:
        """Returns (process, message) of each message; waits up to `seconds` for the first."""
        messages = []
        while self._socket.poll(0 if messages else seconds * 1000):
            name, *parts = self._socket.recv_multipart()
            if name.isdigit() and len(parts) == 1:  # as all that `SocketClient` sends
                messages.append((int(name), parts[0]))
            if len(messages) >= QUEUE:
                break
        return messages

    def send(self, process: int, data: bytes) -> bool:
        """Sends without blocking. Returns whether the process is connected and has room."""
        try:
            self._socket.send_multipart([str(process).encode(), data], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def close(self) -> None:
        self._socket.close(linger=int(SECONDS_TO_LEAVE * 1000))
        self._auth.stop()
        self._context.term()


class SocketClient:
    """A worker's end. Used by one thread."""

    def __init__(self, secret: bytes, address: str, process: int):
        """Starts connecting to `address`, "host:port"."""
        self._context: Any = zmq.Context()
        self._socket = _socket(self._context, zmq.DEALER)
        self._socket.identity = str(process).encode()
        self._socket.curve_publickey, self._socket.curve_secretkey = _keys(secret, "guest")
        self._socket.curve_serverkey, _ = _keys(secret, "server")
        self._socket.connect(f"tcp://{address}")

    def receive(self, seconds: float) -> list[bytes]:
        """Returns all messages received; waits up to `seconds` for the first."""
        messages = []
        while self._socket.poll(0 if messages else seconds * 1000):
            messages.append(self._socket.recv())
        return messages

    def send(self, data: bytes) -> bool:
        """Sends without blocking. Returns whether there was room.

        Raises:
            ValueError: the message is too large.
        """
        if len(data) > MOST_BYTES:
            raise ValueError(
                f"a message to the first process has {len(data):,} bytes, and may have "
                f"{MOST_BYTES:,}: draw fewer environments"
            )
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        self._socket.close(linger=int(SECONDS_TO_LEAVE * 1000))
        self._context.term()


def _socket(context: Any, kind: int) -> Any:
    socket = context.socket(kind)
    socket.sndhwm = socket.rcvhwm = QUEUE
    socket.maxmsgsize = MOST_BYTES
    # Heartbeats notice a peer that vanishes without closing its connection.
    socket.heartbeat_ivl, socket.heartbeat_timeout = 1000, 5000
    socket.zap_domain = DOMAIN.encode()
    return socket
