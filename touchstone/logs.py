"""Logs: one line of JSON for each event, from this code and from libraries alike.

Events name things by their ids: no header, body, query string or image is ever logged. The texts of libraries
and exceptions are not under our control, so whatever looks like a secret is removed from every line.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars
from structlog.stdlib import BoundLogger, LoggerFactory, ProcessorFormatter
from structlog.typing import Processor

MAX_LENGTH = 16_000
"""Characters of the longest field of a line, such as a traceback through a thousand calls."""

_SECRET_PATTERNS = (
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[^\s\"',\\]+"), r"\1\2…"),
    (re.compile(r"(?<=://)[^\s\"'/\\@]*@"), "…@"),
    (re.compile(r"(?i)(https?://[^\s\"'?\\]*)\?[^\s\"'\\]+"), r"\1?…"),
    (re.compile(r"\b(whsec_|ts_)[A-Za-z0-9+/=_-]{20,}"), r"\1…"),
)
"""Credentials in headers and URLs, query strings, and our own keys."""


def bind_fields(**fields: Any) -> AbstractContextManager[None]:
    """A context in which every event has these fields."""
    return bound_contextvars(**fields)


def _clean(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove secrets from all fields, and the middle of long ones."""
    return {name: _clean_value(value) for name, value in event.items()}


def _clean_value(value: Any) -> Any:
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, list | tuple):
        return [_clean_value(part) for part in value]
    if isinstance(value, dict):
        return {str(name): _clean_value(part) for name, part in value.items()}
    return _shorten(_mask_secrets(str(value)))


def _mask_secrets(text: str) -> str:
    for pattern, instead in _SECRET_PATTERNS:
        text = pattern.sub(instead, text)
    return text


def _shorten(text: str) -> str:
    half = MAX_LENGTH // 2
    return text if len(text) <= MAX_LENGTH else f"{text[:half]} … {text[-half:]}"


_SHARED_PROCESSORS: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso"),
    structlog.processors.format_exc_info,
)


def configure(level: str) -> None:
    """Send every log of this process, with uncaught exceptions, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=_SHARED_PROCESSORS,
            processors=[
                ProcessorFormatter.remove_processors_meta,
                _clean,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED_PROCESSORS,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=LoggerFactory(),
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=True,
    )
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("uncaught").critical("nobody caught an exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(fault: threading.ExceptHookArgs) -> None:
    if fault.exc_value is not None:
        _log_uncaught(fault.exc_type, fault.exc_value, fault.exc_traceback)


def _log_unraisable(fault: sys.UnraisableHookArgs) -> None:
    error = fault.exc_value or fault.exc_type()
    _log_uncaught(fault.exc_type, error, fault.exc_traceback)


def get_logger(name: str) -> Any:
    """A logger whose events are a sentence and fields."""
    return structlog.get_logger(name)
