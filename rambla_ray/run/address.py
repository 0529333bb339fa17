"""The address of a Ray cluster: read, and tried, before Ray itself is asked to go there, which may take it minutes."""

from __future__ import annotations

import os
import socket
import time
from typing import NamedTuple, Self

from rambla_ray.display import one_line
from rambla_ray.errors import UserError

CONNECT_S = 3.0  # The port of a cluster may take so long to accept a connection, and to say that it speaks HTTP/2.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # The preface, with empty SETTINGS.
FRAME_HEADER = 9  # octets of it: length (3), type, flags, stream (4)
SETTINGS = 4  # the type of a server's first frame


class HeadAddress(NamedTuple):
    """Where the head of a cluster listens.

    Args:
        host: a name, or an IP address without brackets.
        port: the one that `ray start --head --port` names, which speaks gRPC.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address in `HOST:PORT`. Raises UserError."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        is_number = port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 2**16
        if not (colon and host and is_number) or "/" in host or "@" in host or not host.isprintable() or " " in host:
            raise UserError(
                f"address={_shown(text)}: no Ray cluster there: it is none of auto, local and HOST:PORT, with a port "
                "from 1 to 65535"
            )
        return cls(host, int(port))

    def check(self) -> None:
        """Check that a server accepts connections there and speaks HTTP/2, as gRPC does.

        Raises:
            ConnectionError: nobody listens there, or somebody who speaks otherwise; what it says is the reason.
            OSError: nobody can be reached there, or nobody answers in time.
        """
        deadline = time.monotonic() + CONNECT_S
        with socket.create_connection(self, timeout=CONNECT_S) as connection:
            if not _uses_tls():
                connection.sendall(HELLO)
                seen = _first_bytes(connection, deadline)
                if not seen:
                    raise TimeoutError(f"the port is open, and nobody answers there in {CONNECT_S:g} s")
                if seen[3:4] != bytes((SETTINGS,)):
                    raise ConnectionError(_otherwise(seen))


def _uses_tls() -> bool:
    """Whether the connections between the processes of the cluster are encrypted, by Ray's own variable."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _first_bytes(connection: socket.socket, deadline: float) -> bytes:
    """What a server says first, as much of it as a frame's header is long; nothing where it says nothing in time."""
    seen = b""
    while len(seen) < FRAME_HEADER and (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            more = connection.recv(FRAME_HEADER - len(seen))
        except TimeoutError:
            break
        if not more:
            raise ConnectionError("the port is open, and closes each connection")
        seen += more
    return seen


def _otherwise(seen: bytes) -> str:
    """What a server is that does not speak HTTP/2, from its first bytes."""
    is_web = seen.startswith((b"HTTP/", b"<"))
    what = "a web server answers" if is_web else f"another service answers, with {seen.decode(errors='replace')!r}"
    return f"{what}; the port of a cluster's head is mostly 6379, that of its dashboard 8265"


def _shown(text: str) -> str:
    """An address as it was given, without what might be a password in it."""
    return one_line(text.rpartition("@")[2])
