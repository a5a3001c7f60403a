"""Object storage when things break: the key service, an authorization, Swift itself, what Swift stores."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ibm_botocore.exceptions import BotoCoreError, ClientError

from hsmkms.adopters.client import KeyServiceClient
from hsmkms.adopters.connection import Connection
from tests.adopters.objectstorage.conftest import crn_of
from tests.adopters.objectstorage.test_buckets import (
    DATA,
    MARKER,
    PART,
    make,
    multipart,
    read,
    refused,
    registrations,
    works,
)
from tests.support.adopter import STORAGE
from tests.support.certificates import Authority
from tests.support.deployment import Service, State, create_key
from tests.support.iam import Iam
from tests.support.swift import CACHE_S, Swift, wait_until
from tests.support.volumes import act, holds

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def broken(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A key service of these tests alone, which they stop and start; it speaks TLS, which Swift makes green."""
    directory = tmp_path_factory.mktemp("broken")
    authority = Authority(directory, "authority")
    server = authority.server()
    settings = {"HSMKMS_TLS_CERT": str(server.certificate), "HSMKMS_TLS_KEY": str(server.key)}
    state = seed_state.copy_to(directory / "state")
    with Service(state, workers=1, tls_ca=str(authority.file), **settings) as service:
        yield service


@pytest.fixture(scope="module")
def admin(broken: Service) -> Iterator[httpx.Client]:
    with broken.client() as client:
        yield client


@pytest.fixture(scope="module")
def iam(broken: Service) -> Iterator[Iam]:
    with Iam(broken) as iam:
        yield iam


@pytest.fixture(scope="module")
def swift(broken: Service, iam: Iam, admin: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    default = crn_of(admin, create_key(admin))
    with Swift(tmp_path_factory.mktemp("swift") / "cluster", broken, iam, default_key=default) as swift:
        yield swift


@pytest.fixture
def bank(swift: Swift) -> Any:
    return swift.client()


def test_a_disabled_key_stops_reads_within_the_cache(admin: httpx.Client, bank: Any) -> None:
    key = create_key(admin)
    name = make(bank, crn_of(admin, key))
    bank.put_object(Bucket=name, Key="k", Body=b"x")
    act(admin, key, "disable")
    disabled_at = time.monotonic()
    last = 0.0
    while time.monotonic() < disabled_at + CACHE_S + 3:
        if works(bank.get_object, Bucket=name, Key="k"):
            last = time.monotonic() - disabled_at
        time.sleep(0.05)
    # The key service itself takes up to a second to tell its own processes.
    assert last < CACHE_S + 1.5


def test_one_look_up_for_many_readers(admin: httpx.Client, broken: Service, bank: Any) -> None:
    key = create_key(admin)
    name = make(bank, crn_of(admin, key))
    bank.put_object(Bucket=name, Key="k", Body=b"x")

    def unwraps() -> int:
        logs = (broken.state.path / "audit").rglob("*")
        lines = [line for log in logs if log.is_file() for line in log.read_bytes().splitlines()]
        return sum(key.encode() in line and b"unwrap" in line for line in lines)

    time.sleep(CACHE_S)
    began, before = time.monotonic(), unwraps()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: works(bank.get_object, Bucket=name, Key="k"), range(60)))
    turns = 1 + (time.monotonic() - began) / CACHE_S
    assert 1 <= unwraps() - before <= turns


def test_the_key_service_goes_and_comes(admin: httpx.Client, broken: Service, swift: Swift, bank: Any) -> None:
    crn = crn_of(admin, create_key(admin))
    name = make(bank, crn)
    bank.put_object(Bucket=name, Key="k", Body=DATA)
    multipart(bank, name, "parts", [DATA[:PART], DATA[PART:]])
    broken.kill()
    time.sleep(CACHE_S)
    # What was open stays so for a while.
    assert read(bank, name, "k") == DATA == read(bank, name, "parts")
    bank.put_object(Bucket=name, Key="more", Body=DATA)
    status, code, words = refused(make, client=bank, key_crn=crn)
    assert (status, code) == (503, "ServiceUnavailable")
    assert "key service" in words
    # In a process that starts now nothing is.
    swift.__exit__(None, None, None)
    swift.__enter__()
    for call, parameters in ((bank.list_objects_v2, {}), (bank.get_object, {"Key": "k"})):
        assert refused(call, Bucket=name, **parameters)[:2] == (503, "ServiceUnavailable")
    assert refused(bank.put_object, Bucket=name, Key="new", Body=b"x")[0] == 503
    bearer = httpx.get(f"{swift.url}/{name}", headers={"Authorization": f"Bearer {admin.headers['Authorization'][7:]}"})
    assert bearer.status_code == 403
    broken.__enter__()
    wait_until("read again", lambda: works(bank.list_objects_v2, Bucket=name))
    assert read(bank, name, "more") == DATA == read(bank, name, "parts")


def test_killed_while_it_is_written_to(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    key, rotated = create_key(admin), create_key(admin)
    crn = crn_of(admin, key)
    cold = make(bank, crn_of(admin, rotated))
    bank.put_object(Bucket=cold, Key="k", Body=DATA, Metadata={"said": "x"})
    multipart(bank, cold, "parts", [DATA[:PART], DATA[PART:]])
    first = registrations(admin, rotated)[0]["keyVersion"]["id"]
    assert admin.post(f"/keys/{rotated}/actions/rotate", json={}).status_code == 204
    wait_until("rewrapped", lambda: registrations(admin, rotated)[0]["keyVersion"]["id"] != first)
    bank.put_object(Bucket=cold, Key="after", Body=DATA)
    written: list[tuple[str, str]] = []

    def write(number: int) -> None:
        try:
            name = make(bank, crn, f"killed-{number}")
            for turn in range(50):
                bank.put_object(Bucket=name, Key=str(turn), Body=MARKER * 100)
                written.append((name, str(turn)))
        except (ClientError, BotoCoreError):
            pass

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write, number) for number in range(4)]
        wait_until("under way", lambda: len(written) > 20)
        swift.kill()
        for one in running:
            one.result()
    swift.__enter__()
    assert len(written) > 20
    for name, turn in written:
        assert read(bank, name, turn) == MARKER * 100
    buckets = {one["Name"] for one in bank.list_buckets()["Buckets"]}
    registered = {one["resourceCrn"] for one in registrations(admin, key)}
    assert {swift.bank.crn(name) for name in buckets if name.startswith("killed-")} <= registered
    assert not holds(swift.devices, MARKER)
    # What was rewrapped, in processes that never saw its DEK: the listing comes first and needs it as well.
    listed = {one["Key"]: one["ETag"] for one in bank.list_objects_v2(Bucket=cold)["Contents"]}
    assert set(listed) == {"k", "parts", "after"}
    assert listed["k"] == bank.head_object(Bucket=cold, Key="k")["ETag"]
    assert bank.head_object(Bucket=cold, Key="k")["Metadata"] == {"said": "x"}
    assert read(bank, cold, "k") == DATA == read(bank, cold, "parts") == read(bank, cold, "after")


def test_the_authorization_is_taken_away(admin: httpx.Client, iam: Iam, swift: Swift, bank: Any) -> None:
    crn = crn_of(admin, create_key(admin))
    name = make(bank, crn)
    bank.put_object(Bucket=name, Key="k", Body=DATA)
    iam.revoke(swift.bank.authorization)
    wait_until("refused", lambda: not works(bank.get_object, Bucket=name, Key="k"))
    status, code, words = refused(bank.get_object, Bucket=name, Key="k")
    assert (status, code) == (403, "AccessDenied")
    assert "authorization" in words.lower()
    status, _, words = refused(make, client=bank, key_crn=crn)
    assert status == 400
    assert "could not be found" in words
    source = swift.bank.prefix.rsplit(":", 1)[1]
    answer = iam.authorize(STORAGE, swift.service.state.instance_id, serviceInstance=source)
    swift.bank.authorization = str(answer.json()["id"])
    wait_until("read again", lambda: works(bank.get_object, Bucket=name, Key="k"))
    assert read(bank, name, "k") == DATA


def test_what_swift_stores_is_damaged(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    crn = crn_of(admin, create_key(admin))
    name, other = make(bank, crn, "damaged"), make(bank, crn, "whole")
    for bucket in (name, other):
        bank.put_object(Bucket=bucket, Key="k", Body=DATA)

    def spoil(change: str) -> None:
        """Change the wrapped DEK (`old`, beside it that of the other bucket) as Swift's operator can."""
        swift.python(f"""
import json, pathlib
kept = pathlib.Path(sys.argv[1]) / "kept.json"
def deks(bucket):
    headers = client.make_request("HEAD", "/v1/AUTH_bank/" + bucket, {{}}, (2,)).headers
    return {{k: v for k, v in headers.items() if k.startswith("X-Container-Sysmeta-Hsmkms-Dek-")}}
if not kept.exists():
    kept.write_text(json.dumps(deks({name!r})))
name, old = next(iter(json.loads(kept.read_text()).items()))
other = next(iter(deks({other!r}).values()))
client.make_request("POST", "/v1/AUTH_bank/" + {name!r}, {{name: {change}}}, (2,))
""")

    def answers(status: int) -> None:
        # What Swift remembers of containers ends by itself in a minute, or with memcached.
        swift.forget()
        time.sleep(CACHE_S)
        for call, parameters in (
            (bank.get_object, {"Key": "k"}),
            (bank.put_object, {"Key": "new", "Body": b"x"}),
            (bank.list_objects_v2, {}),
        ):
            assert refused(call, Bucket=name, **parameters)[0] == status
        assert read(bank, other, "k") == DATA

    for change in ("old[:100]", "other", "old.replace(json.loads(old)['ciphertext'], json.loads(other)['ciphertext'])"):
        spoil(change)
        answers(500)
    spoil("old")
    swift.forget()
    wait_until("read again", lambda: works(bank.get_object, Bucket=name, Key="k"))
    assert read(bank, name, "k") == DATA
    spoil("'x'")
    swift.forget()
    bank.delete_object(Bucket=name, Key="k")
    bank.delete_bucket(Bucket=name)


def test_the_dek_is_nowhere(admin: httpx.Client, swift: Swift, bank: Any, tmp_path: Path) -> None:
    name = make(bank, crn_of(admin, create_key(admin)))
    bank.put_object(Bucket=name, Key="k", Body=DATA)
    stored = tmp_path / "dek.json"
    swift.python(f"""
import pathlib
headers = client.make_request("HEAD", "/v1/AUTH_bank/" + {name!r}, {{}}, (2,)).headers
found = [v for k, v in headers.items() if k.startswith("X-Container-Sysmeta-Hsmkms-Dek-")]
pathlib.Path({str(stored)!r}).write_text(found[0])
""")
    dek = json.loads(stored.read_text())
    assert dek["resource_crn"] == swift.bank.crn(name)
    crn = dek["resource_crn"]
    aad = ("bucket", dek["dek_id"], *(crn[start : start + 200] for start in range(0, len(crn), 200)))
    with KeyServiceClient(Connection.read(swift.directory / "bank" / "key-service.toml")) as client:
        secret = client.unwrap(dek["key_id"], dek["ciphertext"], aad).plaintext.reveal()
    forms = [secret, secret.hex().encode(), base64.b64encode(secret)]
    api_key = (swift.directory / "bank" / "adopter.key").read_bytes().strip()
    for form in (*forms, api_key):
        assert not holds(swift.node, form)
    processes = swift.processes()
    assert len(processes) >= 6
    guarded = 0
    for pid in processes:
        for part in ("cmdline", "environ"):
            shown = Path(f"/proc/{pid}/{part}").read_bytes()
            assert not any(form in shown for form in (*forms, api_key))
        limits = Path(f"/proc/{pid}/limits").read_text()
        proxy = b"proxy-server" in Path(f"/proc/{pid}/cmdline").read_bytes()
        line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        guarded += proxy and line.split()[4:6] == ["0", "0"]
    assert guarded >= 1


def test_the_status_of_buckets(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    key = create_key(admin)
    crn = crn_of(admin, key)
    resource = swift.bank.crn(make(bank, crn))
    assert admin.post(f"/keys/{key}/actions/rotate", json={}).status_code == 204
    wait_until("seen", lambda: swift.status_file.exists() and resource in swift.status_file.read_text())
    metrics = httpx.get(f"http://127.0.0.1:{swift.metrics_port}/metrics").text
    assert f'hsmkms_adopter_open{{resource="{resource}"}} 1\n' in metrics
    assert httpx.get(f"http://127.0.0.1:{swift.metrics_port}/healthz").status_code == 200
    done = swift.service.state.run("adopt", "status", str(swift.configuration), "--json")
    assert done.returncode == 0, done.stderr
    row = next(row for row in json.loads(done.stdout) if row["resource"] == resource)
    assert (row["condition"], row["key"], row["backend"]) == ("open", crn, "swift")
    assert row["last event"].startswith("rotate")
