"""`python -m hsmkms.adopters.objectstorage CONFIGURATION INTERNAL_CLIENT_CONF`: the follower of all accounts.

The second file is a proxy configuration whose pipeline has neither authorization nor encryption, as Swift's own daemons
use it.
"""

from __future__ import annotations

import sys

from swift.common.utils import monkey_patch


def main() -> int:
    """Make sockets and locks green, then run."""
    monkey_patch()
    # Not before: what holds a lock already cannot be patched any more.
    from hsmkms.adopters.objectstorage import run

    return run.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
