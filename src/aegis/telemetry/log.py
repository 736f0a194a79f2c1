"""
One look for every line: ours, yours, and those of the libraries; JSON or console, on stderr, secrets masked.

Rooms log through the standard library (`logging.getLogger("aegis.http")`) with fields in `extra`, so that a process
without this stays quiet and a process with another set-up keeps its own. Here structlog formats all of them alike,
warnings of Python and exceptions that nobody caught included.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO

import msgspec
import structlog
from pydantic import SecretStr

from aegis.config import LogConfig
from aegis.http.redact import Redactor
from aegis.telemetry._fold import Fold
from aegis.telemetry._mask import masked, one_line, redactor_for
from aegis.telemetry._program import program

#: `with log_context(upstream="kis", request_id="8f2c"):` puts these fields on every line logged inside, by whatever
#: logger and in whatever task is started there. A decorator as well.
log_context = structlog.contextvars.bound_contextvars

_levelled: set[str] = set()  # loggers whose level is ours, so that a second configuration takes it back


def configure_logging(
    config: LogConfig,
    *,
    process: str | None = None,
    secrets: Iterable[str | SecretStr] = (),
    secret_names: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """
    Send every record of the process to stderr in the form that `config` asks for. Call it once, in `main`.

    Replaces the handlers of the root logger and `sys.excepthook`; importing aegis never does that. Every line names
    the process (`process`, else the program) and its pid. `secrets` are masked wherever they stand
    (`secrets_of(config)` gives those of a configuration), as are the values of `secret_names` and of the well-known
    names. A warning repeated more often than LOG_BURST within LOG_BURST_WINDOW is folded into a count.
    """
    redactor = redactor_for(secret_names, secrets)
    out = stream if stream is not None else sys.stderr
    console = config.format == "console"
    steps = _steps(process or program())
    handler = _Handler(out, redactor, console=console)
    fold = Fold(config.burst, config.burst_window, handler.handle)
    handler.folds_with(fold)
    renderer = _console(out) if console else structlog.processors.JSONRenderer(_encoded)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=steps,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _Masking(redactor, console=console),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        if isinstance(old, _Handler):
            old.close()
    root.addHandler(handler)
    _set_levels(config)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *steps,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _steps(process: str) -> list[structlog.typing.Processor]:
    """What every event goes through, whoever logged it."""

    def named(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("process", process)
        event["pid"] = os.getpid()
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        named,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _console(out: TextIO) -> structlog.typing.Processor:
    return structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)


def _encoded(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event).decode()


def _set_levels(config: LogConfig) -> None:
    logging.getLogger().setLevel(config.level.upper())
    for name in _levelled:
        logging.getLogger(name).setLevel(logging.NOTSET)
    _levelled.clear()
    for pair in config.levels:
        name, _, level = pair.partition("=")
        logging.getLogger(name).setLevel(level.upper())
        _levelled.add(name)


class _Masking:
    """The last step before a line is written: secrets masked, texts bounded, and nothing that breaks the line."""

    def __init__(self, redactor: Redactor, *, console: bool) -> None:
        self._redactor, self._console = redactor, console

    def __call__(self, _logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        shown = {name: masked(self._redactor, name, value) for name, value in event.items()}
        if self._console:
            for name, value in shown.items():
                if isinstance(value, str) and name not in {"exception", "stack"}:
                    shown[name] = one_line(value)
        return shown


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines; one that cannot be formatted is said without its arguments, which nobody has masked."""

    def __init__(self, out: TextIO, redactor: Redactor, *, console: bool) -> None:
        super().__init__(out)
        self._redactor, self._console = redactor, console
        self._fold: Fold | None = None

    def folds_with(self, fold: Fold) -> None:
        """Fold bursts, and write what is owed when the process ends."""
        self._fold = fold
        self.addFilter(fold)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of the standard library
        """The standard library prints message and arguments as they are; this names the line and the fault."""
        kind = sys.exc_info()[0]
        fault = kind.__name__ if kind is not None else "unknown"
        event = self._redactor.text(f"a line of {record.name} at {record.filename}:{record.lineno} is lost: {fault}")
        line = event if self._console else _encoded({"event": event, "level": "error", "logger": "aegis.telemetry"})
        try:
            self.stream.write(f"{line}\n")
        except (OSError, ValueError):
            return  # nobody reads

    def close(self) -> None:
        """Write the counts that are owed."""
        if self._fold is not None:
            self._fold.flush()
        super().close()


def _log_uncaught(kind: type[BaseException], exc: BaseException | None, tb: TracebackType | None) -> None:
    if not issubclass(kind, Exception):
        sys.__excepthook__(kind, exc if exc is not None else kind(), tb)
        return
    logging.getLogger("aegis").critical("nobody caught %s", kind.__name__, exc_info=(kind, exc or kind(), tb))
