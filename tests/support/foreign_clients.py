"""Programs in other languages around IBM's own clients: where they find a service, and how they are run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hsmkms.domain.access import Role
from tests.support.adopter import Adopter
from tests.support.deployment import Service, create_key
from tests.support.iam import Iam, key_client

TIMEOUT_S = 540
"""Compiling the API server's code for the first time takes minutes."""


def place_for(service: Service) -> dict[str, str]:
    """Variables that lead a program to a fresh instance over TLS; in it a key protects a resource."""
    with Iam(service) as iam:
        instance_id = iam.instance()
        second = iam.somebody()
        iam.grant(second.iam_id, Role.MANAGER, Role.KEY_PURGE, serviceInstance=instance_id)
        adopter = Adopter(iam, key_instance_id=instance_id)
        with key_client(service, iam.token, instance_id) as client, adopter.http:
            key = create_key(client, "protects a resource")
            adopter.register(key, "bucket")
    return {
        "KP_URL": service.url,
        "KP_INSTANCE": instance_id,
        "KP_API_KEY": service.state.api_key,
        "KP_SECOND_API_KEY": second.api_key,
        "KP_REGISTERED_KEY": key,
        "KP_RESOURCE_CRN": adopter.crn("bucket"),
        "SSL_CERT_FILE": service.tls_ca,
        "NODE_EXTRA_CA_CERTS": service.tls_ca,
    }


def run(command: Sequence[str | Path], place: Mapping[str, str]) -> dict[str, list[str]]:
    """Run a program; the JSON object of its last line. AssertionError with its output when a step of it failed."""
    found: dict[str, list[str]] = json.loads(output_of(command, place).splitlines()[-1])
    return found


def output_of(command: Sequence[str | Path], extra: Mapping[str, str], cwd: Path | None = None) -> str:
    """Run a command; what it printed. AssertionError with that when it failed."""
    done = finished(command, extra, cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


def finished(
    command: Sequence[str | Path], extra: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; both its outputs are in `stdout`."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **extra},
        cwd=cwd,
        timeout=TIMEOUT_S,
        check=False,
    )
