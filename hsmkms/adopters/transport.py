"""Requests to the key service: one pool of connections, one access token, tries within a deadline.

Every call of this API may be sent twice (contract trap 13), so all of them are tried again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import httpx

from hsmkms.adopters.connection import Connection
from hsmkms.adopters.refusals import CiphertextRefused, KeyRefused, KeyServiceAway
from hsmkms.domain.secrets import SecretText

UNAUTHORIZED: Final = "UNAUTHORIZED_ERR"

_GRANT: Final = "urn:ibm:params:oauth:grant-type:apikey"
_AGAIN: Final = frozenset({429, 502, 503, 504})
_MAX_TRIES: Final = 5
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 2.0
_RENEW_AFTER: Final = 0.8
"""Part of a token's life after which a new one is got; the old one serves on while that fails."""
_FRESH_S: Final = 5.0
"""A token younger than this that is refused was not merely revoked since: another log-in would change nothing."""
_CIPHERTEXT_CODES: Final = frozenset({"UNPROCESSABLE_CIPHERTEXT_ERR", "INVALID_SIG_EXP_ERR"})


@dataclass(frozen=True)
class _Access:
    token: SecretText
    got_at: float
    renew_at: float
    ends_at: float


class Transport:
    """Sends requests; may be used by many threads. Make it after a fork, not before: connections are not shared.

    `sleep` pauses between tries; a process of green threads has its own.
    """

    def __init__(self, connection: Connection, sleep: Callable[[float], object] = time.sleep) -> None:
        self._connection, self._sleep = connection, sleep
        # What an environment says of proxies and certificates must not decide whom keys are given to.
        self._http = httpx.Client(verify=connection.trust(), trust_env=False, follow_redirects=False)
        self._logging_in = threading.Lock()
        self._access: _Access | None = None

    def close(self) -> None:
        """Close the connections that no request uses; nothing is sent from now on."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        connection: Connection,
        *,
        json: Any = None,
        params: Mapping[str, str | int] | None = None,
        wait_s: float = 0,
        correlation_id: str | None = None,
    ) -> httpx.Response:
        """The answer to a request of the key API, which is a 2xx. `connection` says the instance and the time, to which
        `wait_s` is added.

        Raises KeyServiceAway, KeyRefused, CiphertextRefused, ConnectionInvalid.
        """
        until = time.monotonic() + connection.timeout_s + wait_s
        headers = {"Bluemix-Instance": connection.instance_id}
        if correlation_id is not None:
            headers["Correlation-Id"] = correlation_id
        answer = self._authorized(method, path, headers, until, json=json, params=params)
        if not answer.is_success:
            _refuse(answer)
        return answer

    def _authorized(
        self, method: str, path: str, headers: dict[str, str], until: float, **parts: Any
    ) -> httpx.Response:
        access = self._current(until)
        for last in (False, True):
            headers["Authorization"] = f"Bearer {access.token.reveal()}"
            answer = self._tried(method, f"{self._connection.api_url}{path}", until, headers=headers, **parts)
            if answer.status_code != 401 or last or time.monotonic() - access.got_at < _FRESH_S:
                break
            # Its log-in may have been ended, or the signing key replaced; only a refusal of a fresh token counts.
            access = self._log_in(until, instead_of=access)
        return answer

    def _current(self, until: float) -> _Access:
        access, now = self._access, time.monotonic()
        if access is None:
            return self._log_in(until, instead_of=None)
        if now < access.renew_at:
            return access
        try:
            return self._log_in(until, instead_of=access)
        except KeyServiceAway:
            if now < access.ends_at:
                return access
            raise

    def _log_in(self, until: float, instead_of: _Access | None) -> _Access:
        """A new access token, got by one thread at a time; others take what it got."""
        if not self._logging_in.acquire(timeout=max(0.0, until - time.monotonic())):
            raise KeyServiceAway("The key service gave no access token in time.")
        try:
            if self._access is not None and self._access is not instead_of:
                return self._access
            form = {"grant_type": _GRANT, "apikey": self._connection.read_api_key().reveal()}
            asked_at = time.monotonic()
            answer = self._tried("POST", self._connection.token_url, until, data=form)
            if answer.status_code != 200:
                _refuse(answer)
            members = _object(answer)
            token, life_s = members.get("access_token"), members.get("expires_in")
            if not isinstance(token, str) or not isinstance(life_s, int | float):
                raise KeyServiceAway("The token endpoint's answer holds no access token. Check `url` and `iam_url`.")
            self._access = _Access(SecretText(token), asked_at, asked_at + life_s * _RENEW_AFTER, asked_at + life_s)
            return self._access
        finally:
            self._logging_in.release()

    def _tried(self, method: str, url: str, until: float, **parts: Any) -> httpx.Response:
        """An answer that is worth no other try, or the last one. Raises KeyServiceAway when there is none."""
        pause_s, told = _FIRST_PAUSE_S, "in time"
        for turn in range(_MAX_TRIES):
            left_s = until - time.monotonic()
            if left_s <= 0 or self._http.is_closed:
                break
            wanted_s = 0.0
            try:
                answer = self._http.request(method, url, timeout=left_s, **parts)
            except httpx.TransportError as error:
                told = f"({str(error) or type(error).__name__})"
            except RuntimeError:
                # What the library says when another thread has closed the connections since we looked.
                if self._http.is_closed:
                    break
                raise
            else:
                if answer.status_code not in _AGAIN:
                    return answer
                wanted_s = _retry_after_s(answer) or 0.0
                if turn == _MAX_TRIES - 1 or wanted_s >= until - time.monotonic():
                    _refuse(answer)
            # Jitter keeps many adopters, which all lost the service at once, from coming back at once.
            jittered_s = max(wanted_s, pause_s * random.uniform(0.5, 1))  # noqa: S311
            self._sleep(min(jittered_s, max(0.0, until - time.monotonic())))
            pause_s = min(pause_s * 2, _MAX_PAUSE_S)
        raise KeyServiceAway(f"The key service at {self._connection.url} does not answer {told}.")


def _refuse(answer: httpx.Response) -> NoReturn:
    """The error that an answer stands for."""
    told, status = _reason(answer), answer.status_code
    code, words = told or (f"HTTP_{status}", answer.reason_phrase)
    if told is None and status < 500 and status != 429:
        # A proxy's page, a wrong URL: no word of the key service, so nothing to lock data for.
        raise KeyServiceAway(f"What answered with {status} is not the key service. Check `url` and what is in between.")
    if status >= 500 or status == 429:
        raise KeyServiceAway(f"The key service cannot do it now: {words} ({status})", _retry_after_s(answer))
    if code in _CIPHERTEXT_CODES:
        raise CiphertextRefused(f"The wrapped DEK does not open: {words}")
    if status == 401:
        raise KeyRefused(UNAUTHORIZED, "No authorization for this key, or there is no such key.")
    raise KeyRefused(code, words)


def _reason(answer: httpx.Response) -> tuple[str, str] | None:
    """Reason code and sentence in an error body of the key API or of the token endpoint (contract section 5), or None
    if it is neither."""
    body = _object(answer)
    if "errorMessage" in body:
        return str(body.get("errorCode", "")), str(body["errorMessage"])
    resources = body.get("resources")
    first = resources[0] if isinstance(resources, list) and resources else None
    if not isinstance(first, dict) or "errorMsg" not in first:
        return None
    reasons = first.get("reasons")
    if not isinstance(reasons, list) or not reasons or not isinstance(reasons[0], dict):
        return f"HTTP_{answer.status_code}", str(first["errorMsg"])
    code, target = str(reasons[0].get("code", "")), reasons[0].get("target")
    if isinstance(target, dict) and target.get("name") == "ciphertext":
        code = "UNPROCESSABLE_CIPHERTEXT_ERR"
    return code, str(reasons[0].get("message", answer.reason_phrase))


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _retry_after_s(answer: httpx.Response) -> float | None:
    """The header in seconds; its other form, a date, is not sent by this service."""
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None
