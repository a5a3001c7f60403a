"""A bucket's DEK and registration: made with it, opened for it, taken away after it. Calls of the key service only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from hsmkms.adopters.client import (
    AdopterError,
    ConnectionInvalid,
    KeyRefused,
    KeyServiceClient,
    KeyState,
    WrappedDek,
    parse_key_crn,
)
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core.dek_file import WrappedDekFile, aad_of, new_dek_id
from hsmkms.adopters.objectstorage.bucket import KIND
from hsmkms.adopters.objectstorage.configuration import Account
from hsmkms.domain.secrets import SecretBytes

_NOT_FOUND_CODES: Final = ("UNAUTHORIZED_ERR", "KEY_NOT_FOUND_ERR", "INSTANCE_NOT_FOUND_ERR", "KEY_DELETED_ERR")
DESCRIPTION: Final = "bucket of OpenStack Swift"


class KeyNotFound(AdopterError):
    """The root key that a bucket should be made under is not there, or not for this service; nobody is told which."""

    def __init__(self, crn: str) -> None:
        super().__init__(
            f"The key CRN could not be found: {crn}. Check it, and that an authorization lets cloud-object-storage "
            "read keys of its instance."
        )


class KeyNotUsable(AdopterError):
    """The root key is there, but nothing can be put under it now."""


class Provisioner:
    """Calls for the buckets of all accounts. `connect` makes the client of a connection, once each."""

    def __init__(self, connect: Callable[[Connection], KeyServiceClient], warn: Callable[[str], object]) -> None:
        self._connect, self._warn = connect, warn
        self._clients: dict[str, KeyServiceClient] = {}
        self._connecting = threading.Lock()

    def client(self, account: Account) -> KeyServiceClient:
        """The client of an account's service id. Made when first used: connections do not outlive a fork."""
        with self._connecting:
            if account.name not in self._clients:
                self._clients[account.name] = self._connect(account.connection)
            return self._clients[account.name]

    def make(self, account: Account, bucket: str, key_crn: str) -> tuple[WrappedDekFile, SecretBytes]:
        """A DEK for a new bucket, which is registered with the key from now on.

        Raises KeyNotFound, KeyNotUsable, KeyServiceAway, ConnectionInvalid.
        """
        if parse_key_crn(key_crn) is None:
            raise KeyNotFound(key_crn[:200])
        client, key_id = self.client(account).at_key(key_crn)
        resource, dek_id = account.bucket_crn(bucket), new_dek_id()
        try:
            key = client.key(key_id)
            if key.crn != key_crn:
                raise KeyNotFound(key_crn)
            if key.state is not KeyState.ACTIVE:
                raise KeyNotUsable(f"The root key {key_crn} is not active. Enable it, or choose another.")
            wrapped: WrappedDek = client.generate_and_wrap(key.id, aad_of(KIND, resource, dek_id))
            client.register(key.id, resource, description=DESCRIPTION)
        except KeyRefused as refused:
            if refused.reason_code in _NOT_FOUND_CODES:
                raise KeyNotFound(key_crn) from refused
            raise KeyNotUsable(f"The key {key_crn} cannot protect a bucket: {refused.words}") from refused
        return WrappedDekFile.of(KIND, resource, dek_id, key, wrapped), wrapped.plaintext

    def open(self, account: Account, dek: WrappedDekFile) -> SecretBytes:
        """A bucket's DEK. Raises KeyRefused, CiphertextRefused, KeyServiceAway, ConnectionInvalid."""
        client, key_id = self._at(account, dek)
        return client.unwrap(key_id, dek.ciphertext, dek.aad).plaintext

    def withdraw(self, account: Account, dek: WrappedDekFile) -> None:
        """The bucket is no more. What fails here the follower makes good."""
        client, key_id = self._at(account, dek)
        try:
            client.deregister(key_id, dek.resource_crn)
        except AdopterError as error:
            self._warn(f"The registration of {dek.resource_crn} stays for now: {error.message}")

    def keep_key(self, account: Account, dek: WrappedDekFile) -> None:
        """Let the key not be deleted while the bucket exists. Raises AdopterError."""
        client, key_id = self._at(account, dek)
        client.register(key_id, dek.resource_crn, prevent_deletion=True, description=DESCRIPTION)

    def _at(self, account: Account, dek: WrappedDekFile) -> tuple[KeyServiceClient, str]:
        client, key_id = self.client(account).at_key(dek.key_crn)
        if key_id != dek.key_id:
            raise ConnectionInvalid(f"The wrapped DEK of {dek.resource_crn} names two keys.")
        return client, key_id
