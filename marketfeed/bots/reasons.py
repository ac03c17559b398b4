"""Every reason for which the bots' records are not well: its words, and when it is over. Pure."""

from enum import Enum
from typing import NamedTuple

PURE = True

NAMED = 3
"""How many refused trades of a bot are named."""


class Kind(Enum):
    """The reasons, each with its words and its end. `more` is what a sentence goes on with."""

    SET_ASIDE = ("damaged books were set aside: {more}", "the file is removed")
    STARTING = ("the bots' records are starting", "the bots are asked")
    UNSTORED = ("{BOT}: trades cannot be stored: {more}", "they are stored")
    UNREACHABLE = ("{BOT}: not reachable: {more}", "it answers")
    LACKING = (
        "{BOT}: {N} closed trades fewer were read than it says it has",
        "a reading of all meets as many",
    )
    REFUSED = (
        "{BOT}: {N} trades cannot be recorded: {more}",
        "they are gone from the bot or mended",
    )
    CLOCK = ("{BOT}: its clock is {N} s {BACK} this host's", "they agree within a minute")
    NO_STOP = (
        "{BOT}: it trades with money and has no stoploss_on_exchange: a stop is its own alone",
        "order_types.stoploss_on_exchange is true in its strategy or config",
    )
    FOREIGN = (
        "{BOT}: somebody else still writes into bucket {BUCKET}: {more}",
        "a day after the last such point",
    )
    SHIPPING = ("shipping to bucket {BUCKET} is {STATE}: {more}", "InfluxDB acknowledges again")
    NOT_TAKEN = ("bucket {BUCKET} refused {N} trades: {more}", "a start at which it takes them")
    NOT_ERASED = (
        "points cannot be taken out of bucket {BUCKET}: {more}",
        "InfluxDB takes them out",
    )

    def __init__(self, words: str, ends: str) -> None:
        self.words = words
        self.ends = ends

    def reason(self, **values: object) -> "Reason":
        """What it says now."""
        return Reason(self, self.words.format(**values))


class Reason(NamedTuple):
    """A reason that holds now; as a text it names its end."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.text} (until {self.kind.ends})"
