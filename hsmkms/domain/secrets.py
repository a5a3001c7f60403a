"""Secret values that do not show themselves by accident."""

from __future__ import annotations

from typing import final


@final
class SecretBytes:
    """Plaintext key bytes. `repr`, `str` and formatting show a mask; only `reveal()` gives the bytes.

    Python cannot promise to wipe memory: the mask keeps a secret out of logs and tracebacks, not out of a core dump.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __repr__(self) -> str:
        return "SecretBytes(***)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


@final
class SecretText:
    """A PIN, API key or token, masked like SecretBytes."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself."""
        return self._value

    def __repr__(self) -> str:
        return "SecretText(***)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")
