"""Asks a running plugin as kube-apiserver does: Status, Encrypt, Decrypt."""

from __future__ import annotations

import hmac
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from hsmkms.adopters.kubernetes.refusals import PluginRefused
from hsmkms.adopters.kubernetes.wire import kms_v2_pb2 as v2

_Answer = TypeVar("_Answer", bound=Message)
_DEADLINE_S: Final = 3.0
"""What the API server waits by default."""


def check(socket: Path) -> str:
    """The key_id that the plugin encrypts under. Raises PluginRefused with what the plugin says is wrong."""
    uid = str(uuid.uuid4())
    with grpc.insecure_channel(f"unix:{socket.absolute()}") as channel:
        try:
            status = _ask(channel, "Status", v2.StatusRequest(), v2.StatusResponse)
            if status.healthz != "ok":
                raise PluginRefused(f"The plugin at {socket} is not healthy: {status.healthz}")
            plaintext = secrets.token_bytes(32)
            sealed = _ask(channel, "Encrypt", v2.EncryptRequest(plaintext=plaintext, uid=uid), v2.EncryptResponse)
            asked = v2.DecryptRequest(
                ciphertext=sealed.ciphertext, uid=uid, key_id=sealed.key_id, annotations=sealed.annotations
            )
            opened = _ask(channel, "Decrypt", asked, v2.DecryptResponse)
        except grpc.RpcError as error:
            # What a unary call raises is an answer too (grpc.Call), with a code and words.
            code, words = error.code().name, error.details()
            raise PluginRefused(f"The plugin at {socket} refuses: {words} ({code}, uid {uid})") from None
    if sealed.key_id != status.key_id or not hmac.compare_digest(opened.plaintext, plaintext):
        raise PluginRefused(f"What serves {socket} does not give back what it encrypts. Do not use it.")
    return str(status.key_id)


def _ask(channel: grpc.Channel, method: str, asked: Any, answer: type[_Answer]) -> _Answer:
    call: Callable[..., _Answer] = channel.unary_unary(
        f"/v2.KeyManagementService/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    return call(asked, timeout=_DEADLINE_S)
