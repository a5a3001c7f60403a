"""Where audit records are shipped to in tests: an HTTP receiver that fails and hangs as told, and a real rsyslog."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from tests.support.certificates import Authority, Issued
from tests.support.deployment import ROOT
from tests.support.ports import free_port

FLOOD = 64 << 20
"""Bytes after which an answer without end has one, so that a test has too."""


class Receiver:
    """Takes JSON lines by POST and keeps them by the log's name. `mode` is `take`, `fail`, `hang`, `drip` (an answer a
    byte at a time) or `flood` (takes, with an answer that has no end, `flooded` bytes of it)."""

    def __init__(self, port: int = 0) -> None:
        self.mode = "take"
        self.bearers: set[str | None] = set()
        self.lines: dict[str, list[bytes]] = {}
        self.asked = threading.Event()
        self.flooded = 0
        self._go_on = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.asked.set()
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.mode == "hang":
                    receiver._go_on.wait(60)
                    receiver._go_on.clear()
                    return
                if receiver.mode == "drip":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nA: ")
                    while not receiver._go_on.wait(0.05):
                        self.wfile.write(b"a")
                    return
                if receiver.mode in ("take", "flood"):
                    receiver.bearers.add(self.headers["Authorization"])
                    receiver.lines.setdefault(self.headers["Hsmkms-Audit-Log"], []).extend(body.splitlines())
                self.send_response({"take": 204, "flood": 200}.get(receiver.mode, 503))
                self.end_headers()
                while receiver.mode == "flood" and receiver.flooded < FLOOD:
                    receiver.flooded += self.wfile.write(bytes(1 << 16))

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                return

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/audit"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def release(self) -> None:
        """End the request that hangs, without an answer; the next ones are taken."""
        self.mode = "take"
        self._go_on.set()


class Rsyslog:
    """Debian's rsyslog, listening for syslog over TLS; each message goes to a file named for its PROCID."""

    def __init__(self, directory: Path, authority: Authority, issued: Issued) -> None:
        self.port = free_port()
        self.logs = directory / "received"
        self.logs.mkdir(parents=True)
        self._directory = directory
        self._configuration = directory / "rsyslog.conf"
        self._configuration.write_text(
            f"""
global(workDirectory="{directory}" {_message_size()} defaultNetstreamDriver="gtls"
       defaultNetstreamDriverCAFile="{authority.file}" defaultNetstreamDriverCertFile="{issued.certificate}"
       defaultNetstreamDriverKeyFile="{issued.key}")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/name"
       permittedPeer=["hsmkms"])
template(name="place" type="string" string="{self.logs}/%PROCID%.jsonl")
template(name="line" type="string" string="%msg%\\n")
input(type="imtcp" port="{self.port}" address="127.0.0.1" ruleset="audit")
ruleset(name="audit") {{
  action(type="omfile" dynaFile="place" template="line" asyncWriting="off" flushOnTXEnd="on")
}}
"""
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it listens."""
        program = shutil.which("rsyslogd", path=f"{os.environ['PATH']}:/usr/sbin") or "rsyslogd"
        command = [program, "-n", "-f", str(self._configuration), "-i", str(self._directory / "pid")]
        with (self._directory / "rsyslogd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if f":{self.port:04X} " in Path("/proc/net/tcp").read_text():
                return
            assert self._process.poll() is None, (self._directory / "rsyslogd.log").read_text()
            time.sleep(0.02)
        raise AssertionError((self._directory / "rsyslogd.log").read_text())

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(20)


def _message_size() -> str:
    """As docs/audit.md has it."""
    found = re.search(r'maxMessageSize="\w+"', (ROOT / "docs" / "audit.md").read_text())
    assert found
    return found[0]


def once(lines: Sequence[bytes]) -> list[bytes]:
    """Records in the order of their first coming: what came twice counts once."""
    return list(dict.fromkeys(lines))
