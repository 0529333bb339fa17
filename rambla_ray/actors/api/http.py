"""The way to an endpoint: an HTTP session per actor, replies read within bounds, and messages that are safe to show.

It is also where authors of API models import `requested_wait_s` from.

Written by hand over aiohttp, since a call through it takes 0.2 ms of CPU, and one through the openai package's client
2.9 ms (with 512 calls in flight).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import aiohttp
from yarl import URL

from rambla_ray.actors.api.chaos import drawn_wait_s
from rambla_ray.actors.api.key_tokens import KeyTokens
from rambla_ray.actors.api.proxy import proxy_of
from rambla_ray.actors.api.waits import requested_wait_s as requested_wait_s
from rambla_ray.display import folded
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.redaction import MASK, redacted

MIB = 1024 * 1024
SMALL_BYTES = MIB  # Larger replies are read and parsed one at a time.
LARGEST_BYTES = 64 * MIB  # Larger replies are dropped.
MOST_VALUES = 2_000_000  # A large reply's JSON may have so many values: each takes some 60 bytes of memory.
LONGEST_HEADER = 100 * 1024  # A header, or the line of the status, may have so many bytes, as in the openai package.
MOST_HEADERS = 1000
CONNECT_S = 20.0  # An endpoint that takes longer to take a connection is not there.
KEEP_ALIVE_S = 4.0  # Many servers close a quiet connection after 5 s: it is closed here first.
# What OpenSSL calls a server that does not speak TLS on this port, or no version of it that is accepted here.
NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNSUPPORTED_PROTOCOL"})
SHOWN_CHARACTERS = 1000  # An endpoint's message is cut to this length before it is made safe; errors cut it further.
ECHO_CHARACTERS = 40  # A stretch of the prompt this long is blotted out of an endpoint's message.

T = TypeVar("T")


class HttpReply(NamedTuple):
    """What an endpoint sent back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Unauthorized(Exception):
    """A reply with status 401 to a request whose token can be replaced."""


class Wire:
    """One HTTP session, opened in the event loop that first uses it.

    Redirects are not followed, which would take the key elsewhere. Proxies are those of the environment.

    Args:
        headers: of every request.
        at_once: requests in flight at most.
        trust: returns the certificate authorities for https; the system's where it is None.
        tokens: what gives each request the headers that bear its key, where that is not always the same.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        at_once: int,
        trust: Callable[[], ssl.SSLContext] | None = None,
        tokens: KeyTokens | None = None,
    ) -> None:
        self._headers = dict(headers)
        self._at_once = at_once
        self._trust = trust
        self._tokens = tokens
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._large = asyncio.Lock()

    async def post(self, url: URL, body: bytes, read: Callable[[HttpReply], T]) -> T:
        """Send a body and return what `read` makes of the reply. With a token that is refused, send it once again.

        Raises:
            CallError: connection, garbage (no HTTP), oversized, unavailable (no way there that waiting would open),
                load (no proxy that can be used), auth (no token); and what `read` raises.
        """
        return await self.exchange("POST", url, partial(self._read_whole, read), lambda: {"data": body})

    async def _read_whole(self, read: Callable[[HttpReply], T], response: aiohttp.ClientResponse) -> T:
        parts: list[bytes] = []
        if await _ends_within(SMALL_BYTES, response, parts):
            return read(HttpReply(response.status, response.headers, b"".join(parts)))
        async with self._large:
            return read(await _large_reply(response, parts))

    async def exchange(
        self,
        method: str,
        url: URL,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        make: Callable[[], Mapping[str, Any]],
    ) -> T:
        """Send a request of any method, and return what `read` makes of the open reply.

        Args:
            method: of HTTP.
            url: where it goes.
            read: reads the reply.
            make: returns what the request has, as aiohttp takes it; called each time that it is sent.

        Raises:
            CallError: as `post` does.
        """
        if self._tokens is None:
            return await self._exchange(method, url, read, make())
        bearing = await self._tokens.headers()
        try:
            return await self._exchange(method, url, partial(_unless_unauthorized, read), _with(bearing, make()))
        except _Unauthorized:
            bearing = await self._tokens.headers_after(bearing)
        return await self._exchange(method, url, read, _with(bearing, make()))

    async def _exchange(
        self,
        method: str,
        url: URL,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        options: Mapping[str, Any],
    ) -> T:
        session = self._session
        if session is None or self._loop is not asyncio.get_running_loop():
            session = self._open(url)
        try:
            async with session.request(method, url, allow_redirects=False, **options) as response:
                return await read(response)
        except aiohttp.ClientError as error:
            raise _call_error(error) from None
        except OSError as error:
            raise _connection_error(error) from None

    def _open(self, url: URL) -> aiohttp.ClientSession:
        self.close()
        try:
            proxy = proxy_of(url)  # With trust_env it is looked up for each request, at 300 µs.
        except UserError as error:
            raise CallError(ErrorKind.LOAD, str(error)) from None
        self._loop, self._large = asyncio.get_running_loop(), asyncio.Lock()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._at_once + 1,  # One more for a probe, while the others are stuck in an outage.
                keepalive_timeout=KEEP_ALIVE_S,
                ssl=self._trust() if self._trust and url.scheme == "https" else True,
            ),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S),  # For the rest the caller has its own deadline.
            proxy=proxy,
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
            max_headers=MOST_HEADERS,
        )
        return self._session

    def close(self) -> None:
        """Close the connections; works without an event loop, too."""
        session, self._session = self._session, None
        if session is not None:
            closing = session.close()
            with suppress(StopIteration, RuntimeError):
                closing.send(None)  # This closes; the rest would wait until the sockets are gone.
            closing.close()

    def __del__(self) -> None:
        self.close()


async def _unless_unauthorized(
    read: Callable[[aiohttp.ClientResponse], Awaitable[T]], response: aiohttp.ClientResponse
) -> T:
    if response.status == 401:
        raise _Unauthorized
    return await read(response)


def _with(headers: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """What a request has, with more headers."""
    return {**options, "headers": {**options.get("headers", {}), **headers}}


def _call_error(error: aiohttp.ClientError) -> CallError:
    """What an error of aiohttp means for a call."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            reason = folded(str(error.certificate_error))
            return CallError(ErrorKind.UNAVAILABLE, f"the certificate of {error.host} is not trusted: {reason}")
        case aiohttp.ClientConnectorSSLError(os_error=ssl.SSLError(reason=reason)) if reason in NO_TLS:
            message = f"{error.host}:{error.port} does not speak TLS ({reason}); is its URL one of http://?"
            return CallError(ErrorKind.UNAVAILABLE, message)
        case aiohttp.ClientHttpProxyError(status=status) if status < 500:
            reason = f"HTTP {status} {folded(error.message)}".rstrip()
            return CallError(ErrorKind.UNAVAILABLE, f"the proxy does not let calls through: {reason}")
        case aiohttp.ClientHttpProxyError(status=status):
            return CallError(ErrorKind.CONNECTION, f"the proxy finds no way through: HTTP {status}", unsent=True)
        case aiohttp.ClientResponseError():
            return CallError(ErrorKind.GARBAGE, f"the reply is not HTTP ({type(error).__name__})")
    return _connection_error(error)


def _connection_error(error: Exception) -> CallError:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    reason = folded(f"connection failed: {type(cause).__name__}: {cause}")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        reason = f"connection failed: none within {CONNECT_S:g} s"
    unsent = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    return CallError(ErrorKind.CONNECTION, reason, unsent=unsent)


async def _ends_within(most: int, response: aiohttp.ClientResponse, parts: list[bytes]) -> bool:
    """Read on, behind `parts`; returns whether that was all, or False if there are more than `most` bytes."""
    size = sum(map(len, parts))
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            return False
    return True


async def _large_reply(response: aiohttp.ClientResponse, parts: list[bytes]) -> HttpReply:
    announced = response.content_length or 0
    if announced <= LARGEST_BYTES and await _ends_within(LARGEST_BYTES, response, parts):
        body = b"".join(parts)
        if sum(map(body.count, (b"[", b"{", b","))) > MOST_VALUES:
            raise CallError(ErrorKind.OVERSIZED, f"the reply has more than {MOST_VALUES} values: not read")
        return HttpReply(response.status, response.headers, body)
    size = sum(map(len, parts))
    response.close()
    raise CallError(
        ErrorKind.OVERSIZED,
        f"the reply has more than {LARGEST_BYTES // MIB} MiB ({max(size, announced)} bytes or more): not read",
    )


async def injected_reply(fault: str, read: Callable[[HttpReply], T]) -> T:
    """What `post` would do if a fault of `config.Chaos` had struck the call; nothing is sent."""
    if fault == "reset":
        raise CallError(ErrorKind.CONNECTION, f"connection failed: {ConnectionResetError.__name__}: made up by chaos")
    if fault == "garbage":
        return read(HttpReply(200, {}, b'{"id": "made-up-by-chaos", "choices": [{"ind'))
    if fault == "http429":
        wait = f"{drawn_wait_s():.3f}"
        body = b'{"error": {"message": "Made up by chaos.", "type": "requests", "code": "rate_limit_exceeded"}}'
        return read(HttpReply(429, {"retry-after": wait}, body))
    body = b'{"error": {"message": "Made up by chaos.", "type": "server_error", "code": null}}'
    return read(HttpReply(500, {}, body))


def redact(text: str, key: str, prompt: str) -> str:
    """An endpoint's message, which may echo its request, without secrets and without stretches of the prompt."""
    line = " ".join((text.replace(key, MASK) if key else text).replace("\\n", " ").split())
    return folded(_without_echo(redacted(line[: 2 * SHOWN_CHARACTERS])[:SHOWN_CHARACTERS], prompt))


def _without_echo(line: str, prompt: str) -> str:
    """`line` with the stretches of `ECHO_CHARACTERS` or more that stand in the prompt, spaces apart, blotted out."""
    prompt = " ".join(prompt.replace("\\n", " ").split())
    half = ECHO_CHARACTERS // 2
    echoed = bytearray(len(line))
    for piece in range(0, len(line) - half + 1, half):  # Each stretch holds one of these pieces whole.
        if line[piece : piece + half] in prompt:
            for first in range(max(0, piece - half), min(piece, len(line) - ECHO_CHARACTERS) + 1):
                if line[first : first + ECHO_CHARACTERS] in prompt:
                    echoed[first : first + ECHO_CHARACTERS] = b"\1" * ECHO_CHARACTERS
    parts = groupby(zip(line, echoed, strict=True), key=itemgetter(1))
    return "".join("[prompt]" if blot else "".join(character for character, _ in part) for blot, part in parts)
