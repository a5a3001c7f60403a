"""`hsmkms backup` and `restore`: everything but the token, which has a backup of its own."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final

import tomli_w
import typer

from hsmkms.cli.deploy import write_private
from hsmkms.cli.local import rooms
from hsmkms.clock import system_clock
from hsmkms.errors import SettingsInvalid
from hsmkms.opening import token_alone
from hsmkms.service.archive import Archive
from hsmkms.service.backup import bring_back, require_seal, require_token
from hsmkms.settings import FILE_NAME, Settings, load, require_own, state_dir
from hsmkms.store.audit import AuditHeadStore
from hsmkms.store.engine import Database
from hsmkms.wiring import audit_public_key_of, backup_of, configure_logs, pin_of, require_audit_key

_WHICH_TOKEN: Final = frozenset({"pkcs11_module", "token_label", "token_serial", "softhsm2_conf"})


def backup(
    file: Annotated[
        Path, typer.Argument(help="A new file; 0600. It holds metadata and sealed payloads, no plaintext.")
    ],
) -> None:
    """Back up database, settings and audit heads while the service runs.

    What callers were told about before the command began is in it. The token and the audit logs have backups of their
    own: take the token's afterwards, so that it has every key that this one names.
    """
    with rooms() as here:
        manifest = backup_of(here).make(file, tomli_w.dumps(load().without_secrets()).encode())
    typer.echo(
        f"{file}: {manifest.rows['key']} keys, revision {manifest.revision}; needs {len(manifest.token.wrapping_keys)} "
        f"keys of the token {manifest.token.label!r}, serial {manifest.token.serial}"
    )


def restore(
    file: Annotated[Path, typer.Argument(help="A file of `hsmkms backup`.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Put aside what the database holds; no process may use it.")
    ] = False,
    accept_missing: Annotated[
        bool, typer.Option("--accept-missing", help="Go on although the token lacks keys, such as those purged since.")
    ] = False,
) -> None:
    """Bring a backup back, with the token that holds its keys.

    Settings come from this host's environment and file, and where these say nothing from the backup; which token it is
    has this host to say. Nothing is changed before token, backup and database have been found to fit.
    """
    configure_logs()
    require_own(state_dir())
    archive = Archive(file)
    here = _of_this_host()
    configure_logs(here)
    with token_alone(here, pin_of(here)) as token:
        missing = require_token(token, audit_public_key_of(token), archive.manifest, accept_missing=accept_missing)
        sealed = require_seal(token, archive)
    settings = _settings(here, archive) if sealed else here
    configure_logs(settings)
    with token_alone(settings, pin_of(settings)) as token:
        state_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        database = Database(settings.database)
        try:
            kept = bring_back(database, archive, system_clock, replace=replace)
            require_audit_key(token, AuditHeadStore(database), anew=accept_missing)
        finally:
            database.close()
    _keep(settings)
    if not sealed:
        typer.echo("The backup's settings were not taken: without the key that seals rights nothing proves them.")
    # The audit trail of the deployment that is there again.
    with rooms():
        typer.echo(f"{file} of {archive.manifest.created_at:%Y-%m-%dT%H:%M:%SZ} is back in the database.")
    if kept is not None:
        typer.echo(f"What was there is in {kept}; delete it when nobody needs it.")
    for one in missing:
        typer.echo(f"MISSING  {one}")
    typer.echo("Now: hsmkms doctor, hsmkms audit verify, hsmkms serve.")


def _of_this_host() -> Settings:
    """The settings without the backup's: a library that it names is not loaded, and a PIN not given away, before the
    token of this host has told whose backup it is. Raises SettingsInvalid."""
    here = load()
    if here.read_pin() is None or here.model_fields_set.isdisjoint(_WHICH_TOKEN):
        raise SettingsInvalid(
            "Set HSMKMS_PKCS11_MODULE, HSMKMS_TOKEN_LABEL and HSMKMS_PIN_FILE for the token of this host: what a "
            "backup names is used only when that token has proved it."
        )
    return here


def _settings(here: Settings, archive: Archive) -> Settings:
    """This host's, before the backup's."""
    kept = tomllib.loads(archive.settings().decode())
    own = here.model_fields_set | _WHICH_TOKEN | {"pin_file"}
    return load(**{name: value for name, value in kept.items() if name not in own})


def _keep(settings: Settings) -> None:
    """Write into the file what counted here. What it says already stays, secrets too."""
    path = state_dir() / FILE_NAME
    own = tomllib.loads(path.read_text()) if path.exists() else {}
    merged = settings.without_secrets() | own
    if merged == own:
        return
    try:
        write_private(path, tomli_w.dumps(merged))
    except OSError as error:
        typer.echo(f"{path} cannot be written ({error.strerror}): the backup's other settings are not in it.", err=True)
