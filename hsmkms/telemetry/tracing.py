"""Traces of requests through the rooms, sent to a collector over OTLP/HTTP; off unless an endpoint is set.

`start` puts spans around methods of the rooms' classes when the process begins. While it is off there is nothing in the
way of a call, and OpenTelemetry is not even imported. A span says which room did what and how long it took; names come
from the program, and neither arguments nor results nor the words of errors are in it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.typing import EventDict, WrappedLogger

from hsmkms import __version__

_log = structlog.get_logger(__name__)


class Tracing:
    """The tracer of this process. Spans that cannot be sent are dropped, and a log line says so; no request waits."""

    def __init__(self, endpoint: str, ratio: float, instance: str) -> None:
        """Send to `endpoint` (the collector's base URL); begin `ratio` of the traces that no caller began."""
        resource = {"service.name": "hsmkms", "service.version": __version__, "service.instance.id": instance}
        self._provider = TracerProvider(
            resource=Resource.create(resource), sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(Exporter(f"{endpoint.rstrip('/')}/v1/traces")))
        self._tracer = self._provider.get_tracer("hsmkms", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    @contextlib.contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[trace.Span]:
        """The span of a request, below that of the caller whose `traceparent` came with it."""
        parent = self._propagator.extract(headers)
        # What goes wrong is in the status; the words of an exception may quote the request.
        with self._tracer.start_as_current_span(
            method, parent, SpanKind.SERVER, {"http.request.method": method}, record_exception=False
        ) as span:
            yield span

    def instrument(self, room: str, owner: type, methods: Sequence[str]) -> None:
        """Put spans around methods, coroutines or context managers of a class."""
        for name in methods:
            setattr(owner, name, self._traced(f"{room}.{name}", getattr(owner, name)))

    def _traced(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        inner = inspect.unwrap(method)
        if inspect.iscoroutinefunction(inner):

            @functools.wraps(method)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with self._span(name):
                    return await method(*args, **kwargs)

            return awaited

        if inspect.isgeneratorfunction(inner):

            @functools.wraps(method)
            @contextlib.contextmanager
            def held(*args: Any, **kwargs: Any) -> Iterator[Any]:
                with self._span(name), method(*args, **kwargs) as value:
                    yield value

            return held

        @functools.wraps(method)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self._span(name):
                return method(*args, **kwargs)

        return called

    @contextlib.contextmanager
    def _span(self, name: str) -> Iterator[None]:
        """Only within the trace of a request: what threads do by themselves belongs to none."""
        if not trace.get_current_span().get_span_context().is_valid:
            yield
            return
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            try:
                yield
            except Exception as error:
                span.set_status(StatusCode.ERROR, type(error).__name__)
                raise


class Exporter(OTLPSpanExporter):
    """Tells once that the collector takes no spans, in the library's words, and once that it does again; the library by
    itself tells of each try."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._failing = False
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(self._is_news)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the library's."""
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS and self._failing:
            self._failing = False
            _log.info("the collector takes spans again")
        return result

    def _is_news(self, _: logging.LogRecord) -> bool:
        before, self._failing = self._failing, True
        return not before


def with_trace_id(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Add the ids of the current span to a log line."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        line.update(trace_id=trace.format_trace_id(context.trace_id), span_id=trace.format_span_id(context.span_id))
    return line
