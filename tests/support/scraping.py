"""What Prometheus would see of a service."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
WAIT_S = 90.0


@dataclass(frozen=True)
class Scraped:
    """One scrape: samples by name and labels."""

    samples: dict[tuple[str, Labels], float]

    def value(self, name: str, **labels: str) -> float:
        """A sample; KeyError if it is not there."""
        return self.samples[(name, frozenset(labels.items()))]

    def get(self, name: str, **labels: str) -> float:
        """The same; 0 if nothing was counted yet."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels."""
        wanted = frozenset(labels.items())
        return sum(value for (known, has), value in self.samples.items() if known == name and wanted <= has)

    @property
    def names(self) -> set[str]:
        """All names of samples."""
        return {name for name, _ in self.samples}


def scrape(port: int) -> Scraped:
    """What the endpoint on that port of the loopback interface says."""
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20)
    assert answer.status_code == 200, answer.text
    return Scraped(
        {
            (sample.name, frozenset(sample.labels.items())): float(sample.value)
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
    )


def wait_for(port: int, true_of: Callable[[Scraped], bool], what: str) -> Scraped:
    """The first scrape of which that is true; AssertionError when there is none within WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = scrape(port)
        if true_of(found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"never seen in metrics: {what}")
