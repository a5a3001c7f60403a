"""From what somebody did to its audit event: which members belong to which action (contract section 7)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

from hsmkms.audit import event as e
from hsmkms.domain.access import Action
from hsmkms.domain.crn import instance_crn, key_crn, record_crn
from hsmkms.domain.identities import AccessGroup
from hsmkms.domain.ids import is_key_ring_id
from hsmkms.domain.instance_policies import InstancePolicy, InstancePolicyKind
from hsmkms.domain.keys import Key, effective_state
from hsmkms.domain.policies import Policy
from hsmkms.domain.tenants import Instance
from hsmkms.domain.waits import Waits
from hsmkms.service.acts import Act

LOGIN: Final = "iam-identity.user-apikey.login"
REVOKE: Final = "iam-identity.user-refreshtoken.delete"
EXPIRE: Final = "kms.secrets.expire"
ACKNOWLEDGED: Final = "kms.secrets.ack-"
"""With the type of the notice behind it: what a service did, or did not do in time."""
OPERATOR: Final = "hsmkms.operator."
JOB: Final = "hsmkms.job."

_NOBODY: Final = "unknown"
_ACCOUNT: Final = "service/security/account"
_SERVICE: Final = e.Initiator("hsmkms", "hsmkms", "service/security/keymanager")
_GIVEN_CHARS: Final = 512
"""How much is taken in of what a caller may write as long as he likes."""
_DATA_ACTIONS: Final = frozenset(
    {Action.KEY_WRAP.value, Action.KEY_UNWRAP.value, Action.KEY_REWRAP.value, Action.KEY_READ.value}
)
_WITH_VERSION: Final = frozenset(
    {
        *_DATA_ACTIONS,
        Action.KEY_CREATE.value,
        Action.KEY_CREATE_WITH_POLICIES.value,
        Action.KEY_READ_METADATA.value,
        Action.KEY_RESTORE.value,
        Action.KEY_ROTATE.value,
    }
)
_WORDS: Final = frozenset({Action.KEY_SET_FOR_DELETION.value, Action.KEY_UNSET_FOR_DELETION.value})
_REASONS: Final = {status.value: e.Reason(status.value, status.phrase) for status in HTTPStatus}


def event_of(
    act: Act,
    event_id: str,
    outcome: str,
    status: int | None,
    instance: Instance | None,
    key: Key | None,
    waits: Waits,
    now: datetime,
) -> e.Event:
    """The event; `status` is None for an intent, `instance` and `key` as far as they are known."""
    done = outcome == e.SUCCESS
    return e.Event(
        type_uri=e.EVENT_TYPE,
        event_type=e.ACTIVITY,
        id=event_id,
        event_time=now,
        action=act.action,
        outcome=outcome,
        message=_message(act.action, outcome),
        severity=e.severity_of(act.action, status or HTTPStatus.OK),
        initiator=_initiator(act),
        target=_target(act, instance, key),
        observer=e.HSMKMS,
        reason=None if status is None else _REASONS[status],
        correlation_id=act.correlation_id,
        request_data=_asked(act, key),
        response_data=_answered(act, key, waits, now) if done else _refused(act),
        data_event=act.action in _DATA_ACTIONS,
        log_source_crn=None if instance is None else instance_crn(instance.region, instance.account, instance.id),
        intent=None if outcome == e.PENDING else act.intent,
    )


@lru_cache(maxsize=1_024)
def _message(action: str, outcome: str) -> str:
    place, _, verb = action.rpartition(".")
    ending = {e.FAILURE: " -failure", e.PENDING: " -pending"}.get(outcome, "")
    return f"Key Protect: {verb} {place.rpartition('.')[2]}{ending}"


def _initiator(act: Act) -> e.Initiator:
    if act.caller is not None:
        kind = "serviceid" if act.caller.sources or act.caller.iam_id.startswith("iam-ServiceId-") else "user"
        # Not the name: it may be a person's.
        return _somebody(act.caller.iam_id, kind, act.credential, act.address)
    if act.actor is not None:
        kind = "operator" if act.uri is None else "serviceid" if act.actor.startswith("iam-ServiceId-") else "user"
        return _somebody(act.actor, kind, act.credential, act.address)
    return _SERVICE if act.uri is None else _somebody(_NOBODY, "user", act.credential, act.address)


@lru_cache(maxsize=1_024)
def _somebody(iam_id: str, kind: str, credential: str | None, address: str) -> e.Initiator:
    return e.Initiator(
        iam_id,
        iam_id,
        f"{_ACCOUNT}/{kind}",
        None if credential is None else e.Credential(credential),
        e.Host(address) if address else None,
    )


def _target(act: Act, instance: Instance | None, key: Key | None) -> e.Target:
    if instance is not None and key is not None:
        return e.Target(key_crn(instance.region, instance.account, instance.id, key.id), key.id, "kms/secrets")
    asked_for = None if act.reference is None else act.reference[:_GIVEN_CHARS]
    if instance is not None:
        crn = instance_crn(instance.region, instance.account, instance.id)
        return e.Target(crn, asked_for or instance.id, "kms/instance")
    account = _NOBODY if act.caller is None else act.caller.account
    if act.instance_id is not None:
        crn = record_crn("kms", account, "instance", act.instance_id)
        return e.Target(crn, asked_for or act.instance_id, "kms/instance")
    kind, name = (act.grants[0].kind, act.grants[0].id) if act.grants else ("account", asked_for or account)
    service = "kms" if act.action.startswith("kms.") else "iam"
    return e.Target(record_crn(service, account, kind, name), name, f"{service}/{kind}")


def _asked(act: Act, key: Key | None) -> e.RequestData:
    initial = new = None
    if act.action == Action.KEY_PATCH.value and act.before is not None and act.key is not None:
        initial, new = (e.Values(key_ring_id=one.key_ring_id) for one in (act.before, act.key))
    elif act.grants:
        initial, new = _granted(one.old for one in act.grants), _granted(one.new for one in act.grants)
        for change in act.grants:
            if isinstance(change.old, AccessGroup) and isinstance(change.new, AccessGroup):
                old, now = ({member.iam_id for member in one.members} for one in (change.old, change.new))
                initial, new = e.Values(members=tuple(sorted(old - now))), e.Values(members=tuple(sorted(now - old)))
    return e.RequestData(
        request_uri=None if act.uri is None else act.uri[:_GIVEN_CHARS],
        instance_id=act.instance_id,
        # Whatever else the header says would be a quotation.
        key_ring_id=None if act.key_ring_id is None or not is_key_ring_id(act.key_ring_id) else act.key_ring_id,
        key_type=None if key is None else "root" if key.is_root else "standard",
        expiration_date=key.expires_at if key is not None and act.action == EXPIRE else None,
        initial_value=initial,
        new_value=new,
    )


def _granted(records: Iterable[object | None]) -> e.Values | None:
    values: dict[str, Any] = {}
    for record in records:
        if isinstance(record, InstancePolicy):
            values |= _policy_values(record)
        elif isinstance(record, Policy):
            subject, scope = record.subject, record.scope
            values |= {
                "roles": tuple(role.value for role in record.roles),
                "subject": subject.iam_id or subject.access_group_id or subject.service,
                "scope": "/".join(part or "*" for part in (scope.instance_id, scope.key_ring_id, scope.key_id)),
            }
    return e.Values(**values) if values else None


def _policy_values(policy: InstancePolicy) -> dict[str, Any]:
    match policy.kind:
        case InstancePolicyKind.ALLOWED_NETWORK:
            return {"allowed_network_enabled": policy.enabled, "allowed_network": policy.allowed_network}
        case InstancePolicyKind.ALLOWED_IP:
            return {"allowed_ip_enabled": policy.enabled, "allowed_ip": policy.allowed_ip or None}
        case InstancePolicyKind.DUAL_AUTH_DELETE:
            return {"dual_auth_delete_enabled": policy.enabled}
        case InstancePolicyKind.METRICS:
            return {"metrics_enabled": policy.enabled}
        case InstancePolicyKind.ROTATION:
            return {"rotation_enabled": policy.enabled, "rotation_interval_month": policy.interval_month}
        case InstancePolicyKind.KEY_CREATE_IMPORT_ACCESS:
            access = policy.create_access
            names = ("create_root_key", "create_standard_key", "import_root_key", "import_standard_key")
            given = {} if access is None else {name: getattr(access, name) for name in (*names, "enforce_token")}
            return {"create_access_enabled": policy.enabled, **given}


def _refused(act: Act) -> e.ResponseData:
    """Members of an action that failed are not promised; those of an acknowledgement tell which one it was."""
    if act.notice is None:
        return e.NOTHING_ANSWERED
    return e.ResponseData(
        event_ack_data=_acknowledged(act), reason_for_failure=act.refusal, resource_crn=act.notice.resource_crn
    )


def _answered(act: Act, key: Key | None, waits: Waits, now: datetime) -> e.ResponseData:
    """The contract's extra members of an action that succeeded."""
    if act.import_token is not None:
        return e.ResponseData(
            expiration_date=act.import_token.expires_at,
            max_allowed_retrievals=act.import_token.retrievals,
            remaining_retrievals=act.import_token.remaining,
        )
    if act.grants:
        return e.ResponseData(records=tuple(f"{one.kind}:{one.id}" for one in act.grants))
    if key is None:
        return e.ResponseData(total_resources=act.total, resource_crn=act.resource_crn)
    if act.action == Action.KEY_PURGE.value and key.deleted_at is not None:
        return e.ResponseData(
            key_id=key.id,
            deletion_date=key.deleted_at,
            purge_allowed_from=key.deleted_at + waits.purge_allowed,
            purge_eligible_on=key.deleted_at + waits.purge_scheduled,
        )
    if act.action not in _WITH_VERSION:
        initial, new = _turned(act, key, waits)
        return e.ResponseData(
            key_id=key.id,
            key_ring_id=key.key_ring_id,
            key_state=int(effective_state(key, now)),
            total_resources=act.total,
            initial_value=initial,
            new_value=new,
            event_ack_data=None if act.notice is None else _acknowledged(act),
            resource_crn=act.resource_crn,
        )
    version = key.versions[0] if key.versions else None
    return e.ResponseData(
        key_id=key.id,
        key_ring_id=key.key_ring_id,
        key_version_id=act.version_id or (None if version is None else version.id),
        key_version_creation_date=None if version is None or act.version_id is not None else version.created_at,
        rewrapped_key_version_id=act.rewrapped_version_id,
        key_state=int(effective_state(key, now)),
        total_resources=act.total,
        failed_resources=act.failed,
        resources_digest=act.digest,
        expiration_date=key.expires_at,
        days_to_key_expire=None if key.expires_at is None else (key.expires_at - now).days,
    )


def _turned(act: Act, key: Key, waits: Waits) -> tuple[e.Values | None, e.Values | None]:
    """Who gave the first of two words and until when it counts, or the state that a key leaves and takes."""
    if act.action == EXPIRE and act.before is not None:
        return e.Values(key_state=int(act.before.state)), e.Values(key_state=int(key.state))
    if act.action not in _WORDS or act.before is None:
        return None, None
    return _word(act.before, waits), _word(key, waits)


def _word(key: Key, waits: Waits) -> e.Values:
    if key.deletion_set_at is None:
        return e.Values()
    return e.Values(auth_id=key.deletion_set_by, auth_expiration=key.deletion_set_at + waits.deletion_authorization)


def _acknowledged(act: Act) -> e.EventAckData:
    notice, said, key = act.notice, act.acknowledgement, act.key
    if notice is None:
        raise TypeError("only an act with a notice is an acknowledgement")
    ids = [] if key is None else [version.id for version in key.versions]
    at = ids.index(notice.version_id) if notice.version_id in ids else None
    newer = None if at is None or key is None else key.versions[at]
    older = None if at is None or key is None or at + 1 >= len(key.versions) else key.versions[at + 1]
    return e.EventAckData(
        event_id=notice.id,
        event_type=notice.type.value,
        key_state=int(notice.key_state),
        resource_crn=notice.resource_crn,
        event_ack_time_stamp=None if said is None else said.done_at,
        new_key_version_id=None if newer is None else newer.id,
        new_key_version_creation_date=None if newer is None else newer.created_at,
        old_key_version_id=None if older is None else older.id,
        old_key_version_creation_date=None if older is None else older.created_at,
    )
