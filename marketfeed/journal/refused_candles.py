"""Which candles a bucket has refused, as far as the lines put aside do not tell: more than are kept.

It stands in a document of the journal: of each target and series the newest candle among the lines that newer
ones have pushed out. Settlements of a pair are such a series. It is named by the measurement and tags of its
lines.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from marketfeed import schema

PURE = True

DOCUMENT: Final = "refused_candles"


class Gone(msgspec.Struct):
    """Of one target. What was refused up to the line `after` has been shipped again since.

    `gone` holds the open time (ms) of each series' newest candle that is told no more; `known`: that is all.
    """

    after: int = 0
    gone: dict[str, int] = {}
    known: bool = False


class RefusedCandles(msgspec.Struct):
    """The document. `lines` were pushed out by then; `counted`: it tells of all of them."""

    counted: bool
    lines: int
    of: dict[str, Gone] = {}

    def take_stock(self, lines_gone: int) -> None:
        """Take in how many were pushed out: an older version, which tells of none, may have been there."""
        if lines_gone != self.lines:
            self.lines, self.counted = lines_gone, False
            for gone in self.of.values():
                gone.known = False

    def of_target(self, target: str) -> tuple[Gone, bool]:
        """What is told of a target, and whether that is all."""
        gone = self.of.get(target, Gone())
        return gone, self.counted or gone.known

    def push_out(self, lines: Sequence[tuple[int, str, str]]) -> None:
        """Take in lines (number, target, line) that are kept no more."""
        self.lines += len(lines)
        for number, target, line in lines:
            known = self.of.setdefault(target, Gone())
            candle = candle_of(line)
            if candle is not None and number > known.after:
                series, open_ms = candle
                known.gone[series] = max(open_ms, known.gone.get(series, open_ms))

    def begin_again(self, target: str, after: int, lines_gone: int) -> None:
        """Take in that all is shipped to `target` again: `after` is the last line put aside before.

        `lines_gone` are what is counted of others.
        """
        self.lines = lines_gone
        self.of[target] = Gone(after, {}, True)


def decode(body: bytes | None, *, lines_gone: int) -> RefusedCandles:
    """Read the document; `body` is None where there is none, `lines_gone` how many were pushed out.

    One that cannot be read tells nothing: what it told of is unknown.
    """
    if body is None:
        return RefusedCandles(lines_gone == 0, lines_gone)
    try:
        document = msgspec.json.decode(body, type=RefusedCandles)
    except msgspec.DecodeError:
        return RefusedCandles(counted=False, lines=lines_gone)
    document.take_stock(lines_gone)
    return document


def encode(document: RefusedCandles) -> bytes:
    """Write it."""
    return msgspec.json.encode(document)


def candle_of(line: str) -> tuple[str, int] | None:
    """Series and open time (ms) of a candle's line, or of a settlement's; None of other lines."""
    others = f"{schema.MARK_1H},", f"{schema.FUNDING_SETTLED},"
    if not line.startswith((schema.OHLCV_PREFIX, *others)):
        return None
    # No pair holds a blank.
    series, _, rest = line.partition(" ")
    time = rest.rpartition(" ")[2]
    return (series, int(time)) if time.isdecimal() else None
