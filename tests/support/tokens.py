"""Second tokens beside the one of a deployment: copies under another serial, other keys under the same one, a group."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from hsmkms.token.cryptoki import CKA_VALUE
from tests.support.deployment import ROOT, State
from tests.support.injector import MODULE
from tests.token.conftest import LABEL

STANDBY_LABEL = "standby"
_BYTE_STRING = 3
_SAME_S = 30

_NEW_SENTINEL = """
import sys
from hsmkms.domain.secrets import SecretText
from hsmkms.token.recovery import SENTINEL_ID
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress
pool = SessionPool(
    TokenAddress(sys.argv[1], sys.argv[2], None), SecretText(sys.stdin.read()), size=1, wait_s=5, recycle_after=100_000
)
token = Token(pool)
token.destroy_key(SENTINEL_ID)
token.make_sentinel()
pool.close()
"""


def directory_of(state: State, label: str = LABEL) -> Path:
    """The directory of a SoftHSM token."""
    padded = label.encode().ljust(32)
    return next(file.parent for file in state.path.glob("tokens/*/token.object") if padded in file.read_bytes())


def serial_of(directory: Path) -> bytes:
    """SoftHSM ends a token's directory name with the 16 characters of its serial, in two groups."""
    return "".join(directory.name.split("-")[-2:]).encode()


def copy_token(source: Path, target: Path, *, label: str = LABEL, serial: bytes | None = None) -> None:
    """A copy of a SoftHSM token with all its keys, under another label and serial. Both stand in the clear in
    `token.object`; keys and PINs are encrypted without them."""
    shutil.copytree(source, target)
    file = target / "token.object"
    content = file.read_bytes().replace(LABEL.encode().ljust(32), label.encode().ljust(32))
    if serial is not None:
        known = serial_of(source)
        assert known in content
        content = content.replace(known, serial)
    file.write_bytes(content)


def give_other_sentinel(state: State, label: str = LABEL) -> None:
    """The same label, serial and PIN, and another key where the sentinel was."""
    subprocess.run(
        [sys.executable, "-c", _NEW_SENTINEL, MODULE, label],
        input=state.pin.encode(),
        env={**os.environ, "SOFTHSM2_CONF": str(state.path / "softhsm2.conf")},
        cwd=ROOT,
        check=True,
    )


class Group:
    """A primary and a standby with the same keys: what is made on one appears on the other, as in an HSM group.

    SoftHSM keeps an object in a file that is encrypted by the token's own key, which a copied token has too; so to
    replicate is to copy files, and to tell both of it by their `generation` file.
    """

    def __init__(self, state: State) -> None:
        self._primary = directory_of(state)
        self._standby = self._primary.with_name("00000000-0000-0000-0000-0123456789ab")
        copy_token(self._primary, self._standby, label=STANDBY_LABEL, serial=b"00000123456789ab")
        self.module = state.path / "another-libsofthsm2.so"
        shutil.copy(MODULE, self.module)
        self._stopped = threading.Event()
        self._replicates = True
        self._whole = True
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run)

    @property
    def environment(self) -> dict[str, str]:
        """Settings that name the standby."""
        return {
            "HSMKMS_STANDBY_PKCS11_MODULE": str(self.module),
            "HSMKMS_STANDBY_TOKEN_LABEL": STANDBY_LABEL,
        }

    def __enter__(self) -> Group:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def objects(self) -> tuple[set[str], set[str]]:
        """Names of the files of objects on both."""
        return set(_contents(self._primary)), set(_contents(self._standby))

    def wait_until_same(self) -> None:
        """Until all that is on the primary is on the standby."""
        deadline = time.monotonic() + _SAME_S
        while _contents(self._primary) != _contents(self._standby):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def pause(self) -> None:
        """Replicate nothing from now on."""
        with self._lock:
            self._replicates = False

    def go_on(self, *, whole: bool = True) -> None:
        """Replicate again; unless `whole`, new objects come without the values of their keys."""
        with self._lock:
            self._replicates, self._whole = True, whole

    def _run(self) -> None:
        while not self._stopped.wait(0.02):
            with self._lock:
                if self._replicates:
                    self._replicate()

    def _replicate(self) -> None:
        here, there = _contents(self._primary), _contents(self._standby)
        if not self._whole:
            here = {name: there.get(name) or _without_value(content) for name, content in here.items()}
        # Also what is still being written is copied, and copied again when it is whole.
        for name, content in here.items() - there.items():
            part = self._standby / f"{name}.part"
            part.write_bytes(content)
            part.rename(self._standby / name)
        for name in there.keys() - here.keys():
            (self._standby / name).unlink(missing_ok=True)
        if here != there:
            generation = self._standby / "generation"
            number = int.from_bytes(generation.read_bytes(), "big") + 1
            generation.write_bytes(number.to_bytes(8, "big"))


def _contents(directory: Path) -> dict[str, bytes]:
    found = {}
    for file in directory.glob("*.object"):
        with contextlib.suppress(FileNotFoundError):
            found[file.name] = file.read_bytes()
    found.pop("token.object", None)
    return found


def _without_value(content: bytes) -> bytes:
    """A file of SoftHSM's as it is before the key's value is written: the generation of its content, then attributes by
    type, kind, length and value."""
    numbers = struct.Struct(">QQQ")
    at = content.find(numbers.pack(CKA_VALUE, _BYTE_STRING, 0)[:16])
    if at < 0:
        return content
    _, _, length = numbers.unpack_from(content, at)
    before = int.from_bytes(content[:8], "big") - 1
    rest = content[at + numbers.size + length :]
    return before.to_bytes(8, "big") + content[8:at] + numbers.pack(CKA_VALUE, _BYTE_STRING, 0) + rest
