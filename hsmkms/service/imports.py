"""Keys from outside: import tokens, and what comes for them or in clear (contract section 1.2, additions 3.4)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

import structlog

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.importing import (
    DEFAULT_LIFETIME_S,
    DEFAULT_RETRIEVALS,
    NONCE_BYTES,
    BroughtMaterial,
    ImportToken,
    Oaep,
    Passage,
    PlainMaterial,
    WrappedMaterial,
    require_lifetime,
    transport_owner,
)
from hsmkms.domain.jobs import Done
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.tenants import PendingObject
from hsmkms.errors import FeatureRestricted, ImportTokenExpired, Unavailable
from hsmkms.iam.integrity import is_sealed_import_token, seal_import_token
from hsmkms.service.due import Due
from hsmkms.service.instance_policies import InstancePolicyService
from hsmkms.service.key_access import KeyAccess
from hsmkms.service.material import Bring, Material
from hsmkms.service.trail import Trail
from hsmkms.store.import_tokens import ImportTokenStore
from hsmkms.token.room import Token

BATCH: Final = 100

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ImportRules:
    """What the operator permits: keys that pass through this process because the token cannot unwrap them inside, and
    RSAES_OAEP_SHA_1."""

    by_process: bool
    oaep_sha1: bool


class ImportService:
    """Methods with a caller authorize it first and raise Unauthorized."""

    def __init__(
        self,
        token: Token,
        import_tokens: ImportTokenStore,
        instance_policies: InstancePolicyService,
        material: Material,
        access: KeyAccess,
        trail: Trail,
        rules: ImportRules,
        clock: Clock,
    ) -> None:
        self._token = token
        self._import_tokens = import_tokens
        self._instance_policies = instance_policies
        self._material = material
        self._access = access
        self._trail = trail
        self._rules = rules
        self._clock = clock
        self._due = Due(clock, "an import token could not be ended", "import_token")

    def create(
        self,
        caller: Caller,
        instance_id: str,
        lifetime_s: int = DEFAULT_LIFETIME_S,
        retrievals: int = DEFAULT_RETRIEVALS,
    ) -> ImportToken:
        """Make an import token in the place of the instance's old one. Raises InvalidField, FeatureRestricted."""
        self._access.instance(caller, Action.IMPORT_TOKEN_CREATE, instance_id, None)
        lifetime = require_lifetime(lifetime_s, retrievals)
        usable = {oaep for oaep in Oaep if self._is_permitted(oaep)}
        if not usable:
            raise FeatureRestricted("This deployment takes no keys under import tokens. Ask its operator.")
        by_process = any(self._token.passage(oaep) is Passage.PROCESS for oaep in usable)
        owner = transport_owner(instance_id)
        replaced: list[str] = []

        def make(key_id: str, _: datetime) -> ImportToken:
            public_pem = self._token.generate_transport_key(key_id, owner, by_process=by_process)
            nonce = self._token.random(NONCE_BYTES).reveal()
            now = self._clock()
            made = ImportToken(key_id, instance_id, public_pem, nonce, now, now + lifetime, retrievals, retrievals)
            old = self._import_tokens.replace(made, seal_import_token(self._token.mac, made))
            replaced.extend([] if old is None else [old])
            return made

        made = self._material.settled(owner, make)
        for old_id in replaced:
            # The new one is there; what cannot be settled now stays pending, and `doctor` settles it.
            with contextlib.suppress(Unavailable):
                self._material.settle(PendingObject(old_id, owner, made.created_at))
        return made

    def read(self, caller: Caller, instance_id: str) -> ImportToken:
        """Count a retrieval, then give the import token with its public key and nonce. Raises ImportTokenExpired."""
        self._access.instance(caller, Action.IMPORT_TOKEN_READ, instance_id, None)
        return self._believed(self._import_tokens.retrieve(instance_id, self._clock()))

    def require_way(self, instance_id: str, material: BroughtMaterial) -> None:
        """Raise KeyCreationForbidden when the instance wants an import token and there is none, FeatureRestricted when
        this deployment does not take the key in the way that it comes."""
        if isinstance(material, PlainMaterial):
            self._instance_policies.require_clear(instance_id)
        elif not self._is_permitted(material.oaep):
            raise FeatureRestricted(f"This deployment takes no keys under {material.oaep.value}. Ask its operator.")

    def way_of(self, instance_id: str, material: BroughtMaterial) -> Bring:
        """How a root key that was brought gets into the token. It raises IncorrectNonce, IncorrectNonceIv,
        ImportTokenExpired."""

        def bring(version_id: str, owner: str, now: datetime) -> KeyVersion:
            if isinstance(material, PlainMaterial):
                version = self._token.create_key(version_id, owner, now, material.value)
                return dataclasses.replace(version, passage=Passage.PROCESS)
            return self._unwrap(instance_id, version_id, owner, now, material)

        return bring

    def count_expired(self) -> int:
        """How many import tokens are past their time."""
        return self._import_tokens.count_expired(self._clock())

    def expire_due(self, go_on: Callable[[], bool]) -> Done:
        """Destroy the private keys of import tokens whose time is over."""
        expired = self._import_tokens.expired(self._clock(), BATCH)
        ends = {one.id: partial(self._end, one) for one in expired}
        return self._due.each(ends, self._material.while_possible(go_on))

    def _end(self, expired: ImportToken) -> bool:
        with self._trail.job("import-token.expire", expired.id, expired.instance_id):
            self._token.destroy_transport_key(expired.id)
            self._import_tokens.remove(expired.id)
        return True

    def _unwrap(
        self, instance_id: str, version_id: str, owner: str, now: datetime, material: WrappedMaterial
    ) -> KeyVersion:
        import_token = self._believed(self._import_tokens.get(instance_id))
        if now >= import_token.expires_at:
            raise ImportTokenExpired
        version = self._token.import_key(version_id, owner, now, material, import_token)
        return dataclasses.replace(version, passage=self._token.passage(material.oaep) or Passage.PROCESS)

    def _believed(self, found: tuple[ImportToken, bytes] | None) -> ImportToken:
        """An import token that this deployment made. Raises ImportTokenExpired."""
        if found is None:
            raise ImportTokenExpired
        import_token, seal = found
        if not is_sealed_import_token(self._token.mac, import_token, seal):
            _log.critical("an import token that was not made here is ignored", id=import_token.id)
            raise ImportTokenExpired
        return import_token

    def _is_permitted(self, oaep: Oaep) -> bool:
        if oaep is Oaep.SHA_1 and not self._rules.oaep_sha1:
            return False
        passage = self._token.passage(oaep)
        return passage is Passage.TOKEN or (passage is Passage.PROCESS and self._rules.by_process)
