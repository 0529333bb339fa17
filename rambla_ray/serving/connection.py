"""A client's connection: uvicorn's own for h11, with limits on what comes before a request is the app's.

h11 bounds the size of headers, which httptools, uvicorn's first choice, does not; a request takes 0.06 to 0.09 ms more
of CPU with it, of the 1.7 ms that the gateway takes in all. Neither has a time for headers: a client that sends a byte
now and then would hold its connection for ever.
"""

from __future__ import annotations

import asyncio
import http
import sys
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rambla_ray.serving.access import headers_too_large
from rambla_ray.serving.guard import error_response
from rambla_ray.serving.limits import Limits
from rambla_ray.serving.requests import ApiError

ENDING = ApiError(503, "the server is ending", kind="server_error", code="unavailable")
PIECE = 64 * 1024  # The parser gets so many bytes at a time, so that it notices soon that headers are too large.


class Connection(H11Protocol):
    """One connection.

    Args:
        limits: for its headers and its times.
        idle: the connections of all clients on which no request is being received or answered, in the order in which
            they became so; shared by all. Where there are too many connections, the first of them is closed.
    """

    def __init__(self, *args: Any, limits: Limits, idle: dict[Connection, None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._idle = idle
        self._lingers = False
        self._timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client, closing the connection that has been idle for longest where there are too many."""
        super().connection_made(transport)
        self._socket = transport
        self.transport = cast(asyncio.Transport, _Transport(self, transport))
        is_full = len(self.connections) > self._limits.connections
        if is_full and not self._idle:
            self._refuse(ApiError(503, "there are too many connections", kind="server_error", code="unavailable"))
            return
        if is_full:
            next(iter(self._idle)).drop()
        self._become_idle(self._limits.header_s, self._end_wait)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._become_busy()
        self._stop_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come; after a refusal it is thrown away."""
        for start in range(0, len(data), PIECE):
            if not self.transport.is_closing():
                super().data_received(data[start : start + PIECE])

    def handle_events(self) -> None:
        """Serve the requests that have come; between them the time for the headers of the next one runs."""
        super().handle_events()
        if self.transport.is_closing():
            return
        if self.conn.their_state is not h11.IDLE:
            self._become_busy()
        elif self not in self._idle:
            self._become_idle(self._limits.header_s, self._end_wait)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request; `msg` is uvicorn's, in plain text."""
        match getattr(sys.exception(), "error_status_hint", 400):  # uvicorn calls this where it catches h11's error.
            case 431:
                self._refuse(headers_too_large(self._limits.header_bytes))
            case 501:
                self._refuse(ApiError(501, "no Transfer-Encoding but chunked is known here"))
            case _:
                self._refuse(ApiError(400, "this is not a valid HTTP/1.1 request"))

    def shutdown(self) -> None:
        """End the connection: now, or once the request that has come is answered, which may take a while."""
        if self in self._idle:
            self._socket.close()
        elif self.conn.their_state is h11.SEND_BODY:
            self._refuse(ENDING)
        else:
            super().shutdown()
            self._timer = self.loop.call_later(self._limits.last_calls_s, self._refuse, ENDING)

    def pause_writing(self) -> None:
        """Wait for a client that does not take its reply, but not for ever: it holds the model's slot."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._limits.body_s, self._socket.abort)

    def resume_writing(self) -> None:
        """Go on, as the client has taken most of what was sent."""
        super().resume_writing()
        self._stop_stall()

    def close(self) -> None:
        """Close the connection; a client that is still sending sees the reply first."""
        if self.conn.their_state is h11.SEND_BODY and not self._socket.is_closing():
            self._linger()
        else:
            self._socket.close()

    def drop(self) -> None:
        """Close the connection at once."""
        self._become_busy()
        self._socket.abort()

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is sent or read."""
        return self._lingers or self._socket.is_closing()

    def _become_idle(self, seconds: float, end: Any) -> None:
        self._become_busy()
        self._idle[self] = None
        self._timer = self.loop.call_later(seconds, end)

    def _become_busy(self) -> None:
        self._idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def _stop_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _end_wait(self) -> None:
        """The time for a request's headers is over."""
        has_begun, _ = self.conn.trailing_data
        if has_begun:
            self._refuse(ApiError(408, f"the headers did not come within {self._limits.header_s:g} seconds"))
        else:
            self._socket.close()

    def _refuse(self, error: ApiError) -> None:
        """Reply in place of the app, and end the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._socket.abort()  # A reply that has begun cannot become another.
            return
        reply = error_response(error, closes=True)
        headers = [*self.server_state.default_headers, *reply.raw_headers]
        reason = http.HTTPStatus(error.status).phrase.encode()
        events = (
            h11.Response(status_code=error.status, headers=headers, reason=reason),
            h11.Data(data=bytes(reply.body)),
        )
        for event in (*events, h11.EndOfMessage()):
            self._socket.write(self.conn.send(event))
        if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE):
            self._socket.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """End the sending side, and throw away for a while what the client still sends.

        A socket that is closed with unread bytes in it resets the connection, and the client may lose the reply.
        """
        if self._lingers:
            return
        self._lingers = True
        self.flow.resume_reading()
        self._socket.write_eof()
        self._become_idle(self._limits.linger_s, self._socket.abort)


class _Transport:
    """A connection's socket as uvicorn uses it, but for the ways in which it is closed."""

    def __init__(self, connection: Connection, socket: asyncio.Transport) -> None:
        self._socket = socket
        self.close = connection.close
        self.is_closing = lambda: connection.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)
