"""`hsmkms hsm`: the tokens of a running service."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer

from hsmkms.cli.local import JsonOption, rooms, show
from hsmkms.control import LoginRequest, StatusRequest, ask_all
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import OperatorError
from hsmkms.opening import PRIMARY, STANDBY, guard_of, parts_of
from hsmkms.settings import Settings, load
from hsmkms.token.login import try_pin
from hsmkms.wiring import configure_logs

app = typer.Typer(help="The tokens of a running service: log in anew, see how they are.", no_args_is_help=True)

_LOGIN_WAIT_S: Final = 60.0
_STATUS_WAIT_S: Final = 2.0

Standby = Annotated[bool, typer.Option("--standby", help="The standby and not the primary.")]


@app.command("login")
def login(
    standby: Standby = False,
    prompt: Annotated[bool, typer.Option("--prompt", help="Ask for the PIN, also where a file has one.")] = False,
    last_try: Annotated[
        bool, typer.Option("--last-try", help="Also when one more wrong PIN would lock the token.")
    ] = False,
) -> None:
    """Try the PIN once and, if the token takes it, give it to every running process of the service.

    The PIN comes from a prompt, the environment or the PIN file, read again now. Nothing is restarted.
    """
    configure_logs()
    settings = load()
    part = STANDBY if standby else PRIMARY
    addresses = parts_of(settings)
    if part not in addresses:
        raise OperatorError("No standby is set. Set standby_pkcs11_module.")
    address = addresses[part]
    pin = _pin(settings, part, prompt=prompt)
    guard = guard_of(settings, address, by_command=True)
    info = try_pin(address, pin, guard, timeout_s=settings.token_call_timeout_s, last_try=last_try)
    typer.echo(f"The token {info.label!r}, serial {info.serial}, takes the PIN.")
    answers = ask_all(settings.state_dir, LoginRequest(part, pin.reveal()), _LOGIN_WAIT_S)
    # Not before they have it: one that waits to log in would try the old PIN once more, and be refused for all.
    guard.clear()
    silent = [str(process) for process, answer in answers.items() if answer is None]
    typer.echo(f"{len(answers) - len(silent)} running processes have it.")
    if silent:
        raise OperatorError(f"The processes {', '.join(silent)} do not answer. Restart the service if they stay so.")


@app.command("accept")
def accept() -> None:
    """Take the tokens that are there as those of this deployment: after a device was replaced or its backup restored.

    They must hold the keys that seal the deployment's rights; nobody else could write that they are accepted.
    """
    with rooms() as opened:
        new = opened.deployment.known_tokens.accept()
    for serial in new:
        typer.echo(f"accepted  {serial}")
    if not new:
        typer.echo("Every token is known already.")


@app.command("status")
def status(json: JsonOption = False) -> None:
    """How each running process sees its tokens. The exit code is 1 unless every one answers from each of them."""
    settings = load()
    answers = ask_all(settings.state_dir, StatusRequest(), _STATUS_WAIT_S)
    if not answers:
        raise OperatorError(f"No process of the service runs on {settings.state_dir}.")
    rows = [row for process, answer in answers.items() for row in _rows(process, answer)]
    show(rows, json)
    if any(row["state"] != "answers" for row in rows):
        raise typer.Exit(1)


def _rows(process: int, answer: dict[str, Any] | None) -> list[dict[str, Any]]:
    nothing = dict.fromkeys(("token", "label", "serial", "firmware", "sessions", "lent", "openings"))
    if answer is None or "tokens" not in answer:
        return [{"process": process, "state": "hangs" if answer is None else "opening", **nothing}]
    return [
        {
            "process": process,
            "state": _state(token),
            "token": part,
            "label": token["label"],
            "serial": token["serial"],
            "firmware": token["firmware"],
            "sessions": token["sessions"],
            "lent": token["sessions_lent"],
            "openings": token["openings"],
        }
        for part, token in answer["tokens"].items()
    ]


def _state(token: dict[str, Any]) -> str:
    if token["pin_refused"]:
        return f"PIN refused ({token['pin_refused']})"
    if token["refused"]:
        return "refused"
    if not token["proved"]:
        return "not opened"
    return "away" if token["away"] else "answers"


def _pin(settings: Settings, part: str, *, prompt: bool) -> SecretText:
    pin = settings.read_pin() if part == PRIMARY else settings.read_standby_pin()
    if pin is not None and not prompt:
        return pin
    if not sys.stdin.isatty():
        raise OperatorError("The PIN is not known. Set pin_file, or run this at a terminal.")
    return SecretText(typer.prompt(f"PIN of the {part} token", hide_input=True, err=True))
