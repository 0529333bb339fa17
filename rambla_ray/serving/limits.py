"""How much the HTTP server takes from a client, whoever it is."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may send and hold. Sizes are in bytes, times in seconds.

    Args:
        header_bytes: of a request's line and headers.
        header_s: for them to come, from the first moment of the connection or from the end of the last reply.
        body_bytes: of a request's body.
        body_s: for the body to come; also how long a client may take nothing of its reply.
        held_bytes: of the bodies of all requests that are being received or answered.
        connections: that are open at once.
        linger_s: for a client that is refused while it sends, to see the reply before the connection is reset.
        last_calls_s: for what is being answered when the server ends.
    """

    header_bytes: int = 64 * 1024
    header_s: float = 10.0
    body_bytes: int = 16 * MIB
    body_s: float = 60.0
    held_bytes: int = 256 * MIB
    connections: int = 2048
    linger_s: float = 5.0
    last_calls_s: float = 10.0
