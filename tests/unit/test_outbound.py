"""Where this service may call somebody."""

from __future__ import annotations

import pytest

from hsmkms.outbound import is_private


@pytest.mark.parametrize(
    "url",
    [
        "https://keys.example/",
        "https://10.0.0.1:8443/x",
        "https://[::1]/",
        "http://localhost:1/",
        "http://127.0.0.1/",
        "http://127.8.8.8/",
        "http://[::1]:9/",
        "HTTPS://keys.example/",
    ],
)
def test_nobody_reads_along(url: str) -> None:
    assert is_private(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://keys.example/",
        "http://localhost.example/",
        "http://169.254.169.254/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://localhost@keys.example/",
        "https://",
        "https:///x",
        "https://[",
        "file:///etc/passwd",
        "ftp://localhost/",
        "data:text/plain,x",
        "//localhost/",
        "localhost",
        "",
    ],
)
def test_somebody_might(url: str) -> None:
    assert not is_private(url)
