"""A token with faults, as in `tests/faults`."""

from __future__ import annotations

from tests.faults.conftest import injector, injector_library

__all__ = ["injector", "injector_library"]
