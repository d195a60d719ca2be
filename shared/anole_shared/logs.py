"""Logs: one line an event, for people or for machines."""

import logging
from typing import Literal

import orjson

_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; whatever was passed as `extra` becomes a field."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


def set_up(level: str, log_format: Literal["text", "json"]) -> None:
    """Send this process's logs to stderr; called once by the command line."""
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("aio_pika", "aiohttp.access", "urllib3", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Tracebacks of a lost connection, about which the bus itself says all in one line.
    for frightening in ("aio_pika.tools", "aiormq"):
        logging.getLogger(frightening).setLevel(logging.CRITICAL)
