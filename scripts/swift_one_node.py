"""One account, container, object and proxy server, memcached and the follower of root keys, for tests and trying out.

One replica, one device, passwords in a file: not for data that anybody wants to keep.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from swift.common.ring import RingBuilder

START_S = 60
PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = {workers}
user = {user}
swift_dir = {directory}
log_address =
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth copy slo dlo versioned_writes \
symlink keymaster encryption proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{cache_port}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:hsmkms#s3api
config = {configuration}
location = us-standard
min_segment_size = {min_segment_size}
[filter:tempauth]
use = egg:swift#tempauth
{users}
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
[filter:keymaster]
use = egg:hsmkms#keymaster
config = {configuration}
[filter:encryption]
use = egg:swift#encryption
"""
INTERNAL = """\
[DEFAULT]
swift_dir = {directory}
[pipeline:main]
pipeline = catch_errors proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
"""
STORAGE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 1
user = {user}
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
log_address =
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""


def main() -> int:
    """Run until SIGTERM or SIGINT, or until a server ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("configuration", type=Path, help="accounts and their root keys (docs/objectstorage.md)")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--min-segment-size", type=int, default=5 << 20, help="of multipart uploads, in bytes")
    parser.add_argument("--user", action="append", help="ACCOUNT:USER:PASSWORD, who may do everything in AUTH_ACCOUNT")
    arguments = parser.parse_args()
    directory = arguments.directory.absolute()
    users = arguments.user or [f"bank:storage:{_password(directory)}"]
    cache_port = _free_port()
    ports = {kind: _free_port() for kind in ("account", "container", "object")}
    _write(directory, arguments, users, ports, cache_port)
    _rings(directory, ports)
    memcached = ["memcached", "-l", "127.0.0.1", "-p", str(cache_port), "-U", "0", "-m", "16", "-u", getpass.getuser()]
    programs = [("memcached", memcached)]
    programs += [
        (kind, [_program(f"swift-{kind}-server"), f"{directory}/{kind}-server.conf", "-v"])
        for kind in (*ports, "proxy")
    ]
    follower = [sys.executable, "-m", "hsmkms.adopters.objectstorage", str(arguments.configuration.absolute())]
    programs.append(("follower", [*follower, f"{directory}/internal-client.conf"]))
    return _run(directory, programs, f"http://127.0.0.1:{arguments.port}", users)


def _write(
    directory: Path, arguments: argparse.Namespace, users: list[str], ports: dict[str, int], cache_port: int
) -> None:
    (directory / "devices" / "d1").mkdir(parents=True, exist_ok=True)
    swift = directory / "swift.conf"
    if not swift.exists():
        # Where an object lies depends on it.
        _put(swift, f"[swift-hash]\nswift_hash_path_suffix = {secrets.token_hex(16)}\n[storage-policy:0]\nname = gold\n"
             "default = yes\n")  # fmt: skip
    common = {"directory": directory, "user": getpass.getuser()}
    for kind, port in ports.items():
        _put(directory / f"{kind}-server.conf", STORAGE.format(kind=kind, port=port, **common))
    lines = []
    for user in users:
        account, name, password = user.split(":")
        lines.append(f"user_{account}_{name} = {password} .admin")
    proxy = PROXY.format(
        port=arguments.port,
        workers=arguments.workers,
        configuration=arguments.configuration.absolute(),
        users="\n".join(lines),
        cache_port=cache_port,
        min_segment_size=arguments.min_segment_size,
        **common,
    )
    _put(directory / "proxy-server.conf", proxy)
    _put(directory / "internal-client.conf", INTERNAL.format(**common))


def _rings(directory: Path, ports: dict[str, int]) -> None:
    for kind, port in ports.items():
        builder = RingBuilder(4, 1, 1)
        place = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "", **place})
        builder.rebalance()
        builder.get_ring().save(str(directory / f"{kind}.ring.gz"))


def _run(directory: Path, programs: list[tuple[str, list[str]]], url: str, users: list[str]) -> int:
    running: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for name, command in programs:
            with (directory / f"{name}.log").open("ab") as log:
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        _wait(url, running)
        print(f"S3 and Swift at {url}; logs in {directory}", flush=True)
        for user in users:
            account, name, _ = user.split(":")
            print(f"HMAC access key {account}:{name}, account AUTH_{account}", flush=True)
        while all(process.poll() is None for process in running):
            time.sleep(0.5)
        ended = [name for (name, _), process in zip(programs, running, strict=True) if process.poll() is not None]
        print(f"{', '.join(ended)} ended; see the logs in {directory}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(url: str, running: list[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and all(process.poll() is None for process in running):
        try:
            with urllib.request.urlopen(f"{url}/healthcheck", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("swift-one-node: the servers did not start; see the logs.")


def _password(directory: Path) -> str:
    """The secret key of the one user, made once."""
    file = directory / "password.json"
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _put(file, json.dumps(secrets.token_hex(20)))
    return str(json.loads(file.read_text()))


def _put(file: Path, text: str) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as writer:
        writer.write(text)


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
