"""Every refusal this service can give, one class each, without a word of HTTP.

    HsmkmsError
    ├── Refusal                    the caller's request cannot be done as it stands
    │   ├── BadBody · CollectionTotalMismatch · NoBody · InvalidField · InvalidQueryParam · InvalidInstance
    │   ├── BearerUnreadable · Unauthorized · FeatureRestricted
    │   ├── KeyNotFound · KeyRingNotFound · KeyDeleted · KeyStateConflict · KeyRootRequired
    │   ├── KeyPayloadRequired · IncorrectNonce · IncorrectNonceIv · ImportTokenExpired
    │   ├── RotationTooEarly · TooEarly · KeyExpired · KeyRestoreExpired · NotDualAuth · AuthorizationsNotMet
    │   ├── AliasNotUnique · AliasQuota · AliasNotFound · KeyCreationForbidden · QueryMismatch · ResourceCount
    │   ├── ServiceOnly · ResourceOwner · RegistrationNotFound · RegistrationExists · RegistrationKeyNotRoot
    │   ├── RegistrationKeyState · RegistrationVersion · DeletionPrevented · ProtectedResource · TooManyWaiting
    │   ├── KeyRingNotEmpty · KeyRingExists · KeyRingQuota · KeyRingReserved
    │   ├── UnprocessableCiphertext · TooManyRequests
    │   ├── CredentialsRefused · TokenRequestInvalid · TooManyAttempts     the token endpoint
    │   └── NotFound · Conflict · Invalid · VersionRequired · VersionStale · LastAdministrator     IAM, instances
    ├── KeyIncomplete              what is stored of a key is damaged
    ├── Unavailable                a part this service stands on does not answer: try again
    │   ├── TokenUnavailable · TokenAway · NotOpen · SigningKeyMissing · TokenBusy · KeyMaterialMissing
    │   └── StoreUnavailable · IssuerUnavailable · AuditUnavailable · SinkFailed
    └── OperatorError              for the person at the command line: settings, set-up, token

`code` is the contract's reason code (contract section 5, additions section 7). `message` is safe to show: it says what
to do next and never holds a secret or a caller's input of more than a few characters.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import ClassVar, Final


class HsmkmsError(Exception):
    """Root of all errors of this package."""

    code: ClassVar[str | None] = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Refusal(HsmkmsError):
    """The request cannot be done as it stands; the caller has to change something."""


class BadBody(Refusal):
    code = "BAD_BODY_ERR"


class CollectionTotalMismatch(Refusal):
    code = "COLLECTION_TOTAL_MISMATCH_ERR"

    def __init__(self) -> None:
        super().__init__("The member metadata.collectionTotal must be the number of resources.")


class NoBody(Refusal):
    code = "NO_BODY_ERR"

    def __init__(self) -> None:
        super().__init__("The request needs a JSON body. Send the members that this call takes.")


class InvalidField(Refusal):
    """A member of the body has a value that the contract does not allow; `target` names the member."""

    code = "INVALID_FIELD_ERR"

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.target = name


class InvalidQueryParam(Refusal):
    """A query parameter has a value that the contract does not allow; `target` names the parameter."""

    code = "INVALID_QUERY_PARAM_ERR"

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.target = name


class KeySearchTooBroad(Refusal):
    code = "KEY_SEARCH_TOO_BROAD"

    def __init__(self, candidates: int) -> None:
        super().__init__(f"The search would look through more than {candidates} keys. Narrow it with state or filter.")


class InvalidInstance(Refusal):
    def __init__(self) -> None:
        super().__init__("Request requires valid Bluemix-Instance Header containing a valid UUID")


class BearerUnreadable(Refusal):
    code = "BEARER_SUB_EXTRACTION_ERR"

    def __init__(self) -> None:
        super().__init__("The Authorization header must be `Bearer <token>` with a token from /identity/token.")


class Unauthenticated(Refusal):
    """The bearer token is missing, expired or was not made by us."""

    def __init__(self) -> None:
        super().__init__("The access token is missing, expired or not valid here. Get a new one at /identity/token.")


class Unauthorized(Refusal):
    """The caller has no right to this target, or the target does not exist: both read the same on purpose."""

    def __init__(self) -> None:
        super().__init__("The user does not have access to the specified resource")


class CredentialsRefused(Refusal):
    code = "BXNIM0415E"

    def __init__(self) -> None:
        super().__init__("Provided API key could not be found.")


class TokenRequestInvalid(Refusal):
    code = "BXNIM0109E"


class TooManyAttempts(Refusal):
    """Too many failed log-ins; `retry_after_s` is when the next one is looked at, in seconds."""

    code = "BXNIM0481E"

    def __init__(self, retry_after_s: float) -> None:
        self.retry_after_s = math.ceil(retry_after_s)
        super().__init__(f"Too many failed log-ins. Try again in {self.retry_after_s} s with the right API key.")


class NotFound(Refusal):
    """An identity, API key, group, policy or instance that does not exist or is another account's: the same answer."""

    code = "not_found"

    def __init__(self, what: str) -> None:
        super().__init__(f"The {what} does not exist. Check its id.")


class PolicyNotFound(NotFound):
    code = "policy_not_found"

    def __init__(self) -> None:
        super().__init__("policy")


class Conflict(Refusal):
    """What is asked for is there already, or what is there forbids it."""

    code = "conflict"


class PolicyConflict(Conflict):
    code = "policy_conflict_error"

    def __init__(self, policy_id: str) -> None:
        super().__init__(f"The policy {policy_id} grants the same already. Change that one instead.")


class Locked(Conflict):
    """A locked API key or service id cannot be changed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The {what} is locked. Unlock it before you change or delete it.")


class LastAdministrator(Conflict):
    """Nobody could administer the account any more."""

    def __init__(self) -> None:
        super().__init__(
            "Nobody who can log in would be left to administer this account. Make another administrator first."
        )


class Invalid(Refusal):
    """A member or parameter of an IAM or instance request has a value that is not possible."""

    code = "invalid_body"


class VersionRequired(Refusal):
    code = "if_match_required"

    def __init__(self) -> None:
        super().__init__("The header If-Match is missing. Send the ETag of the version that you read.")


class VersionStale(Refusal):
    code = "if_match_stale"

    def __init__(self) -> None:
        super().__init__("It was changed since you read it. Read it again and repeat the change with the new ETag.")


class FeatureRestricted(Refusal):
    code = "FEATURE_RESTRICTED_ERR"


class KeyNotFound(Refusal):
    code = "KEY_NOT_FOUND_ERR"

    def __init__(self) -> None:
        super().__init__("Key does not exist")


class KeyRingNotFound(Refusal):
    code = "KEY_RING_NOT_FOUND_ERR"

    def __init__(self) -> None:
        super().__init__("Key ring does not exist. Create it first, or leave X-Kms-Key-Ring out.")


class KeyRingExists(Refusal):
    code = "KEY_RING_ALREADY_EXISTS_ERR"

    def __init__(self) -> None:
        super().__init__("A key ring with this id exists already. Choose another id.")


class KeyRingReserved(Refusal):
    code = "KEY_RING_RESERVED_ERR"

    def __init__(self) -> None:
        super().__init__("The key ring `default` always exists and cannot be created or deleted.")


class KeyRingQuota(Refusal):
    code = "KEY_RING_QUOTA_ERR"

    def __init__(self, most: int) -> None:
        super().__init__(f"An instance holds {most} key rings at most. Delete one that is empty first.")


class KeyRingNotEmpty(Refusal):
    code = "KEY_RING_NOT_EMPTY_ERR"

    def __init__(self, message: str) -> None:
        super().__init__(message)


class KeyDeleted(Refusal):
    code = "KEY_DELETED_ERR"

    def __init__(self) -> None:
        super().__init__("Key has already been deleted. Restore it before you use it.")


class KeyStateConflict(Refusal):
    """The key's state does not permit the action (contract section 3)."""

    code = "KEY_ACTION_INVALID_STATE_ERR"

    def __init__(self, needed: str) -> None:
        super().__init__(f"Key is not in {needed} state")


class KeyPayloadRequired(InvalidField):
    code = "KEY_PAYLOAD_REQ_ERR"

    def __init__(self) -> None:
        super().__init__(
            "payload", "The key was imported, so it rotates to material that you bring. Send it as `payload`."
        )


class IncorrectNonce(Refusal):
    code = "INCORRECT_NONCE_ERR"

    def __init__(self) -> None:
        super().__init__("The nonce is not that of the import token. Encrypt the one that GET /import_token gave.")


class IncorrectNonceIv(Refusal):
    """Which of several things is wrong is not said on purpose."""

    code = "INCORRECT_NONCE_IV_ERR"

    def __init__(self) -> None:
        super().__init__("The fields `payload`, `encryptedNonce` and `iv` do not fit each other and the import token.")


class ImportTokenExpired(Refusal):
    code = "IMPORT_TOKEN_EXPIRED_ERR"

    def __init__(self) -> None:
        super().__init__("There is no import token that could be used. Create one with POST /import_token.")


class KeyRootRequired(Refusal):
    code = "KEY_ROOT_REQ_ERR"

    def __init__(self) -> None:
        super().__init__("The action needs a root key, and this is a standard key. Create one with extractable=false.")


class RotationTooEarly(Refusal):
    code = "KEY_ROTATION_NOT_PERMITTED"

    def __init__(self, not_before: datetime) -> None:
        super().__init__(
            f"Key was rotated within the last hour. Rotate it again after {not_before:%Y-%m-%dT%H:%M:%SZ}."
        )


class TooEarly(Refusal):
    """An action that undoes or ends another may not follow it so soon."""

    code = "REQ_TOO_EARLY_ERR"

    def __init__(self, what: str, not_before: datetime) -> None:
        super().__init__(f"{what} cannot be performed until at least {not_before:%Y-%m-%dT%H:%M:%SZ}")


class KeyExpired(Refusal):
    code = "KEY_EXPIRED_ERR"

    def __init__(self, expired_at: datetime) -> None:
        super().__init__(f"Key has expired at {expired_at:%Y-%m-%d %H:%M:%S} +0000 UTC and cannot be restored.")


class KeyRestoreExpired(Refusal):
    code = "KEY_RESTORE_EXPIRED"

    def __init__(self) -> None:
        super().__init__("The time to restore the key is over. Create another key.")


class NotDualAuth(Refusal):
    code = "NOT_DUAL_AUTH_ERR"

    def __init__(self) -> None:
        super().__init__("The key has no dual authorization policy. Delete it directly, or set the policy first.")


class AuthorizationsNotMet(Refusal):
    code = "AUTHORIZATIONS_NOT_MET"

    def __init__(self) -> None:
        super().__init__(
            "1 prior authorization(s) are required for deletion. Somebody else sets the key for deletion first."
        )


class ServiceOnly(Refusal):
    """A user asks for what only a source service may do."""

    code = "SERVICE_ONLY_ERR"

    def __init__(self) -> None:
        super().__init__("Only a service that is authorized may do this. Use an API key of its service id.")


class ResourceOwner(Refusal):
    """A service names a resource that is not its own."""

    code = "RESOURCE_OWNER_ERR"

    def __init__(self) -> None:
        super().__init__("The resource CRN does not lie in an instance that this service id acts for.")


class RegistrationNotFound(Refusal):
    code = "REGISTRATION_NOT_FOUND_ERR"

    def __init__(self) -> None:
        super().__init__("The key has no registration of this resource.")


class RegistrationExists(Refusal):
    code = "REGISTRATION_ALREADY_EXISTS_ERR"

    def __init__(self) -> None:
        super().__init__("The resource is registered with this key already. Change that registration instead.")


class RegistrationKeyNotRoot(Refusal):
    code = "KEY_ROOT_REQ_REG_ERR"

    def __init__(self) -> None:
        super().__init__("Only root keys have registrations, and this is a standard key.")


class RegistrationKeyState(Refusal):
    code = "KEY_INVALID_STATE_ERR"

    def __init__(self) -> None:
        super().__init__("Key is not in active state")


class RegistrationVersion(Refusal):
    """The key version of a registration or an acknowledgement is not one of the key's, or not new enough."""

    code = "KEY_VERSION_INVALID"

    def __init__(self, message: str) -> None:
        super().__init__(message)


class DeletionPrevented(Refusal):
    """A registration forbids the deletion of its key, by force or not."""

    code = "PREV_KEY_DEL_ERR"

    def __init__(self, resource_crn: str) -> None:
        super().__init__(
            f"The registration of {resource_crn} prevents the deletion of the key. Its service has to lift that first."
        )


class ProtectedResource(InvalidQueryParam):
    """A key that protects resources is deleted by `force` alone."""

    code = "PROTECTED_RESOURCE_ERR"

    def __init__(self, resource_crn: str) -> None:
        super().__init__(
            "force",
            f"The key protects resources, such as {resource_crn}. To delete it nonetheless, use the parameter force.",
        )


class TooManyWaiting(Refusal):
    """An identity holds more waiting requests for events than it may."""

    retry_after_s: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__("Too many requests of this identity wait for events. Hold one at a time.")


class AliasQuota(Refusal):
    code = "KEY_ALIAS_QUOTA_ERR"

    def __init__(self, most: int) -> None:
        super().__init__(f"A key has {most} aliases at most. Delete one first.")


class AliasNotFound(Refusal):
    code = "KEY_ALIAS_NOT_FOUND_ERR"

    def __init__(self) -> None:
        super().__init__("The key has no such alias.")


class KeyCreationForbidden(Refusal):
    code = "KEY_CREATE_IMPORT_ACCESS_ERR"

    def __init__(self) -> None:
        super().__init__("The instance's policy keyCreateImportAccess forbids keys of this kind.")


class QueryMismatch(Refusal):
    code = "BODY_QUERY_PARAM_MISMATCH_ERR"

    def __init__(self) -> None:
        super().__init__("The policy in the body is not the one that the parameter `policy` names.")


class ResourceCount(Refusal):
    code = "NUM_COLLECTION_RESOURCE_ERR"

    def __init__(self) -> None:
        super().__init__("With the parameter `policy` the body holds exactly one resource.")


class AliasNotUnique(Refusal):
    code = "KEY_ALIAS_NOT_UNIQUE_ERR"

    def __init__(self) -> None:
        super().__init__("An alias of the request is in use in this instance. Choose another one.")


class UnprocessableCiphertext(Refusal):
    """Truncated, changed, made under another key or with other AAD: one answer, whichever check failed."""

    code = "UNPROCESSABLE_CIPHERTEXT_ERR"

    def __init__(self) -> None:
        super().__init__("The ciphertext does not belong to this key and additional authentication data.")


class KeyIncomplete(HsmkmsError):
    """What the database holds of a key is damaged, or not all is there: nothing can be done with it but delete it."""

    code = "INCOMPLETE_METADATA_ERR"

    def __init__(self) -> None:
        super().__init__("Key metadata became corrupted. Delete this key, or have the operator restore the database.")


class TooManyRequests(Refusal):
    """More requests than an instance or an identity may send; `retry_after_s` is when there is room for one more."""

    def __init__(self, whose: str, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"This {whose} sends too many requests. Try again in {retry_after_s} s and send fewer a second."
        )


class Unavailable(HsmkmsError):
    """A part that this service stands on does not answer. `retry_after_s` is what Retry-After says, in seconds."""

    retry_after_s: ClassVar[int] = 2


class TokenUnavailable(Unavailable):
    """The HSM does not answer, or not as it should."""


class PinNotTried(TokenUnavailable):
    """The HSM was not asked, because a try of its PIN could not be noted or earlier ones had no answer."""


class TokenAway(TokenUnavailable):
    """The HSM did not answer others a moment ago, which was said then; this caller did not ask it."""

    def __init__(self) -> None:
        super().__init__("The HSM does not answer. Try again.")


class NotOpen(TokenAway):
    """This process has not opened token and database yet."""


class SigningKeyMissing(TokenUnavailable):
    """The token answers, and a signing key is not on it."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"The signing key {key_id} is not on the token. Run `hsmkms doctor`.")


class AuditKeyMissing(SigningKeyMissing):
    """The token answers, and the key that signs audit logs is not on it: nothing can be recorded."""

    def __init__(self) -> None:
        TokenUnavailable.__init__(
            self,
            "The token lacks the key that signs the audit logs of this deployment. Is it the right token? Restore its "
            "own backup; if the key is lost for good, `hsmkms iam recover` makes another.",
        )


class TokenBusy(Unavailable):
    """All sessions with the HSM are in use for longer than a caller should wait."""

    retry_after_s = 1


class KeyMaterialMissing(Unavailable):
    """The token answers, and an object that a committed row names is not on it, or is not the one it was."""


class StoreUnavailable(Unavailable):
    """The database does not answer or could not commit."""


class IssuerUnavailable(Unavailable):
    """An outside token issuer does not give its keys."""


class AuditUnavailable(Unavailable):
    """What would happen cannot be recorded, so it does not happen."""


class SinkFailed(Unavailable):
    """A place that audit records are shipped to does not take them. Only who ships sees it."""


class OperatorError(HsmkmsError):
    """What a person at the command line has to put right; printed as one line."""


class AuditUnreadable(OperatorError):
    """An audit log cannot be opened or read."""


class AuditTampered(OperatorError):
    """An audit log is not what was written."""


class SettingsInvalid(OperatorError):
    """A setting has a value that cannot be used."""


class AuditKeyInvalid(OperatorError):
    """What was given as the public key of audit checkpoints is none."""


class TokenRefused(OperatorError):
    """The token lacks what this service needs, or is not safe to hold root keys."""


class TokenAbsent(TokenRefused):
    """No token is where it should be: it has not come yet, or the settings name another."""


class PinRefused(OperatorError):
    """The token did not take the PIN. It is never tried twice: a second wrong PIN can lock the token."""


class WrappedKeyUnreadable(OperatorError):
    """What should be an AES key under a transport key of the token is none."""


class AdoptionRefused(OperatorError):
    """A key that a ceremony made is not taken into service."""


class StoreRefused(OperatorError):
    """The database cannot be used as it stands."""


class BackupRefused(OperatorError):
    """A backup cannot be made, read, or brought back here."""


MAY_COME_BACK: Final = (Unavailable, TokenAbsent)
"""Where waiting may help; a network HSM that is away often shows no token at all."""
