"""Bytes that no client would send: what is served refuses them, logs nothing, and answers the next client."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
from collections.abc import Iterator

import pytest
from gateway_server import BEARER, HELLO, Door, opened, post, request
from hypothesis import given, settings
from hypothesis import strategies as st

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\ndate: ")
CHUNKED = b"24\r\n" + b'{"model": "echo", "prompt": "hello"}' + b"\r\n0\r\nx: y\r\n\r\n"
HONEST = (
    post(HELLO, BEARER),
    post({"model": "echo", "prompt": ["a", "b"], "max_tokens": 5, "stop": ["x"]}, BEARER, "Expect: 100-continue"),
    post({"model": "echo", "messages": [{"role": "user", "content": "a"}]}, BEARER, path="/v1/chat/completions"),
    post({"model": "echo", "prompt": "a", "stream": True}, BEARER),
    request("POST /v1/completions HTTP/1.1", "Host: a", BEARER, "Transfer-Encoding: chunked", body=CHUNKED),
    request("GET http://a/v1/models?x=y HTTP/1.1", "Host: a", BEARER, "Connection: Upgrade", "Upgrade: websocket"),
    request("HEAD /v1/models/echo HTTP/1.0", BEARER, "Connection: keep-alive"),
)
TOKENS = (
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b"\xff", b" ", b"\t", b":", b",", b"0\r\n\r\n", b"fffffffff\r\n"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: [\r\n", b"Connection: close\r\n"),
    *(
        b"HTTP/1.0",
        b"HTTP/9.9",
        b"GET ",
        b"CONNECT a:1 ",
        b"%zz",
        b"http://[",
        b"\xf0\x9f\x92\xa9",
        b'"\\ud800"',
        b"1e999",
    ),
)


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with opened() as door:
        yield door


class Errors(logging.Handler):
    """What the server logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(scope="module")
def errors(door: Door) -> Iterator[list[str]]:
    handler = Errors()
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.lines
    for logger in loggers:
        logger.removeHandler(handler)


def statuses(door: Door, sent: bytes) -> list[int]:
    """Those of all replies to some bytes, after which the client sends no more."""
    data = b""
    with door.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(sent)
        client.shutdown(1)
        while piece := client.recv(65536):
            data += piece
    return [int(status) for status in STATUS.findall(data)]


def spoilt(draw: random.Random) -> bytes:
    """Some honest requests, changed in a few places."""
    data = bytearray(b"".join(draw.choices(HONEST, k=draw.randint(1, 3))))
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(data) + 1)
        until = place + draw.randint(0, 40)
        match draw.randrange(5):
            case 0:
                del data[place:until]
            case 1:
                data[place:place] = data[place:until]
            case 2:
                data[place:place] = draw.choice(TOKENS)
            case 3:
                data[place : place + 1] = draw.randbytes(draw.randint(1, 4))
            case 4:
                del data[max(1, place) :]
    return bytes(data)


def is_harmless(status: int) -> bool:
    return status in (200, 501, 505) or 400 <= status < 500


@pytest.mark.parametrize("seed", range(20))
def test_spoilt_requests_never_end_in_a_fault_of_the_server(door: Door, errors: list[str], seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(50):
        sent = spoilt(draw)
        assert all(map(is_harmless, statuses(door, sent))), sent
        assert errors == [], sent
    assert door.ask() == 200


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=2000))
def test_noise_never_ends_in_a_fault_of_the_server(door: Door, errors: list[str], noise: bytes) -> None:
    replies = statuses(door, noise)
    assert (len(replies) <= 1, all(400 <= status < 506 and status != 500 for status in replies)) == (True, True)
    assert errors == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("echo"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("model", "prompt", "messages", "input", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "n")
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1))
def test_whatever_json_a_request_holds_it_is_answered_or_refused(
    door: Door, errors: list[str], path: str, fields: dict[str, object]
) -> None:
    honest = {"model": "echo", "prompt": "a"} if path == "/v1/completions" else {"model": "echo"}
    reply = door.reply(post({**honest, **fields}, BEARER, "Connection: close", path=path))
    assert (is_harmless(reply.status), errors) == (True, []), reply


DEEP = 100_000
BODIES = {
    "arrays": b"[" * DEEP,
    "objects": b'{"a":' * DEEP,
    "closed arrays": b"[" * DEEP + b"]" * DEEP,
    "a deep field": b'{"model":"echo","prompt":"a","user":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a deep field of any type": b'{"model":"echo","messages":[],"metadata":'
    + b'{"a":' * DEEP
    + b"1"
    + b"}" * DEEP
    + b"}",
    "a long number": b'{"model":"echo","prompt":"a","max_tokens":' + b"9" * DEEP + b"}",
    "a number of 300 digits": b'{"model":"echo","prompt":"a","max_tokens":' + b"9" * 300 + b"}",
    "a number beyond the machine's": b'{"model":"echo","prompt":"a","max_tokens":99999999999}',
    "infinity": b'{"model":"echo","prompt":"a","temperature":1e999}',
    "not a number": b'{"model":"echo","prompt":"a","temperature":NaN}',
    "half a character": b'{"model":"echo","prompt":"\\ud83d"}',
    "half a character as a key": b'{"model":"echo","prompt":"a","\\udc00":1}',
    "no UTF-8": b'{"model":"echo","prompt":"\xff"}',
    "UTF-16": json.dumps(HELLO).encode("utf-16"),
    "a mark of the byte order": json.dumps(HELLO).encode("utf-8-sig"),
    "NUL": b'{"model":"echo","prompt":"\0"}',
    "two values": b'{"model":"echo","prompt":"a"} {}',
    "nothing": b"",
    "null": b"null",
    "a million faults": b'{"model":"echo","messages":[' + b"0," * 10**6 + b"0]}",
    "a million faults in a turn": b'{"model":"echo","messages":[{"role":"user","content":[' + b"0," * 10**6 + b"0]}]}",
    "a hundred thousand keys": b'{"model":"echo"' + b"".join(b',"%d":0' % key for key in range(10**5)) + b"}",
    "a hundred thousand turns": b'{"model":"echo","messages":[' + b'{"role":"user","content":""},' * 10**5 + b"{}]}",
    "a million prompts": b'{"model":"echo","prompt":[' + b'"a",' * 10**6 + b'"a"]}',
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_hostile_body_is_refused_in_a_line(door: Door, errors: list[str], body: bytes, path: str) -> None:
    length = f"Content-Length: {len(body)}"
    reply = door.reply(request(f"POST {path} HTTP/1.1", "Host: a", BEARER, length, body=body))
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert len(reply.body) < 500
    assert (door.ask(), errors) == (200, [])
