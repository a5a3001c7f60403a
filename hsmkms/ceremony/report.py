"""A record on paper: what was done, and room for everybody's signature."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fpdf import FPDF
from fpdf.enums import XPos, YPos

from hsmkms.ceremony import fonts
from hsmkms.ceremony.made import MADE, WRAPPED
from hsmkms.ceremony.record import Verified

_MARGIN_MM: Final = 15
_TOLD: Final = ("why", "number", "check_value", "fingerprint")
"""What a step's row says of its data: the first of these that it has."""


def render(verified: Verified, path: Path) -> None:
    """Write the report of a verified record as a PDF of A4 pages."""
    opened = verified.steps[0].data
    plan: dict[str, Any] = opened["plan"]
    sheet = _Sheet(plan["title"], verified)
    sheet.facts(
        "The plan",
        [
            ("Key", f"{plan['key']['name']}, {8 * plan['key']['bytes']} bits"),
            ("Purpose", plan["key"]["purpose"]),
            ("Instance", plan["key"]["instance"]),
            ("Source", _source(plan["source"])),
            ("SHA-256 of the plan", opened["plan_sha256"]),
        ],
    )
    token, software = opened["token"], opened["software"]
    sheet.facts(
        "Token and software",
        [
            ("Token", f"{token['label']}, serial {token['serial']}"),
            ("Device", f"{token['manufacturer']}, {token['model']}, firmware {token['firmware']}"),
            ("Mechanisms", ", ".join(token["mechanisms"])),
            ("Software", f"{software['name']} {software['version']}"),
            ("SHA-256 of the software", software["sha256"]),
            ("Memory locked", "yes" if opened["memory_locked"] else "no"),
        ],
    )
    made, wrapped = verified.last(MADE), verified.last(WRAPPED)
    if made is not None:
        sheet.facts("The key on the token", _key(made.data))
    if wrapped is not None:
        sheet.facts("The key in the bundle", _bundled(wrapped.data))
    sheet.steps(verified)
    sheet.facts("The record", [("Last hash", verified.head), ("Signed by key", verified.fingerprint)])
    people = plan["people"]
    roles = [(people["leader"], "leader"), *((name, "witness") for name in people["witnesses"])]
    sheet.signatures([*roles, *((name, "custodian") for name in people["custodians"])])
    sheet.output(str(path))


def _source(source: dict[str, Any]) -> str:
    return {
        "generate": "generated in the token",
        "components": f"{source['n']} components",
        "shares": f"SLIP-39 shares, {source['k']} of {source['n']}",
        "wrapped": f"a file of another HSM, RSA-OAEP with {source['oaep'] or 'sha256'}",
        "split": f"drawn by the token and split into SLIP-39 shares, {source['k']} of {source['n']}",
    }[source["kind"]]


def _key(made: dict[str, Any]) -> list[tuple[str, str]]:
    said = {True: "yes", False: "no", None: "not told"}
    attributes = ", ".join(f"{name} {said[value]}" for name, value in made["attributes"].items())
    values = made["check_values"]
    return [
        ("Key id", made["key"]),
        ("Object (CKA_ID)", made["version"]),
        ("Label", made["label"]),
        ("How it came there", made["passage"]),
        ("Check value, AES-CMAC", values["cmac"] or "not known"),
        ("Check value, AES-ECB", values["ecb"] or "not known"),
        ("Wrap check value", made["wrap_check_value"]),
        ("Attributes read back", attributes),
    ]


def _bundled(wrapped: dict[str, Any]) -> list[tuple[str, str]]:
    values = wrapped["check_values"]
    return [
        ("Key id", wrapped["key"]),
        ("Wrapped to", f"the import token's public key of SHA-256 {wrapped['destination']}"),
        ("SHA-256 of the bundle", wrapped["bundle_sha256"]),
        ("Check value, AES-CMAC", values["cmac"]),
        ("Check value, AES-ECB", values["ecb"]),
        ("Wrap check value", wrapped["wrap_check_value"]),
    ]


class _Sheet(FPDF):
    """A4 pages with the title above and the record's last hash below."""

    def __init__(self, title: str, verified: Verified) -> None:
        super().__init__()
        self._verified = verified
        rehearsal = " (REHEARSAL)" if verified.steps[0].data["rehearsal"] else ""
        self._title = f"Key ceremony: {title}{rehearsal}"
        self._family, self._printable = fonts.use(self)
        self.set_creation_date(datetime.fromisoformat(verified.steps[-1].at))
        self.set_title(self._title)
        self.set_margin(_MARGIN_MM)
        self.set_auto_page_break(True, 20)
        self.add_page()
        if not verified.complete:
            self._write("This ceremony was not brought to its end.", bold=True, size=11)

    def header(self) -> None:
        self._write(self._title, bold=True, size=13)
        self.ln(2)

    def footer(self) -> None:
        self.set_y(-_MARGIN_MM)
        self._font(7)
        self.cell(0, 4, f"Record ends with {self._verified.head}", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.cell(0, 4, f"Page {self.page_no()}")

    def facts(self, heading: str, rows: Sequence[tuple[str, str]]) -> None:
        """A heading, and a name and a text in each row."""
        self.ln(2)
        self._write(heading, bold=True, size=11)
        self._font(8)
        with self.table(col_widths=(28, 100), first_row_as_headings=False, line_height=4.4, text_align="LEFT") as table:
            for name, value in rows:
                row = table.row()
                row.cell(self._printable(name))
                row.cell(self._printable(value))

    def steps(self, verified: Verified) -> None:
        """Every step of the record."""
        self.ln(2)
        self._write("Steps", bold=True, size=11)
        self._font(7)
        with self.table(col_widths=(6, 25, 28, 16, 80), line_height=4, text_align="LEFT") as table:
            for heads in (("", "Time (UTC)", "Who", "Role", "What"),):
                row = table.row()
                for head in heads:
                    row.cell(head)
            for step in verified.steps:
                row = table.row()
                told = next((step.data[name] for name in _TOLD if name in step.data), "")
                what = f"{step.what}{': ' if told else ''}{told}"
                for text in (str(step.number), step.at[:19].replace("T", " "), step.actor, step.role, what):
                    row.cell(self._printable(text))

    def signatures(self, people: Sequence[tuple[str, str]]) -> None:
        """A line for each of them, and for the date; nobody's is alone on a page without its name."""
        self.ln(4)
        self._write("Signatures", bold=True, size=11)
        for name, role in people:
            if self.will_page_break(16):
                self.add_page()
            self.ln(8)
            self._font(8)
            y = self.get_y()
            self.cell(0, 5, self._printable(f"{name} ({role})"), new_x=XPos.LMARGIN, new_y=YPos.NEXT)
            self.line(90, y + 5, 150, y + 5)
            self.line(155, y + 5, 195, y + 5)
            self._font(6)
            self.text(90, y + 8, "Signature")
            self.text(155, y + 8, "Place and date")

    def _write(self, text: str, *, bold: bool = False, size: int = 8) -> None:
        self._font(size, bold=bold)
        self.multi_cell(0, size * 0.55, self._printable(text), new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    def _font(self, size: int, *, bold: bool = False) -> None:
        self.set_font(self._family, "B" if bold else "", size)
