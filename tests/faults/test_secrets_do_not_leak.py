"""No DEK, payload, PIN, API key or access token in the database, the logs, the state directory or the process list."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import httpx

from tests.support.bringing import Fetched
from tests.support.deployment import Service, State, create_body, create_key
from tests.support.receivers import Receiver

MUST_HOLD_ONE = {"client.env", "pin", "so-pin"}
"""Credentials for people and the service; readable by their owner only, which another test checks."""


def spellings(secret: bytes) -> set[bytes]:
    """The ways in which bytes are written by accident."""
    encoded = base64.b64encode(secret)
    forms = {secret, encoded.rstrip(b"="), encoded[:-4], base64.urlsafe_b64encode(secret).rstrip(b"=")}
    return {*forms, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()}


def find(secrets: dict[str, bytes], places: dict[str, bytes]) -> list[str]:
    """Every secret in every place."""
    return [
        f"{name} in {place}"
        for name, secret in secrets.items()
        for place, content in places.items()
        if any(form in content for form in spellings(secret))
    ]


def read_all(*directories: Path) -> dict[str, bytes]:
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if path.name not in MUST_HOLD_ONE}


def command_lines() -> dict[str, bytes]:
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found[f"cmdline of {process.name}"] = (process / "cmdline").read_bytes()
        except OSError:
            continue
    return found


def test_search_finds_what_is_there(tmp_path: Path) -> None:
    """The search itself can fail."""
    secret = os.urandom(32)
    for number, form in enumerate(sorted(spellings(secret))):
        (tmp_path / "planted").write_bytes(b"before" + form + b"after")
        assert find({"planted": secret}, read_all(tmp_path)), number


def test_nothing_leaks(state: State) -> None:
    secrets = {"PIN": state.pin.encode(), "SO PIN": (state.path / "so-pin").read_bytes().strip()}
    secrets["API key"] = state.api_key.encode()
    given, in_error = os.urandom(32), os.urandom(32)
    secrets |= {"given DEK": given, "DEK in a bad request": in_error}
    receiver = Receiver()
    sinks = json.dumps([{"kind": "stdout"}, {"kind": "http", "url": receiver.url}])
    with receiver, Service(state, workers=2, HSMKMS_AUDIT_SINKS=sinks) as service, service.client() as client:
        secrets["access token"] = client.headers["Authorization"].split()[1].encode()
        root = create_key(client)
        standard = client.post("/keys", json=create_body("standard", extractable=True)).json()["resources"][0]
        secrets["standard key"] = base64.b64decode(standard["payload"])
        wrapped = client.post(f"/keys/{root}/actions/wrap", json={"plaintext": base64.b64encode(given).decode()})
        opened = client.post(f"/keys/{root}/actions/unwrap", json={"ciphertext": wrapped.json()["ciphertext"]})
        assert base64.b64decode(opened.json()["plaintext"]) == given
        secrets["generated DEK"] = base64.b64decode(client.post(f"/keys/{root}/actions/wrap").json()["plaintext"])
        secrets |= bring_keys(client)
        answers = provoke(client, service, root, base64.b64encode(in_error).decode())
        assert find(secrets, {f"answer {number}": answer for number, answer in enumerate(answers)}) == []
        # While the service runs, so that the write-ahead log is there too.
        assert find(secrets, read_all(state.path) | command_lines()) == []
    for arguments in (("unwrap", root), ("wrap", "nobody"), ("keys", "show", "nobody"), ("doctor",)):
        done = state.run(*arguments, stdin=base64.b64encode(in_error))
        assert find(secrets, {"command output": done.stdout + done.stderr}) == []
    shipped = b"\n".join(line for lines in receiver.lines.values() for line in lines)
    assert shipped.count(b'"kms.secrets.unwrap"') >= 2
    audited = b"".join(path.read_bytes() for path in (state.path / "audit").glob("*.jsonl"))
    assert audited.count(b'"kms.secrets.unwrap"') >= 2
    # The log is also standard output, and so what that sink was given.
    assert service.log.read_bytes().count(b'"kms.secrets.unwrap"') >= 2
    places = {"log": service.log.read_bytes(), "audit sink": shipped}
    assert find(secrets, read_all(state.path) | places) == []


def bring_keys(client: httpx.Client) -> dict[str, bytes]:
    """Keys from outside: two in clear, one under an import token."""
    root, standard, wrapped = (os.urandom(32) for _ in range(3))
    assert client.post("/import_token").status_code == 200
    fetched = Fetched.of(client.get("/import_token").json())
    bodies: list[dict[str, Any]] = [
        {"payload": base64.b64encode(root).decode()},
        {"payload": base64.b64encode(standard).decode(), "extractable": True},
        {**fetched.fields(wrapped)},
    ]
    for body in bodies:
        answer = client.post("/keys", json=create_body(**body))
        assert answer.status_code == 201, answer.text
    return {"brought root key": root, "brought standard key": standard, "root key under an import token": wrapped}


def provoke(client: httpx.Client, service: Service, root: str, plaintext: str) -> list[bytes]:
    """Requests that are wrong in the very member that holds a secret."""
    wrap, unwrap = f"/keys/{root}/actions/wrap", f"/keys/{root}/actions/unwrap"
    bad_token = {"Authorization": client.headers["Authorization"] + "x"}
    key = "urn:ibm:params:oauth:grant-type:apikey"
    answers = [
        client.post(wrap, json={"plaintext": plaintext + "!"}),
        client.post(wrap, json={"plaintext": [plaintext]}),
        client.post(wrap, json={"plaintext": plaintext, "aad": 7}),
        client.post(wrap, content=('{"plaintext": "' + plaintext).encode()),
        client.post(wrap, json={plaintext: plaintext}),
        client.post(unwrap, json={"ciphertext": plaintext}),
        client.post(wrap, json={"plaintext": plaintext}, headers=bad_token),
        client.post("/keys", json=create_body(payload=plaintext + "!")),
        client.post("/keys", json=create_body(payload=plaintext, iv=plaintext)),
        client.post("/keys", json=create_body(payload=plaintext, iv=plaintext, encryptedNonce=plaintext)),
        client.post("/keys", json=create_body(name=7, payload=plaintext)),  # type: ignore[arg-type]
        client.post(f"/keys/{root}/actions/rotate", json={"payload": plaintext}),
        httpx.post(f"{service.url}/identity/token", data={"grant_type": key, "apikey": plaintext}),
        httpx.post(f"{service.url}/identity/token", data={"grant_type": service.state.api_key}),
    ]
    assert all(answer.status_code >= 400 for answer in answers)
    return [answer.content + repr(dict(answer.headers)).encode() for answer in answers]
