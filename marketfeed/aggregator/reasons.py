"""Every reason for which an aggregator is not well: its words, and when it is over. Pure.

`Kind` is the list of them; docs/operating.md says of each what it means and what to do, and a test
holds the two together.
"""

from enum import Enum
from typing import Final, NamedTuple

from marketfeed.aggregator.expired import LATELY_S as EXPIRED_S
from marketfeed.aggregator.refusals import LATELY_S as REFUSED_S
from marketfeed.aggregator.refusals import SEVERAL, WRONG_SIDE_S

PURE = True

_EXPIRED_MIN: Final = f"{EXPIRED_S / 60:.0f}"
_ANSWERS: Final = "it answers as it should"


class Kind(Enum):
    """The reasons, each with its words and its end.

    Of what stands in braces capitals are a word or a number, `more` is what a sentence goes on with.
    """

    STARTING = ("the aggregator is starting", "it takes signals")
    SET_ASIDE = ("a damaged ledger was set aside: {more}", "the file is removed")
    SETS_ASIDE = ("{N} damaged ledgers were set aside: {more}", "the files are removed")
    CLOCK_SET = (
        "this host's clock has been set {BACK} by {N} s since the start: times are by the old one",
        "a restart",
    )
    UNSTORED = ("signals cannot be stored: {more}", "they are stored")
    HELD = ("{more}: nothing is forwarded for another {N} s", "that time is over")
    UNASKED = (
        "nothing is forwarded to the bot of {SIDE}: it has to be asked first what it has opened: {more}",
        "it answers that",
    )
    UNKNOWN_TRADES = (
        "the bot of {SIDE} has trades of ours that the ledger does not know: {more}",
        "cooldown_s or 2 × window_s after they were found, whichever is longer",
    )
    UNREACHABLE = ("bot of {SIDE}: not reachable: {more}", "it answers")
    BARRED = ("bot of {SIDE}: it does not let us in: {more}", _ANSWERS)
    ODD = ("bot of {SIDE}: not well: {more}", _ANSWERS)
    NOT_RUNNING = ("bot of {SIDE}: it is not running: {more}", "its state is running")
    FORCE_OFF = (
        "bot of {SIDE}: it refuses every order: {more}",
        "force_entry_enable is true, or an order is accepted",
    )
    UNKNOWN_ORDER = (
        "bot of {SIDE}: the outcome of another order is not known, {more}",
        "it is surely not at it any more",
    )
    OTHER_BOT = (
        "bot of {SIDE}: the bot of {OTHER} could not be asked whether it holds the pair: {more}",
        "it answers that, or nothing waits",
    )
    EXPIRED = (
        f"bot of {{SIDE}}: {{N}} expired unsent within {_EXPIRED_MIN} min, though it was not full: {{more}}",
        f"{_EXPIRED_MIN} min after the last",
    )
    REFUSES = (
        f"bot of {{SIDE}}: {{N}} refused within {REFUSED_S:.0f} s, the last with: {{more}}",
        f"they are fewer than {SEVERAL} within {REFUSED_S:.0f} s, or an order is accepted",
    )
    WRONG_SIDE = (
        "bot of {SIDE}: it opened {PAIR} {more}",
        f"{WRONG_SIDE_S / 60:.0f} min after the last",
    )
    UNNOTED = ("forwards of {SIDE} cannot be noted: {more}", "they are noted")
    ORPHANS = (
        "forwards of a side without a bot have not ended, and may hold their pairs: {more}",
        "the disk takes the note",
    )
    LOST = (
        "forward lost: {more}",
        "it is found, or its bot has answered for 15 min without it",
    )
    META_FAILED = (
        "bot of meta: its worker failed, and was started again: {more}",
        "5 min after the last",
    )
    META_STANDS = ("bot of meta: its worker has stood for {N} s", "it turns")
    NO_COPIES = (
        "bot of meta: the ledger has no place for copies",
        "a start that finds room on the disk",
    )
    SHIPPING = ("shipping to InfluxDB is {STATE}: {more}", "InfluxDB acknowledges again")

    def __init__(self, words: str, ends: str) -> None:
        self.words = words
        self.ends = ends

    @property
    def shown(self) -> str:
        """Its words as a table shows them."""
        return self.words.replace("{more}", "…").replace("{", "").replace("}", "")

    def reason(self, **values: object) -> "Reason":
        """What it says now."""
        return Reason(self, self.words.format(**values))

    def of_bot(self, more: str) -> str:
        """What it says of a bot, without naming the bot."""
        return self.words.partition(": ")[2].format(more=more)


class Reason(NamedTuple):
    """A reason that holds now; as a text it names its end."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.text} (until {self.kind.ends})"
