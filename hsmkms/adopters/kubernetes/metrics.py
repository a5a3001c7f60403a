"""Metrics (Prometheus text) and health of a plugin, for this host only."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hsmkms.adopters.kubernetes.health import Condition, Health, Verdict

_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0)


class Metrics:
    """What `/metrics`, `/healthz` and `/livez` say."""

    def __init__(self, health: Health) -> None:
        self._health, self._registered = health, False
        self._registry = CollectorRegistry()
        name = "hsmkms_kubernetes_{}".format
        self._calls = Counter(
            name("calls"), "Calls of the API server, by gRPC code.", ["method", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            name("call_seconds"), "How long calls took.", ["method"], registry=self._registry, buckets=_BUCKETS
        )
        self._condition = Gauge(
            name("root_key"),
            "How the root key is: one of these is 1.",
            ["condition"],
            registry=self._registry,
        )
        self._key_id = Gauge(name("key_id"), "What Encrypt encrypts under.", ["key_id"], registry=self._registry)
        self._looked = Gauge(
            name("last_look_timestamp_seconds"), "When the key was last looked at.", registry=self._registry
        )
        self._is_registered = Gauge(
            name("registered"), "Whether the cluster is registered with its root key.", registry=self._registry
        )

    def count(self, method: str, code: str, seconds: float) -> None:
        """A call that was answered."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def take(self, verdict: Verdict, *, registered: bool) -> None:
        """What a look came to."""
        for condition in Condition:
            self._condition.labels(condition.value).set(verdict.condition is condition)
        self._key_id.clear()
        if verdict.key_id is not None:
            self._key_id.labels(str(verdict.key_id)).set(1)
        self._looked.set(time.time())
        self._registered = registered
        self._is_registered.set(registered)

    def answer(self, path: str) -> tuple[HTTPStatus, str]:
        """Status and text for a path. `/livez` is of this process, `/healthz` of whether the cluster can write."""
        if path == "/metrics":
            return HTTPStatus.OK, generate_latest(self._registry).decode()
        if path == "/livez":
            return HTTPStatus.OK, "ok\n"
        if path != "/healthz":
            return HTTPStatus.NOT_FOUND, "Ask for /metrics, /healthz or /livez.\n"
        verdict = self._health.verdict
        if verdict.condition is not Condition.HEALTHY:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"{verdict.condition.value}: {verdict.reason}\n"
        if not self._registered:
            return HTTPStatus.SERVICE_UNAVAILABLE, "not registered: the root key can be deleted. See the log.\n"
        return HTTPStatus.OK, "ok\n"
