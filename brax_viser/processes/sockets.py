"""Sockets between the processes of one training.

ZeroMQ's CURVE mechanism encrypts, and lets in nobody who does not know the secret that the
training's own processes share: both ends' keys are made of it.
"""

import hashlib
from typing import Any

import zmq
import zmq.auth.thread
from zmq.utils import z85

DOMAIN = "brax_viser"
"""By which ZeroMQ knows whom to ask whether somebody is let in."""

SECONDS_TO_LEAVE = 0.5
"""How long a last message may take when a socket is closed."""

QUEUE = 512
"""Messages that may wait on either side of a connection."""


def _keys(secret: bytes, whose: str) -> tuple[bytes, bytes]:
    """(public, private) key of one end, as ZeroMQ writes them."""
    private = hashlib.blake2b(secret, digest_size=32, person=whose.encode()[:16]).digest()
    private = z85.encode(private)
    return zmq.curve_public(private), private


class _OnlyKey:
    """Whom the first process lets in."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._key


class SocketServer:
    """The first process's end. Used by one thread."""

    def __init__(self, secret: bytes, bind: str):
        """Listens.

        Args:
            secret: shared with the others.
            bind: address without its port, "127.0.0.1" or "*", or with it.

        Raises:
            zmq.ZMQError: the address is none of this machine's.
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
        self._socket.router_handover = True  # who comes back takes its old connection's place
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
        """(process, message), all that have come; waits for the first."""
        messages = []
        while self._socket.poll(0 if messages else seconds * 1000):
            name, data = self._socket.recv_multipart()
            if name.isdigit():
                messages.append((int(name), data))
            if len(messages) >= QUEUE:
                break
        return messages

    def send(self, process: int, data: bytes) -> bool:
        """Returns whether there is a way to the process, and room."""
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
    """Another process's end. Used by one thread."""

    def __init__(self, secret: bytes, address: str, process: int):
        """Begins to connect to `address`, "host:port"."""
        self._context: Any = zmq.Context()
        self._socket = _socket(self._context, zmq.DEALER)
        self._socket.identity = str(process).encode()
        self._socket.curve_publickey, self._socket.curve_secretkey = _keys(secret, "guest")
        self._socket.curve_serverkey, _ = _keys(secret, "server")
        self._socket.connect(f"tcp://{address}")

    def receive(self, seconds: float) -> list[bytes]:
        """All that has come; waits for the first."""
        messages = []
        while self._socket.poll(0 if messages else seconds * 1000):
            messages.append(self._socket.recv())
        return messages

    def send(self, data: bytes) -> bool:
        """Returns whether there was room."""
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
    # Somebody who has gone without a word is to be noticed.
    socket.heartbeat_ivl, socket.heartbeat_timeout = 1000, 5000
    socket.zap_domain = DOMAIN.encode()
    return socket
