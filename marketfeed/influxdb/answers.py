"""What an InfluxDB server's answer to a write means, and what is to be done: decided here alone.

Pure. Statuses as InfluxDB 1.x (`/write`) and 2.x (`/api/v2/write`) give them; the rules are those of
Telegraf's InfluxDB outputs, with one more: a refused batch is halved until the bad lines stand alone.
"""

import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from marketfeed.errors import retry_after_s, words_of

PURE = True

MAX_RETRY_AFTER_S: Final = 600.0
"""A server may ask for so much patience, not more."""
_TEXT: Final = 300

_ABOUT_LINES: Final = (
    "unable to parse",
    "partial write",
    "field type conflict",
    "beyond retention",
    "outside retention",
)

_BEYOND_RETENTION: Final = re.compile(
    # Up to 1.11 and 2.7.11; then since 1.12 and 2.7.12, whose last number is beyond the text that is kept.
    r"beyond retention policy dropped=(\d{1,9})\b"
    r"|partial write: dropped (\d{1,9}) points outside retention policy"
)

_CONFLICT: Final = re.compile(
    r'field type conflict: input field "([^"]*)" on measurement "([^"]+)"'
)

Action = Literal["acknowledged", "retryable", "throttled", "rejected", "misconfigured"]


class Verdict(msgspec.Struct, frozen=True):
    """What to do with a batch.

    * `acknowledged`: it is stored.
    * `retryable`: no answer, or an error of the server; send it again by the sender's own back-off.
    * `throttled`: the server is busy; send it again after `after_s` wall seconds, or as above if that is
      None.
    * `rejected`: some line is at fault; halve the batch. A single line is put aside.
    * `misconfigured`: no line is at fault but the rights, the address or the settings; keep everything,
      raise an alarm, try again slowly.

    `text` is the server's message, for people. `blames_lines`: the message is about lines, so that a
    halving will find the bad ones; otherwise it may be the request that is wrong. So many as
    `beyond_retention` are older than what the bucket keeps; `conflict` is a measurement of which the bucket
    holds `conflict_field` with another type. `pending`: the lines may be carried out yet, even after what is
    sent later. `answered`: the server (or a proxy before it) has answered.
    """

    action: Action
    text: str
    after_s: float | None = None
    blames_lines: bool = False
    beyond_retention: int = 0
    conflict: str = ""
    conflict_field: str = ""
    pending: bool = False
    answered: bool = True


def judge(status: int, body: bytes, headers: Mapping[str, str], now_s: float) -> Verdict:
    """Judge an answer. `now_s` is the wall clock (epoch): `Retry-After` may be a date."""
    text = f"status {status}: {_words(body)}" if body else f"status {status}"
    if status == 204:
        return Verdict("acknowledged", text)
    if 200 <= status < 300:
        # A page of a proxy, an ingress without that path: what is not stored must not count as shipped.
        return Verdict(
            "misconfigured", f"{text} (an InfluxDB answers a write with 204, this is none)"
        )
    if status in (400, 413, 422) or (status == 500 and _BEYOND_RETENTION.search(text)):
        # 2.x stores nothing of a batch with a line that does not parse (400); 1.x (400 "partial
        # write") and 2.x (422) store the other lines. Sending those again is harmless in all cases.
        blames_lines = status != 400 or any(word in text for word in _ABOUT_LINES)
        # One for each line. (What is dropped for its fields' types may be counted by field.)
        too_old = _BEYOND_RETENTION.search(text)
        dropped = 0 if too_old is None else int(too_old[1] or too_old[2])
        conflict = _CONFLICT.search(text)
        return Verdict(
            "rejected",
            text,
            blames_lines=blames_lines,
            beyond_retention=dropped,
            conflict="" if conflict is None else conflict[2],
            conflict_field="" if conflict is None else conflict[1],
        )
    if status in (429, 503):
        return Verdict("throttled", text, _bounded_s(headers.get("Retry-After"), now_s))
    if status >= 500:
        # A server, or a proxy before it, that has waited long enough; what it waited for may go on.
        return Verdict("retryable", text, pending=True)
    return Verdict("misconfigured", text)


def judge_failure(error: BaseException, *, connected: bool = True) -> Verdict:
    """Judge an exchange without an answer: refused, reset, timed out.

    If it was `connected`, the lines may have been stored or not, or will be yet.
    """
    return Verdict(
        "retryable",
        f"{type(error).__name__}: {words_of(error)}" if str(error) else type(error).__name__,
        pending=connected,
        answered=False,
    )


class _Body(msgspec.Struct):
    error: str = ""
    message: str = ""


def _words(body: bytes) -> str:
    try:
        answer = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, RecursionError):
        answer = _Body()
    text = answer.message or answer.error or body.decode("utf-8", "replace")
    return " ".join(text[:_TEXT].split())


def _bounded_s(header: str | None, now_s: float) -> float | None:
    asked_s = retry_after_s(header, now_s)
    return None if asked_s is None else min(max(asked_s, 0.0), MAX_RETRY_AFTER_S)
