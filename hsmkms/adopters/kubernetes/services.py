"""The gRPC services: KMS v2, and v1beta1 for clusters that still ask for it. Requests in, answers or codes out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog

from hsmkms import __version__
from hsmkms.adopters.client import UNAUTHORIZED, AdopterError, CiphertextRefused, KeyRefused, KeyServiceAway
from hsmkms.adopters.kubernetes.health import Condition, Health
from hsmkms.adopters.kubernetes.key_id import KeyId
from hsmkms.adopters.kubernetes.metrics import Metrics
from hsmkms.adopters.kubernetes.refusals import KeyUnusable, RequestInvalid
from hsmkms.adopters.kubernetes.sealing import Call, Sealed, Sealing
from hsmkms.adopters.kubernetes.wire import kms_v1beta1_pb2 as v1beta1
from hsmkms.adopters.kubernetes.wire import kms_v2_pb2 as v2

DEK_ID: Final = "dek-id.kms.hsmkms.internal"
"""The annotation that holds a DEK's name."""
MAX_MESSAGE_BYTES: Final = 128 * 1024
"""Above what the protocol allows: 32 KiB of annotations and two times 1 KiB."""
_MARGIN_S: Final = 0.1
"""Kept of the caller's deadline, for the answer to be there before it."""
_MAX_UID: Final = 100
_V1BETA1_FORM: Final = b"hsmkms1"

_log = structlog.get_logger(__name__)

_Act = Callable[[Any, Call], Any]


@dataclass(frozen=True)
class Services:
    """What stands behind the methods. `most_s` is the longest that a call takes if its caller sets no deadline; `doubt`
    asks for a look at the root key because a call was refused."""

    sealing: Sealing
    health: Health
    metrics: Metrics
    most_s: float
    doubt: Callable[[], None]

    def handlers(self, *, with_v1beta1: bool) -> list[grpc.GenericRpcHandler]:
        """For a gRPC server."""
        services: dict[str, dict[str, tuple[Any, _Act]]] = {
            "v2.KeyManagementService": {
                "Status": (v2.StatusRequest, self._status),
                "Encrypt": (v2.EncryptRequest, self._encrypt),
                "Decrypt": (v2.DecryptRequest, self._decrypt),
            }
        }
        if with_v1beta1:
            services["v1beta1.KeyManagementService"] = {
                "Version": (v1beta1.VersionRequest, self._version),
                "Encrypt": (v1beta1.EncryptRequest, self._encrypt_v1beta1),
                "Decrypt": (v1beta1.DecryptRequest, self._decrypt_v1beta1),
            }
        return [
            grpc.method_handlers_generic_handler(
                service,
                {
                    method: grpc.unary_unary_rpc_method_handler(
                        self._answering(f"{service.split('.')[0]}.{method}", act),
                        request_deserializer=request.FromString,
                        response_serializer=lambda answer: answer.SerializeToString(),
                    )
                    for method, (request, act) in methods.items()
                },
            )
            for service, methods in services.items()
        ]

    def _answering(self, method: str, act: _Act) -> Callable[[Any, grpc.ServicerContext], Any]:
        """An act with its deadline, its code, its log line and its count."""
        quiet = method.endswith(("Status", "Version")) or method.startswith("v1beta1.")

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            started = time.monotonic()
            # Without a deadline there is an infinite time left.
            within_s = min(self.most_s, max(_MARGIN_S, context.time_remaining() - _MARGIN_S))
            call = Call(within_s, getattr(request, "uid", "")[:_MAX_UID])
            try:
                answered = act(request, call)
            except AdopterError as error:
                code = _code_of(error)
                self.metrics.count(method, code.name, time.monotonic() - started)
                _log.warning("refused", method=method, uid=call.uid, code=code.name, reason=error.message)
                if code is not grpc.StatusCode.INVALID_ARGUMENT and not method.endswith("Status"):
                    self.doubt()
                context.abort(code, error.message)
            self.metrics.count(method, "OK", time.monotonic() - started)
            if not quiet:
                _log.info("done", method=method, uid=call.uid, ms=round((time.monotonic() - started) * 1000, 1))
            return answered

        return answer

    def _status(self, request: v2.StatusRequest, call: Call) -> v2.StatusResponse:
        verdict = self.health.verdict
        if verdict.condition is Condition.REFUSED:
            raise KeyUnusable(verdict.reason)
        if verdict.key_id is None:
            raise KeyServiceAway(verdict.reason)
        healthz = "ok" if verdict.condition is Condition.HEALTHY else verdict.reason
        return v2.StatusResponse(version="v2", healthz=healthz, key_id=str(verdict.key_id))

    def _encrypt(self, request: v2.EncryptRequest, call: Call) -> v2.EncryptResponse:
        sealed = self.sealing.seal(request.plaintext, call)
        return v2.EncryptResponse(
            ciphertext=sealed.ciphertext,
            key_id=str(sealed.key_id),
            annotations={DEK_ID: sealed.dek_id.encode()},
        )

    def _decrypt(self, request: v2.DecryptRequest, call: Call) -> v2.DecryptResponse:
        if set(request.annotations) != {DEK_ID}:
            raise RequestInvalid(f"What this plugin encrypts has one annotation, {DEK_ID}.")
        sealed = Sealed(request.ciphertext, _dek_id(request.annotations[DEK_ID]), KeyId.parse(request.key_id))
        return v2.DecryptResponse(plaintext=self.sealing.open(sealed, call).reveal())

    def _version(self, request: v1beta1.VersionRequest, call: Call) -> v1beta1.VersionResponse:
        return v1beta1.VersionResponse(version="v1beta1", runtime_name="hsmkms", runtime_version=__version__)

    def _encrypt_v1beta1(self, request: v1beta1.EncryptRequest, call: Call) -> v1beta1.EncryptResponse:
        sealed = self.sealing.seal(request.plain, call)
        parts = (_V1BETA1_FORM, str(sealed.key_id).encode(), sealed.dek_id.encode(), sealed.ciphertext)
        return v1beta1.EncryptResponse(cipher=b" ".join(parts))

    def _decrypt_v1beta1(self, request: v1beta1.DecryptRequest, call: Call) -> v1beta1.DecryptResponse:
        parts = request.cipher.split(b" ")
        if len(parts) != 4 or parts[0] != _V1BETA1_FORM:
            raise RequestInvalid("The cipher is not one of this plugin, or is damaged.")
        key_id = KeyId.parse(parts[1].decode(errors="replace"))
        plaintext = self.sealing.open(Sealed(parts[3], _dek_id(parts[2]), key_id), call)
        return v1beta1.DecryptResponse(plain=plaintext.reveal())


def _dek_id(value: bytes) -> str:
    if not 1 <= len(value) <= 100 or not value.isascii():
        raise RequestInvalid("The name of the DEK is not one that this plugin gave.")
    return value.decode()


def _code_of(error: AdopterError) -> grpc.StatusCode:
    match error:
        case RequestInvalid() | CiphertextRefused():
            return grpc.StatusCode.INVALID_ARGUMENT
        case KeyRefused(reason_code=code) if code == UNAUTHORIZED:
            return grpc.StatusCode.PERMISSION_DENIED
        case KeyRefused() | KeyUnusable():
            return grpc.StatusCode.FAILED_PRECONDITION
        case _:
            return grpc.StatusCode.UNAVAILABLE
