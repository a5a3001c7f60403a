"""Whole ceremonies: each source of a key, every kind of wrong entry, and what is on token and record afterwards."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from hsmkms.ceremony import components, run
from hsmkms.ceremony import record as records
from hsmkms.ceremony.record import Verified
from hsmkms.ceremony.refusals import CeremonyRefused, PlanRefused
from hsmkms.ceremony.screen import Answers
from hsmkms.ceremony.shares import split
from tests.ceremony.conftest import CUSTODIANS, LEADER, WITNESSES, Table
from tests.token.test_objects import described

ALICE, BOB, CAROL, DAVE, ERIN = CUSTODIANS


def twice(*entries: str) -> list[str]:
    """Each entry as a careful custodian types it."""
    return [one for entry in entries for one in (entry, entry)]


def refusals(verified: Verified) -> list[str]:
    return [step.data["why"] for step in verified.steps if step.what == "entry refused"]


def require_right(table: Table, verified: Verified, key: bytes) -> None:
    """One key is on the token, it is the one that was meant, and the record says so and no more."""
    made = verified.last("key made")
    assert made is not None
    assert verified.complete
    assert table.key_ids() == [made.data["version"]]
    assert made.data["wrap_check_value"] == aes_key_wrap(key, bytes(16))[:8].hex().upper()
    values = components.check_values(bytearray(key))
    assert made.data["check_values"] == {"cmac": values.cmac, "ecb": values.ecb}
    found = described(table.state, "secrkey", made.data["version"])
    assert (found["access"], found["usage"]) == ({"sensitive"}, {"wrap", "unwrap"})
    assert made.data["attributes"]["CKA_SENSITIVE"] is True
    assert made.data["attributes"]["CKA_EXTRACTABLE"] is False


def require_silent(table: Table, secrets: Sequence[str | bytes]) -> None:
    """No secret, in any spelling, nor a part of one of 4 bytes, is in the record."""
    content = table.record.read_text().lower()
    for secret in secrets:
        if isinstance(secret, str):
            words = secret.split()
            assert not any(" ".join(words[place : place + 2]) in content for place in range(4, len(words) - 1))
            continue
        assert base64.b64encode(secret).decode().lower() not in content
        # Six digits of a check value may happen to be digits of a key, so parts of four bytes are searched.
        assert not any(secret[place : place + 4].hex() in content for place in range(len(secret) - 3))


def test_shares(table: Table) -> None:
    key = os.urandom(32)
    shares = split(bytearray(key), 3, 5)
    given = {ALICE: twice(shares[0]), BOB: [""], CAROL: twice(shares[2]), ERIN: twice(shares[4])}
    table.hold(Answers(table.answers(given, absent=(DAVE,)) | {DAVE: ["", ""]}))
    verified = records.verify(table.record)
    require_right(table, verified, key)
    require_silent(table, [key, *shares])
    assert [(step.actor, step.data["number"]) for step in verified.steps if step.what == "share entered"] == [
        (ALICE, 1),
        (CAROL, 3),
        (ERIN, 5),
    ]
    assert [step.actor for step in verified.steps if step.what == "witnessed"] == list(WITNESSES)
    assert DAVE not in [step.actor for step in verified.steps if step.what == "present"]


def test_every_wrong_share_is_asked_again(table: Table) -> None:
    key = os.urandom(32)
    shares, others = split(bytearray(key), 3, 5), split(bytearray(os.urandom(32)), 3, 5)
    words = shares[1].split()
    swapped = " ".join([*words[:9], words[10], words[9], *words[11:]])
    given = {
        ALICE: [shares[0], shares[1], *twice(shares[0])],
        BOB: [*twice(swapped, "no such words", " ".join(words[:-1]), others[1], shares[0]), ""],
        CAROL: [""],
        DAVE: twice(shares[3]),
        ERIN: [""],
    }
    # Two of three were entered, so it goes round again among those who passed.
    given[BOB] += twice(shares[1])
    answers = table.answers(given)
    answers[LEADER] = [*answers[LEADER][:2], "", "yes"]
    table.hold(Answers(answers))
    verified = records.verify(table.record)
    require_right(table, verified, key)
    require_silent(table, [key, *shares, *others])
    assert [re.split(r"[.:]", why)[0] for why in refusals(verified)] == [
        "The two entries differ",
        "The share's checksum is wrong",
        "These are not words of the SLIP-39 list, counted from 1",
        "The share has 32 words",
        "This share belongs to another set than those before it",
        "This share was entered before",
        "2 shares were entered and 3 are needed",
    ]


@pytest.mark.parametrize("length", [16, 24, 32])
@pytest.mark.parametrize("count", [2, 9])
def test_components(table: Table, length: int, count: int) -> None:
    names = [f"Custodian {number}" for number in range(count)]
    parts = [os.urandom(length) for _ in names]
    key = bytes(components.combine(map(bytearray, parts)))
    expected = components.check_values(bytearray(key)).cmac
    values = [components.check_values(bytearray(part)).cmac for part in parts]
    listed = ", ".join(f'"{name}" = "{value}"' for name, value in zip(names, values, strict=True))
    table.write_plan(
        kind="components",
        k=None,
        custodians=names,
        key=f"bytes = {length}",
        source=f'expected = "{expected}"\nparts = {{ {listed} }}\n',
    )
    table.hold(Answers(table.answers({name: twice(part.hex()) for name, part in zip(names, parts, strict=True)})))
    require_right(table, records.verify(table.record), key)
    require_silent(table, [key, *parts])


def test_every_wrong_component_is_asked_again(table: Table) -> None:
    """Also the last mistake of all: each part is what it should be, and the whole is not."""
    one, two, other = (os.urandom(32) for _ in range(3))
    key = components.combine([bytearray(one), bytearray(two)])
    expected = components.check_values(key).ecb
    value = components.check_values(bytearray(one)).ecb
    table.write_plan(
        kind="components",
        k=None,
        custodians=[ALICE, BOB],
        source=f'check = "ecb"\nexpected = "{expected}"\nparts = {{ "{ALICE}" = "{value}" }}\n',
    )
    given = {
        ALICE: [one.hex(), two.hex(), *twice(one.hex()[:-1], "xyz", "00" * 32, one.hex()[2:], two.hex(), one.hex(" "))],
        BOB: [*twice(one.hex(), two.hex()), "no", *twice(other.hex()), "yes", *twice(two.hex()), "perhaps", "yes"],
    }
    leader = ["Mallory", CAROL, BOB, "yes"]
    table.hold(Answers(table.answers(given, leader=leader)))
    verified = records.verify(table.record)
    require_right(table, verified, bytes(key))
    require_silent(table, [one, two, other, bytes(key)])
    assert [re.split(r"[.:;]| [0-9A-F]{6}", why)[0] for why in refusals(verified)] == [
        "The two entries differ",
        "A component is an even number of hexadecimal digits (0-9, A-F)",
        "A component is an even number of hexadecimal digits (0-9, A-F)",
        "A component of zeros adds nothing to the key and is not taken",
        "This has 31 bytes",
        "The key check value is",
        "Another custodian brought the same component",
        "The custodian does not know this key check value",
        "The key check value is",
    ]


def test_a_leader_who_does_not_agree(table: Table) -> None:
    key = os.urandom(32)
    shares = split(bytearray(key), 3, 5)
    given = {ALICE: twice(shares[0], shares[1]), BOB: twice(shares[1], shares[2]), CAROL: twice(shares[2], shares[3])}
    table.hold(Answers(table.answers(given, leader=["no", "all", "yes"])))
    verified = records.verify(table.record)
    require_right(table, verified, key)
    assert [step.data for step in verified.steps if step.what == "part dropped"] == [{"whose": "all"}]


def test_a_generated_key(table: Table) -> None:
    table.write_plan(kind="generate", k=None, custodians=())
    table.hold(Answers(table.answers({}, leader=["generate"])))
    verified = records.verify(table.record)
    made = verified.last("key made")
    assert made is not None
    assert made.data["attributes"]["CKA_NEVER_EXTRACTABLE"] is True
    assert made.data["passage"] == "born in the token"
    assert re.fullmatch("[0-9A-F]{6}", made.data["check_values"]["ecb"])
    assert described(table.state, "secrkey", made.data["version"])["access"] >= {"always sensitive", "local"}


def test_what_the_first_step_says(table: Table) -> None:
    table.write_plan(kind="generate", k=None, custodians=())
    table.hold(Answers(table.answers({}, leader=["generate"])))
    opened = records.verify(table.record).steps[0]
    token = opened.data["token"]
    assert (token["serial"], token["firmware"]) == (table.token.info.serial, table.token.info.firmware)
    assert {"CKM_AES_KEY_WRAP", "CKM_AES_CMAC"} <= set(token["mechanisms"])
    assert re.fullmatch("[0-9a-f]{64}", opened.data["software"]["sha256"])
    assert opened.data["plan"]["key"]["purpose"] == "Wraps the data keys of the payments database"


def test_the_record_is_signed_by_the_token(table: Table) -> None:
    """The token still has the key, so that it can be asked whether a record is its own."""
    table.write_plan(kind="generate", k=None, custodians=())
    table.hold(Answers(table.answers({}, leader=["generate"])))
    verified = records.verify(table.record)
    assert described(table.state, "privkey", verified.steps[0].data["signing_key_id"])["access"] >= {
        "sensitive",
        "never extractable",
    }


def test_another_token(table: Table) -> None:
    table.plan.write_text(table.plan.read_text().replace(table.token.info.serial, "0" * 16))
    with pytest.raises(PlanRefused, match="this one is"):
        table.hold(Answers({}))
    assert not table.record.exists()


def test_another_plan_on_the_same_record(table: Table) -> None:
    with pytest.raises(CeremonyRefused, match="no answer left"):
        table.hold(Answers({LEADER: table.answers({})[LEADER]}))
    table.plan.write_text(table.plan.read_text().replace("k = 3", "k = 2"))
    with pytest.raises(PlanRefused, match="another plan"):
        table.hold(Answers(table.answers({})))


def test_a_ceremony_is_held_once(table: Table) -> None:
    table.write_plan(kind="generate", k=None, custodians=())
    table.hold(Answers(table.answers({}, leader=["generate"])))
    with pytest.raises(CeremonyRefused, match="held and closed"):
        table.hold(Answers(table.answers({}, leader=["generate"])))
    assert len(table.key_ids()) == 1


def test_a_rehearsal_stays_one(table: Table) -> None:
    answers = table.answers({})
    with pytest.raises(CeremonyRefused, match="no answer left"):
        table.hold(Answers({LEADER: answers[LEADER]}), rehearsal=True)
    with pytest.raises(PlanRefused, match="rehearsal"):
        table.hold(Answers(answers))


def test_which_tokens_are_throw_away(table: Table) -> None:
    assert run.is_throwaway(table.token.info)
    for manufacturer in ("Thales", "SafeNet", "Utimaco", "", "SoftHSM"):
        info = replace(table.token.info, manufacturer=manufacturer)
        assert not run.is_throwaway(info)
        with pytest.raises(CeremonyRefused, match="people answer"):
            run.require_allowed(info, memory_locked=True, answers=True)
        with pytest.raises(CeremonyRefused, match="cannot be locked"):
            run.require_allowed(info, memory_locked=False, answers=False)
        run.require_allowed(info, memory_locked=True, answers=False)
