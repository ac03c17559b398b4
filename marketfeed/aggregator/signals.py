"""What a feeder wants, and who votes: signals, electorate, and what a refused body had wrong. Pure."""

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from marketfeed.aggregator.signal_values import repeatable

PURE = True

Side = Literal["long", "short"]
SIDES: Final[tuple[Side, Side]] = ("long", "short")
MAX_TAG: Final = 255
"""Characters of a tag that are kept: what a Freqtrade database holds."""


class Defaults(msgspec.Struct, frozen=True):
    """What stands in for a missing value; None: the signal is rejected."""

    confidence: float | None = None
    feeder: str | None = None


class Electorate(msgspec.Struct, frozen=True):
    """Who votes: each feeder's one side, and the feeder behind every name that may be posted."""

    side_of: Mapping[str, Side]
    feeder_of: Mapping[str, str]

    @classmethod
    def of(
        cls,
        long: tuple[str, ...],
        short: tuple[str, ...],
        aliases: tuple[tuple[str, tuple[str, ...]], ...] = (),
    ) -> "Electorate":
        """The electorate of two lists of feeders and their other names."""
        side_of: dict[str, Side] = dict.fromkeys(long, "long")
        side_of |= dict.fromkeys(short, "short")
        feeder_of = {feeder: feeder for feeder in side_of}
        feeder_of |= {name: feeder for feeder, names in aliases for name in names}
        return cls(side_of, feeder_of)

    def size(self, side: Side) -> int:
        """How many feeders vote for `side`."""
        return sum(1 for voted in self.side_of.values() if voted == side)


class Signal(msgspec.Struct, frozen=True):
    """What a feeder wants: `posted_as` is how it named itself, `feeder` as whom it votes.

    `confidence` is from 0 to 1. `defaulted` names the values that were missing and took a default.
    At most one of `strength` and `strength_text` is set: a number, or a text that is none, such as `high`.
    `unknown_fields` are those of the body that nothing is made of, as JSON, and `contradictions` those of
    field and tag, of which the field counts: neither is a part of what was meant.
    """

    pair: str
    side: Side
    feeder: str
    posted_as: str
    confidence: float
    leverage: float | None = None
    ordertype: str | None = None
    price: float | None = None
    strength: float | None = None
    tag: str = ""
    defaulted: tuple[str, ...] = ()
    strength_text: str | None = None
    unknown_fields: str | None = None
    contradictions: tuple["Contradiction", ...] = ()

    def digest(self) -> bytes:
        """What distinguishes this signal from another of the same feeder, whatever the bodies looked like."""
        meant = _Meant(
            self.pair,
            self.side,
            self.feeder,
            self.posted_as,
            self.confidence,
            self.leverage,
            self.ordertype,
            self.price,
            self.strength,
            self.tag,
            self.defaulted,
            msgspec.UNSET if self.strength_text is None else self.strength_text,
        )
        return hashlib.sha256(msgspec.json.encode(meant)).digest()[:16]


class _Meant(msgspec.Struct, frozen=True):
    """What a digest is of. Ledgers hold digests: names and order stay, or a repeat would be none.

    `called` is named as its column. `strength_text` is left out where there is none, as before there was one.
    """

    pair: str
    side: str
    feeder: str
    called: str
    confidence: float
    leverage: float | None
    ordertype: str | None
    price: float | None
    strength: float | None
    tag: str
    defaulted: tuple[str, ...]
    strength_text: str | msgspec.UnsetType


class Contradiction(msgspec.Struct, frozen=True):
    """A value (`feeder` or `confidence`) of which field and tag say different things."""

    value: str
    field: str
    tag: str

    def words(self) -> str:
        """Both, for the poster."""
        return f"{self.value} {self.field}, in the tag {self.tag}"


class SignalMistake(msgspec.Struct, frozen=True):
    """One thing wrong with a body, as pydantic words it. `reason` is a short name for counting."""

    reason: str
    kind: str
    loc: tuple[str | int, ...]
    message: str
    found: object = None
    context: Mapping[str, str] | None = None

    def plain(self) -> dict[str, object]:
        """The item of `detail` in the answer."""
        item: dict[str, object] = {
            "type": self.kind,
            "loc": list(self.loc),
            "msg": self.message,
            "input": repeatable(self.found),
        }
        if self.context is not None:
            item["ctx"] = self.context
        return item


class Refused(msgspec.Struct, frozen=True):
    """A body that is no signal. `feeder` is who it seems to be from, if it is one of ours."""

    mistakes: tuple[SignalMistake, ...]
    feeder: str | None = None

    @property
    def reason(self) -> str:
        """The first mistake's short name."""
        return self.mistakes[0].reason
