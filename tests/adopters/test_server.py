"""The program on a volume, told to stop: in good order, then at once, then without asking; nothing of it is left."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from hsmkms.adopters.volume.layout import VolumeRefused
from hsmkms.adopters.volume.outside import require_inside
from hsmkms.adopters.volume.server import Server
from tests.support.volumes import wait_for

CHILD = "sleep 1000 & echo $! > child.new; mv child.new child;"
WAITS = "while :; do sleep 0.05 & wait $!; done"


def server(script: str, stop_s: float = 30) -> Server:
    return Server(["sh", "-c", script], None, signal.SIGTERM, stop_s)


def lives(pid: int) -> bool:
    """Whether a process runs; one that nobody waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize(
    ("trap", "told"),
    [
        ('trap "echo term >> told; exit 0" TERM;', "term\n"),
        ('trap "echo term >> told" TERM; trap "echo quit >> told; exit 0" QUIT;', "term\nquit\n"),
        ('trap "echo term >> told" TERM; trap "echo quit >> told" QUIT;', "term\nquit\n"),
    ],
    ids=["in good order", "at once", "without asking"],
)
def test_a_server_ends_with_what_it_had_started(
    trap: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmkms.adopters.volume.server._QUIT_S", 1.0)
    # Who runs the tests in the background may have them ignore it, and a shell traps nothing that was ignored.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    running = server(trap + CHILD + WAITS, stop_s=1 if "quit" in trap else 30)
    running.start(tmp_path)
    wait_for("started", (tmp_path / "child").exists)
    child, pid = int((tmp_path / "child").read_text()), running.pid
    assert pid is not None
    assert (running.started, lives(child)) == (True, True)
    running.stop()
    assert (running.started, running.pid, running.exit_code) == (False, None, None)
    assert not lives(pid)
    wait_for("its child ended", lambda: not lives(child))
    assert (tmp_path / "told").read_text() == told
    running.stop()


def test_an_end_of_its_own_keeps_its_exit_code(tmp_path: Path) -> None:
    running = server("exit 3")
    running.start(tmp_path)
    wait_for("ended", lambda: running.pid is None)
    assert (running.started, running.exit_code) == (True, 3)
    running.start(tmp_path)
    running.stop()
    killed = server("kill -9 $$")
    killed.start(tmp_path)
    wait_for("ended", lambda: killed.pid is None)
    assert killed.exit_code == 128 + signal.SIGKILL


def test_what_cannot_be_started_is_said(tmp_path: Path) -> None:
    with pytest.raises(VolumeRefused, match="There is no program"):
        Server(["no-such-program"], None, signal.SIGTERM, 1).start(tmp_path)
    with pytest.raises(VolumeRefused, match="There is no user nobody-of-this-name"):
        Server(["true"], "nobody-of-this-name", signal.SIGTERM, 1).start(tmp_path)
    with pytest.raises(VolumeRefused, match="cannot be started"):
        Server(["true"], None, signal.SIGTERM, 1).start(tmp_path / "missing")


def test_a_server_that_does_not_tell_its_settings_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not knowing where its data lies is no reason to believe that it lies inside."""
    monkeypatch.setattr("hsmkms.adopters.volume.server._ASK_S", 0.2)
    program = tmp_path / "postgres"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    with pytest.raises(VolumeRefused, match="does not tell its settings"):
        require_inside(tmp_path, Server([str(program)], None, signal.SIGINT, 1))


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeRefused, match="cannot be searched"):
        require_inside(tmp_path / "gone", None)
