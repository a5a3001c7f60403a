"""Which command runs."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

COMMAND: Final[ContextVar[str]] = ContextVar("command", default="unknown")
"""For the audit trail: its name and never its arguments."""
