"""A client that does all kinds of calls, remembers what it was told, and holds the service to it."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

from tests.support.deployment import create_body

if TYPE_CHECKING:
    from tests.support.load import Load

OBEYED_WITHIN_S = 1.0
"""How soon every worker and node obeys what one of them said."""
KEPT_CIPHERTEXTS = 5
MOST_KEYS = 5
MOST_GONE = 10
GRANT = "urn:ibm:params:oauth:grant-type:apikey"
WRITE = frozenset({"create", "rotate", "disable", "delete", "purge"})
WITH_TOKEN = frozenset({"create", "rotate", "purge", "wrap", "unwrap", "rewrap", "changed ciphertext", "other aad"})
"""What cannot be answered without the token."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request; `status` is 0 when it was cut off and None when nobody listened. Times are monotonic seconds."""

    action: str
    began: float
    ended: float
    status: int | None
    correlation_id: str
    good: bool

    @property
    def took(self) -> float:
        return self.ended - self.began


@dataclass
class Told:
    """What a client was told of one of its keys."""

    key: str
    sealed: list[tuple[str, str, list[str]]] = field(default_factory=list)
    rotations: int = 0
    refused_from: float | None = None
    deleted: bool = False


class Login:
    """An access token that all clients share."""

    def __init__(self, urls: Callable[[], Sequence[str]], api_key: str) -> None:
        self._urls, self._api_key = urls, api_key
        self._lock = threading.Lock()
        self.token = ""

    def renew(self, old: str) -> None:
        """Log in again, unless somebody did since `old`. Raises httpx.HTTPError."""
        with self._lock:
            if self.token != old:
                return
            form = {"grant_type": GRANT, "apikey": self._api_key}
            failure: httpx.HTTPError | None = None
            for url in self._urls():
                try:
                    answer = httpx.post(f"{url}/identity/token", data=form, timeout=60)
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    failure = error
                else:
                    self.token = str(answer.json()["access_token"])
                    return
            assert failure is not None
            raise failure


class Caller:
    """One client with keys of its own. `again` is what it does about a 401: log in again, which is then no fault."""

    def __init__(self, load: Load, seed: int) -> None:
        self._load = load
        self.random = random.Random(seed)
        self.keys: list[Told] = []
        self.gone: list[Told] = []
        self.connect()
        self._at = self.random.randrange(64)

    def connect(self) -> None:
        """Begin with connections of its own."""
        self._http = httpx.Client(timeout=120)

    def close(self) -> None:
        """End them."""
        self._http.close()

    def run(self) -> None:
        """Until the load stops."""
        while not self._load.stopping.is_set():
            self.step()
            self._load.stopping.wait(self._load.pause_s * self.random.uniform(0.5, 1.5))
        self.close()

    def step(self) -> None:
        """One call of any kind."""
        if len(self.keys) < 2:
            self.create()
            return
        acts = [self.wrap] * 5 + [self.unwrap] * 7 + [self.rewrap, self.changed, self.changed, self.other_aad]
        acts += [self.read, self.read, self.list_keys, self.nobody, self.use_gone, self.rotate, self.create]
        acts += [self.disable, self.delete] if self.random.random() < 0.5 else []
        self.random.choice(acts)()

    def create(self) -> None:
        if len(self.keys) >= MOST_KEYS:
            self.delete()
            return
        answer = self._send("create", "POST", "/keys", create_body("told"), wanted=(201,))
        if answer is not None:
            self.keys.append(Told(answer.json()["resources"][0]["id"]))

    def wrap(self) -> None:
        told, aad = self.random.choice(self.keys), [self.random.randbytes(4).hex()]
        body: dict[str, object] = {"aad": aad}
        if self.random.random() < 0.5:
            body["plaintext"] = base64.b64encode(self.random.randbytes(32)).decode()
        answer = self._act("wrap", told, "wrap", body)
        if answer is not None:
            plaintext = str(body.get("plaintext") or answer.json()["plaintext"])
            told.sealed.append((answer.json()["ciphertext"], plaintext, aad))
            if len(told.sealed) > KEPT_CIPHERTEXTS:
                del told.sealed[self.random.randrange(KEPT_CIPHERTEXTS)]

    def unwrap(self) -> None:
        told = self.random.choice(self.keys)
        if told.sealed:
            self.open(told, self.random.choice(told.sealed))

    def open(self, told: Told, sealed: tuple[str, str, list[str]]) -> bool:
        """Unwrap; False if what came back is not what was sealed, or nothing."""
        ciphertext, plaintext, aad = sealed
        answer = self._act("unwrap", told, "unwrap", {"ciphertext": ciphertext, "aad": aad})
        if answer is None:
            return False
        if answer.json()["plaintext"] != plaintext:
            self._load.wrong.append(f"unwrap {told.key}: another plaintext")
            return False
        return True

    def rewrap(self) -> None:
        told = self.random.choice(self.keys)
        if told.sealed:
            ciphertext, plaintext, aad = self.random.choice(told.sealed)
            answer = self._act("rewrap", told, "rewrap", {"ciphertext": ciphertext, "aad": aad})
            if answer is not None:
                told.sealed.append((answer.json()["ciphertext"], plaintext, aad))

    def changed(self) -> None:
        """A ciphertext of which one bit was changed: refused, whatever else goes on."""
        told = self.random.choice(self.keys)
        if told.sealed:
            ciphertext, _, aad = self.random.choice(told.sealed)
            inside = json.loads(base64.b64decode(ciphertext))
            raw = bytearray(base64.b64decode(inside["ciphertext"]))
            raw[self.random.randrange(len(raw))] ^= 1 << self.random.randrange(8)
            inside["ciphertext"] = base64.b64encode(raw).decode()
            again = base64.b64encode(json.dumps(inside, separators=(",", ":")).encode()).decode()
            self._act("changed ciphertext", told, "unwrap", {"ciphertext": again, "aad": aad}, wanted=(422,))

    def other_aad(self) -> None:
        told = self.random.choice(self.keys)
        if told.sealed:
            body = {"ciphertext": self.random.choice(told.sealed)[0], "aad": ["another"]}
            self._act("other aad", told, "unwrap", body, wanted=(422,))

    def nobody(self) -> None:
        """A key that does not exist."""
        self._send("unknown key", "POST", f"/keys/{uuid.uuid4()}/actions/wrap", {}, wanted=(404,))

    def read(self) -> None:
        self._send("read", "GET", f"/keys/{self.random.choice(self.keys).key}/metadata", wanted=(200,))

    def list_keys(self) -> None:
        self._send("list", "GET", "/keys?limit=10", wanted=(200,))

    def rotate(self) -> None:
        told = self.random.choice(self.keys)
        if self._act("rotate", told, "rotate", None, wanted=(204,)) is not None:
            told.rotations += 1

    def disable(self) -> None:
        self._end(self.random.choice(self.keys), "disable", "POST", "/actions/disable", deleted=False)

    def delete(self) -> None:
        self._end(self.random.choice(self.keys), "delete", "DELETE", "", deleted=True)

    def _end(self, told: Told, action: str, method: str, path: str, *, deleted: bool) -> None:
        """After this call nobody knows what the key is unless it was answered: so it is not used any more."""
        self.keys.remove(told)
        if self._send(action, method, f"/keys/{told.key}{path}", wanted=(204,)) is not None:
            told.refused_from, told.deleted = time.monotonic() + OBEYED_WITHIN_S, deleted
            self.gone.append(told)
            if len(self.gone) > MOST_GONE:
                self._forget(self.gone.pop(0))

    def _forget(self, told: Told) -> None:
        """Nobody asks for this key any more. One that is not purged now stays for ever."""
        if not self._load.purges:
            return
        if not told.deleted and self._send("delete", "DELETE", f"/keys/{told.key}", wanted=(204,)) is None:
            return
        self._send("purge", "DELETE", f"/keys/{told.key}/purge", wanted=(204,))

    def use_gone(self) -> None:
        """A key that was deleted or disabled is of no use to anybody."""
        old = [told for told in self.gone if told.refused_from is not None and told.refused_from < time.monotonic()]
        if old:
            self.gone_is_refused(self.random.choice(old))

    def gone_is_refused(self, told: Told) -> bool:
        wanted = (410,) if told.deleted else (409,)
        return self._act("ended key", told, "wrap", {}, wanted=wanted) is not None

    def lost(self) -> Sequence[str]:
        """What this client was told and is not there any more. For a service that is well."""
        found = []
        for told in self.keys:
            found += [f"{told.key} does not open" for sealed in told.sealed if not self.open(told, sealed)]
            answer = self._send("versions", "GET", f"/keys/{told.key}/versions", wanted=(200,))
            versions = 0 if answer is None else len(answer.json()["resources"])
            if versions < 1 + told.rotations:
                found.append(f"{told.key} has {versions} versions after {told.rotations} rotations")
        for told in self.gone:
            assert told.refused_from is not None
            time.sleep(max(0.0, told.refused_from - time.monotonic()))
            if not self.gone_is_refused(told):
                found.append(f"{told.key} is not {'deleted' if told.deleted else 'disabled'} any more")
        return found

    def _act(
        self, action: str, told: Told, name: str, body: object, wanted: tuple[int, ...] = (200,)
    ) -> httpx.Response | None:
        return self._send(action, "POST", f"/keys/{told.key}/actions/{name}", body, wanted=wanted)

    def _send(
        self, action: str, method: str, path: str, body: object = None, *, wanted: tuple[int, ...]
    ) -> httpx.Response | None:
        """The answer if it is a wanted one. Where clocks move, who is told 401 logs in and asks once more."""
        token = self._load.login.token
        answer = self._send_once(action, method, path, body, wanted)
        if answer is None and self._load.clock_moves and self._load.login.token != token:
            answer = self._send_once(action, method, path, body, wanted)
        return answer

    def _send_once(
        self, action: str, method: str, path: str, body: object, wanted: tuple[int, ...]
    ) -> httpx.Response | None:
        """Whoever finds nobody listening goes to the next node, if there is one."""
        load, correlation_id = self._load, str(uuid.uuid4())
        token, began = load.login.token, time.monotonic()
        headers = {
            "Authorization": f"Bearer {token}",
            "Bluemix-Instance": load.instance_id,
            "Correlation-Id": correlation_id,
        }
        status: int | None = None
        answer: httpx.Response | None = None
        urls = load.urls()
        for _ in urls:
            url = urls[self._at % len(urls)]
            try:
                answer = self._http.request(method, f"{url}/api/v2{path}", json=body, headers=headers)
                status = answer.status_code
            except httpx.ConnectError:
                self._at += 1
                continue
            except httpx.TransportError:
                status = 0
            break
        good = status in wanted
        load.calls.append(Call(action, began, time.monotonic(), status, correlation_id, good))
        if good:
            return answer
        if answer is not None:
            self._judge(action, answer, token)
        return None

    def _judge(self, action: str, answer: httpx.Response, token: str) -> None:
        """503 says that it could not be done and when to try again. All else is wrong."""
        if answer.status_code == 503:
            if "Retry-After" not in answer.headers:
                self._load.wrong.append(f"{action}: 503 without Retry-After")
        elif action == "rotate" and answer.status_code == 409 and self._load.clock_moves:
            # It was rotated in what is the future now, so less than an hour ago.
            return
        elif answer.status_code == 401 and self._load.clock_moves:
            try:
                self._load.login.renew(token)
            except httpx.HTTPError:
                return
        else:
            self._load.wrong.append(f"{action}: {answer.status_code} {answer.text[:300]}")
