"""What is shipped beside the program fits it: metrics of dashboard and alerts exist, the unit is hardened."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from hsmkms.settings import Settings
from hsmkms.telemetry import metrics
from tests.support.deployment import ROOT, State
from tests.support.injector import Injector

PACKAGING = ROOT / "packaging"
UNIT = PACKAGING / "hsmkms.service"
EXPOSURE_TIMES_TEN = 11
METRIC = re.compile(r"\bhsmkms_\w+")


def _served() -> set[str]:
    """The names of all samples that `/metrics` can have."""
    names = set()
    for family in metrics.REGISTRY.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {f"{family.name}{end}" for end in ends}
    return names


def test_every_metric_of_the_dashboard_is_served_and_every_metric_is_on_it() -> None:
    dashboard = json.loads((PACKAGING / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
        for name in METRIC.findall(target["expr"])
    }
    assert asked - _served() == set()
    families = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in _served()}
    assert families - {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in asked} == set()
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in dashboard["panels"]]
    assert len(places) == len(set(places))
    assert len({one["id"] for one in dashboard["panels"]}) == len(places)


def test_every_alert_stands_on_metrics_that_are_served() -> None:
    rules = yaml.safe_load((PACKAGING / "alerts.yml").read_text())["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        asked = set(METRIC.findall(rule["expr"]))
        assert asked, rule
        assert asked - _served() == set(), rule
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_operations_names_every_metric_and_every_setting() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for family in metrics.REGISTRY.collect():
        assert re.search(rf"`{family.name}(_total)?`", page), family.name
    for setting in Settings.model_fields:
        assert re.search(rf"`{setting}`", page), setting


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_hardened() -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_TIMES_TEN}", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    score = re.search(r"Overall exposure level for hsmkms.service: ([0-9.]+)", done.stdout)
    assert score
    assert f"`systemd-analyze security`: {score[1]}" in (ROOT / "docs" / "operations.md").read_text()


def test_the_unit_starts_again_what_the_token_stopped_and_not_what_a_pin_did(state: State, injector: Injector) -> None:
    injector.fail("*", wait_ms=600_000)
    settings = {"HSMKMS_PKCS11_MODULE": str(injector.library), "HSMKMS_TOKEN_CALL_TIMEOUT_S": "1"}
    hung = state.run("serve", stdin=b"", **settings, **injector.environment)
    assert hung.returncode == 75, hung.stderr
    (state.path / "pin").write_text("not the PIN\n")
    assert state.run("serve").returncode == 1
    unit = UNIT.read_text()
    assert re.search(r"^Restart=always$", unit, re.MULTILINE)
    assert re.search(r"^RestartPreventExitStatus=1$", unit, re.MULTILINE)


def test_the_image_takes_only_what_is_locked_and_is_nobody() -> None:
    text = (PACKAGING / "Containerfile").read_text()
    assert "--require-hashes" in text
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in copied.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in (ROOT / ".containerignore").read_text().splitlines()
