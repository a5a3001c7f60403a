"""Does the token answer another process? A child opens it and uses the sentinel; it can hang, and be killed.

The child is this module. It reads what it needs from its standard input, so that no command line shows the PIN.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from hsmkms.domain.secrets import SecretText
from hsmkms.errors import HsmkmsError, PinNotTried
from hsmkms.token.pin_guard import PinGuard
from hsmkms.token.recovery import RecoveringToken
from hsmkms.token.sessions import SessionPool, TokenAddress

_COMMAND: Final = (sys.executable, "-P", "-m", "hsmkms.token.probing")
_WAIT_S: Final = 1.0
_NOT_TRIED: Final = 2


class _Question(msgspec.Struct):
    """What the child is asked. `locks` is false when the process that asks is itself hanging in its turn to log in."""

    module: str
    label: str | None
    serial: str | None
    pin: str
    guard: str | None
    by_command: bool
    locks: bool


def answers(pool: SessionPool, timeout_s: float) -> bool:
    """Whether another process opens, proves and uses the token of `pool` within `timeout_s` seconds, or would not try
    the PIN: then one that does not hang leaves the turn to the operator who has to bring it."""
    address, guard = pool.address, pool.guard
    question = _Question(
        address.module,
        address.label,
        address.serial,
        pool.pin.reveal(),
        guard.directory,
        guard.by_command,
        not guard.in_turn,
    )
    try:
        done = subprocess.run(  # noqa: S603  # Nothing in it comes from outside.
            _COMMAND,
            input=msgspec.json.encode(question),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode in (0, _NOT_TRIED)


def main() -> int:
    """The child: 0 if the token is well, _NOT_TRIED if its PIN is not tried."""
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=_Question)
    address = TokenAddress(asked.module, asked.label, asked.serial)
    directory = None if asked.guard is None else Path(asked.guard)
    guard = PinGuard(directory, str(address), by_command=asked.by_command, locks=asked.locks)
    try:
        pool = SessionPool(address, SecretText(asked.pin), size=1, wait_s=_WAIT_S, recycle_after=100_000, guard=guard)
        RecoveringToken(pool).check()
    except PinNotTried:
        return _NOT_TRIED
    except HsmkmsError:
        return 1
    return 0


if __name__ == "__main__":
    # Without the library's clean-up, which may hang as well.
    os._exit(main())
