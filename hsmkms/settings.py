"""Settings: the environment (HSMKMS_*) before the file `hsmkms.toml` in the state directory before the defaults.

The only reader of both. Units are in the names; an unknown member of the file is refused.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote_plus

import pydantic
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from hsmkms.domain.secrets import SecretText
from hsmkms.errors import SettingsInvalid

FILE_NAME: Final = "hsmkms.toml"
_DEFAULT_STATE_DIR: Final = "~/.local/state/hsmkms"
_URL_WITHOUT_SECRETS: Final = r"^https?://[^\s/@?#]+(/[^\s?#]*)?$"
"""No user, password or query: settings go into backups."""
# As `store.postgresql.make_url` reads them: a URL of one host may have a password with slashes in it.
_PASSWORD_OF_SEVERAL: Final = r"\A([^:/?#]*):[^/?#]*(?=@)"
_PASSWORD_OF_ONE: Final = r"\A([^:/]*):(?:[^/?#]*|[^@]*)(?=@)"
_SECRET: Final = re.compile("password|secret|scram")


def state_dir() -> Path:
    """HSMKMS_STATE_DIR, or a directory below the user's home."""
    return Path(os.environ.get("HSMKMS_STATE_DIR", _DEFAULT_STATE_DIR)).expanduser().absolute()


def require_own(directory: Path) -> None:
    """Refuse root where the service is another user's, who could not open what root writes: one audit log of root's,
    and nothing is recorded any more, so nothing is done for anybody. Raises SettingsInvalid."""
    if os.geteuid() != 0 or not directory.exists() or (owner := directory.stat().st_uid) == 0:
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    raise SettingsInvalid(
        f"The state directory {directory} is that of the user {name}, who could not open what root writes there. Run "
        f"this as {name}."
    )


class OidcIssuer(pydantic.BaseModel):
    """An outside OpenID Connect issuer whose access tokens for `audience` are accepted."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    issuer: str
    audience: str = pydantic.Field(min_length=1)
    ca_file: Path | None = None
    keys_max_age_s: float = pydantic.Field(default=300, gt=0, le=3_600)


class _AuditSink(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str | None = pydantic.Field(default=None, pattern=r"^[a-z0-9-]{1,32}$")
    """What its cursor and its log lines are called; as its kind unless set."""


class StandardOutputSink(_AuditSink):
    """Audit records as JSON lines on the standard output of `hsmkms serve`."""

    kind: Literal["stdout"]


class SyslogSink(_AuditSink):
    """Audit records to a syslog server over TLS; `cert_file` and `key_file` if it wants to know who sends."""

    kind: Literal["syslog"]
    host: str = pydantic.Field(min_length=1, max_length=255)
    port: int = pydantic.Field(default=6514, ge=1, le=65_535)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class HttpSink(_AuditSink):
    """Audit records by POST to a URL; the bearer token's file is read anew for each."""

    kind: Literal["http"]
    url: str = pydantic.Field(pattern=_URL_WITHOUT_SECRETS, max_length=2_000)
    ca_file: Path | None = None
    bearer_file: Path | None = None


AuditSink = Annotated[StandardOutputSink | SyslogSink | HttpSink, pydantic.Field(discriminator="kind")]


class Settings(BaseSettings):
    """Every setting of the service; `docs/operations.md` explains each."""

    model_config = SettingsConfigDict(env_prefix="HSMKMS_", frozen=True, extra="forbid", hide_input_in_errors=True)

    state_dir: Path = pydantic.Field(default_factory=state_dir)
    pkcs11_module: str = "/usr/lib/softhsm/libsofthsm2.so"
    token_label: str | None = "hsmkms"
    token_serial: str | None = None
    pin: pydantic.SecretStr | None = None
    pin_file: Path | None = None
    standby_pkcs11_module: str | None = None
    standby_token_label: str | None = None
    standby_token_serial: str | None = None
    standby_pin: pydantic.SecretStr | None = None
    standby_pin_file: Path | None = None
    standby_proof_s: float = pydantic.Field(default=10.0, gt=0, le=300)
    softhsm2_conf: Path | None = None
    database_url: str | None = None
    host: str = "127.0.0.1"
    port: int = pydantic.Field(default=8800, ge=1, le=65_535)
    workers: int = pydantic.Field(default=2, ge=1, le=256)
    stop_within_s: int = pydantic.Field(default=20, ge=1, le=3_600)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    allow_plain_http_from_other_hosts: bool = False
    public_url: str | None = pydantic.Field(default=None, pattern=r"^https?://[^\s/]+(/[^\s]*)?$")
    issuer: str = "https://hsmkms/identity"
    oidc_issuers: tuple[OidcIssuer, ...] = ()
    allow_authorizations_across_regions: bool = False
    shorten_waits_for_tests: bool = False
    import_by_process: bool = True
    import_oaep_sha1: bool = False
    sessions: int = pydantic.Field(default=8, ge=1, le=1024)
    session_wait_s: float = pydantic.Field(default=5.0, gt=0, le=60)
    token_call_timeout_s: float = pydantic.Field(default=5.0, ge=0.5, le=300)
    audit_dir: Path | None = None
    audit_checkpoint_s: float = pydantic.Field(default=60.0, ge=0.1, le=86_400)
    audit_log_bytes: int = pydantic.Field(default=256 << 20, ge=4_096)
    audit_sinks: tuple[AuditSink, ...] = ()
    audit_log_age_s: float = pydantic.Field(default=86_400.0, ge=1, le=31 * 86_400)
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = pydantic.Field(default=None, ge=1, le=65_535)
    metrics_client_ca: Path | None = None
    metrics_dir: Path | None = None
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = False
    otlp_endpoint: str | None = pydantic.Field(default=None, pattern=_URL_WITHOUT_SECRETS)
    trace_ratio: float = pydantic.Field(default=1.0, ge=0, le=1)
    recycle_after_objects: int = pydantic.Field(default=100_000, ge=1_000)
    identity_requests_per_s: float = pydantic.Field(default=10_000, ge=0, le=1_000_000, allow_inf_nan=False)
    identity_burst_requests: int = pydantic.Field(default=20_000, ge=1, le=1_000_000)
    instance_requests_per_s: float = pydantic.Field(default=20_000, ge=0, le=1_000_000, allow_inf_nan=False)
    instance_burst_requests: int = pydantic.Field(default=40_000, ge=1, le=1_000_000)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """No .env file and no secrets directory: two places are enough to look into."""
        file = TomlConfigSettingsSource(settings_cls, state_dir() / FILE_NAME)
        return init_settings, env_settings, file

    @property
    def database(self) -> str:
        """The database's URL; SQLite in the state directory unless set."""
        return self.database_url or f"sqlite:///{self.state_dir / 'hsmkms.db'}"

    @property
    def audit_directory(self) -> Path:
        """Where audit logs are written; `audit` in the state directory unless set."""
        return self.audit_dir or self.state_dir / "audit"

    @property
    def metrics_directory(self) -> Path:
        """Where several workers keep what they count; in memory, with a name of this state directory's, unless set."""
        digest = hashlib.sha256(os.fsencode(self.state_dir)).hexdigest()[:16]
        return self.metrics_dir or Path(f"/dev/shm/hsmkms-metrics-{os.geteuid()}-{digest}")  # noqa: S108  # owner checked

    @property
    def base_url(self) -> str:
        """Where clients reach the service: `public_url`, or the address that is bound."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.tls_cert is None else 'https'}://{host}:{self.port}"

    def without_secrets(self) -> dict[str, Any]:
        """What was set by file, environment or command line, for a backup: no PIN, no password, no state_dir."""
        secret = {name for name in self.model_fields_set if isinstance(getattr(self, name), pydantic.SecretStr)}
        kept = self.model_dump(mode="json", exclude={*secret, "state_dir"}, exclude_unset=True, exclude_none=True)
        if self.database_url is not None:
            kept["database_url"] = _without_password(self.database_url)
        return kept

    def read_pin(self) -> SecretText | None:
        """The token's user PIN from the environment or a file that only its owner can read; None if neither is set.

        Raises SettingsInvalid.
        """
        return _read_pin("pin_file", self.pin, self.pin_file)

    def read_standby_pin(self) -> SecretText | None:
        """The same for the standby token. Raises SettingsInvalid."""
        return _read_pin("standby_pin_file", self.standby_pin, self.standby_pin_file)


def _read_pin(name: str, pin: pydantic.SecretStr | None, file: Path | None) -> SecretText | None:
    if pin is not None:
        return SecretText(pin.get_secret_value())
    return None if file is None else read_secret(name, file)


def read_secret(setting: str, path: Path) -> SecretText:
    """The text of a file that only its owner can read. Raises SettingsInvalid."""
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"The {setting} {path} cannot be read. Check its path and owner.") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsInvalid(f"Others can read the {setting} {path}. Run chmod 600 on it.")
    return SecretText(text.strip())


def _without_password(url: str) -> str:
    """By cutting it out of the text: what is put together again of a URL without a host is another one."""
    scheme, mark, rest = url.partition("://")
    several = "," in re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    rest = re.sub(_PASSWORD_OF_SEVERAL if several else _PASSWORD_OF_ONE, r"\1", rest, count=1).removeprefix("@")
    place, asks, query = rest.partition("?")
    kept = [part for part in query.split("&") if not _SECRET.search(unquote_plus(part.partition("=")[0]))]
    return scheme + mark + place + (asks if kept else "") + "&".join(kept)


def load(**overrides: Any) -> Settings:
    """Settings with what the command line overrides. Raises SettingsInvalid, which never quotes a value."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsInvalid(f"The setting {name} is not valid: {first['msg']}.") from None
    except ValueError as error:
        raise SettingsInvalid(f"The file {state_dir() / FILE_NAME} is not valid TOML.") from error
