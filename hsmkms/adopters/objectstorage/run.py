"""The follower of all accounts, as a process. It runs in Swift's Python environment, on one host."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Final

import eventlet
import structlog
from swift.common.internal_client import InternalClient
from swift.common.utils import set_swift_dir
from swift.common.wsgi import appconfig

from hsmkms.adopters.client import MAX_WAIT_S, AdopterError, KeyServiceClient
from hsmkms.adopters.core.loopback import LoopbackServer
from hsmkms.adopters.objectstorage import status
from hsmkms.adopters.objectstorage.configuration import Account, Configuration
from hsmkms.adopters.objectstorage.containers import SwiftBuckets
from hsmkms.adopters.objectstorage.follower import LOOK_S, AccountFollower
from hsmkms.adopters.objectstorage.monitor import FollowerMonitor
from hsmkms.adopters.transport import Transport

USAGE: Final = "python -m hsmkms.adopters.objectstorage CONFIGURATION INTERNAL_CLIENT_CONF"
_TRIES: Final = 3
_PAUSE_S: Final = 5.0
_BUSY_WAIT_S: Final = 5

_log = structlog.get_logger(__name__)


def main(arguments: list[str]) -> int:
    """Until it is ended by a signal; the exit code."""
    if len(arguments) != 2:
        print(f"usage: {USAGE}", file=sys.stderr)
        return 2
    try:
        configuration = Configuration.read(Path(arguments[0]))
    except AdopterError as error:
        print(f"hsmkms: {error.message}", file=sys.stderr)
        return 1
    # Swift's own daemons do this when they are started.
    set_swift_dir(appconfig(arguments[1], name="proxy-server").get("swift_dir"))
    swift = InternalClient(arguments[1], "hsmkms follower", _TRIES)
    followers = [_follower(configuration, account, swift) for account in configuration.accounts.values()]
    if configuration.metrics_port is not None:
        LoopbackServer(configuration.metrics_port, FollowerMonitor(followers).answer)
    threads = [eventlet.spawn(_follow, follower, followers, configuration) for follower in followers]
    for thread in threads:
        thread.wait()
    return 0


def _follower(configuration: Configuration, account: Account, swift: InternalClient) -> AccountFollower:
    transport = Transport(account.connection, sleep=eventlet.sleep)
    client = KeyServiceClient(account.connection, transport)
    return AccountFollower(client, account, SwiftBuckets(swift, account), configuration.cache_s)


def _follow(follower: AccountFollower, followers: list[AccountFollower], configuration: Configuration) -> None:
    look_at = 0.0
    while True:
        try:
            if eventlet.hubs.get_hub().clock() >= look_at:
                follower.look_at_all()
                look_at = eventlet.hubs.get_hub().clock() + LOOK_S
            if follower.listen(_BUSY_WAIT_S if follower.pending else MAX_WAIT_S) or follower.pending:
                follower.answer()
        except AdopterError as error:
            _log.warning("following goes on soon", reason=error.message)
            eventlet.sleep(_PAUSE_S)
        if configuration.status_file is not None:
            rows = itertools.chain.from_iterable(one.rows.values() for one in followers)
            try:
                status.write(configuration.status_file, rows)
            except OSError as error:
                _log.error("the status cannot be written", reason=error.strerror)
