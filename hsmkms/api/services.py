"""What the HTTP room calls, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkms.api.places import ChangePlaces
from hsmkms.api.requests import Gate
from hsmkms.clock import Clock
from hsmkms.domain.waits import Waits
from hsmkms.service.adoption import AdoptionService
from hsmkms.service.aliases import AliasService
from hsmkms.service.api_keys import ApiKeyService
from hsmkms.service.bell import EventBell
from hsmkms.service.crypto import CryptoService
from hsmkms.service.events import EventService
from hsmkms.service.groups import GroupService
from hsmkms.service.health import HealthService
from hsmkms.service.identities import IdentityService
from hsmkms.service.imports import ImportService
from hsmkms.service.instance_policies import InstancePolicyService
from hsmkms.service.instances import InstanceService
from hsmkms.service.jobs import JobService
from hsmkms.service.key_policies import KeyPolicyService
from hsmkms.service.key_rings import KeyRingService
from hsmkms.service.keys import KeyService
from hsmkms.service.lifecycle import LifecycleService
from hsmkms.service.policies import PolicyService
from hsmkms.service.registrations import RegistrationService
from hsmkms.service.snapshot import Snapshot
from hsmkms.service.tokens import TokenService
from hsmkms.service.trail import Trail
from hsmkms.service.webhooks import WebhookService


@dataclass(frozen=True, slots=True)
class Services:
    """Everything the HTTP room calls."""

    keys: KeyService
    imports: ImportService
    adoption: AdoptionService
    lifecycle: LifecycleService
    aliases: AliasService
    key_policies: KeyPolicyService
    instance_policies: InstancePolicyService
    registrations: RegistrationService
    events: EventService
    bell: EventBell
    key_rings: KeyRingService
    crypto: CryptoService
    tokens: TokenService
    identities: IdentityService
    api_keys: ApiKeyService
    groups: GroupService
    policies: PolicyService
    instances: InstanceService
    health: HealthService
    jobs: JobService
    webhooks: WebhookService
    snapshot: Snapshot
    trail: Trail
    gate: Gate
    places: ChangePlaces
    waits: Waits
    clock: Clock
    base_url: str
