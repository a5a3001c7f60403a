"""Fill a token: root keys without rows, since only the token's size matters here. Argument: how many in all.

Prints how many the token holds in the end, counted on the token.
"""

from __future__ import annotations

import sys

from hsmkms.domain.ids import new_id
from hsmkms.settings import load
from hsmkms.wiring import open_rooms, pin_of


def main() -> None:
    """Make what is missing, and count."""
    settings = load()
    rooms = open_rooms(settings, pin_of(settings))
    with rooms.close:
        for _ in range(int(sys.argv[1]) - len(rooms.token.list_keys())):
            rooms.token.generate_key(new_id(), "hsmkms bench", rooms.services.clock())
        print(len(rooms.token.list_keys()))


main()
