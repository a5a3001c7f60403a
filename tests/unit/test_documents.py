"""What the pages say of tests is so."""

from __future__ import annotations

import re

from tests.support.deployment import ROOT

_NAMED = re.compile(r"`(?P<file>tests/[\w/]+\.py)?(?:::(?P<test>\w+))?`")


def test_every_test_that_the_compatibility_page_names_exists() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    named = 0
    for line in page.splitlines():
        file = ""
        for found in _NAMED.finditer(line):
            file = found["file"] or file
            if not file:
                continue
            named += 1
            source = (ROOT / file).read_text()
            assert found["test"] is None or f"def {found['test']}(" in source, found[0]
    assert named > 50
