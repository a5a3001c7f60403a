"""`hsmkms call`: one request of the HTTP API with the credentials of client.env, for trying things out."""

from __future__ import annotations

import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Annotated, Any

import msgspec
import typer

from hsmkms.errors import OperatorError, SettingsInvalid
from hsmkms.iam.issuing import GRANT_API_KEY
from hsmkms.settings import state_dir

_PREFIX = "IBM_KEY_PROTECT_API_"
_TIMEOUT_S = 30


def call(
    method: Annotated[str, typer.Argument(help="GET, POST, PATCH or DELETE.")],
    path: Annotated[str, typer.Argument(help="Path below /api/v2, such as /keys.")],
    body: Annotated[str | None, typer.Argument(help="JSON; - reads standard input.")] = None,
    show: Annotated[str | None, typer.Option(help="Print one member, such as resources.0.id.")] = None,
) -> None:
    """Send one request over HTTP and print the answer."""
    settings = _client_env()
    data = (sys.stdin.read() if body == "-" else body or "").encode()
    form = {"grant_type": GRANT_API_KEY, "apikey": settings["APIKEY"]}
    token = _send("POST", settings["AUTH_URL"] + "/identity/token", urllib.parse.urlencode(form).encode(), {})
    headers = {
        "Authorization": f"Bearer {msgspec.json.decode(token)['access_token']}",
        "Bluemix-Instance": settings["BLUEMIX_INSTANCE"],
        "Prefer": "return=representation",
    }
    answer = _send(method, f"{settings['URL']}/api/v2{path}", data, headers)
    typer.echo(_member(msgspec.json.decode(answer), show) if show else answer.decode())


def _client_env() -> dict[str, str]:
    path = state_dir() / "client.env"
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SettingsInvalid(f"{path} cannot be read. Run `hsmkms init` or set HSMKMS_STATE_DIR.") from error
    return dict(line.removeprefix(_PREFIX).split("=", 1) for line in lines if line.startswith(_PREFIX))


def _send(method: str, url: str, data: bytes, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(url, data or None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError as error:
        raise OperatorError(f"{error.code}: {error.read().decode(errors='replace')}") from error
    except urllib.error.URLError as error:
        raise OperatorError(f"{url} does not answer ({error.reason}). Is the service running?") from error


def _member(value: Any, path: str) -> str:
    for name in path.split("."):
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise OperatorError(f"The answer has no member {path}.") from error
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
