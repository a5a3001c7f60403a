"""Every role and every action, in scope and out of it, against the contract's table written out by hand
(additions section 6.1)."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from hsmkms.domain.access import SERVICE_ONLY, Action, Caller, Rights, Role, Scope, SourceCrn, Target, allows

# R ReaderPlus-less Reader, P ReaderPlus, W Writer, M Manager, K KeyPurge, A KmipAdapterManager,
# v Viewer, o Operator, e Editor, a Administrator.
LETTERS = {
    "R": Role.READER,
    "P": Role.READER_PLUS,
    "W": Role.WRITER,
    "M": Role.MANAGER,
    "K": Role.KEY_PURGE,
    "A": Role.KMIP_ADAPTER_MANAGER,
    "v": Role.VIEWER,
    "o": Role.OPERATOR,
    "e": Role.EDITOR,
    "a": Role.ADMINISTRATOR,
}
TABLE = """
kms.secrets.create                              WM
kms.secrets-with-policy-overrides.create        M
kms.secrets.rotate                              WM
kms.secrets.setkeyfordeletion                   WM
kms.secrets.unsetkeyfordeletion                 WM
kms.secrets.sync                                WM
kms.secrets.read                                PWM
kms.secrets-metadata.read                       RPWM
kms.secrets-key-versions.list                   RPWM
kms.secrets.wrap                                RPWM
kms.secrets.unwrap                              RPWM
kms.secrets.rewrap                              RPWM
kms.secrets.head                                RPWMA
kms.secrets.list                                RPWMA
kms.key-rings.list                              RPWMA
kms.secrets.disable                             M
kms.secrets.enable                              M
kms.secrets.delete                              M
kms.secrets.restore                             M
kms.secrets.patch                               M
kms.secrets.purge                               K
kms.key-rings.create                            WM
kms.key-rings.delete                            M
kms.policies.read                               M
kms.policies.write                              M
kms.instance-policies.read                      M
kms.instance-policies.write                     M
kms.instance-allowed-ip-port.read               M
kms.import-token.create                         WM
kms.import-token.read                           WM
kms.registrations.list                          RPWM
kms.registrations.create                        RPWM
kms.registrations.write                         RPWM
kms.registrations.merge                         RPWM
kms.registrations.delete                        RPWM
kms.secrets-event.list                          RPWM
kms.secrets-event.ack                           RPWM
kms.secrets-alias.create                        WM
kms.secrets-alias.delete                        WM
kms.kmip-management.create                      MA
kms.kmip-management.list                        MA
kms.kmip-management.read                        MA
kms.kmip-management.delete                      MA
resource-controller.instance.retrieve           voea
resource-controller.instance.create             ea
resource-controller.instance.update             ea
resource-controller.instance.delete             ea
iam-identity.identity.read                      a
iam-identity.identity.write                     a
iam-identity.apikey.read                        a
iam-identity.apikey.write                       a
iam-groups.groups.read                          a
iam-groups.groups.write                         a
iam.policy.read                                 a
iam.policy.write                                a
"""
MATRIX: dict[str, str] = {line.split()[0]: line.split()[1] for line in TABLE.strip().splitlines()}

ACCOUNT = "a" * 32
HERE, THERE, RING, OTHER_RING, KEY, OTHER_KEY = "here", "there", "ring", "other-ring", "key", "other-key"
SCOPES = [Scope(*parts) for parts in itertools.product((None, HERE), (None, RING), (None, KEY))]
TARGETS = [
    Target(ACCOUNT, *parts)
    for parts in itertools.product((None, HERE, THERE), (None, RING, OTHER_RING), (None, KEY, OTHER_KEY))
]


Place = tuple[str | None, str | None, str | None]


def caller(*grants: tuple[Role, Scope], service: bool = False) -> Caller:
    """Somebody with these grants; `service` acts for object storage."""
    storage = SourceCrn("cloud-object-storage", "global", ACCOUNT, "storage")
    sources = frozenset({storage}) if service else frozenset[SourceCrn]()
    return Caller("iam-ServiceId-x", "x", ACCOUNT, Rights(grants), sources, datetime.max.replace(tzinfo=UTC))


def covered(scope: Scope, target: Target) -> bool:
    """The rule in words: each part that the grant names must be the target's."""
    pairs = (
        (scope.instance_id, target.instance_id),
        (scope.key_ring_id, target.key_ring_id),
        (scope.key_id, target.key_id),
    )
    return all(wanted is None or wanted == found for wanted, found in pairs)


def test_the_table_names_every_action_once() -> None:
    assert set(MATRIX) == {action.value for action in Action}
    assert len(TABLE.strip().splitlines()) == len(Action)
    assert set(LETTERS.values()) == set(Role)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("action", Action)
def test_every_role_and_action_in_and_out_of_scope(role: Role, action: Action) -> None:
    granted = role in {LETTERS[letter] for letter in MATRIX[action.value]}
    for service in (False, True):
        possible = granted and (service or action not in SERVICE_ONLY)
        for scope in SCOPES:
            somebody = caller((role, scope), service=service)
            for target in TARGETS:
                assert allows(somebody, action, target) is (possible and covered(scope, target)), (scope, target)


@pytest.mark.parametrize("action", Action)
def test_nobody_reaches_another_account_and_no_grant_is_no_right(action: Action) -> None:
    everything = caller(*((role, Scope()) for role in Role), service=True)
    for target in TARGETS:
        foreign = Target("b" * 32, target.instance_id, target.key_ring_id, target.key_id)
        assert not allows(everything, action, foreign)
        assert allows(everything, action, target)
        assert not allows(caller(service=True), action, target)


def test_grants_add_up_and_never_mix() -> None:
    """Two grants give what each gives, not the roles of one in the scope of the other."""
    for first, second in itertools.product(SCOPES, SCOPES):
        somebody = caller((Role.READER, first), (Role.KEY_PURGE, second))
        for target in TARGETS:
            assert allows(somebody, Action.KEY_WRAP, target) is covered(first, target)
            assert allows(somebody, Action.KEY_PURGE, target) is covered(second, target)


def test_ten_thousand_policies_cost_no_more_look_ups() -> None:
    """Time decides nothing here; the number of look-ups is what the time is made of (scripts/bench measures it)."""

    class Counting(dict[Place, int]):
        looked_up = 0

        def get(self, place: Place, default: int = 0) -> int:  # type: ignore[override]  # as it is called there
            Counting.looked_up += 1
            return super().get(place, default)

    def look_ups(policies: int) -> int:
        rights = Rights((Role.READER, Scope(HERE, f"ring-{number}", None)) for number in range(policies))
        rights._bits = Counting(rights._bits)
        Counting.looked_up = 0
        assert rights.permit(Action.KEY_WRAP, Target(ACCOUNT, HERE, "ring-0", KEY))
        assert not rights.permit(Action.KEY_DELETE, Target(ACCOUNT, HERE, "ring-0", KEY))
        return Counting.looked_up

    assert look_ups(1) == look_ups(10_000) <= 16


def test_listing_reaches_whole_rings_only() -> None:
    rights = Rights(
        [(Role.READER, Scope(HERE, RING)), (Role.READER, Scope(None, OTHER_RING)), (Role.READER, Scope(HERE, "x", KEY))]
    )
    assert rights.key_rings(Action.KEY_LIST, HERE) == {RING, OTHER_RING}
    assert rights.key_rings(Action.KEY_LIST, THERE) == {OTHER_RING}
    assert rights.key_rings(Action.KEY_DELETE, HERE) == frozenset()
    assert rights.reach(Action.KEY_WRAP, HERE)
    assert rights.reach(Action.KEY_WRAP, THERE)
    assert not rights.reach(Action.KEY_DELETE, HERE)
