"""Traces reach a collector and hang from the caller's; log lines carry the ids; neither holds a secret."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.deployment import PROGRAM, Service, State, create_body, create_key
from tests.support.injector import Injector
from tests.support.otlp import collector

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
PLAINTEXT = base64.b64encode(b"nobody but the caller may read this").decode()


def _lines(service: Service) -> list[dict[str, Any]]:
    """Every line of the log; all have to be JSON."""
    return [json.loads(line) for line in service.log.read_text().splitlines()]


def _attributes(span: Span) -> dict[str, str]:
    return {one.key: one.value.string_value or str(one.value.int_value) for one in span.attributes}


def test_a_request_is_one_trace_through_the_rooms_and_one_log_line(
    state: State, run_service: Callable[..., Service], injector: Injector
) -> None:
    correlation = str(uuid.uuid4())
    with collector() as collected:
        service = run_service(
            state,
            HSMKMS_OTLP_ENDPOINT=collected.url,
            HSMKMS_ACCESS_LOG="true",
            HSMKMS_PKCS11_MODULE=str(injector.library),
            **injector.environment,
        )
        with service.client() as client:
            key = create_key(client)
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "Correlation-Id": correlation}
            wrap = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": PLAINTEXT}, headers=headers)
            assert wrap.status_code == 200
            assert client.post("/keys", json=create_body("another"), headers=headers).status_code == 201
            injector.fail("*", code=0x30)
            refused = client.post(
                f"/keys/{key}/actions/wrap?x={PLAINTEXT}", json={"plaintext": PLAINTEXT}, headers=headers
            )
            assert refused.status_code == 503
            injector.cure()
        service.__exit__(None, None, None)
        spans = [one for one in collected.spans if one.trace_id.hex() == TRACE]
        assert collected.services == {"hsmkms"}
    requests = {one.name: one for one in spans if one.kind == Span.SPAN_KIND_SERVER}
    assert set(requests) == {"POST /api/v2/keys/{id}/actions/wrap", "POST /api/v2/keys"}
    assert {one.parent_span_id.hex() for one in requests.values()} == {PARENT}
    for name, rooms in {
        "POST /api/v2/keys/{id}/actions/wrap": {"iam", "service", "token", "audit"},
        "POST /api/v2/keys": {"iam", "service", "token", "store", "audit"},
    }.items():
        below = _below(spans, [one for one in spans if one.name == name])
        assert rooms <= {one.name.partition(".")[0] for one in below}, name
    assert _attributes(requests["POST /api/v2/keys"])["http.response.status_code"] == "201"
    assert _attributes(requests["POST /api/v2/keys"])["hsmkms.correlation_id"] == correlation
    failed = [one for one in spans if one.name == "token.seal" and one.status.code == one.status.STATUS_CODE_ERROR]
    assert {one.status.message for one in failed} == {"TokenUnavailable"}

    lines = _lines(service)
    mine = [line for line in lines if line.get("correlation_id") == correlation]
    assert [line["status"] for line in mine if line["event"] == "request"] == [200, 201, 503]
    away = [line for line in mine if line["event"] == "the token does not answer"]
    assert [line["trace_id"] for line in away] == [TRACE]
    secrets = (PLAINTEXT, state.api_key, state.pin, wrap.json()["ciphertext"], "Bearer ", "eyJ")
    for secret in secrets:
        assert secret not in service.log.read_text()
        assert secret.encode() not in collected.raw


def _below(spans: list[Span], roots: list[Span]) -> list[Span]:
    """All spans under these."""
    found: list[Span] = []
    parents = {one.span_id for one in roots}
    while True:
        children = [one for one in spans if one.parent_span_id in parents]
        if not children:
            return found
        found += children
        parents = {one.span_id for one in children}


def test_lines_of_the_server_are_structured_and_a_person_may_have_another_form(
    state: State, run_service: Callable[..., Service]
) -> None:
    service = run_service(state, HSMKMS_LOG_FORMAT="console", HSMKMS_LOG_LEVEL="error")
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    service.__exit__(None, None, None)
    assert service.log.read_text() == ""
    done = subprocess.run(
        [sys.executable, "-c", _LIBRARY_THAT_FAILS], capture_output=True, text=True, check=True, timeout=60
    )
    line = json.loads(done.stderr)
    assert line["event"] == "it failed"
    assert (line["logger"], line["level"], line["kind"]) == ("uvicorn.error", "error", "ValueError")
    assert line["place"].startswith("__main__:")
    assert "the words of a request" not in done.stderr


def test_in_the_journal_each_line_has_its_priority(tmp_path: Path, state: State) -> None:
    """The prefix of sd-daemon(3), only where JOURNAL_STREAM names the file that standard error is."""
    journal = tmp_path / "journal"
    journal.touch()
    stream = f"{journal.stat().st_dev}:{journal.stat().st_ino}"
    environment = {**state.environment(HSMKMS_STATE_DIR=str(tmp_path)), "JOURNAL_STREAM": stream}
    for command in ([sys.executable, "-c", _LIBRARY_THAT_FAILS], [str(PROGRAM), "serve"]):
        with journal.open("ab") as end:
            subprocess.run(command, stdin=subprocess.DEVNULL, stderr=end, env=environment, timeout=60)
    line, refusal = journal.read_text().splitlines()
    assert line.startswith("<3>{")
    assert refusal.startswith("<3>hsmkms: ")
    elsewhere = subprocess.run(
        [sys.executable, "-c", _LIBRARY_THAT_FAILS], capture_output=True, text=True, env=environment, timeout=60
    )
    assert elsewhere.stderr.startswith("{")


_LIBRARY_THAT_FAILS = """
import logging
from hsmkms.telemetry import logs
logs.configure()
try:
    raise ValueError("the words of a request")
except ValueError:
    logging.getLogger("uvicorn.error").exception("it failed")
logging.getLogger("uvicorn.error").info("not worth a line")
"""


def test_without_an_endpoint_nothing_of_tracing_is_loaded() -> None:
    code = "import sys, hsmkms.wiring; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
