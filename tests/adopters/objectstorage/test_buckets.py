"""Buckets under root keys: IBM's SDK against Swift, beside the real key service."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import os
import uuid
from datetime import timedelta
from typing import Any

import httpx
import jwt
import pytest
from ibm_botocore.exceptions import ClientError

from hsmkms.store import engine
from tests.adopters.objectstorage.conftest import crn_of
from tests.api.backstage import age
from tests.support.deployment import Service, create_key
from tests.support.iam import Iam, log_in
from tests.support.swift import PASSWORD, Swift, wait_until
from tests.support.volumes import act, holds

MARKER = b"what-must-not-be-found-on-a-disk"
DATA = MARKER * 4000
PART = 64 << 10


def bucket() -> str:
    """A fresh name."""
    return f"bucket-{uuid.uuid4()}"


def make(client: Any, key_crn: str, name: str | None = None) -> str:
    """A bucket under a root key; its name."""
    name = name or bucket()
    client.create_bucket(Bucket=name, IBMSSEKPEncryptionAlgorithm="AES256", IBMSSEKPCustomerRootKeyCrn=key_crn)
    return name


def refused(call: Any, **parameters: Any) -> tuple[int, str, str]:
    """Status, code and message of a call that must fail."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    error = caught.value.response
    return error["ResponseMetadata"]["HTTPStatusCode"], error["Error"]["Code"], error["Error"].get("Message", "")


def works(call: Any, **parameters: Any) -> bool:
    try:
        call(**parameters)
    except ClientError:
        return False
    return True


def read(client: Any, name: str, key: str, **extra: Any) -> bytes:
    return bytes(client.get_object(Bucket=name, Key=key, **extra)["Body"].read())


def multipart(client: Any, name: str, key: str, parts: list[bytes]) -> None:
    upload = client.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
    done = []
    for number, part in enumerate(parts, 1):
        etag = client.upload_part(Bucket=name, Key=key, UploadId=upload, PartNumber=number, Body=part)["ETag"]
        done.append({"PartNumber": number, "ETag": etag})
    client.complete_multipart_upload(Bucket=name, Key=key, UploadId=upload, MultipartUpload={"Parts": done})


def registrations(admin: httpx.Client, key: str) -> list[dict[str, Any]]:
    answer = admin.get(f"/keys/{key}/registrations")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json().get("resources") or []
    return found


def acknowledged(admin: httpx.Client, key: str, kind: str, state: str) -> bool:
    events = admin.get(f"/keys/{key}/events").json()["resources"]
    return any(event["eventType"] == kind and event.get("adopterKeyState") == state for event in events)


@pytest.mark.parametrize("origin", ["created", pytest.param("imported", marks=pytest.mark.slow)])
def test_the_guide(admin: httpx.Client, service: Service, swift: Swift, bank: Any, origin: str) -> None:
    def material() -> dict[str, str]:
        return {} if origin == "created" else {"payload": base64.b64encode(os.urandom(32)).decode()}

    key = create_key(admin, "storage", **material())
    name = make(bank, crn_of(admin, key))
    assert [found["resourceCrn"] for found in registrations(admin, key)] == [swift.bank.crn(name)]
    bank.put_object(Bucket=name, Key="in one", Body=DATA)
    multipart(bank, name, "in parts", [DATA[:PART], DATA[PART:]])

    rotated = admin.post(f"/keys/{key}/actions/rotate", json=material())
    assert rotated.status_code == 204, rotated.text
    versions = admin.get(f"/keys/{key}/versions").json()["resources"]
    newest = max(versions, key=lambda version: version["creationDate"])["id"]
    wait_until("rewrapped", lambda: registrations(admin, key)[0]["keyVersion"]["id"] == newest)
    wait_until("rotation acknowledged", lambda: acknowledged(admin, key, "rotate", "DEK_ENABLED"))
    assert read(bank, name, "in one") == DATA

    act(admin, key, "disable")
    wait_until("refused", lambda: not works(read, client=bank, name=name, key="in one"))
    assert refused(read, client=bank, name=name, key="in parts")[:2] == (403, "AccessDenied")
    wait_until("disabling acknowledged", lambda: acknowledged(admin, key, "disable", "DEK_DISABLED"))

    database = engine.Database(service.database_url)
    age(database, key, disabled_at=timedelta(minutes=1))
    database.close()
    act(admin, key, "enable")
    wait_until("read again", lambda: works(read, client=bank, name=name, key="in one"))
    wait_until("enabling acknowledged", lambda: acknowledged(admin, key, "enable", "DEK_ENABLED"))
    assert read(bank, name, "in one") == DATA == read(bank, name, "in parts")

    blocked = admin.delete(f"/keys/{key}")
    assert blocked.status_code == 409, blocked.text
    assert name in blocked.text
    assert read(bank, name, "in one") == DATA
    assert admin.delete(f"/keys/{key}", params={"force": "true"}).status_code == 204
    wait_until("gone", lambda: not works(read, client=bank, name=name, key="in one"))
    wait_until("deletion acknowledged", lambda: acknowledged(admin, key, "delete", "DEK_DELETED"))
    for lost in ("in one", "in parts"):
        assert refused(read, client=bank, name=name, key=lost)[0] == 403
        bank.delete_object(Bucket=name, Key=lost)
    bank.delete_bucket(Bucket=name)
    wait_until("deregistered", lambda: not registrations(admin, key))


def test_what_a_bucket_says_of_its_key(admin: httpx.Client, swift: Swift, bank: Any, default_key: str) -> None:
    crn = crn_of(admin, create_key(admin))
    name, plain = make(bank, crn), bucket()
    head = bank.head_bucket(Bucket=name)
    assert (head["IBMSSEKPEnabled"], head["IBMSSEKPCrkId"]) == (True, crn)
    raw = head["ResponseMetadata"]["HTTPHeaders"]
    assert raw["ibm-sse-kp-enabled"] == "true"
    assert raw["ibm-sse-kp-customer-root-key-crn"] == crn
    listed = bank.list_objects(Bucket=name)
    assert (listed["IBMSSEKPEnabled"], listed["IBMSSEKPCrkId"]) == (True, crn)
    bank.create_bucket(Bucket=plain)
    assert "IBMSSEKPEnabled" not in bank.head_bucket(Bucket=plain)
    other = swift.client("other")
    other.create_bucket(Bucket=plain)
    assert other.head_bucket(Bucket=plain)["IBMSSEKPCrkId"] == default_key
    stranger = swift.client("plain")
    assert refused(stranger.head_bucket, Bucket=name)[0] == 404
    assert refused(make, client=stranger, key_crn=crn)[:2] == (400, "InvalidRequest")


def test_a_root_key_that_will_not_do(admin: httpx.Client, service: Service, iam: Iam, swift: Swift, bank: Any) -> None:
    good = crn_of(admin, create_key(admin))
    front, key = good.rsplit(":key:", 1)
    parts = good.split(":")
    elsewhere = iam.instance()
    there = iam.http.base_url, log_in(service, service.state.api_key)
    with httpx.Client(
        base_url=f"{there[0]}/api/v2", headers={"Authorization": f"Bearer {there[1]}", "Bluemix-Instance": elsewhere}
    ) as client:
        unauthorized = crn_of(client, create_key(client))
    not_found = [
        f"{front}:key:{uuid.uuid4()}",
        unauthorized,
        ":".join([*parts[:6], "a/0123456789abcdef0123456789abcdef", *parts[7:]]),
        ":".join([*parts[:7], str(uuid.uuid4()), *parts[8:]]),
        good.replace(":local:", ":elsewhere:"),
        key,
        f"{good}:",
        "crn:v1:bluemix:public:cloud-object-storage:global:a/x:y:bucket:z",
        "x" * 3000,
    ]
    for crn in not_found:
        status, code, words = refused(make, client=bank, key_crn=crn)
        assert (status, code) == (400, "InvalidRequest"), crn
        assert "key CRN could not be found" in words
    standard = crn_of(admin, create_key(admin, extractable=True))
    suspended = create_key(admin)
    suspended_crn = crn_of(admin, suspended)
    act(admin, suspended, "disable")
    for crn in (standard, suspended_crn):
        assert refused(make, client=bank, key_crn=crn)[:2] == (400, "InvalidRequest")
    name = bucket()
    assert refused(bank.create_bucket, Bucket=name, IBMSSEKPCustomerRootKeyCrn=good)[0] == 400
    assert refused(bank.create_bucket, Bucket=name, IBMSSEKPEncryptionAlgorithm="AES256")[0] == 400
    wrong = {"IBMSSEKPEncryptionAlgorithm": "AES128", "IBMSSEKPCustomerRootKeyCrn": good}
    assert refused(bank.create_bucket, Bucket=name, **wrong)[0] == 400
    assert refused(bank.head_bucket, Bucket=name)[0] == 404
    assert not registrations(admin, key)


def test_a_key_is_for_ever(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    first, second = create_key(admin), create_key(admin)
    name = make(bank, crn_of(admin, first))
    bank.put_object(Bucket=name, Key="k", Body=DATA)
    again = refused(make, client=bank, key_crn=crn_of(admin, second), name=name)
    assert again[:2] == (409, "BucketAlreadyOwnedByYou")
    assert refused(bank.create_bucket, Bucket=name)[0] == 409
    assert bank.head_bucket(Bucket=name)["IBMSSEKPCrkId"] == crn_of(admin, first)
    assert read(bank, name, "k") == DATA
    assert not registrations(admin, second)
    plain = bucket()
    bank.create_bucket(Bucket=plain)
    assert refused(make, client=bank, key_crn=crn_of(admin, second), name=plain)[0] == 409
    assert "IBMSSEKPEnabled" not in bank.head_bucket(Bucket=plain)


def test_many_make_the_same_bucket_at_once(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    keys = [create_key(admin) for _ in range(4)]
    crns, name = [crn_of(admin, key) for key in keys], bucket()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda crn: works(make, client=bank, key_crn=crn, name=name), crns * 2))
    assert done.count(True) == 1
    assert bank.head_bucket(Bucket=name)["IBMSSEKPCrkId"] == crns[done.index(True) % 4]
    bank.put_object(Bucket=name, Key="k", Body=DATA)
    assert read(bank, name, "k") == DATA
    assert sum(len(registrations(admin, key)) for key in keys) == 1


def test_a_deleted_bucket_leaves_nothing(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    first, second = create_key(admin), create_key(admin)
    name = make(bank, crn_of(admin, first))
    bank.put_object(Bucket=name, Key="k", Body=DATA)
    assert refused(bank.delete_bucket, Bucket=name)[0] == 409
    assert registrations(admin, first)
    bank.delete_object(Bucket=name, Key="k")
    bank.delete_bucket(Bucket=name)
    make(bank, crn_of(admin, second), name)
    wait_until("deregistered", lambda: not registrations(admin, first))
    assert registrations(admin, second)
    bank.put_object(Bucket=name, Key="k", Body=DATA)
    assert read(bank, name, "k") == DATA
    bank.delete_object(Bucket=name, Key="k")
    bank.delete_bucket(Bucket=name)
    make(bank, crn_of(admin, second), name)
    assert registrations(admin, second)
    bank.delete_bucket(Bucket=name)
    bank.create_bucket(Bucket=name)
    assert "IBMSSEKPEnabled" not in bank.head_bucket(Bucket=name)
    wait_until("deregistered", lambda: not registrations(admin, second))


def test_nothing_is_on_the_disks_in_clear(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    marker = uuid.uuid4().hex.encode() * 8
    name, plain = make(bank, crn_of(admin, create_key(admin))), bucket()
    bank.create_bucket(Bucket=plain)
    bank.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    for number in range(2):
        bank.put_object(Bucket=name, Key="versioned", Body=marker * (number + 1), Metadata={"said": marker.decode()})
    multipart(bank, name, "parts", [marker * 300, marker])
    upload = bank.create_multipart_upload(Bucket=name, Key="unfinished")["UploadId"]
    bank.upload_part(Bucket=name, Key="unfinished", UploadId=upload, PartNumber=1, Body=marker * 9)
    assert not holds(swift.devices, marker)
    bank.copy_object(Bucket=plain, Key="copy", CopySource={"Bucket": name, "Key": "parts"})
    assert holds(swift.devices, marker)
    assert read(bank, plain, "copy") == marker * 301


def test_disabled_is_everything(admin: httpx.Client, service: Service, swift: Swift, bank: Any) -> None:
    key = create_key(admin)
    name, other = make(bank, crn_of(admin, key)), make(bank, crn_of(admin, create_key(admin)))
    bank.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    for body in (b"old", DATA):
        bank.put_object(Bucket=name, Key="k", Body=body)
    old = bank.list_object_versions(Bucket=name, Prefix="k")["Versions"][-1]["VersionId"]
    assert read(bank, name, "k", VersionId=old) == b"old"
    bank.put_object(Bucket=other, Key="k", Body=b"other")
    multipart(bank, name, "parts", [DATA[:PART], DATA[PART:]])
    upload = bank.create_multipart_upload(Bucket=name, Key="unfinished")["UploadId"]
    act(admin, key, "disable")
    wait_until("refused", lambda: not works(read, client=bank, name=name, key="k"))
    here = {"Bucket": name, "Key": "k"}
    part = {"Bucket": name, "Key": "unfinished", "UploadId": upload, "PartNumber": 1}
    for call, parameters in (
        (bank.get_object, here),
        (bank.get_object, {**here, "VersionId": old}),
        (bank.head_object, here),
        (bank.put_object, {**here, "Body": b"x"}),
        (bank.get_object, {**here, "Key": "parts"}),
        (bank.upload_part, {**part, "Body": b"x"}),
        (bank.copy_object, {"Bucket": other, "Key": "copy", "CopySource": here}),
        (bank.copy_object, {**here, "CopySource": {"Bucket": other, "Key": "k"}}),
        (bank.create_multipart_upload, here),
        (bank.list_objects_v2, {"Bucket": name}),
        (bank.list_object_versions, {"Bucket": name}),
        (bank.list_multipart_uploads, {"Bucket": name}),
    ):
        status, code, words = refused(call, **parameters)
        assert status == 403, (call, parameters)
        # An answer to HEAD has no body to say more in.
        assert code == "403" or "KEY_ACTION_INVALID_STATE_ERR" in words, (call, words)
    token = httpx.get(f"{swift.url}/auth/v1.0", headers={"X-Auth-User": "bank:storage", "X-Auth-Key": PASSWORD})
    url, sent = token.headers["X-Storage-Url"], {"X-Auth-Token": token.headers["X-Auth-Token"]}
    for method in ("GET", "POST"):
        # Only what deletes may look past encryption, and it may not write.
        answer = httpx.request(method, f"{url}/{name}/parts?delete", headers={**sent, "X-Object-Meta-Said": "x"})
        assert answer.status_code == 403, answer.text
    assert read(bank, other, "k") == b"other"
    assert bank.head_bucket(Bucket=name)["IBMSSEKPEnabled"]


def test_retention(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    key = create_key(admin)
    name, free = make(bank, crn_of(admin, key)), bucket()
    bank.create_bucket(Bucket=free)
    bank.put_object(Bucket=name, Key="before", Body=b"x")
    policy = {"Status": "Retention", **{f"{one}Retention": {"Days": days} for one, days in _DAYS.items()}}
    assert "ProtectionConfiguration" not in bank.get_bucket_protection_configuration(Bucket=name) or not (
        bank.get_bucket_protection_configuration(Bucket=name)["ProtectionConfiguration"].get("Status")
    )
    assert not registrations(admin, key)[0]["preventKeyDeletion"]
    for wrong in (
        {**policy, "DefaultRetention": {"Days": 9}},
        {**policy, "MinimumRetention": {"Days": -1}},
        {**policy, "Status": "None"},
        {**policy, "EnablePermanentRetention": True},
    ):
        assert (
            refused(bank.put_bucket_protection_configuration, Bucket=name, ProtectionConfiguration=wrong)[0] == 400
        ), wrong
    stranger = swift.client("other")
    assert refused(stranger.put_bucket_protection_configuration, Bucket=name, ProtectionConfiguration=policy)[0] == 404
    bank.put_bucket_protection_configuration(Bucket=name, ProtectionConfiguration=policy)
    assert bank.get_bucket_protection_configuration(Bucket=name)["ProtectionConfiguration"] == policy
    assert registrations(admin, key)[0]["preventKeyDeletion"]
    assert admin.delete(f"/keys/{key}", params={"force": "true"}).status_code == 409

    bank.put_object(Bucket=name, Key="kept", Body=DATA)
    multipart(bank, name, "parts", [DATA[:PART], DATA[PART:]])
    bank.copy_object(Bucket=name, Key="copy", CopySource={"Bucket": name, "Key": "before"})
    for kept in ("kept", "parts", "copy"):
        assert refused(bank.delete_object, Bucket=name, Key=kept)[0] == 403
        code, words = refused(bank.put_object, Bucket=name, Key=kept, Body=b"y")[1:]
        assert (code, "kept until" in words) == ("AccessDenied", True)
    failed = bank.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "kept"}, {"Key": "parts"}]})
    assert len(failed["Errors"]) == 2
    assert not failed.get("Deleted")
    token = httpx.get(f"{swift.url}/auth/v1.0", headers={"X-Auth-User": "bank:storage", "X-Auth-Key": PASSWORD})
    account, sent = token.headers["X-Storage-Url"], {"X-Auth-Token": token.headers["X-Auth-Token"]}
    for method, path, more in (
        ("DELETE", f"{name}/kept", {}),
        ("DELETE", f"{name}/parts?multipart-manifest=delete", {}),
        ("DELETE", f"{name}/parts?multipart-manifest=delete&async=on", {}),
        ("POST", f"{name}/kept", {"X-Delete-After": "1"}),
    ):
        answer = httpx.request(method, f"{account}/{path}", headers={**sent, **more})
        # Deleting a large object answers 200 and says in the body what was not done.
        assert not answer.is_success or "Number Deleted: 0" in answer.text, (path, answer.text)
    for part in httpx.get(f"{account}/{name}%2Bsegments", headers=sent).text.splitlines():
        assert httpx.delete(f"{account}/{name}%2Bsegments/{part}", headers=sent).status_code == 403
    assert read(bank, name, "kept") == DATA == read(bank, name, "parts")

    versioned = {"Status": "Enabled"}
    assert not works(bank.put_bucket_versioning, Bucket=name, VersioningConfiguration=versioned)
    bank.put_bucket_versioning(Bucket=free, VersioningConfiguration=versioned)
    assert not works(bank.put_bucket_protection_configuration, Bucket=free, ProtectionConfiguration=policy)
    bank.put_bucket_versioning(Bucket=free, VersioningConfiguration={"Status": "Suspended"})
    plain = swift.client("plain")
    plain.create_bucket(Bucket=name)
    assert refused(plain.put_bucket_protection_configuration, Bucket=name, ProtectionConfiguration=policy)[0] == 400

    bank.delete_object(Bucket=name, Key="before")
    upload = bank.create_multipart_upload(Bucket=name, Key="other")["UploadId"]
    for _ in range(2):
        bank.upload_part(Bucket=name, Key="other", UploadId=upload, PartNumber=1, Body=DATA)
    bank.abort_multipart_upload(Bucket=name, Key="other", UploadId=upload)
    bank.put_object(Bucket=name, Key="brief", Body=b"x", RetentionPeriod=0)
    bank.delete_object(Bucket=name, Key="brief")
    assert refused(bank.put_object, Bucket=name, Key="long", Body=b"x", RetentionPeriod=8 * 86_400)[0] == 400
    bank.copy_object(Bucket=free, Key="free", CopySource={"Bucket": name, "Key": "kept"})
    bank.delete_object(Bucket=free, Key="free")


_DAYS = {"Minimum": 0, "Default": 1, "Maximum": 7}


def test_copies_between_root_keys(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    keys = [create_key(admin) for _ in range(2)]
    first, second = (make(bank, crn_of(admin, key)) for key in keys)
    bank.put_object(Bucket=first, Key="k", Body=DATA, Metadata={"said": "something"})
    bank.copy_object(Bucket=second, Key="k", CopySource={"Bucket": first, "Key": "k"})
    upload = bank.create_multipart_upload(Bucket=second, Key="assembled")["UploadId"]
    parts = []
    for number, (begin, end) in enumerate([(0, PART - 1), (PART, len(DATA) - 1)], 1):
        copied = bank.upload_part_copy(
            Bucket=second,
            Key="assembled",
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": first, "Key": "k"},
            CopySourceRange=f"bytes={begin}-{end}",
        )
        parts.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
    bank.complete_multipart_upload(Bucket=second, Key="assembled", UploadId=upload, MultipartUpload={"Parts": parts})
    act(admin, keys[0], "disable")
    wait_until("refused", lambda: not works(read, client=bank, name=first, key="k"))
    assert read(bank, second, "k") == DATA == read(bank, second, "assembled")
    assert bank.head_object(Bucket=second, Key="k")["Metadata"] == {"said": "something"}


def test_as_in_plain_swift(admin: httpx.Client, swift: Swift, bank: Any) -> None:
    sides = []
    for client, name in ((bank, make(bank, crn_of(admin, create_key(admin)))), (swift.client("plain"), bucket())):
        if client is not bank:
            client.create_bucket(Bucket=name)
        sides.append(_side(client, name))
    assert sides[0] == sides[1]


def _side(client: Any, name: str) -> list[Any]:
    """Everything that can be seen of a bucket's objects; two buckets that were treated alike are to be alike."""
    seen: list[Any] = []
    for key, body in (("a", DATA), ("empty", b""), ("dir/ö b%20c+d", b"x"), ("dir/e", bytes(range(256)) * 5000)):
        put = client.put_object(Bucket=name, Key=key, Body=io.BytesIO(body), Metadata={"m": key.encode().hex()})
        seen.append(put["ETag"])
    multipart(client, name, "large", [DATA[:PART], DATA[PART:], b"end"])
    for key in ("a", "empty", "dir/ö b%20c+d", "dir/e", "large"):
        got = client.get_object(Bucket=name, Key=key)
        head = client.head_object(Bucket=name, Key=key)
        seen.append([got["Body"].read(), *(got[part] for part in ("ETag", "ContentLength", "Metadata", "ContentType"))])
        seen.append([head[part] for part in ("ETag", "ContentLength", "Metadata")])
        if key == "empty":
            continue
        for span in ("bytes=0-0", "bytes=3-9", "bytes=-5", f"bytes={PART - 3}-{PART + 3}", "bytes=0-2,7-9"):
            try:
                got = client.get_object(Bucket=name, Key=key, Range=span)
            except ClientError as error:
                seen.append(error.response["Error"]["Code"])
            else:
                boundary = got["ContentType"].partition("boundary=")[2].encode()
                body = got["Body"].read()
                seen.append([body.replace(boundary, b"") if boundary else body, got.get("ContentRange")])
        etag = got["ETag"]
        seen.append(client.get_object(Bucket=name, Key=key, IfMatch=etag)["ETag"])
        for condition in ({"IfMatch": '"0"'}, {"IfNoneMatch": etag}):
            seen.append(refused(client.get_object, Bucket=name, Key=key, **condition)[:2])
    seen.append(refused(client.get_object, Bucket=name, Key="none")[:2])
    seen.append(
        refused(client.put_object, Bucket=name, Key="bad", Body=b"x", ContentMD5="AAAAAAAAAAAAAAAAAAAAAA==")[:2]
    )
    for page in (
        client.list_objects(Bucket=name),
        client.list_objects_v2(Bucket=name, Delimiter="/"),
        client.list_objects_v2(Bucket=name, Prefix="dir/", MaxKeys=1),
    ):
        contents = [(one["Key"], one["ETag"], one["Size"]) for one in page.get("Contents", [])]
        seen.append([contents, page.get("CommonPrefixes"), page["IsTruncated"]])
    client.copy_object(
        Bucket=name,
        Key="copy",
        CopySource={"Bucket": name, "Key": "large"},
        Metadata={"n": "1"},
        MetadataDirective="REPLACE",
    )
    seen.append([client.head_object(Bucket=name, Key="copy")[part] for part in ("ContentLength", "Metadata")])
    seen.append(refused(client.delete_bucket, Bucket=name)[:2])
    keys = [{"Key": one["Key"]} for one in client.list_objects_v2(Bucket=name)["Contents"]]
    deleted = client.delete_objects(Bucket=name, Delete={"Objects": keys})
    seen.append([sorted(one["Key"] for one in deleted["Deleted"]), deleted.get("Errors")])
    client.delete_bucket(Bucket=name)
    return seen


def test_api_keys(admin: httpx.Client, iam: Iam, swift: Swift, bank: Any) -> None:
    client, crn = swift.token_client(swift.person.api_key), crn_of(admin, create_key(admin))
    name = make(client, crn)
    assert client.head_bucket(Bucket=name)["IBMSSEKPCrkId"] == crn
    client.put_object(Bucket=name, Key="dir/ö b%20c+d", Body=DATA, Metadata={"said": "hello"})
    multipart(client, name, "parts", [DATA[:PART], DATA[PART:]])
    assert read(client, name, "dir/ö b%20c+d", Range="bytes=5-9") == DATA[5:10]
    assert read(client, name, "parts") == DATA == read(bank, name, "dir/ö b%20c+d")
    client.copy_object(Bucket=name, Key="copy", CopySource={"Bucket": name, "Key": "parts"})
    assert [one["Key"] for one in client.list_objects_v2(Bucket=name)["Contents"]] == ["copy", "dir/ö b%20c+d", "parts"]
    assert name in [one["Name"] for one in client.list_buckets()["Buckets"]]
    assert not client.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "copy"}]}).get("Errors")
    stranger = swift.token_client(iam.somebody().api_key)
    assert refused(read, client=stranger, name=name, key="parts")[:2] == (403, "AccessDenied")
    for wrong in (str(uuid.uuid4()), "x"):
        elsewhere = swift.token_client(swift.person.api_key, wrong)
        assert refused(elsewhere.list_buckets)[0] == 403
        assert refused(make, client=elsewhere, key_crn=crn)[0] == 403


def test_tokens_that_are_none(swift: Swift, service: Service, bank: Any) -> None:
    name = bucket()
    bank.create_bucket(Bucket=name)
    token = log_in(service, swift.person.api_key)
    head, body, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    forged = [
        "x",
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}AAAA",
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode(
            claims,
            "a secret that is long enough for HS256",
            algorithm="HS256",
            headers=jwt.get_unverified_header(token) | {"alg": "HS256"},
        ),
        f"AWS4 {token}",
    ]
    for text in forged:
        answer = httpx.get(f"{swift.url}/{name}", headers={"Authorization": f"Bearer {text}"})
        assert answer.status_code == 403, text
        assert "<Code>AccessDenied</Code>" in answer.text
    good = httpx.get(f"{swift.url}/{name}", headers={"Authorization": f"bearer {token}"})
    assert good.status_code == 200, good.text
    assert PASSWORD not in good.text + str(good.headers)
    wrong = swift.client("bank", aws_session_token=None)
    wrong._request_signer._credentials.secret_key = "wrong"
    assert refused(wrong.list_buckets)[:2] == (403, "SignatureDoesNotMatch")
