"""A key that is made for backup: sheets that can be read, shares that make it again, and nothing left behind."""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import zxingcpp
from PIL import Image

from hsmkms.ceremony import components, memory
from hsmkms.ceremony import record as records
from hsmkms.ceremony.refusals import CeremonyRefused
from hsmkms.ceremony.screen import Answers
from hsmkms.ceremony.shares import ShareSet
from tests.ceremony.conftest import CUSTODIANS, LEADER, Table
from tests.ceremony.test_power_cut import PowerCut
from tests.ceremony.test_run import refusals, require_right, require_silent


@pytest.fixture
def sheets() -> Iterator[Path]:
    """A directory in memory; nothing may be left in it."""
    place = Path("/dev/shm") / f"hsmkms-{uuid.uuid4()}"
    place.mkdir(mode=0o700)
    yield place
    assert list(place.iterdir()) == []
    place.rmdir()


@pytest.fixture(autouse=True)
def _no_swap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine may have swap space; a ceremony's has none."""
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n")
    monkeypatch.setattr(memory, "_SWAPS", tmp_path / "swaps")


class Printer(Answers):
    """Custodians who print what is there for them, read it, and type what is asked for."""

    def __init__(self, answers: dict[str, list[str]], sheets: Path, paper: Path) -> None:
        super().__init__(answers)
        self._sheets, self._paper = sheets, paper
        self.words: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.wrong = {CUSTODIANS[1]: ["three wrong words", "", "x"]}
        self.cut_at: str | None = None

    def _next(self, who: str, prompt: str) -> str:
        if prompt != "The last 3 words on your sheet":
            return super()._next(who, prompt)
        if who == self.cut_at:
            raise PowerCut
        if self.wrong.get(who):
            return self.wrong[who].pop(0)
        (sheet,) = self._sheets.iterdir()
        assert sheet.stat().st_mode & 0o777 == 0o600
        image = self._paper / f"{len(self.words)}"
        subprocess.run(["pdftoppm", "-r", "150", "-png", "-singlefile", sheet, image], check=True)
        self.texts[who] = subprocess.run(["pdftotext", sheet, "-"], capture_output=True, text=True, check=True).stdout
        with Image.open(f"{image}.png") as page:
            (code,) = zxingcpp.read_barcodes(page, formats=zxingcpp.BarcodeFormats(zxingcpp.BarcodeFormat.QRCode))
        self.words[who] = code.text
        return " ".join(code.text.split()[-3:]).upper()


def combined(words: list[str], k: int, length: int) -> bytes:
    together = ShareSet(k, length)
    for share in words:
        together.add(share)
    return bytes(together.combine())


@pytest.mark.parametrize("length", [16, 32])
def test_sheets_make_the_key_again(table: Table, sheets: Path, tmp_path: Path, length: int) -> None:
    table.write_plan(kind="split", key=f"bytes = {length}")
    console = Printer(table.answers({}, leader=["split"]), sheets, tmp_path)
    table.hold(console, sheets=sheets)
    words = [console.words[who] for who in CUSTODIANS]
    key = combined(words[:3], 3, length)
    assert combined(words[2:], 3, length) == key
    verified = records.verify(table.record)
    require_right(table, verified, key)
    require_silent(table, [key, *words])
    assert len(refusals(verified)) == 3
    value = components.check_values(bytearray(key)).cmac
    made = verified.last("key made")
    assert made is not None
    assert made.data["passage"] == "drawn by the token, split in locked memory"
    for number, who in enumerate(CUSTODIANS, 1):
        text = " ".join(console.texts[who].split())
        assert f"Key share {number} of 5" in text
        assert f"For {who}. Any 3 of these shares make the key" in text
        assert f"AES-CMAC {value}" in text
        assert f"of the others): {' '.join(words[number - 1].split()[-3:])}" in text
        printed = {int(place): word for place, word in re.findall(r"(\d+)\. ([a-z]+)", text)}
        assert printed == dict(enumerate(words[number - 1].split(), 1))


@pytest.mark.parametrize("at", [0, 2, 4])
def test_the_power_fails_while_sheets_are_printed(table: Table, sheets: Path, tmp_path: Path, at: int) -> None:
    """The key was only in memory: another one is made, and the record says which sheets are void."""
    table.write_plan(kind="split")
    before = Printer(table.answers({}, leader=["split"]), sheets, tmp_path)
    before.cut_at = CUSTODIANS[at]
    with pytest.raises(PowerCut):
        table.hold(before, sheets=sheets)
    # A process that is killed erases nothing.
    (sheets / "hsmkms-share-1-of-5.pdf").write_bytes(b"a sheet")
    answers = table.answers({}, leader=["destroyed", "split"])
    for step in records.check(table.record.read_bytes()):
        if step.what == "present":
            answers[step.actor].remove(step.actor)
    after = Printer(answers, sheets, tmp_path)
    table.hold(after, sheets=sheets)
    verified = records.verify(table.record)
    key = combined([after.words[who] for who in CUSTODIANS[:3]], 3, 32)
    require_right(table, verified, key)
    drawn = [step.data["set"] for step in verified.steps if step.what == "key drawn"]
    void = verified.last("shares void")
    assert void is not None
    assert [void.data["set"]] == drawn[:1]
    assert len(drawn) == 2
    assert not set(before.words.values()) & set(after.words.values())


def test_sheets_never_come_on_a_disk(
    table: Table, sheets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.write_plan(kind="split")
    digits = table.answers({})[LEADER][0]
    answers = table.answers({}, leader=["split"])
    with pytest.raises(CeremonyRefused, match="Say with --sheets"):
        table.hold(Answers(answers))
    with pytest.raises(CeremonyRefused, match="is no directory"):
        table.hold(Answers({LEADER: [digits]}), sheets=tmp_path / "nowhere")
    monkeypatch.setattr(memory, "_MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text("x / ext4 rw 0 0\nx /dev/shm tmpfs rw 0 0\n")
    with pytest.raises(CeremonyRefused, match="is on a disk"):
        table.hold(Answers({LEADER: [digits]}), sheets=tmp_path)
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
    with pytest.raises(CeremonyRefused, match="swapoff"):
        table.hold(Answers({LEADER: [digits]}), sheets=sheets)
    assert table.key_ids() == []
