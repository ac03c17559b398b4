"""How long a server asks to be left alone: `Retry-After`, as seconds or as a date. Pure."""

from datetime import UTC
from email.utils import parsedate_to_datetime


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
