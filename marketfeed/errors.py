"""The error tree, how a connection that failed is worded, and when something that failed is tried again.

* MarketfeedError
    * SettingsError           config.yaml, the environment or a credential file is wrong (exit 2)
    * JournalError            the journal cannot be used
        * JournalLockedError  another collector holds it
        * JournalForeignError the file is no journal of ours
        * JournalNewerError   the file is of a newer version, which this one may not use
        * JournalWriteError   it could not be written, or read (`damaged`: the file is corrupt)
    * BackupError             a backup could not be made; what was there is untouched
    * ListenError             a port cannot be listened on
    * LedgerError             a forward is not in the state that the next step needs: nothing was sent
    * ExchangeError           the exchange did not answer, or not as documented
        * ExchangeRefusedError  it answered with an error status (`status`, `retry_after_s`)
        * OddAnswerError      it answered with a list of which no row is good, or in disorder
        * ArchiveError        a file of the archive is not to be trusted
            * ArchiveAbsentError  there is no such file
"""

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

PURE = True

_AIOHTTP_SSL: Final = re.compile(r" ssl:.*? \[(.*)\]$", re.DOTALL)


class MarketfeedError(Exception):
    """Base of every error that marketfeed raises on purpose. Its text is meant for people."""


class SettingsError(MarketfeedError):
    """Settings are wrong. The text lists every mistake with its path, what is expected and found."""


class JournalError(MarketfeedError):
    """The journal cannot be opened or written."""


class JournalLockedError(JournalError):
    """Another collector is already writing this journal."""


class JournalForeignError(JournalError):
    """The file is an SQLite database, but not a journal."""


class JournalNewerError(JournalError):
    """The journal was written by a newer marketfeed, and asks for a newer one than this."""


class JournalWriteError(JournalError):
    """SQLite refused: nothing of a batch is stored, no question is answered; it may be tried again.

    `damaged`: SQLite found the file corrupt, so that trying again cannot help.
    """

    def __init__(self, message: str, damaged: bool) -> None:
        super().__init__(message)
        self.damaged = damaged


class BackupError(MarketfeedError):
    """A backup could not be made, or not be proven whole. Nothing that was there has changed."""


class ListenError(MarketfeedError):
    """A port cannot be listened on. The text names the address, the cause, and the setting."""


class LedgerError(MarketfeedError):
    """The ledger does not have a forward in the state that a step needs: the step must not be taken."""


class ExchangeError(MarketfeedError):
    """The exchange could not be reached, or answered with something that is not documented."""


class ExchangeRefusedError(ExchangeError):
    """The exchange answered with an error status.

    `status` is the HTTP status; `retry_after_s` what its `Retry-After` asked for, in seconds, or None.
    """

    def __init__(self, message: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class OddAnswerError(ExchangeError):
    """The exchange answered with a list, and no row of it can be taken: it concerns who was asked for."""


class ArchiveError(ExchangeError):
    """A file of the public archive is broken, or not as documented: nothing of it is taken."""


class ArchiveAbsentError(ArchiveError):
    """The archive has no such file (yet)."""


def words_of(error: BaseException) -> str:
    """The message of a failed request, or its type's name when the message is empty.

    aiohttp's "Cannot connect to host H:P ssl:default [reason]" loses its ssl:…, there without TLS, too.
    """
    return _AIOHTTP_SSL.sub(r": \1", str(error)) or type(error).__name__


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Seconds that a `Retry-After` header asks for; None without one, or when it is neither form.

    `now_s` is the server's clock (epoch), for a date. What comes back may be anything but NaN, negative
    and infinite included: the caller sets the bounds.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        when_s = date_s(header)
        return None if when_s is None else when_s - now_s
    return None if seconds != seconds else seconds  # noqa: PLR0124 - NaN


def backoff_s(failures: int, first_s: float, cap_s: float) -> float:
    """Seconds until the next attempt: `first_s`, doubled with each more failure in a row, `cap_s` at most."""
    # So that the power is a float.
    return min(cap_s, first_s * 2.0 ** min(failures - 1, 100))


def date_s(header: str | None) -> float | None:
    """The time (epoch, s) of a header that holds a date, such as `Date`; None when it is none."""
    if header is None:
        return None
    try:
        when = parsedate_to_datetime(header)
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        # No date, or one so far off that no clock has it.
        return None
