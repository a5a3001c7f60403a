"""Take a root key into service that a ceremony put on the token, or wrapped to an import token."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.adoption import BundledKey, CeremonyKey
from hsmkms.domain.ids import DEFAULT_KEY_RING
from hsmkms.domain.importing import Passage
from hsmkms.domain.keys import Key, KeyState, KeyVersion, key_owner
from hsmkms.domain.new_key import NewKey, require_valid
from hsmkms.errors import AdoptionRefused, SigningKeyMissing
from hsmkms.service.acts import current
from hsmkms.service.imports import ImportService
from hsmkms.service.instance_policies import InstancePolicyService
from hsmkms.service.key_access import KeyAccess
from hsmkms.service.key_policies import policy_of
from hsmkms.service.material import Material
from hsmkms.store.keys import KeyStore
from hsmkms.token.room import Token


class AdoptionService:
    """Methods authorize their caller first and raise Unauthorized."""

    def __init__(
        self,
        token: Token,
        keys: KeyStore,
        access: KeyAccess,
        instance_policies: InstancePolicyService,
        imports: ImportService,
        material: Material,
        clock: Clock,
    ) -> None:
        self._token = token
        self._keys = keys
        self._imports = imports
        self._material = material
        self._access = access
        self._instance_policies = instance_policies
        self._clock = clock

    def adopt(self, caller: Caller, found: CeremonyKey) -> Key:
        """Register the key. Raises AdoptionRefused, KeyCreationForbidden, InvalidField; KeyMaterialMissing or
        TokenRefused when the object is not the one of the record or not as it must be."""
        self._access.instance(caller, Action.KEY_CREATE, found.instance_id, DEFAULT_KEY_RING)
        require_valid(NewKey(found.name, found.purpose[:240], (), (), False, None), self._clock())
        self._require_proved(found)
        return self._insert(caller, found, found.version)

    def adopt_bundle(self, caller: Caller, found: BundledKey) -> Key:
        """Import the key and register it.

        Raises AdoptionRefused, KeyCreationForbidden, InvalidField, FeatureRestricted; IncorrectNonce,
        IncorrectNonceIv or ImportTokenExpired when the bundle is not for the instance's import token.
        """
        self._access.instance(caller, Action.KEY_CREATE, found.instance_id, DEFAULT_KEY_RING)
        require_valid(NewKey(found.name, found.purpose[:240], (), (), False, None), self._clock())
        if self._keys.get(found.instance_id, found.key_id) is not None:
            raise AdoptionRefused("This key was adopted before.")
        self._imports.require_way(found.instance_id, found.material)

        def commit(version: KeyVersion) -> Key:
            if not hmac.compare_digest(version.check_value, found.check_value):
                raise AdoptionRefused("The key in the bundle is not the one in the record.")
            return self._insert(caller, found, version)

        bring = self._imports.way_of(found.instance_id, found.material)
        return self._material.make(key_owner(found.instance_id, found.key_id), commit, bring)

    def _insert(self, caller: Caller, found: CeremonyKey | BundledKey, version: KeyVersion) -> Key:
        now = self._clock()
        imported = version.passage is not Passage.GENERATED
        wishes = self._instance_policies.inherited(found.instance_id, extractable=False, imported=imported)
        key = Key(
            id=found.key_id,
            instance_id=found.instance_id,
            key_ring_id=DEFAULT_KEY_RING,
            name=found.name,
            description=found.purpose[:240],
            tags=(),
            aliases=(),
            extractable=False,
            imported=imported,
            state=KeyState.ACTIVE,
            created_at=now,
            created_by=caller.iam_id,
            updated_at=None,
            rotated_at=None,
            expires_at=None,
            deleted_at=None,
            deleted_by=None,
            versions=(version,),
        )
        key = replace(key, policies=tuple(policy_of(wish, key, caller.iam_id, now) for wish in wishes))
        self._keys.insert(key, None)
        current().key = key
        return key

    def _require_proved(self, found: CeremonyKey) -> None:
        if found.serial != self._token.info.serial:
            raise AdoptionRefused(f"The record is of the token {found.serial}; this one is {self._token.info.serial}.")
        if found.version.owner != key_owner(found.instance_id, found.key_id):
            raise AdoptionRefused("The record names another owner for the object than for the key.")
        if self._keys.has_version(found.version.id):
            raise AdoptionRefused("This key was adopted before.")
        self._require_signer(found)
        self._token.verify_key(found.version)
        self._token.prove_key(found.version)
        kept = self._token.describe_key(found.version.id).check_values.ecb
        if None not in (kept, found.check_values.ecb) and kept != found.check_values.ecb:
            raise AdoptionRefused("The key check value of the object is not the one in the record.")

    def _require_signer(self, found: CeremonyKey) -> None:
        """The token signs something new: so the record was made with this token's key and not with any P-256 key."""
        challenge = secrets.token_bytes(32)
        try:
            signature = self._token.sign(found.signing_key_id, challenge)
        except SigningKeyMissing:
            raise AdoptionRefused("The key that signed the record is not on this token.") from None
        public = serialization.load_pem_public_key(found.signing_public_pem)
        der = utils.encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
        try:
            if not isinstance(public, ec.EllipticCurvePublicKey):
                raise AdoptionRefused("The record's signing key is of another kind.")
            public.verify(der, challenge, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise AdoptionRefused("The record was not signed by a key of this token.") from None
