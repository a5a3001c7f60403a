"""What is read from files and from Swift's metadata, good and bad."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core.dek_file import FORMAT, DekFileInvalid, WrappedDekFile
from hsmkms.adopters.objectstorage.bucket import BucketDeks, bucket_of, header_of, is_subsidiary, part_of
from hsmkms.adopters.objectstorage.configuration import Account, Configuration
from hsmkms.adopters.objectstorage.retention import Retention, RetentionRefused
from hsmkms.adopters.refusals import ConnectionInvalid

CRN = "crn:v1:bluemix:public:cloud-object-storage:global:a/1f:2e::"
KEY = "crn:v1:bluemix:public:kms:local:a/1f:3d:key:4c"
GOOD = f'[accounts.AUTH_a]\ncrn = "{CRN}"\nconnection = "kms.toml"\n'


@pytest.fixture
def account(tmp_path: Path) -> Account:
    connection = Connection(url="http://127.0.0.1:1", instance_id="3d", api_key_file=tmp_path / "api.key")
    return Account("AUTH_a", CRN, connection, None, {})


def dek(account: Account, bucket: str = "b", dek_id: str = "d1", **members: object) -> WrappedDekFile:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    found = WrappedDekFile(
        kind="bucket",
        resource_crn=account.bucket_crn(bucket),
        dek_id=dek_id,
        key_crn=KEY,
        key_id="4c",
        key_version="v",
        ciphertext="c",
        created_at=now,
        wrapped_at=now,
    )
    return found.model_copy(update=members)


def sysmeta(*deks: WrappedDekFile) -> dict[str, str]:
    found = dict(map(header_of, deks))
    return {name.lower().removeprefix("x-container-sysmeta-"): value for name, value in found.items()}


def test_a_good_file(tmp_path: Path) -> None:
    (tmp_path / "kms.toml").write_text('url = "http://127.0.0.1:1"\ninstance_id = "3d"\napi_key_file = "api.key"\n')
    file = tmp_path / "o.toml"
    file.write_text(
        f'status_file = "s.json"\n{GOOD}[accounts.AUTH_a.users.i]\naccess_key = "a"\nsecret_key_file = "k"\n'
    )
    found = Configuration.read(file)
    assert found.status_file == tmp_path / "s.json"
    here = found.accounts["AUTH_a"]
    assert here.instance_id == "2e"
    assert here.connection.api_key_file == tmp_path / "api.key"
    secret = tmp_path / "k"
    secret.write_text("secret\n")
    with pytest.raises(ConnectionInvalid, match="600"):
        here.users["i"].secret_key()
    secret.chmod(0o600)
    assert here.users["i"].secret_key().reveal() == "secret"
    assert "secret\n" not in repr(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "accounts"),
        ("accounts = 1", "accounts"),
        ("[", "TOML"),
        (f"cache_s = 0\n{GOOD}", "cache_s"),
        (f"cash_s = 1\n{GOOD}", "cash_s"),
        (GOOD.replace("cloud-object-storage", "kms"), "crn"),
        (GOOD.replace("2e::", "2e:bucket:x"), "crn"),
        (f'{GOOD}default_key = "{CRN}"\n', "default_key"),
        (GOOD.replace("kms.toml", "none.toml"), "none.toml"),
        (GOOD + GOOD.replace("AUTH_a", "AUTH_b"), "two accounts"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "kms.toml").write_text('url = "http://127.0.0.1:1"\ninstance_id = "3d"\napi_key_file = "api.key"\n')
    file = tmp_path / "o.toml"
    file.write_text(text)
    with pytest.raises(ConnectionInvalid, match=words):
        Configuration.read(file)


def test_names_of_buckets(account: Account) -> None:
    for name in ("b", "ö b%20:c", "a/b?"):
        crn = account.bucket_crn(name)
        assert crn.isascii()
        assert crn.count(":") == 9
        assert account.bucket_of(crn) == name
    assert account.bucket_of(f"{CRN.removesuffix('2e::')}other:bucket:b") is None
    assert bucket_of("b+segments") == bucket_of("\0versions\0b") == bucket_of("b") == "b"
    assert is_subsidiary("b+segments")
    assert is_subsidiary("\0versions\0b")
    assert not is_subsidiary("b+segments-of-mine")
    part = part_of("dir/o/upload/12")
    assert part is not None
    assert (part.obj, part.upload) == ("dir/o", "dir/o/upload")
    assert part_of("o/upload") is None
    assert part_of("dir/o/upload") is None


def test_deks_of_a_bucket(account: Account) -> None:
    assert BucketDeks.of(account, "b", {"other": "x"}) is None
    first, second = dek(account), dek(account, dek_id="d0", created_at=datetime(2026, 1, 2, tzinfo=UTC))
    for order in ((first, second), (second, first)):
        found = BucketDeks.of(account, "b", sysmeta(*order))
        assert found is not None
        assert found.active.dek_id == "d1"
        assert len(found.deks) == 2
    twin = dek(account, dek_id="d0")
    found = BucketDeks.of(account, "b", sysmeta(first, twin))
    assert found is not None
    assert found.active.dek_id == "d0"
    _, value = header_of(first)
    assert value.isascii()
    assert "\n" not in value


def test_damaged_deks(account: Account) -> None:
    name, value = next(iter(sysmeta(dek(account)).items()))
    for bad in (value[:40], " ", "{}", "[]", "null", value.replace('"c"', "7")):
        with pytest.raises(DekFileInvalid, match="bucket b"):
            BucketDeks.of(account, "b", {name: bad})
    with pytest.raises(DekFileInvalid, match=f"format {FORMAT + 1}"):
        BucketDeks.of(account, "b", {name: value.replace(f'"format":{FORMAT}', f'"format":{FORMAT + 1}')})
    with pytest.raises(DekFileInvalid, match="is that of"):
        BucketDeks.of(account, "other", {name: value})
    with pytest.raises(DekFileInvalid):
        BucketDeks.of(account, "b", {f"{name}0": value})
    with pytest.raises(DekFileInvalid):
        BucketDeks.of(account, "b", {name: value.replace('"kind":"bucket"', '"kind":"volume"')})


def test_retention() -> None:
    policy, now = Retention(1, 2, 3), 1_000_000.0
    assert Retention.stored_in({"hsmkms-retention": policy.text()}) == policy
    assert Retention.stored_in({}) is None
    assert policy.until({}, now) == now + 2 * 86_400
    assert policy.until({"Retention-Period": "86400"}, now) == now + 86_400
    moment = datetime.fromtimestamp(now, UTC) + timedelta(days=3)
    assert policy.until({"Retention-Expiration-Date": moment.isoformat()}, now) == now + 3 * 86_400
    for headers in (
        {"Retention-Period": "86399"},
        {"Retention-Period": "-1"},
        {"Retention-Period": "1e9"},
        {"Retention-Period": "99999999999999999999"},
        {"Retention-Expiration-Date": "tomorrow"},
        {"Retention-Expiration-Date": (moment + timedelta(seconds=1)).isoformat()},
        {"Retention-Period": "86400", "Retention-Expiration-Date": moment.isoformat()},
    ):
        with pytest.raises(RetentionRefused):
            policy.until(headers, now)
    for days in ((2, 1, 3), (1, 2, 1), (-1, 0, 1), (0, 0, 0), (0, 0, 10**9)):
        with pytest.raises(RetentionRefused):
            Retention(*days)
    for text in ("x", "[]", '{"minimum": 1}', '{"minimum": "x", "default": 1, "maximum": 1}'):
        with pytest.raises(RetentionRefused):
            Retention.stored_in({"hsmkms-retention": text})
