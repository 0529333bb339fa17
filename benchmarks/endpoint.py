"""A fake OpenAI endpoint that is too quick to be the bottleneck, and what it takes to point a benchmark at it.

    python benchmarks/endpoint.py --port 8000 --latency 0.05 --rpm 600   # until it is interrupted
    python benchmarks/endpoint.py --measure 5                            # how many requests it can take

POST /v1/chat/completions and /v1/completions are answered after `--latency` seconds with "Yes" or "No", which a hash
of the prompt decides, and a usage of a token for every four characters, and two for the answer. `--rpm` and `--tpm`
are enforced by buckets that hold one second of budget: what is over it gets a 429 with a Retry-After. GET /stats tells
what came in, and POST /reset forgets it.

Benchmarks start it as a process of its own with `Endpoint`, and run rambla_ray against it with `Bench` (workload.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Self

import httptools
import uvloop
from command import HOST, Json
from endpoint_counts import Counts, digest
from workload import made_up_items

CAPACITY_S = 1.0  # A bucket keeps the unused budget of this many seconds.
ANSWER_TOKENS = 2
BACKLOG = 4096  # So many connections may wait to be accepted; clients open hundreds at once.


# What the process of the endpoint does.


class Bucket:
    """A token bucket, kept as the time at which it will be full again. It is full at the start."""

    def __init__(self, per_minute: float | None) -> None:
        self._unit_s = 60.0 / per_minute if per_minute else 0.0
        self._full_at = 0.0

    def wait_s(self, amount: float, now: float) -> float:
        """How long until `amount` can be taken: 0 if it can be now. What exceeds the bucket takes a full one."""
        over = max(self._full_at, now) - now + amount * self._unit_s - CAPACITY_S
        return min(max(0.0, over), max(0.0, self._full_at - now))

    def take(self, amount: float, now: float) -> None:
        """Take what `wait_s` said can be taken."""
        self._full_at = max(self._full_at, now) + amount * self._unit_s


class Server:
    """The endpoint's state, shared by its connections.

    Args:
        latency: seconds until an answer.
        rpm: requests per minute; None for no limit.
        tpm: tokens per minute, of prompts and answers; None for no limit.
    """

    def __init__(self, latency: float, rpm: int | None, tpm: int | None) -> None:
        self.latency = latency
        self.counts = Counts()
        self._limits = (Bucket(rpm), Bucket(tpm))

    def answer(self, connection: Connection, path: bytes, body: bytes) -> None:
        """Answer a POST to the API, now or when the latency is over."""
        now = time.monotonic()
        counts, (requests, tokens) = self.counts, self._limits
        second = counts.arrived(now)
        try:
            request = json.loads(body)
            prompt = prompt_of(request)
            model = str(request["model"])
        except (ValueError, LookupError, TypeError):
            connection.reply(b"400 Bad Request", error_body("invalid_request_error", None, "not a request"))
            return
        prompt_tokens = math.ceil(len(prompt) / 4)
        cost = prompt_tokens + ANSWER_TOKENS
        wait = max(requests.wait_s(1, now), tokens.wait_s(cost, now))
        if wait > 0.0:
            counts.rejected += 1
            second.rejected += 1
            headers = b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (math.ceil(wait), math.ceil(wait * 1000))
            said = error_body("requests", "rate_limit_exceeded", f"Rate limit reached; try again in {wait:.3f}s.")
            connection.reply(b"429 Too Many Requests", said, headers)
            return
        requests.take(1, now)
        tokens.take(cost, now)
        second.answered += 1
        second.tokens += cost
        second.models[model] = second.models.get(model, 0) + 1
        known_as = digest(prompt)
        counts.prompts.add(known_as)
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        reply = reply_body(path, model, b"Yes" if known_as % 2 else b"No", counts.requests, prompt_tokens)
        asyncio.get_running_loop().call_later(self.latency, self._answered, connection, reply, cost)

    def _answered(self, connection: Connection, reply: bytes, cost: int) -> None:
        counts = self.counts
        counts.in_flight -= 1
        if not connection.reply(b"200 OK", reply):
            counts.abandoned += 1
            return
        counts.answered += 1
        counts.tokens += cost
        counts.last_reply = time.monotonic()

    def reset(self) -> None:
        """Forget the counts; the buckets stay as they are."""
        self.counts = Counts()


class Connection(asyncio.Protocol):
    """One client, kept alive: requests are answered as they come."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._transport:
                self._transport.close()

    def on_message_begin(self) -> None:
        self._url, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method, server = self._parser.get_method(), self._server
        if method == b"POST" and self._url in (b"/v1/chat/completions", b"/v1/completions"):
            server.answer(self, self._url, b"".join(self._body))
        elif method == b"GET" and self._url == b"/stats":
            self.reply(b"200 OK", json.dumps(server.counts.as_json()).encode())
        elif method == b"POST" and self._url == b"/reset":
            server.reset()
            self.reply(b"200 OK", b"{}")
        else:
            self.reply(b"404 Not Found", error_body("invalid_request_error", None, "no such path"))

    def reply(self, status: bytes, body: bytes, headers: bytes = b"") -> bool:
        """Send a reply; returns whether the client is still there."""
        if self._transport is None or self._transport.is_closing():
            return False
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        self._transport.write(head % (status, headers, len(body)) + body)
        return True


def prompt_of(request: Json) -> str:
    """The text of a request: the messages' contents, a line break between, or the prompt."""
    if "messages" not in request:
        return str(request["prompt"])
    texts: list[str] = []
    for message in request["messages"]:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part["text"] for part in content]
    return "\n".join(texts)


def reply_body(path: bytes, model: str, text: bytes, number: int, prompt_tokens: int) -> bytes:
    """The JSON of an answer."""
    if path == b"/v1/completions":
        kind, said = b"text_completion", b'"text":"%b"' % text
    else:
        kind, said = b"chat.completion", b'"message":{"role":"assistant","content":"%b"}' % text
    return (
        b'{"id":"fake-%d","object":"%b","created":1700000000,"model":%b,'
        b'"choices":[{"index":0,%b,"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}'
    ) % (
        number,
        kind,
        json.dumps(model).encode(),
        said,
        prompt_tokens,
        ANSWER_TOKENS,
        prompt_tokens + ANSWER_TOKENS,
    )


def error_body(kind: str, code: str | None, message: str) -> bytes:
    """The JSON of an error."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


async def serve(server: Server, port: int, *, with_parent: bool) -> None:
    """Listen until a signal comes, or with `with_parent` until the process that started this one has gone."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    listening = await loop.create_server(lambda: Connection(server), HOST, port, backlog=BACKLOG)
    print(f"listening on http://{HOST}:{listening.sockets[0].getsockname()[1]}", flush=True)
    parent = os.getppid()
    while not stop.is_set() and (not with_parent or os.getppid() == parent):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)


# What a benchmark does with it.


class Endpoint:
    """The endpoint as a process of its own: `with Endpoint(latency=0.05) as endpoint: ...`.

    Args:
        latency: seconds until an answer.
        rpm: requests per minute that are let in.
        tpm: tokens per minute that are let in.
    """

    def __init__(self, latency: float = 0.05, rpm: int | None = None, tpm: int | None = None) -> None:
        words = {"--port": 0, "--latency": latency, "--rpm": rpm, "--tpm": tpm}
        given = [str(word) for key, value in words.items() if value is not None for word in (key, value)]
        self._command = [sys.executable, __file__, "--with-parent", *given]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, encoding="utf-8")  # noqa: S603 - this file
        assert self._process.stdout  # noqa: S101
        line = self._process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError("the endpoint did not start")
        self.url = line.removeprefix("listening on ").strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def stats(self) -> Json:
        """Its counts; see `Counts`."""
        counts: Json = json.loads(self._fetch("GET", "/stats"))
        return counts

    def reset(self) -> None:
        """Let it begin to count anew."""
        self._fetch("POST", "/reset")

    def _fetch(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        finally:
            connection.close()


def openai_chat(endpoint: Endpoint, engine: str, max_tokens: int, **sections: Json) -> Json:
    """A model config for the endpoint. `sections` are its `pool` and `rate`."""
    params = {"engine": engine, "base_url": f"{endpoint.url}/v1", "temperature": 0.0, "max_tokens": max_tokens}
    return {"name": "openai_chat", "params": params, **sections}


# How much the endpoint itself can take.


class _Asker(asyncio.Protocol):
    """A client that sends the same request again as soon as a reply is there."""

    def __init__(self, request: bytes, ended: Callable[[], bool]) -> None:
        self._request, self._ended = request, ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:  # A reply fits into one packet.
        if self._ended():
            self._transport.close()
        else:
            self._transport.write(self._request)


async def _ask_for(seconds: float, url: str, connections: int) -> None:
    item = made_up_items(1)[0]
    content = f"Read this abstract and answer the question about it.\n\n{item['context']}\n\n{item['question']}"
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": content}]}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: fake\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    port = int(url.rsplit(":", 1)[1])
    for _ in range(connections):
        await loop.create_connection(lambda: _Asker(request, lambda: loop.time() > end), HOST, port)
    await asyncio.sleep(seconds + 0.5)


def measure(seconds: float) -> Iterator[str]:
    """How many requests a second it takes, and what one costs it: a line for each number of connections."""
    for connections in (64, 512):
        with Endpoint(latency=0.0) as endpoint:
            uvloop.run(_ask_for(seconds, endpoint.url, connections))
            counts = endpoint.stats()
        rate = counts["answered"] / (counts["last_reply"] - counts["first_request"])
        cost_us = 1e6 * counts["cpu_s"] / counts["answered"]
        yield f"{connections:>4} connections: {rate:,.0f} requests/s, {cost_us:.0f} µs of CPU for each"


def main() -> None:
    """Serve, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0 for any that is free")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds until an answer")
    parser.add_argument("--rpm", type=int, help="requests per minute that are let in")
    parser.add_argument("--tpm", type=int, help="tokens per minute that are let in")
    parser.add_argument("--with-parent", action="store_true", help="end when the process that started this one does")
    parser.add_argument("--measure", type=float, metavar="SECONDS", help="tell how much it can take, and end")
    given = parser.parse_args()
    if given.measure:
        for line in measure(given.measure):
            print(line, flush=True)
        return
    uvloop.run(serve(Server(given.latency, given.rpm, given.tpm), given.port, with_parent=given.with_parent))


if __name__ == "__main__":
    main()
