"""What a line of the log looks like."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from anole_shared.logs import JsonFormatter, set_up


@pytest.fixture(autouse=True)
def untouched_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Else set_up would close pytest's own handlers.
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_as_json_an_event_is_one_object_with_its_extra_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up("info", "json")
    logging.getLogger("anole").info("took\n%d ms", 12, extra={"request_id": "r1"})
    [line] = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert fields.pop("time")
    assert fields == {
        "level": "info",
        "logger": "anole",
        "message": "took\n12 ms",
        "request_id": "r1",
    }


def test_as_json_an_exception_is_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "json")
    try:
        int("broken")
    except ValueError:
        logging.getLogger("anole").exception("failed")
    [line] = capsys.readouterr().err.splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_as_json_a_field_of_any_type_is_written() -> None:
    record = logging.makeLogRecord({"msg": "m", "where": sys, "levelname": "INFO"})
    assert "module 'sys'" in json.loads(JsonFormatter().format(record))["where"]


def test_as_text_an_event_is_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "text")
    logging.getLogger("anole").warning("slow")
    assert capsys.readouterr().err.rstrip().endswith("WARNING anole: slow")


def test_less_than_the_level_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("warning", "text")
    logging.getLogger("anole").info("hello")
    assert capsys.readouterr().err == ""


def test_libraries_do_not_chat(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("debug", "text")
    logging.getLogger("aiormq.connection").info("frame")
    logging.getLogger("anole").debug("step")
    assert "frame" not in (written := capsys.readouterr().err)
    assert "step" in written
