"""Refusals as Swift answers them, with their reasons where the S3 filter finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from swift.common.swob import HTTPServiceUnavailable

from hsmkms.adopters.objectstorage import notes

_RETRY_AFTER_S: Final = "5"


def refusal(request: Any, kind: Callable[..., Any], words: str) -> Any:
    """An HTTPException of Swift's. S3's own errors have no room for words, so the S3 filter adds them."""
    notes.of(request.environ).refusal = words
    return kind(body=words, request=request, content_type="text/plain")


def unavailable(request: Any, words: str) -> Any:
    """Nobody knows now; it may be tried again."""
    found = refusal(request, HTTPServiceUnavailable, words)
    found.headers["Retry-After"] = _RETRY_AFTER_S
    return found
