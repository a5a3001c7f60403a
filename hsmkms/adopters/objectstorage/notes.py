"""What the keymaster tells the S3 filter, which stands where a request begins and an answer ends.

Swift copies the environment of a request on its way and makes new ones for what it asks itself (parts, the source of a
copy). The one thing that they all share is the cache of what this request learnt of containers, so the notes lie there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

_NAME: Final = "hsmkms.notes"


@dataclass
class Notes:
    """`key_crn`: the root key of the bucket that is asked about. `refusal`: why there is no other answer. `deletes`:
    what this request reads it reads in order to delete it."""

    key_crn: str | None = None
    refusal: str | None = None
    deletes: bool = False


def of(env: dict[str, Any]) -> Notes:
    """The notes of a request. A client cannot write them: what it sends has names that begin with HTTP_."""
    found: Notes = env.setdefault("swift.infocache", {}).setdefault(_NAME, Notes())
    return found
