"""The tokens of a key command, as one actor uses them: each is replaced before it expires, and once it is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from rambla_ray.config.printed_token import Token
from rambla_ray.errors import CallError, ErrorKind

MARGIN = 1 / 3  # A token is replaced when this share of its time is left.
LONGEST_MARGIN_S = 300.0  # But it is not replaced more than so many seconds before it expires.
SOONEST_S, LATEST_S = 1.0, 30.0  # After a command that failed, the next one runs within these bounds.
PATIENCE = 1 / 5  # It runs after this share of the time that the present token still holds.

Headers = Mapping[str, str]


class KeyTokens:
    """Holds the present token. However many calls need another one, one command runs, beside the event loop.

    While the present token holds, calls go on with it: they wait only for what replaces one that has expired or was
    refused. The first token is read at once.

    Args:
        read: runs the command, which may take some time. Raises CallError.
        write: the headers of a request that bears a token.

    Attributes:
        token: the present one.
        replace_at: the Unix time from which on the next call replaces it.

    Raises:
        CallError: `auth`: there is no token.
    """

    def __init__(self, read: Callable[[], Token], write: Callable[[str], Headers]) -> None:
        self._read, self._write = read, write
        self._running: asyncio.Task[None] | None = None
        self._take(read())

    async def headers(self) -> Headers:
        """The headers of a request, with a token that holds. Raises CallError (`auth`): there is none any more."""
        now = time.time()
        if now >= self.replace_at:
            running = self._replacing()
            if now >= self.token.expires_at:
                await asyncio.shield(running)
        if now >= self.token.expires_at:
            raise CallError(ErrorKind.AUTH, f"{self._fault}; the token before it has expired")
        return self._headers

    async def headers_after(self, refused: Headers) -> Headers:
        """The headers of a request in the place of those that were refused.

        Raises:
            CallError: `auth`: there is no other token.
        """
        if self._headers is refused:
            await asyncio.shield(self._replacing())
        if self._headers is refused:
            raise CallError(ErrorKind.AUTH, f"{self._fault}; the token before it is refused")
        return self._headers

    def _replacing(self) -> asyncio.Task[None]:
        """The task that replaces the present token."""
        running = self._running
        if running is None or running.done() or running.get_loop() is not asyncio.get_running_loop():
            running = self._running = asyncio.create_task(self._replace())
        return running

    async def _replace(self) -> None:
        try:
            self._take(await asyncio.to_thread(self._read))
        except CallError as error:
            self._fault, now = error.message, time.time()
            left_s = self.token.expires_at - now
            self.replace_at = now + min(LATEST_S, max(SOONEST_S, PATIENCE * left_s))

    def _take(self, token: Token) -> None:
        """Use a token from now on."""
        self.token, self._headers, self._fault = token, self._write(token.text), ""
        left_s = token.expires_at - time.time()
        self.replace_at = token.expires_at - min(LONGEST_MARGIN_S, MARGIN * left_s)
