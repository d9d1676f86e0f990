"""The log of the edge daemon, on the error stream: lines of text, or one JSON object a line."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone
from types import TracebackType
from typing import Annotated, Literal

import msgspec
import typer

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

LogFormatOption = Annotated[
    LogFormat,
    typer.Option(help="The log on the error stream: lines of text, or one JSON object a line."),
]
LogLevelOption = Annotated[LogLevel, typer.Option(help="Least level of what is logged.")]

_OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""The attributes of every record; any other is a field that the caller gave."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one line: time, level, logger, message, and the fields of the call.

    ``logger.info(..., extra={"device": name})`` gives the field ``device``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(record.getMessage()),
        }
        for name, value in vars(record).items():
            if name not in _OWN and name not in line:
                line[name] = _text(value) if isinstance(value, str) else value
        if record.exc_info:
            line["exception"] = _text(self.formatException(record.exc_info))
        return msgspec.json.encode(line, enc_hook=repr).decode()


def set_up_logging(log_format: LogFormat, level: LogLevel) -> None:
    """Write the package's log from a level on, and warnings of all others.

    With JSON, what Python itself writes to the error stream becomes records, too.
    """
    if log_format == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.basicConfig(handlers=[handler])
        logging.captureWarnings(True)
        sys.excepthook = _log_exception
    else:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("scissionlite").setLevel(level.upper())


def logs_json() -> bool:
    """Whether the error stream holds JSON only."""
    handlers = logging.getLogger().handlers
    return any(isinstance(each.formatter, JsonFormatter) for each in handlers)


def _log_exception(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    logging.getLogger("scissionlite").critical(
        "it broke down: %r", error, exc_info=(kind, error, traceback)
    )


def _text(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()
