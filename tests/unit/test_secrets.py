"""A secret shows itself to `reveal()` and to nothing else: not to logs, tracebacks, formatting or serialisers."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
import structlog

from hsmkms.domain.secrets import SecretBytes, SecretText

WORD = "correct-horse-battery"
Secret = SecretBytes | SecretText

both = pytest.mark.parametrize("secret", [SecretBytes(WORD.encode()), SecretText(WORD)], ids=["bytes", "text"])


@dataclass
class Holder:
    """A record as they travel through the service."""

    secret: Secret


def test_reveal_gives_it() -> None:
    assert SecretBytes(WORD.encode()).reveal() == WORD.encode()
    assert SecretText(WORD).reveal() == WORD
    assert len(SecretBytes(b"123")) == 3


@both
@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        lambda secret: f"{secret}",
        lambda secret: f"{secret!r}",
        lambda secret: f"{secret} {[secret]!r}",
        lambda secret: "%s %r" % (secret, {"secret": secret}),  # noqa: UP031
        lambda secret: repr(Holder(secret)),
        lambda secret: str(ValueError(secret)),
        lambda secret: json.dumps({"secret": secret}, default=repr),
    ],
)
def test_text_of_a_secret_is_a_mask(secret: Secret, show: Callable[[Secret], str]) -> None:
    shown = show(secret)
    assert "***" in shown
    assert "horse" not in shown


@both
def test_format_width_does_not_open_it(secret: Secret) -> None:
    with pytest.raises(TypeError) as caught:
        f"{secret:>40}"
    assert "horse" not in str(caught.value)


@both
def test_logs_hold_a_mask(secret: Secret, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").warning("pin is %s", secret)
    assert "pin is Secret" in caplog.text
    assert "horse" not in caplog.text
    line = structlog.processors.JSONRenderer()(None, "warning", {"event": "opened", "pin": secret})
    assert "***" in str(line)
    assert "horse" not in str(line)


@both
def test_traceback_with_local_variables_holds_a_mask(secret: Secret) -> None:
    def fail(pin: Secret) -> None:
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError) as caught:
        fail(secret)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "pin = Secret" in shown
    assert "horse" not in shown


@both
@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secret_is_not_pickled_or_copied(secret: Secret, leave: Callable[[Secret], object]) -> None:
    with pytest.raises(TypeError, match="a secret is not pickled"):
        leave(secret)


@both
def test_secret_has_no_wire_form(secret: Secret) -> None:
    for encode in (msgspec.json.encode, json.dumps):
        with pytest.raises(TypeError) as caught:
            encode(Holder(secret) if encode is msgspec.json.encode else {"secret": secret})
        assert "horse" not in str(caught.value)


@both
def test_secret_has_no_attributes_to_dump(secret: Secret) -> None:
    with pytest.raises(TypeError):
        vars(secret)
