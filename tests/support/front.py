"""A way to the key service that can be cut, as a network is."""

from __future__ import annotations

import contextlib
import socket
import threading


class Front:
    """Passes connections on to a port of this host.

    `answers` are given to the first connections instead, as status lines with headers; an empty one hangs up.
    """

    def __init__(self, behind: int, answers: tuple[bytes, ...] = ()) -> None:
        self._behind, self._answers = behind, list(answers)
        self._open: list[socket.socket] = []
        self._cut = False
        self._changing = threading.Lock()
        self.refused = 0

    def __enter__(self) -> Front:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._server.close()

    def cut(self) -> None:
        """End every connection, and those to come."""
        with self._changing:
            self._cut = True
            while self._open:
                with contextlib.suppress(OSError):
                    self._open.pop().shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        """Let connections through again."""
        self._cut = False

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with self._changing:
                self._serve_one(connection)

    def _serve_one(self, connection: socket.socket) -> None:
        if self._cut:
            connection.close()
        elif self._answers:
            self._refuse(connection, self._answers.pop(0))
        else:
            behind = socket.create_connection(("127.0.0.1", self._behind))
            self._open += (connection, behind)
            for source, target in ((connection, behind), (behind, connection)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()

    def _refuse(self, connection: socket.socket, answer: bytes) -> None:
        with connection:
            connection.recv(65_536)
            self.refused += 1
            if answer:
                connection.sendall(b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _pump(source: socket.socket, target: socket.socket) -> None:
    with target, contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
