"""The page of a share on paper."""

from __future__ import annotations

from typing import Final

import segno
from fpdf import FPDF
from fpdf.enums import XPos, YPos

from hsmkms.ceremony import fonts
from hsmkms.ceremony.plan import Plan
from hsmkms.ceremony.shares import set_number
from hsmkms.domain.check_values import CheckValues

_MARGIN_MM: Final = 20
_QR_MM: Final = 70
_COLUMNS: Final = 3


def draw(plan: Plan, who: str, number: int, share: str, found: CheckValues) -> bytes:
    """One A4 page as PDF."""
    sheet = FPDF()
    family, printable = fonts.use(sheet)
    sheet.set_margin(_MARGIN_MM)
    sheet.add_page()

    def line(text: str, size: int = 10, style: str = "") -> None:
        sheet.set_font(family, style, size)
        sheet.multi_cell(0, size * 0.6, printable(text), new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    words = share.split()
    line(f"Key share {number} of {len(plan.people.custodians)}", 18, "B")
    line(plan.title, 12)
    sheet.ln(3)
    line(
        f"For {who}. Any {plan.source.k} of these shares make the key; keep yours sealed, alone, and away from others."
    )
    line(f"Key: {plan.key.name}, {8 * plan.key.bytes} bits. {plan.key.purpose}.")
    line(f"Key check value of the whole key: AES-CMAC {found.cmac}, AES-ECB {found.ecb}")
    line(f"Standard: SLIP-39, one group, no passphrase. Set {set_number(share)}.")
    sheet.ln(4)
    sheet.set_font(family, "", 12)
    rows = -(-len(words) // _COLUMNS)
    with sheet.table(first_row_as_headings=False, line_height=7, text_align="LEFT") as table:
        for place in range(rows):
            row = table.row()
            for word in range(place, len(words), rows):
                row.cell(f"{word + 1}. {words[word]}")
            for _ in range(_COLUMNS - len(range(place, len(words), rows))):
                row.cell("")
    sheet.ln(2)
    line(f"Check words (the last three, a checksum of the others): {' '.join(words[-3:])}", 10, "B")
    sheet.ln(4)
    _draw_code(sheet, share)
    sheet.set_y(sheet.get_y() + _QR_MM + 8)
    line("The code holds the words, separated by spaces.", 8)
    sheet.ln(8)
    line("Received and read: ______________________________   Date: ______________")
    return bytes(sheet.output())


def _draw_code(sheet: FPDF, share: str) -> None:
    """Draw the code below what is there, as squares, so that it prints sharply."""
    matrix = segno.make_qr(share, error="m").matrix
    module = _QR_MM / len(matrix)
    left, top = sheet.l_margin, sheet.get_y()
    for y, row in enumerate(matrix):
        for x, dark in enumerate(row):
            if dark:
                sheet.rect(left + x * module, top + y * module, module, module, style="F")
