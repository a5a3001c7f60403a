"""Client certificates: what one that the TLS handshake verified says of its holder."""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography import x509

from hsmkms.domain.identities import LoginMethod
from hsmkms.errors import Unauthenticated
from hsmkms.iam.bearer import Presented

SHA256: Final = "sha256"
SAN_DNS: Final = "san:dns"
SAN_URI: Final = "san:uri"
CLAIMS: Final = frozenset({SHA256, SAN_DNS, SAN_URI})


def presented(certificate: bytes) -> Presented:
    """The claims of a certificate (DER); it counts until its own end, however long the connection lives."""
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        try:
            names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = x509.SubjectAlternativeName([])
    except ValueError as error:
        raise Unauthenticated from error
    return Presented(
        issued_at=parsed.not_valid_before_utc,
        expires_at=parsed.not_valid_after_utc,
        method=LoginMethod.CERTIFICATE,
        claims={
            SHA256: (hashlib.sha256(certificate).hexdigest(),),
            SAN_DNS: tuple(names.get_values_for_type(x509.DNSName)),
            SAN_URI: tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
        },
    )
