"""The way to a provider's batch API: exchanges, tried again where that may help, and files read line by line."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from rambla_ray.actors.api.http import LARGEST_BYTES, HttpReply, Wire, redact
from rambla_ray.actors.api.openai_errors import status_error
from rambla_ray.actors.api.waits import LONGEST_WAIT_S
from rambla_ray.errors import RETRYABLE, CallError, ErrorKind

AT_ONCE = 8  # Exchanges in flight at most: those of several batches.
LARGEST_STATE = 4 * 1024 * 1024  # No reply about a batch has more bytes.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

T = TypeVar("T")
Read = Callable[[aiohttp.ClientResponse], Awaitable[T]]


class BatchWire:
    """Exchanges with a batch API.

    Args:
        base: what the paths stand behind; its query stands in every URL.
        wire: the session, whose requests bear the key, and no type of their content.
        key: returns the key, which no message shows.
        timeout_s: how long the endpoint may send nothing.
        give_up_after_s: how long one exchange is tried again.
    """

    def __init__(
        self,
        base: URL,
        wire: Wire,
        key: Callable[[], str],
        timeout_s: float,
        give_up_after_s: float,
    ) -> None:
        self._base, self._wire, self._key = base, wire, key
        self._timeout = aiohttp.ClientTimeout(sock_connect=20.0, sock_read=timeout_s)
        self._give_up_after_s = give_up_after_s

    def url(self, path: str, **query: str) -> URL:
        """Where a path of the API is, as `files/f-1`."""
        return (self._base / path).with_query({**self._base.query, **query})

    async def json(self, method: str, url: URL, make: Callable[[], Mapping[str, Any]] = dict) -> Any:
        """The JSON of a reply; asked again where that may help, with what `make` returns for aiohttp each time."""
        return await self.again(lambda: self.once(method, url, make))

    async def once(self, method: str, url: URL, make: Callable[[], Mapping[str, Any]] = dict) -> Any:
        """The JSON of the reply to one request. Raises CallError."""
        return await self._exchange(method, url, _parsed, make)

    async def lines(self, url: URL, take: Callable[[bytes], None]) -> None:
        """Each line of a file; after a broken connection it is read from its beginning."""

        async def read(response: aiohttp.ClientResponse) -> None:
            async for line in _lines(response.content):
                take(line)

        await self.again(lambda: self._exchange("GET", url, read, dict))

    async def again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt returns, which is made again after errors that pass, until it is given up."""
        give_up_at, pause = time.monotonic() + self._give_up_after_s, FIRST_PAUSE_S
        while True:
            try:
                return await attempt()
            except CallError as error:
                wait_s = pause if error.retry_after_s is None else min(error.retry_after_s, LONGEST_WAIT_S)
                if error.kind not in RETRYABLE or time.monotonic() + wait_s > give_up_at:
                    raise
            await asyncio.sleep(wait_s)
            pause = min(LONGEST_PAUSE_S, 2 * pause)

    async def _exchange(self, method: str, url: URL, read: Read[T], make: Callable[[], Mapping[str, Any]]) -> T:
        async def read_answer(response: aiohttp.ClientResponse) -> T:
            if 200 <= response.status < 300:
                return await read(response)
            body = await response.content.read(LARGEST_STATE)
            raise status_error(HttpReply(response.status, response.headers, body), self._redacted)

        try:
            return await self._wire.exchange(method, url, read_answer, lambda: {**make(), "timeout": self._timeout})
        except TimeoutError:
            raise CallError(ErrorKind.TIMEOUT, f"no reply from {url.host} in time") from None

    def _redacted(self, text: str) -> str:
        return redact(text, self._key(), "")


async def _parsed(response: aiohttp.ClientResponse) -> Any:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > LARGEST_STATE:
            raise CallError(ErrorKind.OVERSIZED, f"a reply about a batch has more than {LARGEST_STATE} bytes")
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise CallError(ErrorKind.GARBAGE, "a reply about a batch is no JSON") from None


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream; those that are too long for any reply are left out."""
    rest, is_dropped = bytearray(), False
    async for part in content.iter_any():
        *whole, last = part.split(b"\n")
        for line in whole:
            if not is_dropped:
                yield bytes(rest) + line
            rest, is_dropped = bytearray(), False
        rest += last if not is_dropped else b""
        if len(rest) > LARGEST_BYTES:
            rest, is_dropped = bytearray(), True
    if rest and not is_dropped:
        yield bytes(rest)
