"""The daemons' log: one line an event, whatever is in it; priorities for journald, times for people."""

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.service.logs import Lines, is_journald


def record(message: str, level: int = logging.INFO, **more: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": "marketfeed.feed",
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": message,
            "created": 1_700_000_000.5,
            **more,
        }
    )


def test_a_line_for_people_begins_with_the_time() -> None:
    line = Lines(journald=False).format(record("ready"))
    assert line == "time=2023-11-14T22:13:20.500Z level=INFO logger=marketfeed.feed ready"


@pytest.mark.parametrize(
    ("level", "prefix"), [(10, "<7>"), (20, "<6>"), (30, "<4>"), (40, "<3>"), (50, "<2>")]
)
def test_a_line_for_journald_begins_with_its_priority(level: int, prefix: str) -> None:
    line = Lines(journald=True).format(record("ready pairs=2", level))
    name = logging.getLevelName(level)
    assert line == f"{prefix}level={name} logger=marketfeed.feed ready pairs=2"


@given(st.text(), st.booleans())
def test_no_text_makes_a_line_of_its_own(text: str, journald: bool) -> None:
    line = Lines(journald=journald).format(record("error=%s", args=(text,)))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        line = Lines(journald=True).format(record("died", logging.ERROR, exc_info=sys.exc_info()))
    assert len(line.splitlines()) == 1
    assert r"ValueError: first\nsecond" in line


PROGRAM = """
import logging, warnings
from marketfeed.service.logs import log_to_stderr
log_to_stderr()
logging.getLogger("a").warning("seen=%r", "x\\ny")
warnings.warn("old")
"""


@pytest.mark.parametrize("journald", [True, False])
def test_a_process_finds_out_by_itself(tmp_path: Path, journald: bool) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        found = os.fstat(file.fileno())
        # A shell started by a service inherits the variable, but not the stream.
        inode = found.st_ino + (not journald)
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            stderr=file,
            check=True,
            env=os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{inode}"},
        )
    first, second = path.read_text().splitlines()
    start = "<4>" if journald else r"time=\S+Z "
    assert re.fullmatch(start + r"level=WARNING logger=a seen='x\\ny'", first)
    assert re.match(start + r"level=WARNING logger=py.warnings .*old", second)


def test_a_stream_without_a_file_is_none_of_journalds() -> None:
    assert not is_journald(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
    assert not is_journald(sys.stderr, {})
