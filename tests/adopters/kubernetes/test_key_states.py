"""Status is true within 10 s of whatever happens to the root key, and Encrypt and Decrypt do as it says."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.adopters.kubernetes.conftest import KUBERNETES, Cluster
from tests.support.deployment import create_key
from tests.support.iam import Iam
from tests.support.kms_plugin import Kms, eventually, refused

DEK = bytes(range(32))
TRUE_WITHIN_S = 10
REFUSED = grpc.StatusCode.FAILED_PRECONDITION

pytestmark = pytest.mark.alone


def is_ok(kms: Kms) -> bool:
    return kms.status()[0] == "ok"


def is_refused(kms: Kms) -> bool:
    try:
        kms.status()
    except grpc.RpcError as error:
        return error.code() is REFUSED
    return False


def events_of(cluster: Cluster) -> list[tuple[str, str | None]]:
    """Type of each event of the key, oldest first, and how the cluster took it."""
    found = cluster.admin.get(f"/keys/{cluster.key}/events").json()["resources"]
    return [(event["eventType"], event.get("adopterKeyState")) for event in reversed(found)]


def registered_version(cluster: Cluster) -> str | None:
    found = cluster.admin.get(f"/keys/{cluster.key}/registrations").json()["resources"]
    assert [one["resourceCrn"] for one in found] == [cluster.crn]
    version = found[0].get("keyVersion") or {}
    return version.get("id")


def test_a_rotation_changes_the_key_id_everywhere_and_loses_nothing(cluster: Cluster) -> None:
    nodes = [cluster.client(cluster.start()) for _ in range(2)]
    before, key_id = nodes[0].encrypt(DEK), nodes[0].status()[1]
    cluster.act("rotate")
    # The API server gives up an answer whose key_id is not that of the Status before or after it.
    at_once = nodes[0].encrypt(DEK)
    assert at_once.key_id == nodes[0].status()[1] == f"{cluster.key}:{cluster.version}" != key_id
    eventually(lambda: {node.status() for node in nodes} == {("ok", at_once.key_id)}, TRUE_WITHIN_S)
    for node in nodes:
        assert (node.decrypt(before), node.decrypt(at_once)) == (DEK, DEK)
        assert node.encrypt(DEK).key_id == at_once.key_id
    eventually(lambda: events_of(cluster) == [("rotate", "DEK_ENABLED")], TRUE_WITHIN_S)
    assert registered_version(cluster) == cluster.version


def test_encrypt_never_names_what_status_does_not(cluster: Cluster) -> None:
    plugin, ending = cluster.start(), threading.Event()

    def watch() -> list[tuple[str, str, str]]:
        seen = []
        with plugin.client() as kms:
            while not ending.is_set():
                seen.append((kms.status()[1], kms.encrypt(DEK).key_id, kms.status()[1]))
        return seen

    with ThreadPoolExecutor(4) as pool:
        watching = [pool.submit(watch) for _ in range(4)]
        try:
            for _ in range(3):
                before = cluster.client(plugin).status()[1]
                cluster.act("rotate")
                eventually(lambda before=before: cluster.client(plugin).status()[1] != before, TRUE_WITHIN_S)  # type: ignore[misc]
        finally:
            ending.set()
        seen = [one for future in watching for one in future.result()]
    assert len(seen) > 20
    assert [one for one in seen if one[1] not in (one[0], one[2])] == []


def test_disabled_and_enabled_deleted_and_restored(cluster: Cluster) -> None:
    plugin = cluster.start()
    kms = cluster.client(plugin)
    sealed, key_id = kms.encrypt(DEK), kms.status()[1]
    for action, undo, words in (("disable", "enable", "disabled"), ("delete", "restore", "deleted")):
        cluster.act(action)
        eventually(lambda: is_refused(kms), TRUE_WITHIN_S)
        code, told = refused(kms.status)
        assert (code, words in told, cluster.key in told) == (REFUSED, True, True), told
        code, told = refused(lambda: kms.encrypt(DEK))
        assert (code, words in told) == (REFUSED, True), told
        assert refused(lambda: kms.decrypt(sealed))[0] is REFUSED
        cluster.act(undo)
        eventually(lambda: is_ok(kms), TRUE_WITHIN_S)
        assert kms.decrypt(sealed) == DEK
        assert kms.status()[1] == kms.encrypt(DEK).key_id == key_id
    expected = [
        ("disable", "DEK_DISABLED"),
        ("enable", "DEK_ENABLED"),
        ("delete", "DEK_DELETED"),
        ("restore", "DEK_ENABLED"),
    ]
    eventually(lambda: events_of(cluster) == expected, TRUE_WITHIN_S)


def test_an_authorization_that_is_taken_away_and_given_again(cluster: Cluster, iam: Iam) -> None:
    kms = cluster.client(cluster.start())
    sealed = kms.encrypt(DEK)
    iam.revoke(cluster.source.authorization)
    eventually(lambda: is_refused(kms), TRUE_WITHIN_S)
    assert "No authorization for this key" in refused(kms.status)[1]
    assert "No authorization" in refused(lambda: kms.encrypt(DEK))[1]
    assert refused(lambda: kms.decrypt(sealed))[0] is grpc.StatusCode.PERMISSION_DENIED
    source = cluster.source.prefix.rsplit(":", 1)[1]
    answer = iam.authorize(KUBERNETES, cluster.service.state.instance_id, serviceInstance=source)
    assert answer.status_code == 201, answer.text
    eventually(lambda: is_ok(kms), TRUE_WITHIN_S)
    assert kms.decrypt(sealed) == DEK


def test_an_expired_key_decrypts_and_encrypts_no_more(cluster: Cluster) -> None:
    expires = "2030-01-01T00:00:00Z"
    key = create_key(cluster.admin, "expires", expirationDate=expires)
    plugin = cluster.stack.enter_context(cluster.plugin(key=key))
    kms = cluster.client(plugin)
    sealed = kms.encrypt(DEK)
    cluster.expire(key)
    eventually(lambda: is_refused(kms), TRUE_WITHIN_S)
    assert "expired" in refused(kms.status)[1]
    assert refused(lambda: kms.encrypt(DEK))[0] is REFUSED
    assert kms.decrypt(sealed) == DEK


def test_the_key_of_a_registered_cluster_is_deleted_by_force_only(cluster: Cluster) -> None:
    with cluster.plugin("--prevent-deletion") as plugin, plugin.client() as kms:
        assert is_ok(kms)
        answer = cluster.admin.delete(f"/keys/{cluster.key}")
        assert (answer.status_code, cluster.crn in answer.text) == (409, True), answer.text
        assert cluster.admin.delete(f"/keys/{cluster.key}?force=true").status_code == 409
    # The same plugin without it takes the wish back.
    with cluster.plugin():
        pass
    assert cluster.admin.delete(f"/keys/{cluster.key}").status_code == 409
    cluster.deregister()
    cluster.deregister()
    assert cluster.admin.delete(f"/keys/{cluster.key}").is_success
