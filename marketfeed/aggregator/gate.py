"""What keeps a bot's orders back, and until when. Pure; times are monotonic s.

While it is full, paused, not to be reached or does not let us in, it is asked for that, and orders go on
when it has answered well: what is tried with an order stands at `sending` meanwhile, and holds its pair. For
a moment nothing is sent, too, after the other side's bot did not answer, and after this one was slow: its
loop takes the same lock as an order, and would not get it between one order and the next.
"""

from typing import Final, Literal

import msgspec

from marketfeed.aggregator.bot_answers import Meaning
from marketfeed.aggregator.timing import Pace
from marketfeed.errors import backoff_s

PURE = True

Cause = Literal[
    "unknown order",
    "password",
    "paused",
    "no room",
    "room unknown",
    "unreachable",
    "other bot",
    "same pair",
    "start",
    "whitelist",
    "ledger",
    "busy",
]
"""Why a forward waits: for another order whose outcome is unknown, for the bot to let us in, to run, to have
room or to say whether it has, to be reached; for the answer of the other side's bot; for another order of
its pair; for what a start has to know first; for its whitelist; for the ledger; for its turn."""
Question = Literal["config", "count"]
"""What a bot is asked for, to know whether it takes orders."""
_SHUT: Final[dict[Cause, Question]] = {
    "password": "config",
    "paused": "config",
    "no room": "count",
    "room unknown": "count",
    "unreachable": "config",
}
_ANY_ANSWER: Final[tuple[Cause, ...]] = ("password", "unreachable")
"""Whoever answers anything well lets us in, and can be reached."""


class Why(msgspec.Struct, frozen=True):
    """Why nothing is sent, in a word and in words."""

    cause: Cause
    words: str


class Gate:
    """Whether a bot may get an order now, as far as it and its answers say."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._shut: Why | None = None
        self._away: Why | None = None
        self._open_at_s = 0.0
        self._failures = 0

    @property
    def why(self) -> Why | None:
        """What keeps orders back; None: nothing but that the bot has been slow."""
        return self._shut or self._away

    @property
    def question(self) -> Question:
        """What to ask the bot for next."""
        return "config" if self._shut is None else _SHUT[self._shut.cause]

    @property
    def shut(self) -> bool:
        """Whether it opens by an answer alone."""
        return self._shut is not None

    @property
    def opens_at_s(self) -> float:
        """When it opens, if it is not shut."""
        return self._open_at_s

    def is_open(self, now_s: float) -> bool:
        """Whether an order may be sent."""
        return not self.shut and now_s >= self._open_at_s

    def shut_by(self, meaning: Meaning, words: str) -> None:
        """An order was answered with this."""
        if meaning == "full":
            self.no_room(words)
        elif meaning == "paused":
            self.not_running(words)
        elif meaning == "barred":
            self._shut = Why("password", f"it does not let us in: {words}")

    def not_running(self, words: str) -> None:
        """It takes no orders now: it is paused, stopped or loads its config."""
        self._shut = Why("paused", f"it is not running: {words}")

    def no_room(self, words: str) -> None:
        """It has no room for another trade."""
        self._shut = Why("no room", f"no room: {words}")

    def room_unknown(self, words: str) -> None:
        """It has not said whether it has room for another trade."""
        self._shut = Why("room unknown", f"it is not known whether it has room: {words}")

    def answered(self, question: Question | None, *, good: bool = True) -> None:
        """The bot answered, to a `question` or anything else; `good`: as a bot does that takes orders."""
        self._failures = 0
        shut_by = None if self._shut is None else self._shut.cause
        asked = question is not None and question == self.question
        if shut_by in _ANY_ANSWER or (good and asked):
            self._shut = None

    def unreachable(self, words: str) -> float:
        """Nothing of a request has left this host; returns for how long (s) to leave it alone."""
        self._failures += 1
        self._shut = Why("unreachable", words)
        return backoff_s(self._failures, self._pace.retry_first_s, self._pace.retry_cap_s)

    def let_one_try(self) -> None:
        """What it is asked for it never says: an order will tell."""
        self._shut = None

    def wait(self, cause: Cause, words: str, now_s: float) -> None:
        """Try again in a moment."""
        self._away = Why(cause, words)
        self._open_at_s = now_s + self._pace.again_s

    def over(self, cause: Cause) -> None:
        """What it waited for has come, or nothing waits for it any more."""
        if self._away is not None and self._away.cause == cause:
            self._away, self._open_at_s = None, 0.0

    def took(self, took_s: float, now_s: float) -> None:
        """An order was answered after so long."""
        self._away = None
        slow = took_s >= self._pace.slow_s
        self._open_at_s = now_s + (min(took_s / 4, self._pace.pause_s) if slow else 0.0)
