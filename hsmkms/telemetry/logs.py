"""Log lines: one event each, on standard error, with the correlation id of the call that they belong to.

Lines of libraries come the same way. Of their exceptions only kind and place are kept: what a foreign exception says
may quote a request.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from hsmkms import correlation
from hsmkms.telemetry import journal

FORMATS: Final = ("json", "console")
LEVELS: Final = ("debug", "info", "warning", "error")


def configure(form: str = "json", level: str = "info", *more: Processor) -> None:
    """Write lines of at least `level` in one of FORMATS; `more` processors add to each."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: tuple[Processor, ...] = (
        structlog.contextvars.merge_contextvars,
        _correlated,
        *more,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )
    # Whether colours are of use is the terminal's to say; a file or a journal gets none.
    render: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if form == "console"
        else structlog.processors.JSONRenderer()
    )
    if journal.is_journal():
        render = _for_journal(render)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=render, foreign_pre_chain=[structlog.stdlib.add_logger_name, _without_words, *shared]
        )
    )
    # What a library says below a warning is of use to its authors.
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def place_of(trace: TracebackType | None) -> str:
    """Module and line where an exception was raised."""
    place = "unknown"
    while trace is not None:
        place = f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _for_journal(render: Processor) -> Processor:
    def line(logger: WrappedLogger, name: str, event: EventDict) -> str:
        level = str(event.get("level"))
        return f"{journal.prefix(level)}{render(logger, name, event)!s}"

    return line


def _correlated(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    known = correlation.known()
    if known is not None:
        line.setdefault("correlation_id", known)
    return line


def _without_words(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    record = line.get("_record")
    if isinstance(record, logging.LogRecord) and record.exc_info:
        kind, _error, trace = record.exc_info
        line.update(kind=getattr(kind, "__name__", "unknown"), place=place_of(trace))
        line.pop("exc_info", None)
        record.exc_info = record.exc_text = None
    return line
