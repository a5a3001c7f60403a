"""What a record says of a key that a ceremony made, announced or removed."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from hsmkms.ceremony.record import Step
from hsmkms.domain.importing import Passage
from hsmkms.domain.keys import KeyVersion

ANNOUNCED, MADE, REMOVED, WRAPPED = "key announced", "key made", "key removed", "key wrapped"
PASSAGES: Final = {"born in the token": Passage.GENERATED, "unwrapped in the token": Passage.TOKEN}
"""What a record says of keys that this program never had; of all others it says how it held them."""


def version_of(made: Step) -> KeyVersion:
    """The key version that a record says was made."""
    data = made.data
    passage = PASSAGES.get(data["passage"], Passage.PROCESS)
    created_at = datetime.fromisoformat(data["created_at"])
    return KeyVersion(data["version"], created_at, bytes.fromhex(data["wrap_check_value"]), data["owner"], passage)
