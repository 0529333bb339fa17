"""Replies as they come over the wire: long and many headers, folded ones, words that are not UTF-8."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import parse_headers
from socketserver import StreamRequestHandler, ThreadingTCPServer

import openai_models
import pytest
from openai_models import TriesOnce, answer, build, error
from openai_server import OpenAIServer

from rambla_ray.actors.api.http import LONGEST_HEADER, MOST_HEADERS
from rambla_ray.config.sections import Rate
from rambla_ray.errors import ErrorKind

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.

BODY = b'{"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}]}'


@contextmanager
def replying(status_line: bytes, *headers: bytes) -> Iterator[str]:
    """An endpoint that sends these lines, and then an answer."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.rfile.read(int(parse_headers(self.rfile)["Content-Length"]))
            self.wfile.write(b"\r\n".join([status_line, *headers, b"Content-Length: %d" % len(BODY), b"", BODY]))

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


OK = b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    ("status_line", "headers"),
    [
        (OK, [b"X-Long: " + b"a" * 9_000]),
        (OK, [b"X-Long: " + b"a" * 90_000]),
        (OK, [b"Set-Cookie: a=%d; Path=/" % number for number in range(200)]),
        (OK, [b"X-Number-%d: %d" % (number, number) for number in range(900)]),
        (b"HTTP/1.1 200 " + b"a" * 9_000, []),
        (b"HTTP/1.1 200", []),
        (b"HTTP/1.1 200 \xc3\xa9\xe9", []),
        (OK, [b"X-Folded: one", b" two", b"\tthree"]),
        (OK, [b"X-Latin: caf\xe9", b"X-Control: \x01"]),
        (OK, [b"X-Empty:", b"Retry-After:", b"x-ratelimit-remaining-requests: caf\xe9"]),
    ],
    ids=["9 kB", "90 kB", "200", "900", "long reason", "no reason", "reason", "folded", "not UTF-8", "empty"],
)
def test_an_answer_is_read_whatever_stands_before_it(status_line: bytes, headers: list[bytes]) -> None:
    with replying(status_line, *headers) as url:
        assert answer(build(url, TriesOnce), "hello").text == "Yes"


@pytest.mark.parametrize(
    "headers",
    [
        [b"X-Long: " + b"a" * (LONGEST_HEADER + 1000)],
        [b"X-Number-%d: 1" % number for number in range(MOST_HEADERS + 1)],
        [b"No header at all"],
    ],
    ids=["too long", "too many", "none"],
)
def test_headers_without_end_are_not_read(headers: list[bytes]) -> None:
    with replying(OK, *headers) as url:
        failed = error(build(url, TriesOnce))
    assert (failed.kind, failed.message) == (ErrorKind.GARBAGE, "the reply is not HTTP (ClientResponseError)")


def test_an_endpoint_that_does_not_speak_tls_is_no_outage() -> None:
    with OpenAIServer() as server:
        failed = error(build(server.base_url.replace("http:", "https:"), rate=Rate(give_up_after_s=0.2)))
    assert (failed.kind, failed.trace.attempts) == (ErrorKind.UNAVAILABLE, 1)
    assert "does not speak TLS" in failed.message
    assert failed.message.endswith("is its URL one of http://?")
