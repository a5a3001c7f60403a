"""`?protection` of a bucket in the S3 API, as ibm-cos-sdk sends it: a retention policy."""

from __future__ import annotations

from typing import Any, Final

from swift.common.middleware.s3api.acl_handlers import BaseAclHandler
from swift.common.middleware.s3api.controllers.base import Controller
from swift.common.middleware.s3api.etree import (
    DocumentInvalid,
    Element,
    SubElement,
    XMLSyntaxError,
    fromstring,
    tostring,
)
from swift.common.middleware.s3api.s3response import HTTPOk, InvalidRequest, MalformedXML
from swift.common.utils import public

from hsmkms.adopters.objectstorage.retention import POLICY, Retention, RetentionRefused

_MAX_BODY: Final = 10_240
_PERIODS: Final = {"MinimumRetention": "minimum", "DefaultRetention": "default", "MaximumRetention": "maximum"}


class ProtectionController(Controller):  # type: ignore[misc]  # Swift has no types
    """PUT and GET of a bucket's policy. A policy can be replaced, not ended; what is kept already stays so."""

    acl_handler = BaseAclHandler
    resource_type = "PROTECTION"

    @public  # type: ignore[untyped-decorator]
    def PUT(self, req: Any) -> Any:  # noqa: N802
        """Raises ErrorResponse."""
        try:
            policy = _parsed(req.xml(_MAX_BODY))
        except RetentionRefused as refused:
            raise InvalidRequest(refused.message) from refused
        req.get_response(self.app, method="POST", headers={POLICY: policy.text()})
        return HTTPOk()

    @public  # type: ignore[untyped-decorator]
    def GET(self, req: Any) -> Any:  # noqa: N802
        """Empty for a bucket without a policy. Raises ErrorResponse."""
        # For the right to see it, and that there is such a bucket.
        req.get_response(self.app, method="HEAD")
        policy = Retention.stored_in(req.get_container_info(self.app)["sysmeta"])
        root = Element("ProtectionConfiguration")
        if policy is not None:
            SubElement(root, "Status").text = "Retention"
            for name, member in _PERIODS.items():
                SubElement(SubElement(root, name), "Days").text = str(getattr(policy, member))
        return HTTPOk(body=tostring(root), content_type="application/xml")


def _parsed(body: Any) -> Retention:
    try:
        root = fromstring(body)
    except (XMLSyntaxError, DocumentInvalid, TypeError) as error:
        raise MalformedXML from error
    if root.tag != "ProtectionConfiguration" or root.findtext("./Status") != "Retention":
        raise RetentionRefused("Status has to be Retention; a policy cannot be taken back.")
    if (root.findtext("./EnablePermanentRetention") or "false").lower() != "false":
        raise RetentionRefused("Permanent retention is not offered.")
    days = {}
    for name, member in _PERIODS.items():
        text = root.findtext(f"./{name}/Days") or ""
        if not text.isdecimal() or len(text) > 9:
            raise RetentionRefused(f"{name} has to be a number of days.")
        days[member] = int(text)
    return Retention(**days)
