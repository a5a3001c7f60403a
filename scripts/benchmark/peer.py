"""The peer: OpenStack Barbican with its PKCS#11 plugin on the same token and on PostgreSQL, one process under uwsgi.

Storing and reading a secret of 32 bytes is what it has for wrap and unwrap: both use the token each time. Policy is on
on both sides, and so is audit, which Barbican writes to a log file without waiting for the disk. There is no Keystone:
a trusted header says who asks, which costs Barbican less than a token would. That it stores a row for each secret is
its design and not an extra; reads are the closer comparison.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import httpx

from scripts.benchmark import report
from scripts.benchmark.target import ROOT, SERVER_CORE, Call, Deployment, Rate, free_port, load
from tests.support.postgresql import PostgresServer

VERSION: Final = "23.0.0"
PLACE: Final = ROOT / ".venv-peer"
CONNECTIONS: Final = 4
"""More only queue before its one process."""
_STARTS_WITHIN_S: Final = 60
_HEADERS: Final = {
    "X-Identity-Status": "Confirmed",
    "X-Project-Id": "bench",
    "X-User-Id": "bench",
    "X-Roles": "member,reader,creator",
    "X-Service-Catalog": "[]",
    "Content-Type": "application/json",
}
_SECRET: Final = (
    '{"payload": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "payload_content_type": "application/octet-stream",'
    ' "payload_content_encoding": "base64", "algorithm": "aes", "bit_length": 256, "mode": "cbc"}'
)
# SoftHSM 2.6.1 refuses CKM_AES_CBC_PAD for wrapping and does not know CKM_AES_KEY_WRAP_KWP.
_CONFIGURATION: Final = """
[DEFAULT]
host_href = http://127.0.0.1:{port}
use_stderr = true
[database]
connection = {database}
[secretstore]
enabled_secretstore_plugins = store_crypto
[crypto]
enabled_crypto_plugins = p11_crypto
[p11_crypto_plugin]
library_path = {module}
token_labels = hsmkms
login = {pin}
mkek_label = bench_mkek
mkek_length = 32
hmac_label = bench_hmac
hmac_key_type = CKK_GENERIC_SECRET
hmac_keygen_mechanism = CKM_GENERIC_SECRET_KEY_GEN
hmac_mechanism = CKM_SHA256_HMAC
encryption_mechanism = CKM_AES_GCM
aes_gcm_generate_iv = true
key_wrap_mechanism = CKM_AES_KEY_WRAP_PAD
key_wrap_generate_iv = false
[audit_middleware_notifications]
driver = log
"""
# The shipped pipeline without authentication breaks in this version (it asks for a request id that nobody made).
_PASTE: Final = """
[composite:main]
use = egg:Paste#urlmap
/v1: api
[pipeline:api]
pipeline = context audit app
[app:app]
paste.app_factory = barbican.api.app:create_main_app
[filter:context]
paste.filter_factory = barbican.api.middleware.context:ContextMiddleware.factory
[filter:audit]
paste.filter_factory = keystonemiddleware.audit:filter_factory
audit_map_file = {place}/audit_map.conf
"""
# This version gives bytes to text columns; psycopg2 writes them as PostgreSQL writes a bytea, and reading them back
# ends in a 500. The columns that hold bytes have SQLAlchemy's own type and are not touched by this.
_BYTES_AS_TEXT: Final = """
import psycopg2.extensions
psycopg2.extensions.register_adapter(bytes, lambda value: psycopg2.extensions.QuotedString(value.decode()))
"""
_AUDIT_MAP: Final = """
[DEFAULT]
target_endpoint_type = key-manager
[path_keywords]
secrets = secret
[service_endpoints]
key-manager = service/security/keymanager
"""


def measure(place: Path, ours: Deployment, rounds: int, seconds: float) -> object:
    """Both on one core, in turns: store and read against wrap and unwrap."""
    _install()
    server = PostgresServer.start()
    process = None
    try:
        url, process = _serve(place, ours, server)
        headers = {**_HEADERS}
        stored = httpx.post(f"{url}/v1/secrets", content=_SECRET, headers=headers)
        if stored.status_code != 201:
            raise SystemExit(f"bench: Barbican does not store a secret\n{_log_of(place)}")
        path = httpx.URL(stored.json()["secret_ref"]).path
        read = {name: value for name, value in headers.items() if name != "Content-Type"}
        store = Call("/v1/secrets", _SECRET, headers)
        fetch = Call(f"{path}/payload", "", {**read, "Accept": "application/octet-stream"}, method="GET")
        pairs = {"Barbican store": (store, "wrap"), "Barbican read": (fetch, "unwrap")}
        if not httpx.get(f"{url}{fetch.path}", headers=fetch.headers).is_success:
            raise SystemExit(f"bench: Barbican does not read a secret\n{_log_of(place)}")
        rates: dict[str, list[Rate]] = {name: [] for kind, (_, action) in pairs.items() for name in (kind, action)}
        for _ in range(rounds):
            for name, (call, action) in pairs.items():
                rates[name].append(load(url, call, seconds, CONNECTIONS))
                rates[action].append(ours.http(action, seconds, CONNECTIONS))
    finally:
        if process is not None:
            process.kill()
            process.wait()
        server.stop()
    report.show(f"Barbican {VERSION} and hsmkms, {CONNECTIONS} connections, one process on one core each", rates, {})
    return report.plain(rates)


def _install() -> None:
    if (PLACE / "bin" / "barbican-manage").exists():
        return
    print(f"installing Barbican {VERSION} into {PLACE}", flush=True)
    shutil.rmtree(PLACE, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True)
    packages = [f"barbican=={VERSION}", "uwsgi", "psycopg2-binary"]
    subprocess.run([str(PLACE / "bin" / "pip"), "install", "--quiet", *packages], check=True)


def _serve(place: Path, ours: Deployment, server: PostgresServer) -> tuple[str, subprocess.Popen[bytes]]:
    home = place / "barbican"
    # Where oslo.config looks by itself.
    configuration = home / ".barbican" / "barbican.conf"
    configuration.parent.mkdir(parents=True)
    port = free_port()
    database = "postgresql+psycopg2://" + server.new_database("barbican").partition("://")[2]
    values: dict[str, Any] = {
        "place": home,
        "port": port,
        "database": database,
        "module": ours.module,
        "pin": (ours.path / "pin").read_text().strip(),
    }
    configuration.write_text(_CONFIGURATION.format(**values))
    configuration.chmod(0o600)
    (home / "paste.ini").write_text(_PASTE.format(**values))
    (home / "audit_map.conf").write_text(_AUDIT_MAP)
    (home / "sitecustomize.py").write_text(_BYTES_AS_TEXT)
    environment = {
        **os.environ,
        "SOFTHSM2_CONF": str(ours.path / "softhsm2.conf"),
        "HOME": str(home),
        "PYTHONPATH": str(home),
        "PATH": f"{PLACE / 'bin'}:{os.environ['PATH']}",
    }
    manage = [str(PLACE / "bin" / "barbican-manage"), "--config-file", str(configuration)]
    for command in (["db", "upgrade"], ["hsm", "gen_mkek"], ["hsm", "gen_hmac"]):
        subprocess.run([*manage, *command], env=environment, check=True, cwd=home, stdout=subprocess.DEVNULL)
    uwsgi = [str(PLACE / "bin" / "uwsgi"), "--http11-socket", f"127.0.0.1:{port}", "--master", "--processes", "1"]
    uwsgi += ["--lazy-apps", "--need-app", "--disable-logging", "--buffer-size", "32768"]
    uwsgi += ["--paste", f"config:{home / 'paste.ini'}", "--die-on-term"]
    log = (home / "uwsgi.log").open("wb")
    process = subprocess.Popen(
        ["taskset", "-c", SERVER_CORE, *uwsgi], env=environment, cwd=home, stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/v1/secrets", headers=_HEADERS, timeout=_STARTS_WITHIN_S).status_code == 200:
                return url, process
        except httpx.TransportError:
            time.sleep(0.1)
    process.kill()
    raise SystemExit(f"bench: Barbican did not start\n{_log_of(place)}")


def _log_of(place: Path) -> str:
    return (place / "barbican" / "uwsgi.log").read_text()[-3_000:]
