"""KMS v2 and v1beta1 over the socket: what is encrypted comes back, what is wrong is refused in words."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from tests.adopters.kubernetes.conftest import Cluster
from tests.support.deployment import ROOT, create_key
from tests.support.kms_plugin import Encrypted, Kms, KmsPlugin, KmsV1beta1, refused

DEK = bytes(range(32))
DOMAIN_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+")
INVALID = grpc.StatusCode.INVALID_ARGUMENT
DEK_ID = "dek-id.kms.hsmkms.internal"


@pytest.fixture(scope="module")
def plugin(quiet_cluster: Cluster) -> KmsPlugin:
    return quiet_cluster.start("--v1beta1")


@pytest.fixture(scope="module")
def kms(plugin: KmsPlugin) -> Iterator[Kms]:
    with plugin.client() as client:
        yield client


@pytest.fixture(scope="module")
def sealed(kms: Kms) -> Encrypted:
    return kms.encrypt(DEK)


def trail_of(cluster: Cluster) -> bytes:
    """The key service's audit logs."""
    files = (cluster.service.state.path / "audit").rglob("*")
    return b"".join(file.read_bytes() for file in files if file.is_file())


def test_the_generated_modules_are_those_of_the_definition(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts" / "grpc", tmp_path], check=True)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2.py*"))
    assert len(made) == 4
    for path in made:
        assert (tmp_path / path).read_text() == (ROOT / path).read_text()


def test_a_dek_comes_back(kms: Kms, quiet_cluster: Cluster) -> None:
    healthz, key_id = kms.status()
    assert healthz == "ok"
    assert key_id == f"{quiet_cluster.key}:{quiet_cluster.version}"
    one, other = kms.encrypt(DEK), kms.encrypt(DEK)
    assert one.key_id == other.key_id == key_id
    assert one.ciphertext != other.ciphertext
    assert DEK not in one.ciphertext
    assert kms.decrypt(one) == kms.decrypt(other) == DEK


@pytest.mark.parametrize("size", [1, 7, 8, 31, 32, 33, 320])
def test_every_size_stays_within_the_limits(kms: Kms, size: int) -> None:
    sealed = kms.encrypt(b"x" * size)
    assert 0 < len(sealed.ciphertext) <= 1024
    assert 0 < len(sealed.key_id) <= 1024
    assert sealed.annotations
    assert sum(len(name) + len(value) for name, value in sealed.annotations.items()) < 32 * 1024
    for name in sealed.annotations:
        assert DOMAIN_NAME.fullmatch(name)
        assert len(name) <= 253
    assert kms.decrypt(sealed) == b"x" * size


@pytest.mark.parametrize(
    "change",
    [
        lambda sealed: replace(sealed, ciphertext=b""),
        lambda sealed: replace(sealed, ciphertext=sealed.ciphertext[:-4]),
        lambda sealed: replace(sealed, ciphertext=sealed.ciphertext[:-1]),
        lambda sealed: replace(sealed, ciphertext=sealed.ciphertext + b"AAAA"),
        lambda sealed: replace(sealed, ciphertext=b"A" * 1025),
        lambda sealed: replace(sealed, ciphertext=bytes(range(128, 256))),
        lambda sealed: replace(sealed, key_id=""),
        lambda sealed: replace(sealed, key_id="local-kek:1"),
        lambda sealed: replace(sealed, key_id=sealed.key_id.upper()),
        lambda sealed: replace(sealed, key_id=f"{uuid.uuid4()}:{sealed.key_id.split(':')[1]}"),
        lambda sealed: replace(sealed, annotations={}),
        lambda sealed: replace(sealed, annotations={DEK_ID: b""}),
        lambda sealed: replace(sealed, annotations={DEK_ID: b"\xff"}),
        lambda sealed: replace(sealed, annotations={DEK_ID: str(uuid.uuid4()).encode()}),
        lambda sealed: replace(sealed, annotations={"another.internal": sealed.annotations[DEK_ID]}),
        lambda sealed: replace(sealed, annotations={**sealed.annotations, "another.internal": b"1"}),
    ],
)
def test_what_was_changed_is_refused(kms: Kms, sealed: Encrypted, change: object) -> None:
    changed = change(sealed)  # type: ignore[operator]
    code, words = refused(lambda: kms.decrypt(changed))
    assert code is INVALID
    assert words


def test_every_changed_byte_of_a_ciphertext_is_refused(kms: Kms, sealed: Encrypted) -> None:
    for at in range(len(sealed.ciphertext)):
        other = bytes([sealed.ciphertext[at] ^ 1])
        changed = sealed.ciphertext[:at] + other + sealed.ciphertext[at + 1 :]
        assert refused(lambda changed=changed: kms.decrypt(replace(sealed, ciphertext=changed)))[0] is INVALID  # type: ignore[misc]


def test_another_clusters_and_another_keys_are_refused(kms: Kms, quiet_cluster: Cluster, cluster: Cluster) -> None:
    sealed = cluster.client(cluster.start()).encrypt(DEK)
    code, words = refused(lambda: kms.decrypt(sealed))
    assert code is INVALID
    assert cluster.key in words
    assert quiet_cluster.key in words
    # Another cluster of the same service under the same key.
    neighbour = quiet_cluster.plugin()
    neighbour.command[5 - 1] = f"--crn={quiet_cluster.crn[:-1]}:other"
    with neighbour, neighbour.client() as other:
        assert refused(lambda: kms.decrypt(other.encrypt(DEK)))[0] is INVALID


@pytest.mark.parametrize("size", [0, 321, 4096])
def test_a_plaintext_of_no_dek_is_refused(kms: Kms, size: int) -> None:
    code, words = refused(lambda: kms.encrypt(b"x" * size))
    assert (code, str(size) in words) == (INVALID, True)


def test_two_megabytes_are_refused_and_the_plugin_goes_on(kms: Kms) -> None:
    assert refused(lambda: kms.encrypt(b"x" * 2_000_000))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert kms.status()[0] == "ok"


def test_status_costs_the_key_service_nothing(kms: Kms, quiet_cluster: Cluster) -> None:
    before = trail_of(quiet_cluster).count(quiet_cluster.key.encode())
    for _ in range(500):
        assert kms.status()[0] == "ok"
    # The looks of the background, of which there may be a few meanwhile.
    assert trail_of(quiet_cluster).count(quiet_cluster.key.encode()) - before < 100


def test_the_uid_is_in_the_log_and_in_the_audit_trail(kms: Kms, plugin: KmsPlugin, quiet_cluster: Cluster) -> None:
    encrypting, decrypting = str(uuid.uuid4()), str(uuid.uuid4())
    kms.decrypt(kms.encrypt(DEK, encrypting), decrypting)
    refused(lambda: kms.encrypt(b"", "no uuid\nat all"))
    log = plugin.log.read_text()
    trail = trail_of(quiet_cluster)
    for uid in (encrypting, decrypting):
        assert uid in log
        assert uid.encode() in trail
    assert base64.b64encode(DEK).decode() not in log
    assert DEK.hex() not in log
    assert '"uid": "no uuid\\nat all"' in log


def test_material_that_was_imported_again_opens_what_it_encrypted(cluster: Cluster) -> None:
    """After the loss of a key, or in another site: the new key has another id, and so has its version."""
    material = base64.b64encode(os.urandom(32)).decode()
    lost, again = (create_key(cluster.admin, "brought", payload=material) for _ in range(2))
    with cluster.plugin(key=lost) as before, before.client() as kms:
        sealed = kms.encrypt(DEK)
    assert cluster.admin.delete(f"/keys/{lost}?force=true").is_success
    with cluster.plugin(key=again) as after, after.client() as kms:
        assert kms.decrypt(sealed) == DEK
        assert kms.encrypt(DEK).key_id.startswith(again)


def test_v1beta1(plugin: KmsPlugin) -> None:
    old = KmsV1beta1(plugin.socket)
    assert old.version() == ("v1beta1", "hsmkms")
    cipher = old.encrypt(DEK)
    assert old.decrypt(cipher) == DEK
    assert old.decrypt(old.encrypt(b"ping")) == b"ping"
    parts = cipher.split(b" ")
    for changed in (b"", cipher[:-1], cipher[1:], cipher + b" ", b" ".join([*parts[:2], b"x", parts[3]])):
        assert refused(lambda changed=changed: old.decrypt(changed))[0] is INVALID  # type: ignore[misc]
    old.channel.close()


def test_v1beta1_only_where_it_is_asked_for(cluster: Cluster) -> None:
    old = KmsV1beta1(cluster.start().socket)
    assert refused(old.version)[0] is grpc.StatusCode.UNIMPLEMENTED
    old.channel.close()


def test_all_nodes_tell_one_key_id_and_open_each_others(cluster: Cluster) -> None:
    nodes = [cluster.client(cluster.start()) for _ in range(3)]
    assert len({node.status() for node in nodes}) == 1
    sealed = nodes[0].encrypt(DEK)
    assert {node.decrypt(sealed) for node in nodes} == {DEK}
