"""What clients may send to what is served, and how long they may take: limits on whoever connects, key or none."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from gateway_server import BEARER, HELLO, KEY, PATIENCE_S, Door, Reply, opened, post, read, request
from waiting import wait_until

from rambla_ray.serving.limits import MIB, Limits

HOST = "Host: here"
POST = "POST /v1/completions HTTP/1.1"
BODY = b'{"model": "echo", "prompt": "hello"}'
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SOON_S = 0.2


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with opened() as door:
        yield door


@pytest.fixture(scope="module")
def hasty() -> Iterator[Door]:
    """A server that waits a moment where others wait long."""
    with opened(limits=Limits(header_s=SOON_S, body_s=SOON_S, linger_s=SOON_S)) as door:
        yield door


GOOD = {
    "a body of known length": request(POST, HOST, BEARER, LENGTH, body=BODY),
    "a body in chunks": request(POST, HOST, BEARER, "Transfer-Encoding: chunked", body=CHUNKED),
    "chunks with an extension": request(
        POST, HOST, BEARER, "Transfer-Encoding: Chunked", body=CHUNKED.replace(b"\r\n", b";a=b\r\n", 1)
    ),
    "a length twice, the same": request(POST, HOST, BEARER, LENGTH, LENGTH, body=BODY),
    "expects to be let in": request(POST, HOST, BEARER, LENGTH, "Expect: 100-continue", body=BODY),
    "an upgrade, which is passed over": request(
        POST, HOST, BEARER, LENGTH, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", body=BODY
    ),
    "the whole address": request("POST http://here/v1/completions HTTP/1.1", HOST, BEARER, LENGTH, body=BODY),
    "HTTP/1.0": request("POST /v1/completions HTTP/1.0", BEARER, LENGTH, body=BODY),
    "bare line feeds": request(POST, HOST, BEARER, LENGTH).replace(b"\r\n", b"\n") + BODY,
    "headers of almost 64 kB": request(POST, HOST, BEARER, LENGTH, "X: " + "x" * 65_000, body=BODY),
    "a body with GET": request("GET /v1/models HTTP/1.1", HOST, BEARER, LENGTH, body=BODY),
}

BAD = {
    "no host": (400, request(POST, BEARER, LENGTH, body=BODY)),
    "a negative length": (400, request(POST, HOST, BEARER, "Content-Length: -1", body=BODY)),
    "a length with a sign": (400, request(POST, HOST, BEARER, f"Content-Length: +{len(BODY)}", body=BODY)),
    "a length in hexadecimal": (400, request(POST, HOST, BEARER, "Content-Length: 0x10", body=BODY)),
    "a length with an underscore": (400, request(POST, HOST, BEARER, "Content-Length: 3_6", body=BODY)),
    "a length of letters": (400, request(POST, HOST, BEARER, "Content-Length: all", body=BODY)),
    "an empty length": (400, request(POST, HOST, BEARER, "Content-Length:", body=BODY)),
    "a length of 4,000 digits": (400, request(POST, HOST, BEARER, "Content-Length: " + "9" * 4000, body=BODY)),
    "two lengths": (400, request(POST, HOST, BEARER, LENGTH, "Content-Length: 5", body=BODY)),
    "two lengths in one": (400, request(POST, HOST, BEARER, "Content-Length: 36, 5", body=BODY)),
    "length and chunks": (400, request(POST, HOST, BEARER, LENGTH, "Transfer-Encoding: chunked", body=CHUNKED)),
    "chunks with HTTP/1.0": (
        400,
        request("POST /v1/completions HTTP/1.0", HOST, BEARER, "Transfer-Encoding: chunked", body=CHUNKED),
    ),
    "chunks twice": (501, request(POST, HOST, BEARER, *["Transfer-Encoding: chunked"] * 2, body=CHUNKED)),
    "compressed": (501, request(POST, HOST, BEARER, "Transfer-Encoding: gzip, chunked", body=CHUNKED)),
    "not quite chunked": (501, request(POST, HOST, BEARER, "Transfer-Encoding: xchunked", body=CHUNKED)),
    "no size of a chunk": (400, request(POST, HOST, BEARER, "Transfer-Encoding: chunked", body=b"xyz\r\n")),
    "a chunk longer than it says": (
        400,
        request(POST, HOST, BEARER, "Transfer-Encoding: chunked", body=b"2\r\nabcd\r\n"),
    ),
    "a space before the colon": (400, request(POST, HOST, BEARER, f"Content-Length : {len(BODY)}", body=BODY)),
    "a header without a name": (400, request(POST, HOST, BEARER, ": x", LENGTH, body=BODY)),
    "a header without a colon": (400, request(POST, HOST, BEARER, "x", LENGTH, body=BODY)),
    "NUL in a header": (400, request(POST, HOST, BEARER, "X: a\0b", LENGTH, body=BODY)),
    "an escape in a header": (400, request(POST, HOST, BEARER, "X: \x1b[31m", LENGTH, body=BODY)),
    "a lone carriage return": (400, request(POST, HOST, BEARER, "X: a\rY: b", LENGTH, body=BODY)),
    "NUL in the path": (400, request("GET /v1/mod\0els HTTP/1.1", HOST, BEARER)),
    "a letter in the path": (400, request("GET /v1/m\xfcdels HTTP/1.1", HOST, BEARER)),
    "a space in the path": (400, request("GET /v1/models now HTTP/1.1", HOST, BEARER)),
    "HTTP/0.9": (400, b"GET /v1/models\r\n\r\n"),
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/3": (505, request("GET /v1/models HTTP/3.0", HOST, BEARER)),
    "another protocol": (400, b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)),
    "a header of 70 kB": (431, request(POST, HOST, BEARER, LENGTH, "X: " + "x" * 70_000, body=BODY)),
    "a header of 300 kB": (431, request(POST, HOST, BEARER, LENGTH, "X: " + "x" * 300_000, body=BODY)),
    "a path of 70 kB": (431, request("GET /" + "x" * 70_000 + " HTTP/1.1", HOST, BEARER)),
    "a query of 70 kB": (431, request("GET /?" + "x" * 70_000 + " HTTP/1.1", HOST, BEARER)),
    "a line of 70 kB": (431, b"A" * 70_000),
    "16,400 headers": (431, request(POST, HOST, BEARER, LENGTH, *["x:"] * 16_400, body=BODY)),
    "trailers of 200 kB": (
        431,
        request(POST, HOST, BEARER, "Transfer-Encoding: chunked", body=b"0\r\nx: " + b"x" * 200_000),
    ),
    "a chunk's extension of 200 kB": (
        431,
        request(POST, HOST, BEARER, "Transfer-Encoding: chunked", body=b"1;" + b"x" * 200_000),
    ),
    "a body of 100 GB": (413, request(POST, HOST, BEARER, "Content-Length: 100000000000", body=BODY)),
}


@pytest.mark.parametrize("sent", GOOD.values(), ids=GOOD)
def test_what_may_be_sent_is_answered(door: Door, sent: bytes) -> None:
    assert door.reply(sent).status == 200


@pytest.mark.parametrize(("status", "sent"), BAD.values(), ids=BAD)
def test_what_may_not_be_sent_is_refused_and_the_connection_closed(door: Door, status: int, sent: bytes) -> None:
    asked = len(door.model.asked)
    reply = door.reply(sent)
    assert (reply.status, reply.closed) == (status, True)
    assert reply.headers["content-type"] == "application/json"
    assert (reply.error["type"], KEY in str(reply.error)) == ("invalid_request_error", False)
    assert len(door.model.asked) == asked
    assert door.ask() == 200


@pytest.mark.parametrize("cut", [1, 40, 90, len(request(POST, HOST, BEARER, LENGTH)) + 5])
def test_a_request_may_come_in_pieces_or_end_too_soon(door: Door, cut: int) -> None:
    sent = GOOD["a body of known length"]
    with door.connect() as client:
        client.sendall(sent[:cut])
        client.sendall(sent[cut:])
        assert read(client).status == 200
    with door.connect() as client:
        client.sendall(sent[:cut])
        client.shutdown(socket.SHUT_WR)
        assert client.recv(10) == b""


def test_requests_that_are_sent_together_are_answered_in_turn(door: Door) -> None:
    prompts = [f"number {number}" for number in range(20)]
    with door.connect() as client, client.makefile("rb") as replies:
        client.sendall(b"".join(post({"model": "echo", "prompt": prompt}, BEARER) for prompt in prompts))
        for prompt in prompts:
            head = b"".join(iter(replies.readline, b"\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert f'"text":"{prompt}"'.encode() in replies.read(length)


def memory() -> int:
    """Bytes that this process, in which the server runs, has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    "begins",
    [
        request(POST, HOST)[:-2] + b"X: ",
        b"GET /",
        request(POST, HOST, "Content-Length: 300000000"),
        request(POST, HOST, BEARER, "Content-Length: 300000000"),
        request(POST, HOST, "Transfer-Encoding: chunked", body=b"11E1A300\r\n"),
    ],
    ids=["header", "path", "body without the key", "body with the key", "chunk without the key"],
)
def test_whoever_sends_300_mb_gets_a_reply_and_takes_no_memory(door: Door, begins: bytes) -> None:
    piece = b"x" * MIB
    before = largest = memory()
    with door.connect() as client:
        client.sendall(begins)
        with contextlib.suppress(ConnectionError):
            for _ in range(300):
                client.sendall(piece)
                largest = max(largest, memory())
        reply = read(client)
    assert reply.status in (401, 413, 431)
    assert largest - before < 20 * MIB


def test_a_client_that_sends_first_and_reads_then_sees_why_it_is_refused(door: Door) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", b" " * 40 * MIB, {"Authorization": f"Bearer {KEY}"})
        with connection.getresponse() as reply:
            assert reply.status == 413


def test_a_refused_client_that_goes_on_sending_is_reset(hasty: Door) -> None:
    with hasty.connect() as client:
        client.sendall(request(POST, HOST, "Content-Length: 1000000000"))
        assert read(client).status == 401
        with pytest.raises(ConnectionError):
            send_for_ever(client)


def send_for_ever(client: socket.socket) -> None:
    while True:
        client.sendall(b"x")


def trickle(client: socket.socket, data: bytes) -> Reply:
    """Send byte by byte until a reply comes."""
    client.setblocking(False)
    for byte in data:
        client.send(bytes([byte]))
        with contextlib.suppress(BlockingIOError):
            come = client.recv(65536)
            client.settimeout(PATIENCE_S)
            return read(client, come)
        time.sleep(0.005)
    raise AssertionError("no reply")


@pytest.mark.parametrize(
    "begins",
    [b"", request(POST, HOST)[:-2], request(POST, HOST, BEARER, "Content-Length: 9000")],
    ids=["line", "headers", "body"],
)
def test_whoever_sends_byte_by_byte_is_not_waited_for(hasty: Door, begins: bytes) -> None:
    with hasty.connect() as client:
        client.sendall(begins)
        reply = trickle(client, b"X" * 9000)
    assert (reply.status, reply.closed) == (408, True)
    assert "within 0.2 seconds" in reply.error["message"]


def test_an_idle_connection_is_closed_without_a_word(hasty: Door) -> None:
    with hasty.connect() as client:
        assert client.recv(10) == b""
        client.close()
    with hasty.connect() as client:
        client.sendall(post(HELLO, BEARER))
        assert read(client).status == 200
        assert client.recv(10) == b""


def test_the_time_for_headers_runs_anew_for_each_request(hasty: Door) -> None:
    began = time.monotonic()
    with hasty.connect() as client:
        while time.monotonic() < began + 3 * SOON_S:
            client.sendall(post(HELLO, BEARER))
            assert read(client).status == 200


def test_an_answer_may_take_longer_than_a_request(hasty: Door) -> None:
    with hasty.connect() as client:
        client.sendall(post({"model": "echo", "prompt": "hold"}, BEARER))
        client.settimeout(3 * SOON_S)
        with pytest.raises(TimeoutError):
            client.recv(10)
    wait_until(lambda: hasty.model.at_work == 0)


def test_a_client_that_takes_nothing_of_its_reply_is_let_go(hasty: Door) -> None:
    with hasty.connect() as client:
        client.sendall(post({"model": "echo", "prompt": "flood", "stream": True}, BEARER))
        wait_until(lambda: hasty.model.at_work == 1)
        wait_until(lambda: hasty.model.at_work == 0)


def unfinished(door: Door, size: int) -> socket.socket:
    """A client that has sent so many bytes of a body, and more are to come."""
    client = door.connect()
    client.sendall(request(POST, HOST, BEARER, "Content-Length: 1000000", body=b" " * size))
    return client


def test_unfinished_bodies_hold_so_much_in_all() -> None:
    with opened(limits=Limits(held_bytes=100_000)) as door, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(unfinished(door, 40_000)) for _ in range(3)]
        replies = [client for client in clients if is_answered(client)]
        assert len(replies) == 1
        refusal = read(replies[0])
        assert (refusal.status, refusal.closed, refusal.headers["retry-after"]) == (503, True, "1")
        assert door.ask() == 200
        for client in clients:
            client.close()
        wait_until(lambda: door.reply(post({"model": "echo", "prompt": "x" * 90_000}, BEARER)).status == 200)


def is_answered(client: socket.socket) -> bool:
    client.settimeout(2 * SOON_S)
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        client.settimeout(PATIENCE_S)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost", post(HELLO, BEARER)])
def test_idle_connections_make_room(begun: bytes) -> None:
    with opened(limits=Limits(connections=5)) as door, contextlib.ExitStack() as stack:
        clients: list[socket.socket] = []
        for _ in range(12):
            clients.append(stack.enter_context(door.connect()))
            clients[-1].sendall(begun)
            if begun.startswith(b"POST"):
                assert read(clients[-1]).status == 200
        assert door.ask() == 200
        wait_until(lambda: len(door.server.server_state.connections) <= 5)
        assert is_closed(clients[:7])


def is_closed(clients: Sequence[socket.socket]) -> bool:
    for client in clients:
        with contextlib.suppress(ConnectionError):
            if client.recv(10):
                return False
    return True


def test_where_all_connections_are_at_work_one_more_is_turned_away() -> None:
    with opened(limits=Limits(connections=3)) as door, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(door.connect()) for _ in range(3)]
        for client in clients:
            client.sendall(post({"model": "echo", "prompt": "hold"}, BEARER))
        wait_until(lambda: door.model.at_work == 3)
        with door.connect() as one_more:
            refusal = read(one_more)
        assert (refusal.status, refusal.closed, refusal.headers["retry-after"]) == (503, True, "1")
        clients[0].close()
        wait_until(lambda: door.ask() == 200)


def test_refused_clients_that_stay_take_no_places() -> None:
    with opened(limits=Limits(connections=4)) as door, contextlib.ExitStack() as stack:
        for _ in range(12):
            client = stack.enter_context(door.connect())
            client.sendall(request(POST, HOST, "Content-Length: 100"))
            assert client.recv(12) == b"HTTP/1.1 401"
        assert door.ask() == 200


def test_the_server_ends_soon_whoever_is_connected() -> None:
    begun = {
        b"": 0,
        b"POST /v1": 0,
        request(POST, HOST, BEARER, "Content-Length: 9", body=b"{"): 503,
        post({"model": "echo", "prompt": "hold"}, BEARER): 503,
        request(POST, HOST, "Content-Length: 9", body=b"{"): 401,
    }
    with contextlib.ExitStack() as stack:
        with opened(limits=Limits(linger_s=PATIENCE_S, last_calls_s=SOON_S)) as door:
            clients = [stack.enter_context(door.connect()) for _ in begun]
            for client, data in zip(clients, begun, strict=True):
                client.sendall(data)
            wait_until(lambda: door.model.at_work == 1)
            assert door.ask() == 200
            door.server.should_exit = True
            assert [read(client).status for client in clients] == list(begun.values())
            clients.pop(2).close()  # It would be waited for while it sends.
            began = time.monotonic()
        assert time.monotonic() - began < 5
