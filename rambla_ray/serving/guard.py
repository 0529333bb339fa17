"""What stands before the endpoints: it lets requests in, reads their bodies, and ends work that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rambla_ray.serving.access import Access
from rambla_ray.serving.limits import Limits
from rambla_ray.serving.requests import ApiError

RETRY_AFTER_S = 1.0  # A refused request may be tried again after this, where nobody says when.


def error_response(error: ApiError, *, closes: bool = False) -> Response:
    """An error in the OpenAI API's shape.

    Args:
        error: what it says.
        closes: whether the connection ends with it.
    """
    headers = {}
    if error.status in (429, 503):
        headers["retry-after"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_S))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if closes:
        headers["connection"] = "close"
    return JSONResponse(error.body, error.status, headers)


class Guard:
    """Lets requests in, reads their bodies, and cancels the work for a client that left.

    A refusal closes the connection: the rest of a body that nobody wants is not waited for.

    Args:
        app: takes requests whose whole body has come.
        key: what clients must send; None to let this machine's programs in.
        limits: what a body may be.
    """

    def __init__(self, app: ASGIApp, key: str | None, limits: Limits) -> None:
        self._app = app
        self._access = Access(key, limits.header_bytes)
        self._limits = limits
        self._held = 0  # The bodies of all requests that are being received or answered have so many bytes.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._holding() as body:
            try:
                admitted = self._access.admit(scope)
                has_come = await self._read(body, admitted, receive)
            except ApiError as error:
                await error_response(error, closes=True)(scope, receive, send)
                return
            if has_come:
                await _while_connected(self._app, body, admitted, receive, send)

    @contextlib.contextmanager
    def _holding(self) -> Iterator[bytearray]:
        """An empty body; what is put into it is held until the request is over."""
        body = bytearray()
        try:
            yield body
        finally:
            self._held -= len(body)

    async def _read(self, body: bytearray, scope: Scope, receive: Receive) -> bool:
        """Read the whole body; False when the client goes away first. Raises ApiError."""
        declared = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
        self._check_size(declared)
        try:
            async with asyncio.timeout(self._limits.body_s):
                return await self._receive(body, receive)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self._limits.body_s:g} seconds") from None

    async def _receive(self, body: bytearray, receive: Receive) -> bool:
        while (message := await receive())["type"] == "http.request":
            part = message.get("body", b"")
            body += part
            self._held += len(part)
            self._check_size(len(body))
            if self._held > self._limits.held_bytes:
                raise ApiError(
                    503, "too much is being sent at once; try again", kind="server_error", code="unavailable"
                )
            if not message.get("more_body", False):
                return True
        return False

    def _check_size(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise ApiError(413, f"the body is larger than {self._limits.body_bytes} bytes")


async def _while_connected(app: ASGIApp, body: bytearray, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the app, and cancel it when the client goes away."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_body() -> Message:
        return messages.pop() if messages else await receive()

    work = asyncio.ensure_future(app(scope, receive_body, send))
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
