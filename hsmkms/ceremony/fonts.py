"""The font of what is printed: one that has everybody's letters where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from fpdf import FPDF

_FONTS: Final = Path("/usr/share/fonts/truetype/dejavu")
"""Where Debian's fonts-dejavu-core puts its files; the fonts that every PDF reader has know only Western letters."""


def use(document: FPDF) -> tuple[str, Callable[[str], str]]:
    """Family name of the font, added to the document, and what makes a text printable in it."""
    if not (_FONTS / "DejaVuSans.ttf").exists():
        return "Helvetica", lambda text: text.encode("latin-1", "replace").decode("latin-1")
    document.add_font("DejaVu", "", str(_FONTS / "DejaVuSans.ttf"))
    document.add_font("DejaVu", "B", str(_FONTS / "DejaVuSans-Bold.ttf"))
    return "DejaVu", str
