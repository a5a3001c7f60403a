"""Key check values: three bytes that tell which AES key this is, and nothing else of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

CHECK_VALUE_BYTES: Final = 3


class CheckKind(enum.Enum):
    """Which value people compare: AES-CMAC of a zero block (ANSI X9.24-1:2017), or the older AES-ECB of one."""

    CMAC = "cmac"
    ECB = "ecb"


@dataclass(frozen=True, slots=True)
class CheckValues:
    """Both values as six hexadecimal digits in upper case; None where a token does not tell of a key it made."""

    cmac: str | None
    ecb: str | None

    def of(self, kind: CheckKind) -> str | None:
        """The value of a kind."""
        return self.cmac if kind is CheckKind.CMAC else self.ecb


def as_text(value: bytes) -> str:
    """What is compared of a CMAC or a ciphertext block."""
    return value[:CHECK_VALUE_BYTES].hex().upper()
