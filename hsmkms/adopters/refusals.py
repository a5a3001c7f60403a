"""What stops an adopter, with words for the person who has to put it right.

AdopterError
├── KeyServiceAway       nobody knows whether the key may be used: try again, go on with what is in memory for a while
├── KeyRefused           the key service says no: stop using the key
├── CiphertextRefused    these bytes open with no version of this key, or not with this AAD
├── ConnectionInvalid    the file that says how to reach the key service
└── LockFailed           the data is still open although it should not be
"""

from __future__ import annotations

from hsmkms.errors import HsmkmsError


class AdopterError(HsmkmsError):
    """Root of what adopters raise."""


class ConnectionInvalid(AdopterError):
    """The connection file, or a file that it names, cannot be used."""


class KeyServiceAway(AdopterError):
    """The key service did not answer in time, or answered that it cannot (5xx, 429). `retry_after_s` is its own word
    on when to ask again, in seconds, or None."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KeyRefused(AdopterError):
    """The key service refused: key disabled, deleted, not found, not authorized, or a request that it does not take.

    `reason_code` is the contract's, such as KEY_ACTION_INVALID_STATE_ERR. UNAUTHORIZED_ERR, when there is no right, is
    also the answer when a key does not exist or is another account's. `words` is the service's own sentence.
    """

    def __init__(self, reason_code: str, words: str) -> None:
        super().__init__(f"The key service refuses: {words} ({reason_code})")
        self.reason_code = reason_code
        self.words = words


class CiphertextRefused(AdopterError):
    """The wrapped DEK is damaged, is another key's, or was wrapped with another AAD."""


class LockFailed(AdopterError):
    """The data is still open although it should not be. Somebody has to look; it is tried again."""
