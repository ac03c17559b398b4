"""The daemons' log: one line an event on standard error, key=value, for people and for journald.

Under systemd each line carries its priority (`<3>`, sd-daemon(3)) and no time, which journald knows better;
elsewhere a line begins with the time (UTC). Line ends and control characters in a message are escaped, and
so is a traceback: no text from outside can make a line of its own.
"""

import faulthandler
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

_PRIORITIES: Final = (
    (logging.CRITICAL, "<2>"),
    (logging.ERROR, "<3>"),
    (logging.WARNING, "<4>"),
    (logging.INFO, "<6>"),
)
_DEBUG: Final = "<7>"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send the log to standard error, Python's own warnings too, and every stack at a fatal signal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(journald=is_journald(sys.stderr, os.environ)))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # A watchdog's SIGABRT: systemd's log then shows where each thread hung. Functions and lines alone.
    faulthandler.enable()


def is_journald(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `stream` goes to journald: JOURNAL_STREAM names its device and inode."""
    named = environ.get("JOURNAL_STREAM")
    if not named:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{found.st_dev}:{found.st_ino}"


class Lines(logging.Formatter):
    """A record as one line; `journald`: with a priority instead of a time."""

    def __init__(self, *, journald: bool) -> None:
        super().__init__("level=%(levelname)s logger=%(name)s %(message)s")
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line end."""
        # Of what a formatter before this one may have kept, too.
        text = _CONTROL.sub(_escaped, super().format(record))
        if self._journald:
            return _priority(record.levelno) + text
        at = datetime.fromtimestamp(record.created, UTC)
        return f"time={at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z {text}"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _priority(level: int) -> str:
    return next((prefix for least, prefix in _PRIORITIES if level >= least), _DEBUG)
