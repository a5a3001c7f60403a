"""Containers of one account of Swift, with the operator's rights: past authorization and past encryption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from swift.common.internal_client import InternalClient, UnexpectedResponse

from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.objectstorage.bucket import BucketDeks, header_of, is_subsidiary
from hsmkms.adopters.objectstorage.configuration import Account
from hsmkms.adopters.objectstorage.follower import StorageAway

_PREFIX = "x-container-sysmeta-"
_NEWEST = {"X-Newest": "true"}


class SwiftBuckets:
    """The buckets of an account, for its follower."""

    def __init__(self, client: InternalClient, account: Account) -> None:
        self._client, self._account = client, account

    def names(self) -> Iterator[str]:
        def listed() -> list[str]:
            found = self._client.iter_containers(self._account.name)
            return [str(container["name"]) for container in found]

        yield from (name for name in self._tried(listed) or () if not is_subsidiary(name))

    def deks(self, bucket: str) -> BucketDeks | None:
        headers = self._headers(bucket)
        if headers is None:
            return None
        sysmeta = {name.removeprefix(_PREFIX): value for name, value in headers.items() if name.startswith(_PREFIX)}
        return BucketDeks.of(self._account, bucket, sysmeta)

    def store(self, bucket: str, dek: WrappedDekFile) -> None:
        name, value = header_of(dek)
        path = self._client.make_path(self._account.name, bucket)
        self._tried(lambda: self._client.make_request("POST", path, {name: value}, (2,)))

    def _headers(self, bucket: str) -> dict[str, str] | None:
        path = self._client.make_path(self._account.name, bucket)
        response = self._tried(lambda: self._client.make_request("HEAD", path, dict(_NEWEST), (2, 404)))
        if response is None or response.status_int == 404:
            return None
        return {name.lower(): value for name, value in response.headers.items()}

    def _tried(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except UnexpectedResponse as error:
            if error.resp.status_int == 404:
                return None
            raise StorageAway(f"Swift answers {error.resp.status_int}.") from error
