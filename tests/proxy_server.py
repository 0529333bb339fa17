"""A real HTTP proxy and the endpoint behind it in one: it remembers what it was asked and answers every chat."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CERTIFICATE = Path(__file__).parent / "data" / "models_example.pem"  # Of models.example, signed by itself.
ANSWER = {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}], "usage": {}}


class Proxy(ThreadingHTTPServer):
    """`lines` holds the request lines, `credentials` what stood in Proxy-Authorization.

    `status` is its answer to what it is asked to pass on.
    """

    def __init__(self, connect_status: int = 200, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.connect_status = connect_status
        self.status = status
        self.lines: list[str] = []
        self.credentials: list[str | None] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _note(self) -> None:
        self.server.lines.append(f"{self.command} {self.path}")
        self.server.credentials.append(self.headers["Proxy-Authorization"])

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self._note()
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = json.dumps(ANSWER).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        """Play the endpoint at the other end of the tunnel."""
        self._note()
        self.send_response(self.server.connect_status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        if self.server.connect_status != 200:
            self.close_connection = True
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        try:
            self.connection = context.wrap_socket(self.connection, server_side=True)
        except ssl.SSLError:  # The client does not trust the certificate.
            self.close_connection = True
            return
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)

    def finish(self) -> None:
        super().finish()
        self.connection.close()  # The server closes the socket without TLS that this one has replaced.

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@contextmanager
def proxy(connect_status: int = 200, status: int = 200) -> Iterator[Proxy]:
    with Proxy(connect_status, status) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
