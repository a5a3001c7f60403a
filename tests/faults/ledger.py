"""What clients were told during the kills: every key, version and ciphertext that has to be there after a restart."""

from __future__ import annotations

import base64
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

from tests.support.deployment import Service, create_key

CHECKERS = 4


@dataclass
class KnownKey:
    """A key whose creation was answered with 201."""

    id: str
    rotation_sent: bool = False
    rotation_confirmed: bool = False
    sealed: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of ciphertext and DEK, both base64, that were answered with 200."""


class Ledger:
    """Filled by several client threads; `wait_for` is how a killer knows that the stream is running."""

    def __init__(self) -> None:
        self.keys: list[KnownKey] = []
        self.confirmed = 0
        self._changed = threading.Condition()

    def confirm(self) -> None:
        """One more create or rotate was answered."""
        with self._changed:
            self.confirmed += 1
            self._changed.notify_all()

    def wait_for(self, count: int, alive: Callable[[], bool], timeout_s: float) -> None:
        """Return once `count` creates and rotates were answered in all. Fails when no client is left to send them."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self.confirmed >= count or not alive(), timeout_s)
        assert reached, f"only {self.confirmed} of {count} operations in {timeout_s} s"
        assert alive(), "a client ended before the kill"

    def wake(self) -> None:
        """Let `wait_for` look again."""
        with self._changed:
            self._changed.notify_all()

    def create(self, client: httpx.Client) -> KnownKey:
        """Create a key and remember it as soon as the answer is here."""
        key = KnownKey(create_key(client, "kill"))
        self.keys.append(key)
        self.confirm()
        return key

    def rotate(self, client: httpx.Client, key: KnownKey) -> None:
        """Rotate a key. If the answer never comes, both outcomes are right from then on."""
        key.rotation_sent = True
        answer = client.post(f"/keys/{key.id}/actions/rotate")
        assert answer.status_code == 204, answer.text
        key.rotation_confirmed = True
        self.confirm()

    def wrap(self, client: httpx.Client, key: KnownKey) -> None:
        """Wrap a fresh DEK and remember the ciphertext."""
        dek = base64.b64encode(secrets.token_bytes(32)).decode()
        answer = client.post(f"/keys/{key.id}/actions/wrap", json={"plaintext": dek})
        assert answer.status_code == 200, answer.text
        key.sealed.append((answer.json()["ciphertext"], dek))

    def check(self, service: Service) -> None:
        """Every key that anybody was told about wraps, unwraps, opens what it sealed and has its versions."""
        with service.client() as client, ThreadPoolExecutor(CHECKERS) as threads:
            for done in [threads.submit(self._check_key, client, key) for key in self.keys]:
                done.result()

    def _check_key(self, client: httpx.Client, key: KnownKey) -> None:
        self.wrap(client, key)
        for ciphertext, dek in key.sealed:
            answer = client.post(f"/keys/{key.id}/actions/unwrap", json={"ciphertext": ciphertext})
            assert answer.status_code == 200, answer.text
            assert answer.json()["plaintext"] == dek
        versions = len(client.get(f"/keys/{key.id}/versions").json()["resources"])
        possible = {2} if key.rotation_confirmed else {1, 2} if key.rotation_sent else {1}
        assert versions in possible, f"{versions} versions, {possible} possible"
