"""What a ceremony refuses.

    OperatorError
    ├── CeremonyRefused            the ceremony cannot go on: another plan, token, or machine is needed
    │   └── PlanRefused · RecordBroken
    └── EntryRefused               what a custodian entered is not taken; it is asked again, and nothing is lost
        ├── EntriesDiffer · NotHexadecimal · WrongLength · WeakComponent · EqualComponents · WeakKey
        │   · WrongCheckValue
        └── ShareUnreadable · ShareChecksumWrong · ShareRepeated · ShareOfAnotherSet · ShareUnfit
            · TooFewShares · SharesDisagree · CheckWordsWrong · WrappedFileRefused

No message quotes what was entered.
"""

from __future__ import annotations

from hsmkms.errors import OperatorError


class CeremonyRefused(OperatorError):
    """The ceremony cannot go on as things are."""


class PlanRefused(CeremonyRefused):
    """The plan cannot be read, is not signed by its leader, or is for another token."""


class RecordBroken(CeremonyRefused):
    """A record does not prove what it says; `step` is the number of the first step that is wrong, from 1."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(f"Step {step} of the record is broken: {why}.")
        self.step = step


class EntryRefused(OperatorError):
    """An entry is not taken. Enter it again."""


class EntriesDiffer(EntryRefused):
    def __init__(self) -> None:
        super().__init__("The two entries differ. Enter both again.")


class NotHexadecimal(EntryRefused):
    def __init__(self) -> None:
        super().__init__("A component is an even number of hexadecimal digits (0-9, A-F); spaces may be between them.")


class WrongLength(EntryRefused):
    """`found` and `wanted` in bytes."""

    def __init__(self, found: int, wanted: int) -> None:
        super().__init__(f"This has {found} bytes. A part of this key has {wanted}.")


class WeakComponent(EntryRefused):
    def __init__(self) -> None:
        super().__init__("A component of zeros adds nothing to the key and is not taken. Bring another one.")


class EqualComponents(EntryRefused):
    def __init__(self) -> None:
        super().__init__("Another custodian brought the same component; two equal ones cancel out. Bring another one.")


class WeakKey(EntryRefused):
    def __init__(self) -> None:
        super().__init__("The parts make a key of zeros. They are copies of each other; enter the right ones.")


class WrongCheckValue(EntryRefused):
    """The key check values, which are no secret."""

    def __init__(self, found: str, wanted: str) -> None:
        super().__init__(f"The key check value is {found}, and {wanted} was expected. Enter it again.")


class ShareUnreadable(EntryRefused):
    """The words cannot be a share at all."""


class ShareChecksumWrong(EntryRefused):
    def __init__(self) -> None:
        super().__init__("The share's checksum is wrong: at least one word is not the one on paper. Enter it again.")


class ShareRepeated(EntryRefused):
    def __init__(self) -> None:
        super().__init__("This share was entered before. Enter another one.")


class ShareOfAnotherSet(EntryRefused):
    def __init__(self) -> None:
        super().__init__("This share belongs to another set than those before it. Enter the one for this key.")


class ShareUnfit(EntryRefused):
    """A good share, but not of a set that the plan describes."""


class TooFewShares(EntryRefused):
    def __init__(self, found: int, wanted: int) -> None:
        super().__init__(f"{found} shares were entered and {wanted} are needed.")


class SharesDisagree(EntryRefused):
    def __init__(self) -> None:
        super().__init__("The shares do not make a key together: one of them was not made with the others.")


class CheckWordsWrong(EntryRefused):
    def __init__(self) -> None:
        super().__init__("These are not the last three words of this sheet. Print it again if it cannot be read.")


class WrappedFileRefused(EntryRefused):
    """A file that is no key wrapped to the ceremony's pair, or not the key that was meant."""
