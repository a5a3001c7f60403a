"""`hsmkms kubernetes-plugin`: the secrets of a Kubernetes cluster under a root key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import structlog
import typer

from hsmkms.adopters.client import KeyServiceClient
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core import memory
from hsmkms.adopters.kubernetes import install as files
from hsmkms.adopters.kubernetes.cache import MAX_LIFE_S
from hsmkms.adopters.kubernetes.check import check as ask
from hsmkms.adopters.kubernetes.key_id import root_key_of
from hsmkms.adopters.kubernetes.plugin import PluginSettings
from hsmkms.adopters.kubernetes.plugin import run as run_plugin
from hsmkms.telemetry import logs

app = typer.Typer(help="Keep the secrets of a Kubernetes cluster under a root key.")

_log = structlog.get_logger(__name__)

_SOCKET: Final = Path("/run/hsmkms-kms/kms.sock")

_KEY: Final = typer.Option(help="Root key: id or CRN.")
_CRN: Final = typer.Option(help="CRN of the cluster; it is registered with the key.")
_CONNECTION: Final = typer.Option(help="File that says how the key service is reached.")
Socket = Annotated[Path, typer.Option(help="Where kube-apiserver finds the plugin.")]
Owner = Annotated[str | None, typer.Option(help="User that kube-apiserver runs as, if it is not the plugin's.")]
V1beta1 = Annotated[bool, typer.Option("--v1beta1", help="Serve KMS v1 too, for clusters that have no v2.")]
CacheS = Annotated[
    float, typer.Option(help="Keep decrypted DEKs in memory for so many seconds.", min=0, max=MAX_LIFE_S)
]
MetricsPort = Annotated[
    int | None, typer.Option(help="Serve /metrics, /healthz and /livez on this port of 127.0.0.1.", min=1, max=65_535)
]
PreventDeletion = Annotated[
    bool, typer.Option("--prevent-deletion", help="Let the key not be deleted while the cluster is registered.")
]


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    key: Annotated[str | None, _KEY] = None,
    crn: Annotated[str | None, _CRN] = None,
    connection: Annotated[Path | None, _CONNECTION] = None,
    socket: Socket = _SOCKET,
    owner: Owner = None,
    v1beta1: V1beta1 = False,
    cache_s: CacheS = 0,
    metrics_port: MetricsPort = None,
    prevent_deletion: PreventDeletion = False,
) -> None:
    """Serve kube-apiserver until SIGTERM; needs --key, --crn and --connection."""
    if context.invoked_subcommand is not None:
        return
    if key is None or crn is None or connection is None:
        raise typer.BadParameter("Give --key, --crn and --connection, or a command.")
    logs.configure()
    if not memory.guard():
        _log.warning("memory is not locked, so keys may be swapped out", remedy="raise the limit RLIMIT_MEMLOCK")
    run_plugin(PluginSettings(connection, key, crn, socket, owner, v1beta1, cache_s, metrics_port, prevent_deletion))


@app.command("install")
def install(
    key: Annotated[str, _KEY],
    crn: Annotated[str, _CRN],
    connection: Annotated[Path, _CONNECTION],
    print_: Annotated[bool, typer.Option("--print", help="Print the files, and write none.")] = False,
    root: Annotated[Path, typer.Option(help="Write below this directory, such as an image's.")] = Path("/"),
    image: Annotated[
        str | None, typer.Option(help="Run as a static pod of this image; a systemd unit if left out.")
    ] = None,
    socket: Socket = _SOCKET,
    owner: Owner = None,
    v1beta1: V1beta1 = False,
    cache_s: CacheS = 0,
    metrics_port: MetricsPort = 9189,
    prevent_deletion: PreventDeletion = False,
) -> None:
    """Write what a control-plane node needs: encryption configuration, and systemd unit or static pod."""
    settings = PluginSettings(
        connection.absolute(), key, crn, socket, owner, v1beta1, cache_s, metrics_port, prevent_deletion
    )
    made = files.files(settings, image)
    if print_:
        typer.echo("\n".join(file.described() for file in made))
        return
    for file in made:
        typer.echo(f"{file.write(root)} is written.")
    typer.echo(files.NEXT)


@app.command("check")
def check(socket: Socket = _SOCKET) -> None:
    """Ask a running plugin as kube-apiserver does: its state, and one encryption there and back."""
    typer.echo(f"ok, encrypting under {ask(socket)}")


@app.command("deregister")
def deregister(key: Annotated[str, _KEY], crn: Annotated[str, _CRN], connection: Annotated[Path, _CONNECTION]) -> None:
    """Say that the root key protects the cluster no more; it can be deleted then."""
    with KeyServiceClient(Connection.read(connection)) as client:
        client, root_key = root_key_of(client, key)
        client.deregister(root_key, crn)
