"""Bring a deployment to life: sentinel, signing key, first instance, administrator."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkms.clock import Clock
from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.secrets import SecretText
from hsmkms.domain.tenants import ApiKey, Instance, SigningKey
from hsmkms.errors import StoreRefused, TokenRefused
from hsmkms.iam import api_keys
from hsmkms.service.material import Material
from hsmkms.store.tenants import TenantStore
from hsmkms.token.room import Token


@dataclass(frozen=True, slots=True)
class Founded:
    """What `found` made. The API key is shown once and kept nowhere."""

    instance: Instance
    api_key: SecretText


class Deployment:
    """For the operator on the host, who holds the token's PIN: there is no other caller yet."""

    def __init__(self, token: Token, tenants: TenantStore, material: Material, clock: Clock) -> None:
        self._token = token
        self._tenants = tenants
        self._material = material
        self._clock = clock

    def require_founded(self) -> None:
        """Raise StoreRefused or TokenRefused when database and token are not those of one deployment."""
        if not self._tenants.instances() or not self._tenants.signing_keys():
            raise StoreRefused("The database holds no instance. Run `hsmkms init` first.")
        if not self._token.has_sentinel():
            raise TokenRefused("The token does not hold this deployment's sentinel key. Is it the right token?")

    def is_founded(self) -> bool:
        """True once `found` has finished."""
        return bool(self._tenants.instances() and self._tenants.signing_keys())

    def found(self, name: str, region: str, account: str) -> Founded:
        """Make what is missing of sentinel and signing key, then an instance and an administrator's API key."""
        if not self._token.has_sentinel():
            self._token.make_sentinel()
        if not self._tenants.signing_keys():
            key_id = new_id()
            self._tenants.add_signing_key(SigningKey(key_id, self._token.generate_signing_key(key_id), self._clock()))
        secret = self.add_administrator(account)
        return Founded(self._add_instance(name, region, account), secret)

    def _add_instance(self, name: str, region: str, account: str) -> Instance:
        instance_id = new_id()

        def commit(sealing_key: KeyVersion) -> Instance:
            instance = Instance(instance_id, name, region, account, self._clock(), sealing_key)
            self._tenants.add_instance(instance)
            return instance

        return self._material.make(f"{instance_id} sealing", commit)

    def add_administrator(self, account: str) -> SecretText:
        """A new administrator's API key, also for an operator who lost the first one."""
        secret = api_keys.format_secret(self._token.random(api_keys.SECRET_BYTES))
        identity = new_id()
        self._tenants.add_api_key(
            ApiKey(
                id=identity,
                name="administrator",
                iam_id=f"iam-ServiceId-{identity}",
                account=account,
                administrator=True,
                secret_sha256=api_keys.hash_secret(secret),
                created_at=self._clock(),
            )
        )
        return secret
