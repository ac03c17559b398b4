"""What fails and is tried again: the log says so once, and once when it is over, however often it failed."""

import logging
import time


class Trouble:
    """Why something fails now; as a truth value, whether it does, as text the last failure's words.

    `begins` and `over` are the lines of the log: the first is followed by the error, the second by how long
    it lasted.
    """

    def __init__(
        self, log: logging.Logger, begins: str, over: str, level: int = logging.WARNING
    ) -> None:
        self.why = ""
        """The words of the last failure; empty when all is well."""
        self.failures = 0
        """How often it has failed in a row."""
        self._log = log
        self._begins = begins
        self._over = over
        self._level = level
        self._logged_at = level
        self._since_s = 0.0

    def __bool__(self) -> bool:
        return self.failures > 0

    def __str__(self) -> str:
        return self.why

    @property
    def for_s(self) -> float:
        """For how many wall seconds it has been failing; 0 when it does not."""
        return time.monotonic() - self._since_s if self.failures else 0.0

    def met(self, error: object, level: int | None = None) -> None:
        """Note a failure. It is logged if it is the first in a row, or of another `level` than the last."""
        words = str(error) or type(error).__name__
        level = self._level if level is None else level
        if not self.failures:
            self._since_s = time.monotonic()
        if not self.failures or level != self._logged_at:
            self._log.log(level, "%s error=%r", self._begins, words)
        elif words != self.why:
            self._log.debug("%s still error=%r", self._begins, words)
        self.why, self._logged_at = words, level
        self.failures += 1

    def end(self) -> None:
        """Note that it has not failed. If it did before, that is logged."""
        if self.failures:
            self._log.warning("%s after_s=%.1f", self._over, self.for_s)
            self.why, self.failures = "", 0
