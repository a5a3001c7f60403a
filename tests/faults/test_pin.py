"""A PIN that was changed or locked: one try on the host, a clear message, and `hsmkms hsm login` while all runs."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from hsmkms.control import ControlSocket, LoginRequest, Request, StatusRequest, ask_all
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import PinNotTried, PinRefused, TokenBusy, TokenUnavailable
from hsmkms.opening import GUARD_DIRECTORY
from hsmkms.token import cryptoki as ck
from hsmkms.token import probing
from hsmkms.token.login import try_pin
from hsmkms.token.pin_guard import NO_ANSWER, PinGuard
from hsmkms.token.sessions import SessionPool, TokenAddress
from tests.support.deployment import ROOT, Service, State, create_key
from tests.support.injector import MODULE, Injector
from tests.token.conftest import LABEL
from tests.token.test_calls import SPY

NEW_PIN = "another-pin-of-this-token"
WITHIN_S = 90
REFUSED = re.compile(r"Returned:\s+160 CKR_PIN_INCORRECT")


@pytest.fixture
def spied(state: State, tmp_path: Path) -> tuple[dict[str, str], Callable[[], int]]:
    """Settings of a service whose calls to the module are noted, and how many PINs the token refused."""
    log = tmp_path / "calls"
    settings = {
        "HSMKMS_PKCS11_MODULE": str(SPY),
        "PKCS11SPY": MODULE,
        "PKCS11SPY_OUTPUT": str(log),
        "SOFTHSM2_CONF": str(state.path / "softhsm2.conf"),
    }
    return settings, lambda: len(REFUSED.findall(log.read_text(errors="replace")))


def change_pin(state: State) -> None:
    """By an outside program; the file keeps the old one."""
    command = ["pkcs11-tool", "--module", MODULE, "--token-label", LABEL, "--login", "--pin", "env:OLD"]
    environment = {
        **os.environ,
        "SOFTHSM2_CONF": str(state.path / "softhsm2.conf"),
        "OLD": state.pin,
        "NEW": NEW_PIN,
    }
    subprocess.run([*command, "--new-pin", "env:NEW", "--change-pin"], env=environment, check=True, capture_output=True)


def miss(state: State) -> None:
    """Have an outside program try a wrong PIN, which the token tells until the next right one."""
    command = ["pkcs11-tool", "--module", MODULE, "--token-label", LABEL, "--login", "--pin", "env:WRONG", "-O"]
    environment = {**os.environ, "SOFTHSM2_CONF": str(state.path / "softhsm2.conf"), "WRONG": NEW_PIN}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def workers(service: Service) -> dict[int, bool]:
    """Which worker processes run and are heard, and whether each serves."""
    answers = ask_all(service.state.path, StatusRequest(), 5)
    return {
        pid: answer["serves"] for pid, answer in answers.items() if answer is not None and pid != service.process.pid
    }


def kill(service: Service, pids: list[int]) -> None:
    """kill -9, and wait until as many others are there."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(workers(service)) - set(pids)) == 2)


def test_pin_changed_and_corrected_while_running(state: State, spied: tuple[dict[str, str], Callable[[], int]]) -> None:
    settings, refusals = spied
    with Service(state, workers=2, **settings) as service, service.client() as client:
        key = create_key(client)
        change_pin(state)
        before = refusals()
        # Who is logged in stays so.
        assert client.post(f"/keys/{key}/actions/wrap", json={}).status_code == 200
        until(lambda: len(workers(service)) == 2)
        # Each worker that takes another's place would try the PIN it was given.
        kill(service, list(workers(service)))
        until(lambda: refusals() == before + 1)
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        assert httpx.get(f"{service.url}/readyz").status_code == 503
        refused = httpx.get(f"{service.url}/api/v2/keys", headers=client.headers)
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        doctor = state.run("doctor", stdin=b"", **settings)
        assert b"is not tried again" in doctor.stderr
        assert b"hsmkms hsm login" in doctor.stderr
        status = state.run("hsm", "status", stdin=b"", **settings)
        assert status.returncode == 1
        # Nobody has brought a better one yet: the one try that this costs is the operator's own.
        wrong = state.run("hsm", "login", stdin=b"", **settings)
        assert (wrong.returncode, b"does not take this PIN" in wrong.stderr) == (1, True)
        assert refusals() == before + 2

        (state.path / "pin").write_text(NEW_PIN + "\n")
        done = state.run("hsm", "login", stdin=b"", **settings)
        assert done.returncode == 0, done.stderr
        assert b"3 running processes" in done.stdout
        until(lambda: list(workers(service).values()) == [True, True])
        assert httpx.post(f"{client.base_url}keys/{key}/actions/wrap", headers=client.headers, json={}).is_success
        assert state.run("hsm", "status", stdin=b"", **settings).returncode == 0
        # Also one that is started from now on has it.
        kill(service, list(workers(service))[:1])
        until(lambda: list(workers(service).values()) == [True, True])
        assert refusals() == before + 2
        log = service.log.read_text()
    assert log.count("does not take this PIN") == 1
    assert NEW_PIN not in log


def test_planned_change_is_not_noticed(state: State) -> None:
    """The PIN is changed at the token, then in the file, then `hsm login`: no request fails meanwhile."""
    with Service(state) as service, service.client() as client:
        key = create_key(client)
        change_pin(state)
        (state.path / "pin").write_text(NEW_PIN + "\n")
        assert state.run("hsm", "login").returncode == 0
        assert client.post(f"/keys/{key}/actions/wrap", json={}).status_code == 200
        assert "PIN" not in service.log.read_text()


def test_processes_have_the_new_pin_before_they_may_try_one(state: State) -> None:
    """Else one of them that waits to log in tries the old one, and its refusal stops all of them again."""
    guard = PinGuard(state.path / GUARD_DIRECTORY, str(TokenAddress(MODULE, LABEL, None)))
    guard.refuse("incorrect")
    met: list[str | None] = []

    def answer(_: Request) -> dict[str, object]:
        met.append(guard.reason)
        return {"serves": False}

    control = ControlSocket(state.path, answer)
    try:
        done = state.run("hsm", "login", stdin=b"")
    finally:
        control.close()
    assert (done.returncode, b"1 running processes have it" in done.stdout) == (0, True), done.stderr
    assert (met, guard.reason) == (["incorrect"], None)


def test_a_supervisor_that_starts_it_again_and_again_locks_nothing(state: State, injector: Injector) -> None:
    settings = {"HSMKMS_PKCS11_MODULE": str(injector.library), **injector.environment}
    injector.fail("C_Login", code=0xA0)
    first = state.run("serve", stdin=b"", **settings)
    assert (first.returncode, b"does not take this PIN" in first.stderr) == (1, True), first.stderr
    injector.cure()
    second = state.run("serve", stdin=b"", **settings)
    assert (second.returncode, b"is not tried again" in second.stderr) == (1, True), second.stderr
    assert state.run("hsm", "login", stdin=b"", **settings).returncode == 0
    assert state.run("keys", "list", stdin=b"", **settings).returncode == 0


@pytest.mark.parametrize("command", [("doctor",), ("hsm", "login")])
def test_a_command_that_hangs_ends(state: State, injector: Injector, command: tuple[str, ...]) -> None:
    """Else nobody on the host could log in again for as long as it is there."""
    settings = {"HSMKMS_PKCS11_MODULE": str(injector.library), **injector.environment}
    injector.fail("C_Login", wait_ms=600_000)
    hung = state.run(*command, stdin=b"", **settings, HSMKMS_TOKEN_CALL_TIMEOUT_S="1")
    assert (hung.returncode, b"the token hangs" in hung.stderr) == (75, True), hung.stderr
    injector.cure()
    assert state.run("keys", "list", stdin=b"", **settings).returncode == 0


@pytest.fixture
def open_with_guard(state: State, injector: Injector, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Open the token as a process of the host does, and close it."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
    for name, value in injector.environment.items():
        monkeypatch.setenv(name, value)

    def open_it() -> None:
        SessionPool(
            TokenAddress(str(injector.library), LABEL, None),
            SecretText(state.pin),
            size=1,
            wait_s=5,
            recycle_after=100_000,
            guard=PinGuard(state.path / "guard", LABEL),
        ).close()

    return open_it


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0xA4, "locked"),
        (0xA3, "expired"),
        (0xA0, "incorrect"),
        (0xA1, "characters"),
        (0xA2, "shorter or longer"),
    ],
)
def test_every_refusal_is_the_last(
    state: State, injector: Injector, open_with_guard: Callable[[], None], code: int, reason: str
) -> None:
    injector.fail("C_Login", code=code)
    with pytest.raises(PinRefused, match=reason):
        open_with_guard()
    injector.cure()
    with pytest.raises(PinRefused, match=f"{reason}.*not tried again"):
        open_with_guard()
    PinGuard(state.path / "guard", LABEL).clear()
    open_with_guard()


def test_a_token_that_says_it_has_no_user_pin_is_asked_again(
    injector: Injector, open_with_guard: Callable[[], None]
) -> None:
    """SoftHSM says so of a token that another process writes just now (CKR_USER_PIN_NOT_INITIALIZED)."""
    injector.fail("C_Login", code=0x102)
    for _ in range(3):
        with pytest.raises(TokenUnavailable):
            open_with_guard()
    injector.cure()
    open_with_guard()


@pytest.mark.parametrize("code", [0x05, 0x06, 0x80000001])
def test_what_may_be_a_refusal_is_tried_twice_while_the_token_counts_a_wrong_pin(
    state: State, injector: Injector, open_with_guard: Callable[[], None], code: int
) -> None:
    """A general error, a failed function, a maker's own value. Of a device that is only ill nobody has to take care."""

    def fails_otherwise() -> bool:
        with pytest.raises(TokenUnavailable) as caught:
            open_with_guard()
        return not isinstance(caught.value, PinNotTried)

    injector.fail("C_Login", code=code)
    assert all(fails_otherwise() for _ in range(4))
    injector.cure()
    open_with_guard()
    miss(state)
    injector.fail("C_Login", code=code)
    assert [fails_otherwise() for _ in range(4)] == [True, True, False, False]
    injector.cure()
    with pytest.raises(PinNotTried, match=r"no answer that is clear.*hsm login"):
        open_with_guard()
    PinGuard(state.path / "guard", LABEL).clear()
    open_with_guard()


@pytest.fixture
def small_directory(state: State) -> Iterator[Path]:
    """The directory of the marks on a file system that takes the lock and one mark."""
    directory = state.path / "guard"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=3", "none", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("how", ["no file left", "read-only"])
def test_what_cannot_be_noted_is_not_tried(
    small_directory: Path, injector: Injector, open_with_guard: Callable[[], None], how: str
) -> None:
    """Its refusal could not be noted either, and each process that is started again would be another try."""
    open_with_guard()
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(small_directory)], check=True)
    else:
        (small_directory / "other").touch()
    injector.count_calls()
    for _ in range(3):
        with pytest.raises(PinNotTried, match="cannot be noted"):
            open_with_guard()
    assert injector.calls()["C_Login"] == 0
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,rw", str(small_directory)], check=True)
    else:
        (small_directory / "other").unlink()
    open_with_guard()


def test_a_mark_that_cannot_be_read_is_no_refusal(state: State, open_with_guard: Callable[[], None]) -> None:
    """A disk that fails for a moment stops nobody for longer than that."""
    open_with_guard()
    mark = spoil_mark(state.path / "guard")
    with pytest.raises(PinNotTried, match="cannot be read"):
        open_with_guard()
    mark.unlink()
    open_with_guard()


def spoil_mark(directory: Path) -> Path:
    """Have whoever reads the service's mark get an OSError (ELOOP)."""
    (lock,) = directory.glob("*.lock")
    mark = lock.with_suffix("")
    mark.unlink(missing_ok=True)
    mark.symlink_to(mark.name)
    return mark


def test_killed_while_it_logs_in(state: State, injector: Injector, open_with_guard: Callable[[], None]) -> None:
    """Nobody knows what the token said. One may try again; when two have come to nothing and the token counts a wrong
    PIN, an operator has to."""
    open_with_guard()

    def killed() -> None:
        injector.forget_waits()
        injector.fail("C_Login", wait_ms=600_000)
        command = [sys.executable, "-c", _OPEN, str(injector.library), LABEL, str(state.path / "guard")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdin is not None
            process.stdin.write(state.pin.encode())
            process.stdin.close()
            injector.wait_for_one()
            process.kill()
        injector.cure()

    for _ in range(3):
        killed()
    open_with_guard()
    miss(state)
    killed()
    open_with_guard()
    miss(state)
    killed()
    killed()
    injector.count_calls()
    with pytest.raises(PinNotTried, match=r"no answer.*hsm login"):
        open_with_guard()
    assert injector.calls()["C_Login"] == 0
    address, guard = TokenAddress(str(injector.library), LABEL, None), PinGuard(state.path / "guard", LABEL)
    try_pin(address, SecretText(state.pin), guard, timeout_s=30, last_try=False)
    guard.clear()
    open_with_guard()


_OPEN = """
import sys
from pathlib import Path
from hsmkms.domain.secrets import SecretText
from hsmkms.token.pin_guard import PinGuard
from hsmkms.token.sessions import SessionPool, TokenAddress
module, label, guard = sys.argv[1:]
SessionPool(
    TokenAddress(module, label, None), SecretText(sys.stdin.read()), size=1, wait_s=5, recycle_after=100_000,
    guard=PinGuard(Path(guard), label),
)
"""


def test_an_operator_who_is_killed_leaves_a_refusal_as_it_was(state: State) -> None:
    guard = PinGuard(state.path / "guard", LABEL)
    guard.refuse("incorrect")
    guard.begin()
    assert guard.reason == "incorrect"
    guard.answered()
    assert guard.reason == "incorrect"


def test_a_device_that_fails_is_no_refusal(injector: Injector, open_with_guard: Callable[[], None]) -> None:
    injector.fail("C_Login", code=0x30)
    with pytest.raises(TokenUnavailable):
        open_with_guard()
    injector.cure()
    open_with_guard()


@pytest.mark.parametrize(("flags", "message"), [(0x40000, "is locked"), (0x20000, "--last-try")])
def test_token_says_that_it_is_locked_or_nearly(
    state: State, injector: Injector, open_with_guard: Callable[[], None], flags: int, message: str
) -> None:
    """CKF_USER_PIN_LOCKED and CKF_USER_PIN_FINAL_TRY: no try at all, but an operator's who insists."""
    address, guard = TokenAddress(str(injector.library), LABEL, None), PinGuard(state.path / "guard", LABEL)
    injector.tell(flags)
    # Had it been called, this would be another error.
    injector.fail("C_Login", code=0x30)
    with pytest.raises(PinRefused, match=message):
        open_with_guard()
    with pytest.raises(PinRefused, match=message):
        try_pin(address, SecretText(state.pin), guard, timeout_s=30, last_try=False)
    injector.cure()
    if flags == 0x20000:
        try_pin(address, SecretText(state.pin), guard, timeout_s=30, last_try=True)
        assert guard.reason is not None


def test_one_logs_in_at_a_time(state: State) -> None:
    """Two processes that start together would else each try a PIN before either knows that it is wrong."""
    first, second = (PinGuard(state.path / "guard", LABEL) for _ in range(2))
    with first.turn(1), pytest.raises(TokenBusy), second.turn(0.05):
        raise AssertionError
    with second.turn(1):
        second.refuse("incorrect")
    assert first.reason == "incorrect"


def test_what_a_part_of_a_try_tries_counts_too(state: State) -> None:
    """The child of a process that hangs in its turn takes none of its own, and costs the token a PIN all the same."""
    parent = PinGuard(state.path / "guard", LABEL)
    child = PinGuard(state.path / "guard", LABEL, locks=False)
    with parent.turn(1):
        parent.begin()
        assert child.reason is None
        with child.turn(1):
            child.begin()
    assert parent.reason == NO_ANSWER


@pytest.mark.parametrize("by_command", [False, True])
def test_a_child_that_is_not_to_try_has_its_parent_end(
    state: State, injector: Injector, open_with_guard: Callable[[], None], by_command: bool
) -> None:
    """Who hangs in its turn would keep even an operator's PIN away. The mark is that of who asks."""
    address, directory = TokenAddress(str(injector.library), LABEL, None), state.path / "guard"
    guard = PinGuard(directory, str(address), by_command=by_command)
    miss(state)
    pool = SessionPool(address, SecretText(state.pin), size=1, wait_s=1, recycle_after=100, guard=guard, opened=False)
    injector.fail("C_Login", code=0x05)
    for _ in range(2):
        assert not probing.answers(pool, 30)
    assert probing.answers(pool, 30)
    assert guard.reason == NO_ANSWER
    assert PinGuard(directory, str(address)).reason == (None if by_command else NO_ANSWER)


def test_a_wrong_pin_in_a_command_stops_commands_alone(state: State) -> None:
    """A typing error in somebody's environment is none of the service's, which may have to log in again at any time."""
    service = PinGuard(state.path / "guard", LABEL)
    command = PinGuard(state.path / "guard", LABEL, by_command=True)
    command.refuse("incorrect")
    assert (command.reason, service.reason) == ("incorrect", None)
    service.refuse("expired")
    assert (command.reason, service.reason) == ("expired", "expired")
    command.clear()
    assert (command.reason, service.reason) == (None, None)


def test_a_service_goes_on_after_a_wrong_pin_in_a_command(state: State) -> None:
    with Service(state, workers=2) as service:
        typo = state.run("doctor", stdin=b"", HSMKMS_PIN="a-typo")
        assert (typo.returncode, b"does not take this PIN" in typo.stderr) == (1, True), typo.stderr
        until(lambda: len(workers(service)) == 2)
        kill(service, list(workers(service))[:1])
        until(lambda: list(workers(service).values()) == [True, True])


def test_who_is_logged_in_does_not_log_out_while_the_pin_is_refused(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SoftHSM's memory is reclaimed by a fresh start, which is a log-in too. It waits."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
    guard = PinGuard(state.path / "guard", LABEL)
    address = TokenAddress(MODULE, LABEL, None)
    pool = SessionPool(address, SecretText(state.pin), size=1, wait_s=5, recycle_after=1, guard=guard)

    def destroy_one() -> int:
        with pool.session() as session:
            session.destroyed_objects += 1
        return pool.generation

    assert destroy_one() > 1
    guard.refuse("incorrect")
    before = pool.generation
    assert destroy_one() == before
    mark = spoil_mark(state.path / "guard")
    assert destroy_one() == before
    assert pool.is_open
    mark.unlink()
    assert destroy_one() == before + 1
    pool.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_who_is_logged_in_does_not_log_out_while_nobody_may_log_in(
    state: State, small_directory: Path, injector: Injector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that is not given back, a mark that cannot be written, a token that is nearly locked: memory can wait."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
    for name, value in injector.environment.items():
        monkeypatch.setenv(name, value)
    guard, other = (PinGuard(small_directory, LABEL) for _ in range(2))
    address = TokenAddress(str(injector.library), LABEL, None)
    pool = SessionPool(address, SecretText(state.pin), size=1, wait_s=5, recycle_after=1, guard=guard)

    def recycles() -> bool:
        before = pool.generation
        with pool.session() as session:
            session.destroyed_objects += 10_000
        assert pool.is_open
        return pool.generation > before

    assert recycles()
    with other.turn(1):
        assert not recycles()
    assert recycles()
    (small_directory / "other").touch()
    assert not recycles()
    (small_directory / "other").unlink()
    assert recycles()
    injector.tell(ck.CKF_USER_PIN_FINAL_TRY)
    assert not recycles()
    assert guard.reason is None
    injector.tell(0)
    assert recycles()
    pool.close()


def test_who_looks_whether_he_may_log_in_again_is_watched(
    state: State, injector: Injector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He has the turn, and a token that hangs then would keep everybody on the host out."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
    for name, value in injector.environment.items():
        monkeypatch.setenv(name, value)
    address = TokenAddress(str(injector.library), LABEL, None)
    pool = SessionPool(address, SecretText(state.pin), size=1, wait_s=5, recycle_after=1)
    session = pool.take()
    session.destroyed_objects = 1
    injector.forget_waits()
    injector.fail("C_GetSlotList", wait_ms=1_500)
    giving = threading.Thread(target=pool.give, args=(session,))
    giving.start()
    injector.wait_for_one()
    assert pool.longest_call_s() > -math.inf
    injector.cure()
    giving.join()
    pool.close()


def test_rubbish_at_the_control_socket_harms_nobody(state: State) -> None:
    asked: list[Request] = []

    def answer(request: Request) -> dict[str, object]:
        asked.append(request)
        return {"serves": True}

    control = ControlSocket(state.path, answer)
    try:
        path = next((state.path / "run").glob("*.sock"))
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        for rubbish in (b"", b"\n", b"{}\n", b'{"type":"login"}\n', b"\xff" * 70_000, b'{"type":"status","x":1}\n'):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(os.path.relpath(path))
                connection.sendall(rubbish)
                connection.shutdown(socket.SHUT_WR)
                # What it did not read to the end resets the connection.
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(100) == b""
        assert asked == []
        assert ask_all(state.path, StatusRequest(), 5) == {os.getpid(): {"serves": True}}
        assert NEW_PIN not in repr(LoginRequest("primary", NEW_PIN))
    finally:
        control.close()
    assert ask_all(state.path, StatusRequest(), 5) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_not_heard_at_the_control_socket(state: State) -> None:
    asked: list[Request] = []

    def answer(request: Request) -> dict[str, object]:
        asked.append(request)
        return {"serves": True}

    control = ControlSocket(state.path, answer)
    try:
        path = next((state.path / "run").glob("*.sock"))
        path.chmod(0o666)
        # The kernel remembers who connected.
        script = (
            "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.setuid(65534); s.connect(sys.argv[1])\n"
            's.sendall(b\'{"type":"status"}\\n\'); print(s.recv(100))'
        )
        path.parent.chmod(0o711)
        command = [sys.executable, "-c", script, path.name]
        done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
        # It is cut off before it has said anything, or while it does.
        assert done.stdout.strip() == "b''" or "BrokenPipeError" in done.stderr or "ConnectionReset" in done.stderr
        assert asked == []
    finally:
        control.close()
