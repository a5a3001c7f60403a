"""Bringing a deployment to life: sentinel, sealing of rights, signing key, first instance, administrators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from hsmkms.clock import Clock
from hsmkms.domain.access import EVERYTHING, Caller, Role, Scope
from hsmkms.domain.identities import IdentityKind, SigningKey
from hsmkms.domain.policies import PolicyKind, PolicyWish, Subject
from hsmkms.domain.secrets import SecretText
from hsmkms.domain.tenants import Instance
from hsmkms.errors import StoreRefused, TokenRefused
from hsmkms.iam import integrity
from hsmkms.iam.grants import Grants
from hsmkms.service.api_keys import ApiKeyService
from hsmkms.service.identities import IdentityService
from hsmkms.service.instances import InstanceService
from hsmkms.service.known_tokens import KnownTokens
from hsmkms.service.policies import PolicyService
from hsmkms.service.snapshot import Snapshot
from hsmkms.service.tokens import TokenService
from hsmkms.store.tenants import TenantStore
from hsmkms.token.room import Token

OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Founded:
    """What `found` made. The API key is shown once and kept nowhere."""

    instance: Instance
    api_key: SecretText


class Deployment:
    """For the operator on the host, who holds the token's PIN and so may do everything in every account."""

    def __init__(
        self,
        token: Token,
        tenants: TenantStore,
        grants: Grants,
        snapshot: Snapshot,
        identities: IdentityService,
        api_keys: ApiKeyService,
        policies: PolicyService,
        instances: InstanceService,
        tokens: TokenService,
        known_tokens: KnownTokens,
        clock: Clock,
    ) -> None:
        self._token = token
        self._tenants = tenants
        self._grants = grants
        self._snapshot = snapshot
        self._identities = identities
        self._api_keys = api_keys
        self._policies = policies
        self._instances = instances
        self._tokens = tokens
        self.known_tokens = known_tokens
        self._clock = clock

    def operator(self, account: str) -> Caller:
        """The operator as a caller in an account, for an hour."""
        return Caller(OPERATOR, OPERATOR, account, EVERYTHING, frozenset(), self._clock() + timedelta(hours=1))

    def require_founded(self) -> None:
        """Raise StoreRefused or TokenRefused when database and token are not those of one deployment."""
        if not self._tenants.instances():
            raise StoreRefused("The database holds no instance. Run `hsmkms init` first.")
        if not self._token.has_sentinel():
            raise TokenRefused("The token does not hold this deployment's sentinel key. Is it the right token?")
        if not self._token.has_mac_key() or not self._grants.about(SigningKey):
            raise StoreRefused("No rights in this database are sealed by this token. Run `hsmkms iam recover`.")
        self.known_tokens.require()

    def is_founded(self) -> bool:
        """True once `found` has finished."""
        return bool(self._tenants.instances() and self._grants.about(SigningKey))

    def found(self, name: str, region: str, account: str) -> Founded:
        """Make what is missing of sentinel and signing key, then an administrator and an instance."""
        if not self._token.has_sentinel():
            self._token.make_sentinel()
        self._require_signing_key()
        self.known_tokens.accept()
        secret = self.add_administrator(account)
        return Founded(self._instances.create(self.operator(account), name, region), secret)

    def unsealed_instances(self) -> Sequence[Instance]:
        """Instances without a right MAC: of a database of the first schema, or changed by somebody else."""
        return integrity.unsealed(self._token.mac, self._tenants.instances())

    def recover(self, account: str) -> SecretText:
        """A new administrator of an account, and a signing key if there is none. Raises TokenRefused for a token that
        is not this deployment's."""
        if not self._token.has_sentinel():
            raise TokenRefused("The token does not hold this deployment's sentinel key. Is it the right token?")
        self._require_signing_key()
        self.known_tokens.accept()
        return self.add_administrator(account)

    def seal_instances(self, instances: Sequence[Instance]) -> None:
        """Believe these instances as they are: the operator has looked at them. Raises StoreRefused."""
        for seen in self._tenants.instances():
            if seen.instance in instances and not self._tenants.replace_instance(
                seen, integrity.seal_instance(self._token.mac, seen.instance)
            ):
                raise StoreRefused("An instance changed meanwhile. Run the command again.")
        self._snapshot.refresh()

    def add_administrator(self, account: str) -> SecretText:
        """A new administrator of an account, also for an operator who lost the first one: an API key."""
        operator = self.operator(account)
        _, identity = self._identities.create(operator, IdentityKind.SERVICE_ID, "administrator")
        self._policies.create(
            operator,
            PolicyWish(
                account=account,
                kind=PolicyKind.ACCESS,
                subject=Subject(iam_id=identity.iam_id),
                roles=(Role.ADMINISTRATOR, Role.MANAGER),
                scope=Scope(),
                service_type="service",
                description="Made by the operator on the host",
            ),
        )
        return self._api_keys.create(operator, identity.iam_id, "administrator").secret

    def _require_signing_key(self) -> None:
        if not self._grants.about(SigningKey):
            self._tokens.rotate_signing_key()
