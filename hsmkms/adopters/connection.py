"""How an adopter reaches the key service: a TOML file that names where its secret lies, and never holds it.

url = "https://kms.bank.example:8800"
instance_id = "5b0d6c1e-0f4f-4c0a-9d8b-2f6a3c1e7d55"
api_key_file = "/etc/hsmkms/storage.key"       # readable by its owner only
ca_file = "/etc/hsmkms/ca.pem"                 # optional; the system's authorities otherwise
iam_url = "https://iam.bank.example"           # optional; `url` otherwise
timeout_s = 10                                 # optional; the longest that one call takes, tries included
"""

from __future__ import annotations

import ipaddress
import ssl
import stat
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pydantic

from hsmkms.adopters.refusals import ConnectionInvalid
from hsmkms.domain.secrets import SecretText

_URL = r"^https?://[^\s/?#]+(/[^\s?#]*)?$"


class Connection(pydantic.BaseModel):
    """One instance of a key service and the identity that uses it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = pydantic.Field(pattern=_URL)
    instance_id: str = pydantic.Field(min_length=1)
    api_key_file: Path
    ca_file: Path | None = None
    iam_url: str | None = pydantic.Field(default=None, pattern=_URL)
    timeout_s: float = pydantic.Field(default=10, ge=0.1, le=300)
    allow_plain_http_to_other_hosts: bool = False

    @pydantic.model_validator(mode="after")
    def _secrets_are_not_sent_in_clear(self) -> Connection:
        for url in (self.url, self.token_url):
            parts = urlsplit(url)
            plain = parts.scheme == "http" and not _is_this_host(parts.hostname or "")
            if plain and not self.allow_plain_http_to_other_hosts:
                raise ValueError("plain http to another host would show keys on the wire; use https")
        return self

    @property
    def token_url(self) -> str:
        """Where access tokens are got."""
        return f"{(self.iam_url or self.url).rstrip('/')}/identity/token"

    @property
    def api_url(self) -> str:
        """What all paths of the key API lie below."""
        return f"{self.url.rstrip('/')}/api/v2"

    @classmethod
    def read(cls, file: Path) -> Connection:
        """From a file; paths in it may be relative to its directory.

        Raises ConnectionInvalid, which quotes no value.
        """
        try:
            members = tomllib.loads(file.read_text())
        except OSError as error:
            raise ConnectionInvalid(f"The connection file {file} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise ConnectionInvalid(f"The connection file {file} is not valid TOML.") from error
        try:
            connection = cls(**members)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name = ".".join(str(part) for part in first["loc"]) or "url"
            raise ConnectionInvalid(f"The connection file {file}: {name}: {first['msg']}.") from None
        here = file.absolute().parent
        paths = {"api_key_file": here / connection.api_key_file}
        if connection.ca_file is not None:
            paths["ca_file"] = here / connection.ca_file
        return connection.model_copy(update=paths)

    def read_api_key(self) -> SecretText:
        """The API key, read anew each time so that a rotated one needs no restart. Raises ConnectionInvalid."""
        try:
            with self.api_key_file.open() as file:
                mode = stat.S_IMODE(self.api_key_file.stat().st_mode)
                text = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConnectionInvalid(f"The API key file {self.api_key_file} cannot be read.") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConnectionInvalid(f"Others can read the API key file {self.api_key_file}. Run chmod 600 on it.")
        if not text or not text.isascii() or not text.isprintable():
            raise ConnectionInvalid(f"The API key file {self.api_key_file} does not hold one line with an API key.")
        return SecretText(text)

    def trust(self) -> ssl.SSLContext:
        """The authorities that the service's certificate is checked against. Raises ConnectionInvalid."""
        try:
            return ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConnectionInvalid(f"The CA file {self.ca_file} holds no certificates that can be read.") from error


def _is_this_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
