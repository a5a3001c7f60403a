"""Connection files of adopters."""

from __future__ import annotations

from pathlib import Path

from tests.support.deployment import Service


def write_connection(
    directory: Path, service: Service, api_key: str, *, timeout_s: float = 10, instance_id: str | None = None
) -> Path:
    """A connection file, for the first instance unless said otherwise, with its API key file beside it."""
    key_file = directory / "adopter.key"
    key_file.write_text(api_key + "\n")
    key_file.chmod(0o600)
    lines = [
        f'url = "{service.url}"',
        f'instance_id = "{instance_id or service.state.instance_id}"',
        'api_key_file = "adopter.key"',
        f"timeout_s = {timeout_s}",
    ]
    if service.tls_ca:
        lines.append(f'ca_file = "{service.tls_ca}"')
    file = directory / "key-service.toml"
    file.write_text("\n".join(lines) + "\n")
    return file
