"""What nobody asked for over HTTP is recorded too: jobs, and the operator's commands with the key they were about."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hsmkms.domain.access import EVERYTHING, Caller, SourceCrn
from hsmkms.domain.registrations import RegistrationWish, parse_resource_crn
from tests.support.deployment import State, create_body
from tests.support.in_process import START, InProcess, MovedClock


def events(state: State, action: str) -> list[dict[str, Any]]:
    """Of an action, in their order."""
    found = []
    for path in sorted((state.path / "audit").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        found += [line["event"] for line in lines if "event" in line and line["event"]["action"] == action]
    return found


@pytest.fixture
def service(seed_state: State, tmp_path: Path) -> Iterator[InProcess]:
    found = InProcess(seed_state.copy_to(tmp_path / "state"), MovedClock(START))
    yield found
    found.end()


def always() -> bool:
    return True


def test_jobs_record_what_they_do(service: InProcess) -> None:
    """Expiry with the state before and after, rotation with the new version, a purge, a used import token."""
    state, clock, jobs = service.state, service.clock, service.services.jobs
    month = {"type": "application/vnd.ibm.kms.policy+json", "rotation": {"enabled": True, "interval_month": 1}}
    policy = {"metadata": {"collectionType": month["type"], "collectionTotal": 1}, "resources": [month]}
    ends = (clock.now + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    keys = []
    for expires in (ends, None, None):
        made = service.call(state.api_key, "POST", "/keys", create_body("without callers", expirationDate=expires))
        keys.append(made.json()["resources"][0])
    expiring, rotating, gone = keys
    assert service.call(state.api_key, "PUT", f"/keys/{rotating['id']}/policies", policy).status_code == 200
    assert service.call(state.api_key, "DELETE", f"/keys/{gone['id']}").status_code == 204
    assert service.call(state.api_key, "POST", "/import_token", {"expiration": 300}).status_code == 200
    clock.move(clock.now + timedelta(days=91))
    for job in (jobs.expire_due, jobs.rotate_due, jobs.purge_due, service.services.imports.expire_due):
        assert job(always).changed == 1, job

    intent, expired = events(state, "kms.secrets.expire")
    assert (intent["outcome"], expired["intent"], expired["initiator"]["id"]) == ("pending", intent["id"], "hsmkms")
    assert (expired["target"]["id"], expired["requestData"]["keyType"]) == (expiring["crn"], "root")
    assert expired["requestData"]["expirationDate"].startswith(ends[:19])
    said = expired["responseData"]
    assert (said["initialValue"], said["newValue"], said["keyId"]) == ({"keyState": 1}, {"keyState": 3}, expiring["id"])

    rotated = events(state, "kms.secrets.rotate")[-1]
    assert rotated["responseData"]["keyVersionId"] != rotating["keyVersion"]["id"]
    purged = events(state, "kms.secrets.purge")[-1]
    assert (purged["outcome"], purged["responseData"]["keyId"]) == ("success", gone["id"])
    assert {"deletionDate", "purgeAllowedFrom", "purgeEligibleOn"} <= purged["responseData"].keys()
    ended = events(state, "hsmkms.job.import-token.expire")
    assert [one["outcome"] for one in ended] == ["pending", "success"]


def test_a_notice_that_nobody_acknowledged_is_recorded_once(service: InProcess) -> None:
    state, clock, here = service.state, service.clock, service.services
    key = service.call(state.api_key, "POST", "/keys", create_body("noticed")).json()["resources"][0]
    account = here.snapshot.all_instances()[0].account
    source = SourceCrn("cloud-object-storage", "global", account, str(uuid.uuid4()))
    who = Caller("iam-ServiceId-x", "x", account, EVERYTHING, frozenset({source}), datetime.max.replace(tzinfo=UTC))
    prefix = f"crn:v1:bluemix:public:cloud-object-storage:global:a/{account}:{source.instance_id}"
    crn = parse_resource_crn(f"{prefix}:bucket:one")
    here.registrations.create(who, state.instance_id, key["id"], None, crn, RegistrationWish())
    correlation_id = str(uuid.uuid4())
    headers = {"Correlation-Id": correlation_id}
    assert service.call(state.api_key, "POST", f"/keys/{key['id']}/actions/disable", **headers).status_code == 204
    clock.move(clock.now + timedelta(hours=3))
    assert here.jobs.tell_overdue(always).changed == 0
    clock.move(clock.now + timedelta(hours=2))
    assert here.jobs.tell_overdue(always).changed == 1
    clock.move(clock.now + timedelta(hours=2))
    assert here.jobs.tell_overdue(always).changed == 0
    (event,) = events(state, "kms.secrets.ack-disable")
    assert (event["outcome"], event["reason"]["reasonCode"], event["correlationId"]) == ("failure", 408, correlation_id)
    assert event["responseData"]["resourceCRN"] == f"{prefix}:bucket:one"
    assert event["responseData"]["reasonForFailure"]


def test_the_operator_is_recorded_with_the_key(state: State) -> None:
    """Under the same names as over HTTP, so that a search for a key finds what was done to it on the host."""
    made = json.loads(state.run("keys", "create", "by the operator", "--json").stdout)
    wrapped = state.run("wrap", made["id"], stdin=b"some DEK").stdout
    assert state.run("unwrap", made["id"], stdin=wrapped).stdout == b"some DEK"
    assert state.run("unwrap", made["id"], stdin=b"AAAA").returncode == 1
    assert state.run("keys", "rotate", made["id"]).returncode == 0
    assert state.run("keys", "rotate", made["id"]).returncode == 1
    assert state.run("iam", "recover").returncode == 0
    found = state.run("audit", "export", "--key", made["id"]).stdout.splitlines()
    told = [json.loads(line) for line in found]
    assert [(one["action"], one["outcome"], one.get("reason", {}).get("reasonCode")) for one in told] == [
        ("kms.secrets.create", "success", 200),
        ("kms.secrets.wrap", "success", 200),
        ("kms.secrets.unwrap", "success", 200),
        ("kms.secrets.unwrap", "failure", 422),
        ("kms.secrets.rotate", "pending", None),
        ("kms.secrets.rotate", "success", 200),
        ("kms.secrets.rotate", "pending", None),
        ("kms.secrets.rotate", "failure", 409),
    ]
    assert events(state, "hsmkms.operator.unwrap")[-1]["reason"]["reasonCode"] == 422
    assert {one["initiator"]["typeURI"] for one in told} == {"service/security/account/operator"}
    for command in ("init", "keys.create", "wrap", "unwrap", "keys.rotate", "iam.recover"):
        assert events(state, f"hsmkms.operator.{command}")[-1]["outcome"] in ("success", "failure"), command
    recovered = events(state, "hsmkms.operator.iam.recover")[-1]
    assert any(record.startswith("api_key:") for record in recovered["responseData"]["records"])
