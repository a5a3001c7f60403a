"""Calls to other services: over TLS or on this host, by no proxy, and never where a redirect leads."""

from __future__ import annotations

import ipaddress
import ssl
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


def is_private(url: str) -> bool:
    """Whether nobody on the network reads along: https, or http on this host."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    return (parts.scheme == "https" and bool(host)) or (parts.scheme == "http" and loopback)


def opener(ca_file: Path | None) -> urllib.request.OpenerDirector:
    """Who opens URLs; `ca_file` holds the certificates that it trusts instead of the system's."""
    context = ssl.create_default_context(cafile=ca_file)
    return urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({}), _NoRedirect()
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What somebody named is there, and not where somebody else sends us."""

    def redirect_request(self, *_: Any) -> None:
        return None
