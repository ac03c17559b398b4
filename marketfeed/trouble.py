"""What fails and is tried again: the log says so once, and once when it is over, however often it failed."""

import logging
import time

import msgspec


class Trouble(msgspec.Struct, eq=False):
    """What fails now, if anything: it is true then. `begins` and `over` are the two lines of the log.

    `why` are the words of the last failure, empty when all is well; `failures` counts them in a row.
    """

    log: logging.Logger
    begins: str
    over: str
    level: int = logging.WARNING
    why: str = ""
    failures: int = 0
    since_s: float = 0.0

    def __bool__(self) -> bool:
        return self.failures > 0

    @property
    def for_s(self) -> float:
        """For how many wall seconds it has been failing; 0 when it does not."""
        return time.monotonic() - self.since_s if self.failures else 0.0

    def met(self, error: object, level: int | None = None) -> None:
        """Note a failure. It is logged if it is the first in a row, or of another `level` than the last."""
        self.why = str(error) or type(error).__name__
        if not self.failures:
            self.since_s = time.monotonic()
        if not self.failures or level not in (None, self.level):
            self.level = level or self.level
            self.log.log(self.level, "%s error=%r", self.begins, self.why)
        self.failures += 1

    def end(self) -> None:
        """Note that it has not failed. If it did before, that is logged."""
        if self.failures:
            self.log.warning("%s after_s=%.1f", self.over, self.for_s)
            self.why, self.failures = "", 0
