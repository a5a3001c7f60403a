"""Every metric of the service, and the functions by which the rooms count.

Labels come from tables of the program: actions, outcomes, Cryptoki functions, names of jobs. Never from a request: no
key, tenant or person is a label. In `serve` with several workers the library keeps the values in files that the
parent process adds up (`endpoint`); otherwise they are in memory. Numbers that are states are set by `Reporter`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from time import perf_counter
from typing import Final, ParamSpec, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hsmkms import __version__

P = ParamSpec("P")
T = TypeVar("T")

CUT_OFF: Final = 499
"""Where a status is asked for: the caller went away before there was an answer."""
REPORT_EVERY_S: Final = 1.0
_SECONDS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)

prometheus_client.disable_created_metrics()
REGISTRY: Final = CollectorRegistry()

_REQUESTS: Final = Histogram(
    "hsmkms_request_duration_seconds",
    "Requests by action of the audit trail and outcome, from their headers to the answer.",
    ["action", "outcome"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_TOKEN_CALLS: Final = Histogram(
    "hsmkms_token_call_duration_seconds",
    "Calls of the PKCS#11 library by what they are for, those that failed included.",
    ["call"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_TOKEN_ERRORS: Final = Counter(
    "hsmkms_token_errors",
    "Calls of the PKCS#11 library that failed, by function, return value and what it is taken for.",
    ["function", "returned", "meaning"],
    registry=REGISTRY,
)
TOKEN_SESSIONS: Final = Gauge(
    "hsmkms_token_sessions", "Open sessions with the token.", multiprocess_mode="livesum", registry=REGISTRY
)
TOKEN_SESSIONS_LENT: Final = Gauge(
    "hsmkms_token_sessions_lent", "Sessions in use.", multiprocess_mode="livesum", registry=REGISTRY
)
TOKEN_SESSION_WAITS: Final = Counter(
    "hsmkms_token_session_waits", "Callers that found no free session and had to wait.", registry=REGISTRY
)
TOKEN_OPENED: Final = Counter(
    "hsmkms_token_opened", "How often the PKCS#11 library was initialised and logged in.", registry=REGISTRY
)
TOKEN_AWAY: Final = Gauge(
    "hsmkms_token_breaker_open",
    "Workers whose breaker is open: they do not ask this token.",
    ["part"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
DATABASE_ERRORS: Final = Counter(
    "hsmkms_database_errors", "Transactions that ended because the database did not answer.", registry=REGISTRY
)
SNAPSHOT_TIME: Final = Gauge(
    "hsmkms_snapshot_timestamp_seconds",
    "When the worker that is furthest behind last heard from the change feed (Unix time).",
    multiprocess_mode="livemin",
    registry=REGISTRY,
)
SNAPSHOT_KEYS: Final = Gauge(
    "hsmkms_snapshot_keys", "Keys in memory, of all workers.", multiprocess_mode="livesum", registry=REGISTRY
)
_AUDIT_WRITES: Final = Histogram(
    "hsmkms_audit_write_duration_seconds",
    "Writes of the audit journal, each with one fdatasync for many events.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
_AUDIT_EVENTS: Final = Counter("hsmkms_audit_events", "Audit events that are durable.", registry=REGISTRY)
_AUDIT_REFUSED: Final = Counter(
    "hsmkms_audit_refused", "Audit events that could not be written; their requests were refused.", registry=REGISTRY
)
AUDIT_WAITING: Final = Gauge(
    "hsmkms_audit_waiting_events",
    "Audit events that are not durable yet.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
AUDIT_LAG: Final = Gauge(
    "hsmkms_audit_lag_seconds",
    "How long the oldest audit event has been waiting to be durable.",
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
AUDIT_FAILING: Final = Gauge(
    "hsmkms_audit_failing",
    "Workers that cannot write audit events and refuse all.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
AUDIT_CHECKPOINTS: Final = Counter(
    "hsmkms_audit_checkpoints", "Checkpoints of audit logs, signed by the token.", ["outcome"], registry=REGISTRY
)
AUDIT_SINK_RECORDS: Final = Counter(
    "hsmkms_audit_sink_records", "Audit records that a sink took; some come twice.", ["sink"], registry=REGISTRY
)
AUDIT_SINK_FAILURES: Final = Counter(
    "hsmkms_audit_sink_failures", "How often a sink did not take audit records.", ["sink"], registry=REGISTRY
)
AUDIT_SINK_DROPPED: Final = Counter(
    "hsmkms_audit_sink_dropped_logs",
    "Audit logs that were taken away before a sink had them whole.",
    ["sink"],
    registry=REGISTRY,
)
AUDIT_SINK_BEHIND: Final = Gauge(
    "hsmkms_audit_sink_behind_bytes",
    "Audit records of this host that a sink has not taken yet.",
    ["sink"],
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
_JOB_RUNS: Final = Counter(
    "hsmkms_job_runs", "Runs of background jobs, by how they ended.", ["job", "outcome"], registry=REGISTRY
)
_JOB_CHANGES: Final = Counter("hsmkms_job_changes", "What background jobs changed.", ["job"], registry=REGISTRY)
_JOB_FAILURES: Final = Counter(
    "hsmkms_job_failures", "What background jobs could not change and will try again.", ["job"], registry=REGISTRY
)
_JOB_TIME: Final = Gauge(
    "hsmkms_job_last_run_timestamp_seconds",
    "When this node last ended a run of the job (Unix time); one process of all nodes runs it.",
    ["job"],
    multiprocess_mode="max",
    registry=REGISTRY,
)
_STARTED: Final = Counter(
    "hsmkms_worker_starts", "Workers that began to serve; more than were configured were replaced.", registry=REGISTRY
)
_WORKERS: Final = Gauge("hsmkms_workers", "Workers that serve.", multiprocess_mode="livesum", registry=REGISTRY)
WORKERS_WAITING: Final = Gauge(
    "hsmkms_workers_waiting",
    "Workers that started and cannot serve yet: they wait for token or database.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
_REPORTED: Final = Gauge(
    "hsmkms_worker_timestamp_seconds",
    "When the worker that is furthest behind last set its gauges (Unix time).",
    multiprocess_mode="livemin",
    registry=REGISTRY,
)
_MEMORY: Final = Gauge(
    "hsmkms_worker_resident_memory_bytes",
    "Memory of the largest worker.",
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
_FILES: Final = Gauge(
    "hsmkms_worker_open_files",
    "Open files of the worker that has most.",
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
_MAX_FILES: Final = Gauge(
    "hsmkms_worker_max_files", "How many files a worker may open.", multiprocess_mode="livemin", registry=REGISTRY
)
_THREADS: Final = Gauge(
    "hsmkms_worker_threads", "Threads of the worker that has most.", multiprocess_mode="livemax", registry=REGISTRY
)
_CPU: Final = Counter("hsmkms_worker_cpu_seconds", "Processor time of all workers.", registry=REGISTRY)
_VERSION: Final = Gauge(
    "hsmkms_build_info", "1, by version.", ["version"], multiprocess_mode="livemax", registry=REGISTRY
)

_bound: dict[tuple[str, int], Histogram] = {}


_place_of: Final = functools.partial(bisect_left, _SECONDS)


class _Gathering(threading.local):
    found: dict[Histogram, list[float]] | None = None


_gathering = _Gathering()


@contextlib.contextmanager
def gathered() -> Iterator[None]:
    """Have what this thread times meanwhile written together, which for many of a kind costs what it does for one: with
    several workers each value is a write to a file of the process."""
    found = _gathering.found = defaultdict(list)
    try:
        yield
    finally:
        _gathering.found = None
        for histogram, seconds in found.items():
            _observe_all(histogram, seconds)


def _observe(histogram: Histogram, seconds: float) -> None:
    found = _gathering.found
    if found is None:
        histogram.observe(seconds)
    else:
        found[histogram].append(seconds)


def _observe_all(histogram: Histogram, seconds: list[float]) -> None:
    """What `observe` does for each, at once; the library has no call for that."""
    histogram._sum.inc(sum(seconds))
    for place, count in Tally(map(_place_of, seconds)).items():
        histogram._buckets[place].inc(count)


def answered(action: str, status: int, began: float) -> None:
    """Count a request of an action that was answered with a status; `began` is of `perf_counter`."""
    child = _bound.get((action, status))
    if child is None:
        child = _bound[(action, status)] = _REQUESTS.labels(action, _outcome(status))
    _observe(child, perf_counter() - began)


def _outcome(status: int) -> str:
    if status == CUT_OFF:
        return "cut_off"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "throttled"
    if status < HTTPStatus.BAD_REQUEST:
        return "success"
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return "refused"
    return "unavailable" if status == HTTPStatus.SERVICE_UNAVAILABLE else "failed"


def token_call(call: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate what calls the PKCS#11 library, so that it is counted and timed under that name."""
    histogram = _TOKEN_CALLS.labels(call)

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            began = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                _observe(histogram, perf_counter() - began)

        return timed

    return decorate


def token_error(function: str, returned: str, meaning: str) -> None:
    """Count a return value other than CKR_OK; the names as Cryptoki and `token.returned` have them."""
    _TOKEN_ERRORS.labels(function, returned, meaning).inc()


def audit_written(events: int, began: float, *, durable: bool) -> None:
    """Count a write of the journal; `began` is of `perf_counter`."""
    _AUDIT_WRITES.observe(perf_counter() - began)
    (_AUDIT_EVENTS if durable else _AUDIT_REFUSED).inc(events)


def job_ran(job: str, changed: int, failed: int) -> None:
    """Count a run of a job that came to its end."""
    _JOB_RUNS.labels(job, "success").inc()
    _JOB_CHANGES.labels(job).inc(changed)
    _JOB_FAILURES.labels(job).inc(failed)
    _JOB_TIME.labels(job).set(time.time())


def job_broke_off(job: str) -> None:
    """Count a run of a job that could not go on."""
    _JOB_RUNS.labels(job, "failure").inc()


def bind(actions: Mapping[str, int]) -> None:
    """Have the requests of an action with a status there from the start, with 0: a rate needs a first value."""
    for action, status in actions.items():
        _bound[(action, status)] = _REQUESTS.labels(action, _outcome(status))


class Reporter:
    """Sets the gauges of this process once a second, from `gauges` and from what the kernel tells of it.

    A gauge of a process that hangs stays as it was; `hsmkms_worker_timestamp_seconds` shows that.
    """

    def __init__(self, gauges: Mapping[Gauge, Callable[[], float]]) -> None:
        """Start to report."""
        self._gauges = gauges
        self._cpu_s = 0.0
        self._stopped = threading.Event()
        _STARTED.inc()
        _WORKERS.set(1)
        _VERSION.labels(__version__).set(1)
        TOKEN_AWAY.labels("primary").set(0)
        self._report()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop to report; in a process that goes on nothing stays that would look alive."""
        self._stopped.set()
        self._thread.join()
        _WORKERS.set(0)

    def _run(self) -> None:
        while not self._stopped.wait(REPORT_EVERY_S):
            self._report()

    def _report(self) -> None:
        for gauge, read in self._gauges.items():
            gauge.set(read())
        _MEMORY.set(_resident_bytes())
        _FILES.set(len(os.listdir("/proc/self/fd")))
        _MAX_FILES.set(os.sysconf("SC_OPEN_MAX"))
        _THREADS.set(threading.active_count())
        cpu_s = time.process_time()
        _CPU.inc(cpu_s - self._cpu_s)
        self._cpu_s = cpu_s
        _REPORTED.set(time.time())


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
