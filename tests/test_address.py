"""The address of a cluster: what it may look like, and what answers there, without Ray."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from rambla_ray.errors import UserError
from rambla_ray.run.address import CONNECT_S, HeadAddress

SETTINGS_FRAME = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:6379", "127.0.0.1", 6379),
        ("head.cluster.internal:1", "head.cluster.internal", 1),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_an_address_is_a_host_and_a_port(text, host, port):
    assert HeadAddress.parse(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        *("nonsense", "host:", ":6379", ":", "host:port", "host:0", "host:-1", "host:+1", "host:65536", "host:99999"),
        *("host:6379x", "host:٣", "host:1e3", f"host:{'9' * 5000}", "http://host:80", "host:80/", "a host:80"),
        *("user:word@host:80", "host\n:80", "host\x1b[2J:80", "host\0:80", "auto:", "local:0"),
    ],
)
def test_what_is_no_address_is_one_line(text):
    with pytest.raises(UserError) as refused:
        HeadAddress.parse(text)
    line = str(refused.value)
    assert line.startswith("address=")
    assert "HOST:PORT, with a port from 1 to 65535" in line
    assert len(line) < 500
    assert line.isprintable()
    assert "word" not in line


def say(*words: bytes) -> Callable[[socket.socket], None]:
    """A server that says this to each client, and waits until it leaves."""

    def serve(connection: socket.socket) -> None:
        for word in words:
            connection.sendall(word)
        while connection.recv(1024):
            pass

    return serve


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server on this machine that takes one client."""

    def take_one() -> None:
        connection, _ = listening.accept()
        with connection, suppress(ConnectionError):  # Who leaves may not have read all of it.
            serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        taking = threading.Thread(target=take_one)
        taking.start()
        yield listening.getsockname()[1]
        taking.join()


@pytest.mark.parametrize(
    ("serve", "error", "reason"),
    [
        pytest.param(say(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ConnectionError, "a web server answers", id="HTTP/1"),
        pytest.param(say(b"<!DOCTYPE HTML>"), ConnectionError, "a web server answers", id="a page alone"),
        pytest.param(say(b"SSH-2.0-", b"OpenSSH_9.6\r\n"), ConnectionError, "with 'SSH-2.0-", id="ssh"),
        pytest.param(say(b"\x1b[2J\0\xff escapes"), ConnectionError, "another service answers, with '", id="octets"),
        pytest.param(lambda connection: None, ConnectionError, "closes each connection|reset", id="closes"),
        pytest.param(say(), TimeoutError, "nobody answers there in 3 s", id="silent"),
    ],
)
def test_another_service_is_none_of_a_cluster(serve, error, reason):
    started = time.monotonic()
    with server(serve) as port, pytest.raises(error, match=reason) as refused:
        HeadAddress("127.0.0.1", port).check()
    assert time.monotonic() - started < 2 * CONNECT_S
    assert str(refused.value).isprintable()


def test_a_port_that_nobody_listens_on_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match="refused"):
        HeadAddress("127.0.0.1", port).check()


@pytest.mark.parametrize("serve", [say(SETTINGS_FRAME), say(*(SETTINGS_FRAME[i : i + 1] for i in range(9)))])
def test_a_service_that_speaks_as_grpc_does_may_be_a_head(serve):
    with server(serve) as port:
        HeadAddress("127.0.0.1", port).check()
