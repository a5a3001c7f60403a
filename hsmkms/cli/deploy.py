"""`hsmkms init`, `serve` and `up`: from nothing to a running service."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import secrets
import shlex
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer
import uvicorn

from hsmkms.api.protocol import Protocol
from hsmkms.api.serving import serve as run_server
from hsmkms.cli.local import recorded
from hsmkms.control import Answer, LoginRequest, Request, hearing
from hsmkms.domain.ids import new_id
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import MAY_COME_BACK, SettingsInvalid, StoreRefused
from hsmkms.opening import ENVIRONMENT, parts_of
from hsmkms.settings import FILE_NAME, Settings, load, require_own, state_dir
from hsmkms.telemetry.endpoint import DIRECTORY_VARIABLE, Access, Endpoint, discard, prepare
from hsmkms.token.provision import has_token, init_token
from hsmkms.wiring import configure_logs, open_rooms, pin_of

_log = structlog.get_logger(__name__)

LABEL: Final = "hsmkms"
CLIENT_ENV: Final = "client.env"
_CREATE: Final = (
    '{"metadata":{"collectionType":"application/vnd.ibm.kms.key+json","collectionTotal":1},'
    '"resources":[{"type":"application/vnd.ibm.kms.key+json","name":"first","extractable":false}]}'
)

Softhsm = Annotated[
    Path | None,
    typer.Option("--softhsm", help="Make a SoftHSM token in the state directory from this softhsm2.conf template."),
]
Region = Annotated[str, typer.Option(help="Region in the CRNs of the first instance.")]
Name = Annotated[str, typer.Option(help="Name of the first instance.")]


def init(softhsm: Softhsm = None, name: Name = "first", region: Region = "local") -> None:
    """Prepare token and database, and show the administrator's API key once.

    With an HSM: set HSMKMS_PKCS11_MODULE, HSMKMS_TOKEN_LABEL and HSMKMS_PIN_FILE first. On a laptop: --softhsm.
    """
    configure_logs()
    _make_state_dir()
    if softhsm is not None and not (state_dir() / FILE_NAME).exists():
        _make_softhsm(softhsm)
    settings = load()
    rooms = open_rooms(settings, pin_of(settings), migrate=True, found=True)
    with rooms.close, recorded(rooms):
        if rooms.deployment.is_founded():
            if (settings.state_dir / CLIENT_ENV).exists():
                typer.echo(f"{settings.state_dir} is initialised already; nothing was changed.")
                return
            # The first key was lost before it was shown, or put away; who has the token's PIN may have another.
            known = rooms.services.snapshot.all_instances()
            if not known:
                raise StoreRefused("Every instance was deleted. Bring one back with `hsmkms instances restore`.")
            instance = known[0]
            api_key = rooms.deployment.add_administrator(instance.account)
        else:
            founded = rooms.deployment.found(name, region, new_id().replace("-", ""))
            instance, api_key = founded.instance, founded.api_key
    _write_client_env(settings, instance.id, api_key)
    typer.echo(f"instance           {instance.id}")
    typer.echo(f"administrator key  {api_key.reveal()}   (shown once; also in {CLIENT_ENV})")


def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; other than loopback needs TLS.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the certificate, PEM.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="CA of client certificates, PEM.")] = None,
    allow_plain_http_from_other_hosts: Annotated[
        bool | None, typer.Option("--allow-plain-http-from-other-hosts", help="Bind any address without TLS.")
    ] = None,
) -> None:
    """Serve the API until Ctrl-C."""
    settings = load(
        host=host,
        port=port,
        workers=workers,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        allow_plain_http_from_other_hosts=allow_plain_http_from_other_hosts,
    )
    _serve(settings)


def up(softhsm: Softhsm = None) -> None:
    """Initialise if needed, then serve: a Key Protect on your laptop in one command."""
    if not (state_dir() / CLIENT_ENV).exists():
        init(softhsm)
    settings = load()
    _follow_address(settings)
    typer.echo(_tour(settings))
    _serve(settings)


def _serve(settings: Settings) -> None:
    """Open the rooms once before any worker does, so that a wrong PIN costs one try and what waiting cannot mend is
    said at once."""
    if not settings.state_dir.is_dir():
        raise SettingsInvalid(f"There is no state directory {settings.state_dir}. Run `hsmkms init` first.")
    _require_safe_bind(settings)
    _require_certificates(settings)
    configure_logs(settings)
    pins = pin_of(settings)
    if sys.stdin.isatty():
        pins.ask(parts_of(settings), _ask_pin)
    # Workers inherit the environment; a command line would show the PIN to everybody on the host.
    os.environ["HSMKMS_STATE_DIR"] = str(settings.state_dir)
    for part in parts_of(settings):
        os.environ[ENVIRONMENT[part]] = pins.of(part).reveal()
    # They read the file and not the command line; this is what they tell clients of where the service is.
    os.environ["HSMKMS_PUBLIC_URL"] = settings.base_url
    try:
        rooms = open_rooms(settings, pins, migrate=True, serves=True)
    except MAY_COME_BACK as error:
        _log.error("the service starts and its workers wait", reason=error.message)
    else:
        with rooms.close:
            rooms.deployment.require_founded()
    if settings.shorten_waits_for_tests:
        typer.echo("WARNING: waits are shortened for tests. Deleted keys may be purged at once.", err=True)
    # Ctrl-C is how serving ends; by then uvicorn has answered what was under way.
    with _metrics(settings), contextlib.suppress(KeyboardInterrupt), _hearing_logins(settings):
        config = uvicorn.Config(
            "hsmkms.worker:application",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            ssl_ca_certs=None if settings.tls_client_ca is None else str(settings.tls_client_ca),
            # Asked for, not required: most clients bring a token.
            ssl_cert_reqs=ssl.CERT_NONE if settings.tls_client_ca is None else ssl.CERT_OPTIONAL,
            loop="uvloop",
            http=Protocol,
            # By itself uvicorn takes an error there for an application that needs no start, and says nothing.
            lifespan="on",
            # Its lines come by way of ours, and a request has a line only where the setting says so.
            log_config=None,
            access_log=False,
            log_level="warning",
            # Nobody in front is believed about who is calling.
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=settings.stop_within_s,
        )
        run_server(config)


@contextlib.contextmanager
def _metrics(settings: Settings) -> Iterator[None]:
    """Metrics are served for the block, if they are asked for."""
    if settings.metrics_port is None:
        yield
        return
    loopback = _is_loopback(settings.metrics_host)
    tls = None
    if not loopback:
        if settings.tls_cert is None or settings.tls_key is None or settings.metrics_client_ca is None:
            raise SettingsInvalid(
                f"Metrics at {settings.metrics_host} would be anybody's. Set metrics_client_ca, tls_cert and tls_key, "
                "or a metrics_host of this host alone."
            )
        tls = (settings.tls_cert, settings.tls_key, settings.metrics_client_ca)
    directory = None
    if settings.workers > 1:
        directory = prepare(settings.metrics_directory)
        os.environ[DIRECTORY_VARIABLE] = str(directory)
    endpoint = Endpoint(Access(settings.metrics_host, settings.metrics_port, tls), directory)
    try:
        yield
    finally:
        endpoint.close()
        if directory is not None:
            discard(directory)


@contextlib.contextmanager
def _hearing_logins(settings: Settings) -> Iterator[None]:
    """The process that starts workers gives each the PIN of its own environment, so it has to hear of a new one. A
    single worker is this same process, and hears it itself."""

    def answer(request: Request) -> Answer:
        if isinstance(request, LoginRequest):
            os.environ[ENVIRONMENT[request.part]] = request.pin
        return {"serves": True, "tokens": {}}

    if settings.workers == 1:
        yield
        return
    with hearing(settings.state_dir, answer):
        yield


def _ask_pin(part: str) -> SecretText:
    return SecretText(typer.prompt(f"PIN of the {part} token", hide_input=True, err=True))


def _require_safe_bind(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise SettingsInvalid("TLS needs both tls_cert and tls_key.")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise SettingsInvalid("Client certificates need TLS: set tls_cert and tls_key beside tls_client_ca.")
    if not _is_loopback(settings.host) and settings.tls_cert is None and not settings.allow_plain_http_from_other_hosts:
        raise SettingsInvalid(
            f"Binding {settings.host} without TLS would send keys in clear. Give --tls-cert and --tls-key, or say "
            "--allow-plain-http-from-other-hosts if something in front does TLS."
        )


def _require_certificates(settings: Settings) -> None:
    """Tried here, before anything is opened: a worker that finds them wrong would be started again and again."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password of its own OpenSSL would ask for it at the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except OSError as error:
        raise SettingsInvalid(
            "tls_cert and tls_key cannot be used. Give a certificate chain and its private key without a passphrase, "
            "as PEM files that this user can read."
        ) from error
    if settings.tls_client_ca is None:
        return
    try:
        context.load_verify_locations(settings.tls_client_ca)
    except OSError as error:
        raise SettingsInvalid("tls_client_ca cannot be used. Give the CA's certificate as a PEM file.") from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _make_state_dir() -> None:
    require_own(state_dir())
    try:
        state_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        state_dir().chmod(0o700)
    except OSError as error:
        raise SettingsInvalid(
            f"The state directory {state_dir()} cannot be used ({error.strerror}). Set HSMKMS_STATE_DIR."
        ) from error


def _make_softhsm(template: Path) -> None:
    """A SoftHSM token under random PINs, and the settings that name it."""
    place = state_dir()
    tokens = place / "tokens"
    tokens.mkdir(mode=0o700, exist_ok=True)
    try:
        configuration = template.read_text().replace("@TOKENDIR@", str(tokens))
    except OSError as error:
        raise SettingsInvalid(f"The template {template} cannot be read.") from error
    write_private(place / "softhsm2.conf", configuration)
    for name in ("so-pin", "pin"):
        if not (place / name).exists():
            write_private(place / name, _random_pin() + "\n")
    module = Settings().pkcs11_module
    os.environ["SOFTHSM2_CONF"] = str(place / "softhsm2.conf")
    if not has_token(module, LABEL):
        so_pin, pin = (SecretText((place / name).read_text().strip()) for name in ("so-pin", "pin"))
        init_token(module, LABEL, so_pin, pin)
    write_private(
        place / FILE_NAME,
        f'pkcs11_module = "{module}"\ntoken_label = "{LABEL}"\n'
        f'softhsm2_conf = "{place / "softhsm2.conf"}"\npin_file = "{place / "pin"}"\n',
    )


def _random_pin() -> str:
    return base64.b32encode(secrets.token_bytes(20)).decode()


def write_private(path: Path, text: str) -> None:
    """Create or replace a file that only its owner can read, from its first byte on."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_client_env(settings: Settings, instance_id: str, api_key: SecretText) -> None:
    """Credentials as every official SDK reads them through IBM_CREDENTIALS_FILE."""
    write_private(
        settings.state_dir / CLIENT_ENV,
        f"IBM_KEY_PROTECT_API_URL={settings.base_url}\n"
        f"IBM_KEY_PROTECT_API_AUTH_URL={settings.base_url}\n"
        "IBM_KEY_PROTECT_API_AUTH_TYPE=iam\n"
        f"IBM_KEY_PROTECT_API_APIKEY={api_key.reveal()}\n"
        f"IBM_KEY_PROTECT_API_BLUEMIX_INSTANCE={instance_id}\n",
    )


def _follow_address(settings: Settings) -> None:
    """Keep the URLs of client.env those of the service when it moved to another port."""
    path = settings.state_dir / CLIENT_ENV
    lines = path.read_text().splitlines()
    moved = [
        f"{name}={settings.base_url}" if (name := line.partition("=")[0]).endswith("_URL") else line for line in lines
    ]
    if moved != lines:
        write_private(path, "\n".join(moved) + "\n")


def _tour(settings: Settings) -> str:
    program = shlex.quote(str(Path(sys.executable).with_name("hsmkms")))
    prefix = f"HSMKMS_STATE_DIR={shlex.quote(str(settings.state_dir))} {program} call POST"
    return (
        f"\nServing {settings.base_url} until Ctrl-C; credentials for any SDK: {settings.state_dir / CLIENT_ENV}\n"
        "Paste these three lines into another terminal: create a root key, wrap, unwrap.\n\n"
        f"KEY=$({prefix} /keys '{_CREATE}' --show resources.0.id)\n"
        f'CIPHERTEXT=$({prefix} /keys/$KEY/actions/wrap \'{{"plaintext":"aGVsbG8gSFNN"}}\' --show ciphertext)\n'
        f'{prefix} /keys/$KEY/actions/unwrap "{{\\"ciphertext\\":\\"$CIPHERTEXT\\"}}" --show plaintext | base64 -d\n'
    )
