"""The one shape of every refusal (contract section 5, additions section 7), checked to its last member."""

from __future__ import annotations

import re
from http import HTTPStatus

import httpx

ERROR = "application/vnd.ibm.kms.error+json"


def require_refused(answer: httpx.Response, status: int, code: str | None, target: str | None = None) -> None:
    """Fail unless `answer` is a whole and well-formed refusal; `code` None is one without reasons."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == ERROR
    assert len(answer.headers["Correlation-Id"]) == 36
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert ("Retry-After" in answer.headers) == (status in (429, 503))
    body = answer.json()
    assert set(body) == {"metadata", "resources"}
    assert body["metadata"] == {"collectionType": ERROR, "collectionTotal": 1}
    (resource,) = body["resources"]
    phrase = HTTPStatus(status).phrase
    if code is None:
        assert set(resource) == {"errorMsg"}
        assert resource["errorMsg"].startswith(f"{phrase}: ")
        return
    assert set(resource) == {"errorMsg", "reasons"}
    said = resource["errorMsg"]
    assert re.fullmatch(rf"{phrase}: [^:]+: Please see `reasons` for more details \({code}\)", said), said
    (reason,) = resource["reasons"]
    found = reason.pop("target", None)
    assert set(reason) == {"code", "message", "status", "moreInfo"}
    assert (reason["code"], reason["status"]) == (code, status)
    assert reason["message"]
    assert reason["moreInfo"] == "https://cloud.ibm.com/apidocs/key-protect"
    kind = "query_param" if code in ("INVALID_QUERY_PARAM_ERR", "PROTECTED_RESOURCE_ERR") else "field"
    assert found == (None if target is None else {"type": kind, "name": target})
