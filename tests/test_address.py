"""Serving the page: which hosts and ports are accepted, and the URL that is printed."""

import socket
import time
import urllib.request

import numpy as np
import pytest

from brax_viser import Viewer
from brax_viser.page import address
from tests.support import port_of

has_ipv6 = pytest.mark.skipif(
    not address.is_free("::1", 0), reason="this machine has no IPv6 address"
)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "",
        *[pytest.param(host, marks=has_ipv6) for host in ("::", "::1", "[::1]")],
    ],
)
@pytest.mark.parametrize("any_port", [True, False])
def test_the_printed_url_answers(host, any_port, capsys):
    port = 0 if any_port else address.free_port(address.listening_address(host), 8700)
    with Viewer(host=host, port=port) as viewer:
        assert viewer.url in capsys.readouterr().out
        with urllib.request.urlopen(viewer.url, timeout=10) as answer:
            assert b"<html" in answer.read()


@pytest.mark.parametrize(
    "host",
    [
        "no.such.host.invalid",
        "10.255.255.1",
        "2001:db8::1",
        "255.255.255.255",
        "127.0.0.1:8000",
        "http://localhost",
        "a b",
        "x" * 300,
        "\0",
        None,
    ],
)
def test_a_host_that_cannot_be_listened_on_is_refused_within_a_second(host):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"host=.*: use '127\.0\.0\.1' .*'0\.0\.0\.0'"):
        Viewer(host=host, port=0)
    assert time.monotonic() - start < 1.5  # 1 s, and slack for a busy machine


def test_name_resolution_times_out_when_the_name_server_does_not_answer(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20) or [])
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"host='far\.away': not resolved within 0\.8 s"):
        Viewer(host="far.away", port=0)
    assert time.monotonic() - start < 1.5  # 1 s, and slack for a busy machine


@has_ipv6
def test_a_taken_port_is_replaced_by_the_next_free_one_on_ipv6_too():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Viewer(host="::1", port=port) as viewer:
            assert port_of(viewer) > port
            with urllib.request.urlopen(viewer.url, timeout=10) as answer:
                assert answer.status == 200


def test_the_error_says_that_no_port_is_left():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 65535))
        taken.listen()
        with pytest.raises(ValueError, match="port=65535: taken, as all up to 65535 are: use 0"):
            Viewer(port=65535)


@pytest.mark.parametrize("port", [70000, -1, "8000", "abc", 1.5, True])
def test_an_invalid_port_is_refused(port):
    with pytest.raises(ValueError, match=r"port=.*: must be a whole number from 0 to 65535"):
        Viewer(port=port)


def test_a_numpy_integer_is_accepted_as_a_port():
    with Viewer(port=np.int64(0)) as viewer:
        assert viewer.url.startswith("http://127.0.0.1:")
