"""The HTTP side of serving, with a model that repeats what it is asked in place of models on Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rambla_ray.schema import Request, Response
from rambla_ray.serving import gateway
from rambla_ray.serving.limits import Limits

KEY = "sk-gate"
BEARER = f"Authorization: Bearer {KEY}"
PATIENCE_S = 30.0
HELLO = {"model": "echo", "prompt": "hello"}


@dataclass
class Echo:
    """Repeats its prompt; `hold` is waited for first, and `flood` comes back endlessly in pieces."""

    generates: bool = True
    embeds: bool = False
    created: int = 0
    asked: list[str] = field(default_factory=list)
    at_work: int = 0

    async def answer(self, requests: Sequence[Request]) -> list[Response]:
        with self._working():
            texts = [request.text for request in requests]
            self.asked += texts
            while "hold" in texts:
                await asyncio.sleep(0.01)
            return [Response(text) for text in texts]

    async def stream(self, request: Request) -> AsyncGenerator[str | Response, None]:
        with self._working():
            yield request.text
            while request.text == "flood":
                yield "x" * 100_000
                await asyncio.sleep(0)
            yield Response(request.text)

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        self.at_work += 1
        try:
            yield
        finally:
            self.at_work -= 1


@dataclass(frozen=True)
class Door:
    """Where the server listens, and what is behind it."""

    port: int
    model: Echo
    server: Any

    def connect(self, port: int | None = None) -> socket.socket:
        """A client's socket, with patience."""
        return socket.create_connection(("127.0.0.1", port or self.port), timeout=PATIENCE_S)

    def reply(self, request: bytes) -> Reply:
        """What comes back for some bytes until the server closes the connection, or the reply is complete."""
        with self.connect() as client:
            client.sendall(request)
            return read(client)

    def ask(self, key: str | None = KEY) -> int:
        """The status of an honest request."""
        return self.reply(post(HELLO, *(() if key is None else (f"Authorization: Bearer {key}",)))).status


@dataclass(frozen=True)
class Reply:
    """A reply as it came, and whether the connection was closed after it. Status 0: there was none."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    @property
    def error(self) -> Any:
        """The error in it, in the API's shape."""
        return json.loads(self.body)["error"]


def read(client: socket.socket, data: bytes = b"") -> Reply:
    """One reply of a known length, or all until the end; `data` has been read before."""
    while b"\r\n\r\n" not in data and (piece := client.recv(65536)):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        return read(client, body)
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    length = int(headers.get("content-length", 2**40))
    while len(body) < length and (piece := client.recv(65536)):
        body += piece
    closed = headers.get("connection") == "close" or not line
    if closed:
        assert client.recv(65536) == b"", "the server says that it closes the connection, and does not"
    return Reply(int(line.split(" ")[1]) if line else 0, headers, body, closed)


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    return "\r\n".join((line, *headers, "", "")).encode("latin-1") + body


def post(body: object, *headers: str, path: str = "/v1/completions", host: str = "localhost") -> bytes:
    """The bytes of an honest POST, with more headers."""
    data = json.dumps(body).encode()
    own = (f"Host: {host}", "Content-Type: application/json", f"Content-Length: {len(data)}")
    return request(f"POST {path} HTTP/1.1", *own, *headers, body=data)


@contextlib.contextmanager
def opened(key: str | None = KEY, limits: Limits = gateway.LIMITS) -> Iterator[Door]:
    """A server on a free port, in a thread."""
    model = Echo()
    with gateway.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        server = gateway.server(gateway.Gateway({"echo": model}, key, limits).app, bound, limits)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
        thread.start()
        try:
            yield Door(port, model, server)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the server did not end"
