"""The places that audit records are shipped to: standard output, a syslog server over TLS, an HTTP server."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from hsmkms.audit import chain
from hsmkms.audit.posting import FAILURES, Poster
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import OperatorError, SinkFailed

TIMEOUT_S: Final = 10.0
_STANDARD_OUTPUT: Final = 1
LOG_HEADER: Final = "Hsmkms-Audit-Log"
NDJSON: Final = "application/x-ndjson"
_BEARER: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
"""Printable ASCII."""
FACILITY: Final = 13
"""Log audit (RFC 5424, 6.2.1)."""
_SEVERITY: Final = {"critical": 2, "warning": 4, "notice": 5, "normal": 6}


class _Event(msgspec.Struct):
    at: datetime = msgspec.field(name="eventTime")
    severity: str


class _Other(msgspec.Struct):
    at: datetime
    severity: str = "notice"


class _Signed(msgspec.Struct):
    checkpoint: _Other


class _Line(msgspec.Struct):
    """What of a record a syslog header needs."""

    seq: int
    event: _Event | None = None
    opened: _Other | None = None
    resumed: _Other | None = None
    retired: _Other | None = None
    checkpoint: _Signed | None = None


_decode: Final = msgspec.json.Decoder(_Line).decode


class StandardOutput:
    """Lines with the log's name as their first member, since those of several logs come mixed."""

    settles_s = 0.0

    def __init__(self, name: str) -> None:
        self.name = name

    def send(self, log: str, lines: Sequence[bytes]) -> None:
        """Raises OSError."""
        for line in lines:
            text = b'{"log":"%b",%b\n' % (log.encode(), line[1:])
            while text:
                text = text[os.write(_STANDARD_OUTPUT, text) :]

    def check(self) -> None:
        """A pipe tells when it is written to."""

    def close(self) -> None:
        """It is not ours to close."""


class Syslog:
    """RFC 5424 over TLS (RFC 5425: each message behind its length). PROCID is the log's name, MSGID the kind of the
    record, `meta sequenceId` its number, and the message the record as it stands in the file: who writes messages into
    files by PROCID has logs that `hsmkms audit verify` takes.

    The protocol has no acknowledgements. What was sent in the last seconds before a connection broke goes again.
    """

    settles_s = 5.0

    def __init__(self, name: str, host: str, port: int, context: ssl.SSLContext, node: str) -> None:
        self.name = name
        self._address = (host, port)
        self._context = context
        self._node = node
        self._connection: ssl.SSLSocket | None = None

    def send(self, log: str, lines: Sequence[bytes]) -> None:
        """Raises OSError."""
        if self._connection is None:
            plain = socket.create_connection(self._address, TIMEOUT_S)
            try:
                self._connection = self._context.wrap_socket(plain, server_hostname=self._address[0])
            except OSError:
                plain.close()
                raise
        messages = [self._message(log, line) for line in lines]
        self._connection.sendall(b"".join(b"%d %b" % (len(message), message) for message in messages))

    def check(self) -> None:
        """Raises SinkFailed when the server has hung up; it has nothing else to say."""
        if self._connection is None:
            return
        self._connection.settimeout(0)
        try:
            if not self._connection.recv(1_024):
                raise SinkFailed("The server has closed the connection.")
        except ssl.SSLWantReadError:
            return
        finally:
            self._connection.settimeout(TIMEOUT_S)

    def close(self) -> None:
        """Hang up; the next record connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _message(self, log: str, line: bytes) -> bytes:
        try:
            header = self._header(log, _decode(line), line)
        except (msgspec.MsgspecError, ValueError, KeyError):
            # It is none that was written here: who verifies the copy is to see it, and the next ones.
            header = f"<{FACILITY * 8 + _SEVERITY['critical']}>1 - {self._node} hsmkms {log} - - "
        return header.encode() + line

    def _header(self, log: str, parsed: _Line, line: bytes) -> str:
        signed = None if parsed.checkpoint is None else parsed.checkpoint.checkpoint
        said = parsed.event or signed or parsed.opened or parsed.resumed or parsed.retired
        if said is None:
            raise ValueError("no kind of record that there is")
        priority = FACILITY * 8 + _SEVERITY[said.severity]
        at = said.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        kind = line[line.index(b',"', chain.BODY_AT) + 2 :].partition(b'"')[0].decode("ascii")
        return f'<{priority}>1 {at} {self._node} hsmkms {log} {kind} [meta sequenceId="{parsed.seq}"] '


class HttpReceiver:
    """POST of JSON lines of one log, whose name is in a header. Any 2xx means that they are safe there."""

    settles_s = 0.0

    def __init__(self, name: str, url: str, context: ssl.SSLContext, bearer: Callable[[], SecretText | None]) -> None:
        self.name = name
        self._bearer = bearer
        self._poster = Poster(url, context, TIMEOUT_S)

    def send(self, log: str, lines: Sequence[bytes]) -> None:
        """Raises SinkFailed."""
        headers = [("Content-Type", NDJSON), (LOG_HEADER, log), *self._authorization()]
        try:
            status = self._poster.post(b"\n".join(lines) + b"\n", headers)
        except FAILURES as error:
            # Not its text, which may quote the address with what is in it.
            raise SinkFailed(f"The receiver does not answer ({type(error).__name__}).") from error
        if not 200 <= status < 300:
            raise SinkFailed(f"The receiver answers {status}.")

    def check(self) -> None:
        """Each POST finds out by itself."""

    def close(self) -> None:
        """Drop the connection; the next lines connect again."""
        self._poster.close()

    def _authorization(self) -> list[tuple[str, str]]:
        try:
            bearer = self._bearer()
        except OperatorError as error:
            raise SinkFailed(error.message) from error
        if bearer is None:
            return []
        if not _BEARER.fullmatch(bearer.reveal()):
            raise SinkFailed("The bearer_file holds what no header may: a token is one line of ASCII.")
        return [("Authorization", f"Bearer {bearer.reveal()}")]


def client_context(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer with the server's name checked; `ca_file` in the place of the system's certificates. Raises
    OSError."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    return context
