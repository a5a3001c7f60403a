"""A small HTTP server for this host only: metrics and health."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from hsmkms.adopters.client import AdopterError

_POLL_S: Final = 0.05


class PortTaken(AdopterError):
    """The port for metrics cannot be bound."""


class LoopbackServer:
    """Answers GET on 127.0.0.1 with status and text for a path, in threads of its own."""

    def __init__(self, port: int, answer: Callable[[str], tuple[HTTPStatus, str]]) -> None:
        """Raises PortTaken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                status, text = answer(self.path)
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are no news."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as error:
            raise PortTaken(f"127.0.0.1:{port} cannot be bound: {error.strerror}.") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
