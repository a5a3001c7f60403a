"""A thousand random edits of audit logs: `verify` finds each one from the files and the public key alone, and no
process that starts behind one makes it good."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkms.audit import chain
from hsmkms.audit.logfile import logs_in
from tests.support.journals import OFTEN, RARELY, Deployment, write

Lines = list[bytes]
Edit = Callable[[random.Random, Lines, Lines], Lines]
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


def delete(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    at = rng.randrange(len(lines))
    return lines[:at] + lines[at + rng.randint(1, 3) :]


def swap(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    one, other = rng.sample(range(len(lines)), 2)
    changed = list(lines)
    changed[one], changed[other] = changed[other], changed[one]
    return changed


def duplicate(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    """A run of records, again right behind itself or anywhere."""
    start = rng.randrange(len(lines))
    run = lines[start : start + rng.randint(1, 5)]
    at = start + len(run) if rng.random() < 0.5 else rng.randrange(len(lines) + 1)
    return [*lines[:at], *run, *lines[at:]]


def change(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    """One bit of one record."""
    at = rng.randrange(len(lines))
    line = bytearray(lines[at])
    line[rng.randrange(len(line))] ^= 1 << rng.randrange(8)
    return [*lines[:at], bytes(line), *lines[at + 1 :]]


def truncate(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    """Half of the cuts are at the end of a record, which is the hard case."""
    text = b"".join(lines)
    cut = len(b"".join(lines[: rng.randrange(len(lines))])) if rng.random() < 0.5 else rng.randrange(len(text))
    return [text[:cut]]


def splice(rng: random.Random, lines: Lines, other: Lines) -> Lines:
    """A run of the other log's records, in place of as many or between."""
    start = rng.randrange(len(other))
    run = other[start : start + rng.randint(1, 10)]
    at = rng.randrange(len(lines))
    return [*lines[:at], *run, *lines[at + (len(run) if rng.random() < 0.5 else 0) :]]


def whole(_: random.Random, lines: Lines, other: Lines) -> Lines:
    """The other log under this one's name, sound as it is."""
    return other


def again(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    """More events behind the end, well chained."""
    events = [line for line in lines if b'"event":' in line]
    return chained(lines, len(lines), [*bodies(lines), bodies([rng.choice(events)])[0]])


def falsify(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    """By somebody who knows the form: an event is changed and every hash behind it made right."""
    at = rng.choice([n for n, line in enumerate(lines) if b'"event":' in line])
    known = bodies(lines)
    known[at] = known[at].replace(b"kms.secrets.wrap", b"kms.secrets.read")
    return chained(lines, at, known)


def leave_out(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    """The same for an event, or a checkpoint, that is taken out."""
    at = rng.randrange(1, len(lines))
    known = bodies(lines)
    del known[at]
    return chained(lines, at, known)


def recut(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    """The end is cut off and the log's own final checkpoint put behind what is left."""
    at = rng.randrange(1, len(lines) - 1)
    known = bodies(lines)
    return chained(lines, at, [*known[:at], known[-1]])


def checkpoint(rng: random.Random, lines: Lines, other: Lines) -> Lines:
    """A checkpoint says something else, with every hash made right: of this log, or the signature of another one."""
    at, signed = a_checkpoint(rng, lines)
    said = msgspec.json.decode(signed["checkpoint"])
    if rng.random() < 0.3:
        signed["signature"] = a_checkpoint(rng, other)[1]["signature"]
    else:
        member = rng.choice(["at", "upto", "digest", "heads", "final"])
        said[member] = {
            "at": "2020-01-01T00:00:00Z",
            "upto": said["upto"] - 1,
            "digest": f"{rng.getrandbits(256):064x}",
            "heads": {"20200101T000000-node-00000000": [1, f"{rng.getrandbits(256):064x}"]},
            "final": not said.get("final", False),
        }[member]
    return with_checkpoint(lines, at, msgspec.json.encode(said), signed["signature"])


def sign_anew(rng: random.Random, lines: Lines, _: Lines) -> Lines:
    """An event is changed, every hash made right, and each checkpoint signed by another key."""
    changed = falsify(rng, lines, lines)
    for at, line in enumerate(changed):
        if b'"checkpoint":' in line:
            signed = parts_of(line)
            said = msgspec.json.decode(signed["checkpoint"])
            upto = chain.split(changed[said["upto"] - 1][:-1])
            assert upto is not None
            said["digest"] = upto[0].decode()
            content = msgspec.json.encode(said)
            r, s = utils.decode_dss_signature(OTHER_KEY.sign(chain.signed_message(content), ec.ECDSA(hashes.SHA256())))
            changed = with_checkpoint(changed, at, content, (r.to_bytes(32) + s.to_bytes(32)).hex())
    return changed


def bodies(lines: Lines) -> Lines:
    """Records without their hashes."""
    return [line[chain.BODY_AT : -1] for line in lines]


def chained(lines: Lines, at: int, wanted: Lines) -> Lines:
    """Records as `wanted` from number `at` on, with right numbers and hashes."""
    changed = list(lines[:at])
    before = chain.split(lines[at - 1][:-1])
    assert before is not None
    digest = bytes.fromhex(before[0].decode())
    for number, body in enumerate(wanted[at:], at + 1):
        _, _, rest = body.partition(b",")
        numbered = b'"seq":%d,%b' % (number, rest)
        digest = chain.link(digest, numbered)
        changed.append(chain.line(digest, numbered))
    return changed


def a_checkpoint(rng: random.Random, lines: Lines) -> tuple[int, dict[str, Any]]:
    at = rng.choice([n for n, line in enumerate(lines) if b'"checkpoint":' in line])
    return at, parts_of(lines[at])


def parts_of(line: bytes) -> dict[str, Any]:
    """Of a checkpoint: its bytes as they stand, and the signature."""
    signed = msgspec.json.decode(b"{" + bodies([line])[0].partition(b",")[2], type=dict[str, chain.SignedCheckpoint])
    found = signed["checkpoint"]
    return {"checkpoint": bytes(found.checkpoint), "signature": found.signature}


def with_checkpoint(lines: Lines, at: int, content: bytes, signature: str) -> Lines:
    record = msgspec.json.encode(chain.SignedCheckpoint(msgspec.Raw(content), signature))
    known = bodies(lines)
    known[at] = chain.body(at + 1, "checkpoint", record)
    return chained(lines, at, known)


EDITS: tuple[Edit, ...] = (
    delete,
    swap,
    duplicate,
    change,
    truncate,
    splice,
    whole,
    again,
    falsify,
    leave_out,
    recut,
    checkpoint,
    sign_anew,
)
EACH = 80
"""1,040 in all."""
RESTARTS = 6
"""Of each in each state: 156 in all."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, list[Path]]:
    """Two sound logs with several checkpoints each, which tell of each other."""
    deployment = Deployment(tmp_path_factory.mktemp("audit"))
    for node in ("one", "two"):
        journal = deployment.journal(OFTEN, node)
        while not (paths := logs_in([deployment.directory])) or checkpoints(paths, node) < 4:
            write(journal, 5)
        journal.close()
    return deployment, logs_in([deployment.directory])


def checkpoints(paths: list[Path], node: str) -> int:
    return sum(path.read_bytes().count(b'"checkpoint":') // 2 for path in paths if f"-{node}-" in path.name)


@pytest.mark.parametrize("edit", EDITS, ids=lambda one: one.__name__)
def test_every_edit_is_found(pair: tuple[Deployment, list[Path]], edit: Edit) -> None:
    deployment, paths = pair
    assert all(log.sound and log.closed for log in deployment.verify())
    original = {path: path.read_bytes() for path in paths}
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng, done = random.Random(seed), 0
    while done < EACH:
        path, other = rng.sample(paths, 2)
        lines, others = (original[one].splitlines(keepends=True) for one in (path, other))
        edited = b"".join(edit(rng, lines, others))
        if edited == original[path]:
            continue
        done += 1
        path.write_bytes(edited)
        try:
            found = {log.log: log for log in deployment.verify()}
        finally:
            path.write_bytes(original[path])
        log = found[path.name.removesuffix(chain.SUFFIX)]
        assert not log.sound, f"seed {seed}, edit {done}"
        # Named, but for a cut between two records that nobody else has seen: then the end is missing.
        assert log.broken_at is not None or not log.closed, f"seed {seed}, edit {done}"
    assert all(log.sound for log in deployment.verify())


def left_by_a_crash(lines: Lines) -> tuple[Lines, int]:
    """As a log was between two checkpoints, and up to which record it is signed."""
    _, at, then, *_ = (n for n, line in enumerate(lines) if b'"checkpoint":{"checkpoint":{' in line)
    return lines[:then], msgspec.json.decode(parts_of(lines[at])["checkpoint"])["upto"]


@pytest.mark.parametrize("crashed", [False, True], ids=["closed", "crashed"])
@pytest.mark.parametrize("edit", EDITS, ids=lambda one: one.__name__)
def test_no_edit_is_made_good_by_who_comes_next(
    pair: tuple[Deployment, list[Path]], edit: Edit, crashed: bool, tmp_path: Path
) -> None:
    """A log that was closed is wrong all the same. One that a crash left is as it was up to where its process signed
    it, or wrong; whatever else stands there is named."""
    deployment, (other, victim) = pair
    others, lines = (path.read_bytes().splitlines(keepends=True) for path in (other, victim))
    heads, signed = dict(deployment.heads), len(lines)
    if crashed:
        lines, signed = left_by_a_crash(lines)
        last = chain.split(lines[signed - 1][:-1])
        assert last is not None
        heads[victim.stem] = chain.Head(victim.stem, signed, last[0].decode(), closed=False)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng, done = random.Random(seed), 0
    while done < RESTARTS:
        edited = b"".join(edit(rng, lines, others))
        if edited == b"".join(lines):
            continue
        done += 1
        here = Deployment(tmp_path / str(done))
        here.key, here.heads = deployment.key, dict(heads)
        here.directory.mkdir()
        (here.directory / other.name).write_bytes(b"".join(others))
        path = here.directory / victim.name
        path.write_bytes(edited)
        journal = here.journal(RARELY, "two")
        write(journal, 1)
        journal.close()
        log = next(one for one in here.verify_with_heads() if one.log == victim.stem)
        if log.sound:
            assert crashed, f"seed {seed}, edit {done}"
            there = path.read_bytes().splitlines(keepends=True)[:-2]
            first = log.unproved[0].first if log.unproved else len(there) + 1
            proved = there[: max(first - 1, signed)]
            assert proved[:signed] == lines[:signed], f"seed {seed}, edit {done}"
            # A checkpoint proves itself, wherever it stands: without an event before it that nobody had signed, too.
            assert all(b'"checkpoint":{"checkpoint":{' in line for line in proved[signed:]), f"seed {seed}, edit {done}"
        else:
            assert path.read_bytes() == edited, f"seed {seed}, edit {done}"
