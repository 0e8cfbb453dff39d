"""How the log is written: as text for people, or as one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime

TEXT = "%(levelname)s:     %(name)s: %(message)s"
PLAIN = re.compile(r"[\w./:+-]+")


class JsonFormatter(logging.Formatter):
    """One object for each record: time (UTC), level, logger, message, what the record has in `fields`, and the
    traceback if there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": "request" if fields else record.getMessage(),
            **(fields or {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up_logging(level: str, log_format: str) -> None:
    """For the whole process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def as_text(fields: Mapping[str, object]) -> str:
    """`name=value` for each; what is no plain word is written as JSON, so that nothing in it ends the line."""
    return " ".join(f"{name}={_word(value)}" for name, value in fields.items())


def _word(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if PLAIN.fullmatch(text) else json.dumps(value)
