"""`hsmkms ceremony`: a key that people bring, or witness being born, on a machine without a network."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from hsmkms.ceremony import memory, plan, record, run
from hsmkms.ceremony.bundle import Destination
from hsmkms.ceremony.making import Means
from hsmkms.ceremony.plan import ReadPlan
from hsmkms.ceremony.practice import practice_parts
from hsmkms.ceremony.refusals import CeremonyRefused, PlanRefused
from hsmkms.ceremony.screen import Answers, Terminal
from hsmkms.cli.imports import fetched
from hsmkms.domain.secrets import SecretText
from hsmkms.opening import address_of
from hsmkms.settings import Settings, load
from hsmkms.token.provision import init_token
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress

app = typer.Typer(help="Hold key ceremonies, and prove later how they went.", no_args_is_help=True)
plan_app = typer.Typer(help="Sign the plan of a ceremony beforehand.", no_args_is_help=True)
app.add_typer(plan_app, name="plan")

PlanArgument = Annotated[Path, typer.Argument(help="The plan, a TOML file; its signature is beside it, in PLAN.sig.")]
RecordArgument = Annotated[Path, typer.Argument(help="The record of a ceremony.")]
LeaderKey = Annotated[Path | None, typer.Option("--leader-key", help="Public key of the plan's leader, PEM.")]
RecordOption = Annotated[Path | None, typer.Option("--record", help="The record; beside the plan unless given.")]
AnswersOption = Annotated[
    Path | None, typer.Option("--answers", help="Answers by person, JSON or TOML; on SoftHSM tokens only.")
]
SheetsOption = Annotated[
    Path | None, typer.Option("--sheets", help="For a key that is split: a directory in memory, as of /dev/shm.")
]
ImportTokenOption = Annotated[
    Path | None, typer.Option("--import-token", help="For a bundle: the answer of GET /import_token of the service.")
]
_LABEL: Final = "rehearsal"
_CONFIGURATION: Final = "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n"


@app.command("run")
def run_ceremony(
    plan_file: PlanArgument,
    leader_key: LeaderKey = None,
    record_file: RecordOption = None,
    answers: AnswersOption = None,
    sheets: SheetsOption = None,
    import_token: ImportTokenOption = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="The same as `ceremony rehearse`.")] = False,
) -> None:
    """Hold the ceremony of a signed plan, or go on with one that was interrupted.

    The token is the one that the plan names by its serial number, at the PKCS#11 library that the settings name.
    """
    if rehearse:
        rehearse_ceremony(plan_file, leader_key, record_file, answers, sheets, import_token)
        return
    if leader_key is None:
        raise PlanRefused("Give --leader-key: the public key of whom the plan says it is from, brought on its own.")
    read = plan.read_signed(plan_file, leader_key)
    settings = load()
    address = replace(address_of(settings), label=None, serial=read.plan.token.serial)
    with _opened(address, _pin(settings)) as token:
        means = _means(record_file or plan_file.with_suffix(".record.jsonl"), sheets, import_token)
        _hold(read, token, means, answers, rehearsal=False)


@app.command("rehearse")
def rehearse_ceremony(
    plan_file: PlanArgument,
    leader_key: LeaderKey = None,
    record_file: RecordOption = None,
    answers: AnswersOption = None,
    sheets: SheetsOption = None,
    import_token: ImportTokenOption = None,
) -> None:
    """Rehearse a plan with the same screens on a SoftHSM token that is thrown away afterwards.

    `hsmkms ceremony practice` makes parts to practise with. Never enter real ones.
    """
    read = plan.read(plan_file) if leader_key is None else plan.read_signed(plan_file, leader_key)
    if record_file is None:
        # The token of an earlier rehearsal is gone, so there is nothing to go on with.
        record_file = plan_file.with_suffix(".rehearsal.jsonl")
        record_file.unlink(missing_ok=True)
    with _throwaway_token(load().pkcs11_module) as token:
        means = _means(record_file, sheets, import_token)
        _hold(plan.for_rehearsal(read), token, means, answers, rehearsal=True)


@app.command("practice")
def practice(plan_file: PlanArgument) -> None:
    """Print parts for a rehearsal, one line a custodian. They are parts of nothing."""
    for name, part in practice_parts(plan.read(plan_file).plan).items():
        typer.echo(f"{name}: {part}")


@plan_app.command("sign")
def sign_plan(
    plan_file: Annotated[Path, typer.Argument(help="The plan.")],
    key: Annotated[Path, typer.Option("--key", help="The leader's private key, PEM: Ed25519 or P-256.")],
    encrypted: Annotated[bool, typer.Option("--encrypted", help="Ask for the password of the key.")] = False,
) -> None:
    """Check a plan and sign it. Whatever would be refused in the room is refused here."""
    password = typer.prompt("Password of the key", hide_input=True, err=True).encode() if encrypted else None
    signature = plan.sign(plan_file, key, password)
    typer.echo(f"signature  {signature}")
    typer.echo(f"SHA-256    {plan.read(plan_file).digest}")


@app.command("verify")
def verify(record_file: RecordArgument) -> None:
    """Prove a record: every step, their order, and the signatures. Names the first step that is wrong."""
    verified = record.verify(record_file)
    typer.echo(f"steps      {len(verified.steps)}, all as they were written")
    typer.echo(f"ends with  {verified.head}")
    typer.echo(f"signed by  {verified.fingerprint}")
    typer.echo("Compare both with the signed report: only paper tells that this is the record and the key of that day.")
    if verified.steps[0].data["rehearsal"]:
        typer.echo("This was a REHEARSAL.")
    if not verified.complete:
        raise CeremonyRefused(f"The record ends with step {len(verified.steps)}; the ceremony was not closed.")


@app.command("report")
def make_report(
    record_file: RecordArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PDF to write.")],
) -> None:
    """Write a record as a PDF with room for signatures."""
    # Imported only here: what makes a PDF takes a third of the time in which a command starts.
    from hsmkms.ceremony.report import render

    render(record.verify(record_file), output)


def _means(record_file: Path, sheets: Path | None, import_token: Path | None) -> Means:
    destination = None if import_token is None else Destination(*fetched(import_token))
    return Means(record_file, sheets, destination, memory.lock())


def _hold(read: ReadPlan, token: Token, means: Means, answers: Path | None, *, rehearsal: bool) -> None:
    run.require_allowed(token.info, memory_locked=means.locked, answers=answers is not None)
    try:
        with Terminal() if answers is None else contextlib.nullcontext(Answers.read(answers)) as console:
            run.hold(read, token, means, console, lambda: datetime.now(UTC), rehearsal=rehearsal)
    except KeyboardInterrupt:
        raise CeremonyRefused("Stopped. Start again with the same plan to go on.") from None


def _pin(settings: Settings) -> SecretText:
    pin = settings.read_pin()
    return pin if pin is not None else SecretText(typer.prompt("PIN of the token", hide_input=True, err=True))


@contextlib.contextmanager
def _opened(address: TokenAddress, pin: SecretText) -> Iterator[Token]:
    # Two sessions: the record is signed while another call may be under way.
    pool = SessionPool(address, pin, size=2, wait_s=30, recycle_after=100_000)
    with contextlib.closing(pool):
        yield Token(pool)


@contextlib.contextmanager
def _throwaway_token(module: str) -> Iterator[Token]:
    with tempfile.TemporaryDirectory(prefix="hsmkms-rehearsal-") as name:
        place = Path(name)
        (place / "tokens").mkdir()
        (place / "softhsm2.conf").write_text(_CONFIGURATION.format(place / "tokens"))
        os.environ["SOFTHSM2_CONF"] = str(place / "softhsm2.conf")
        so_pin, pin = (SecretText(base64.b32encode(secrets.token_bytes(20)).decode()) for _ in range(2))
        init_token(module, _LABEL, so_pin, pin)
        with _opened(TokenAddress(module, _LABEL, None), pin) as token:
            if not run.is_throwaway(token.info):
                raise CeremonyRefused("Rehearsals need SoftHSM. Set HSMKMS_PKCS11_MODULE to its library.")
            yield token
