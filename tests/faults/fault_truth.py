"""What an exchange has published against what a journal holds: stored, listed as missing, or neither."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from marketfeed import schema
from marketfeed.simulator.published import Published

COLUMNS = ", ".join(schema.CANDLE_FIELDS)


class Gap(msgspec.Struct, frozen=True):
    """A row of the journal's `gap` table; times in ms."""

    kind: str
    pair: str | None
    start_ms: int
    end_ms: int | None
    healed: bool
    reason: str
    state: str


class Verdict(msgspec.Struct, frozen=True):
    """What became of the published candles, and what is stored besides.

    `wrong` are stored with other numbers, `unlisted` neither stored nor listed as missing, `invented`
    stored though never published, `stale` listed as missing though stored.
    """

    published: int
    identical: int
    listed: int
    wrong: list[str]
    unlisted: list[str]
    invented: list[str]
    stale: int

    @property
    def good(self) -> bool:
        """Whether every published candle is stored as it was or listed, and nothing else is stored."""
        return not (self.wrong or self.unlisted or self.invented)

    def text(self) -> str:
        """The losses of a row of the scoreboard."""
        if not self.good:
            return (
                f"wrong {len(self.wrong)}, unreported {len(self.unlisted)}, "
                f"invented {len(self.invented)} of {self.published} candles"
            )
        if not self.listed:
            return f"nothing of {self.published} candles"
        return f"{self.listed} of {self.published} candles, all reported"


def read_gaps(path: Path) -> list[Gap]:
    """Read all gaps of a journal."""
    with _reading(path) as db:
        return [
            Gap(kind, pair, start, end, bool(healed), reason, state)
            for kind, pair, start, end, healed, reason, state in db.execute(
                """SELECT kind, pair.pair, start, "end", healed, reason, state
                   FROM gap LEFT JOIN pair ON pair.id = gap.pair_id ORDER BY start, kind"""
            )
        ]


def judge(path: Path, published: Iterable[Published], since_ms: int, until_ms: int) -> Verdict:
    """Compare a journal with what was published, of candles that lie in since_ms..until_ms wholly.

    A stored candle without trades that was never published is not counted as invented: an exchange may
    send no frame of it. Whether there is one is in its REST answers.
    """
    truth = {
        (one.pair, one.timeframe, one.open_time_ms): one
        for one in published
        if one.open_time_ms >= since_ms
        and one.open_time_ms + schema.TIMEFRAMES_MS[one.timeframe] <= until_ms
    }
    with _reading(path) as db:
        stored = {
            (pair, schema.TIMEFRAME_NAMES[length_ms], open_ms): tuple(numbers)
            for pair, length_ms, open_ms, *numbers in db.execute(
                f"""SELECT pair.pair, timeframe_ms, open_time, {COLUMNS}
                    FROM candle JOIN pair ON pair.id = pair_id
                    WHERE open_time >= ? AND open_time + timeframe_ms <= ?""",  # noqa: S608 - constants
                (since_ms, until_ms),
            )
        }
    listed = _listed(read_gaps(path))
    wrong, unlisted = [], []
    identical = missing = stale = 0
    for key, one in truth.items():
        numbers = stored.get(key)
        if numbers is None:
            if key in listed:
                missing += 1
            else:
                unlisted.append(_name(key))
        elif numbers == tuple(getattr(one, name) for name in schema.CANDLE_FIELDS):
            identical += 1
            stale += key in listed
        else:
            wrong.append(_name(key))
    invented = [_name(key) for key in stored.keys() - truth.keys() if stored[key][-1]]
    return Verdict(len(truth), identical, missing, wrong, unlisted, invented, stale)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        yield db


def _listed(gaps: Iterable[Gap]) -> set[tuple[str, str, int]]:
    found: set[tuple[str, str, int]] = set()
    for gap in gaps:
        kind, _, timeframe = gap.kind.partition("_")
        if kind == "candle" and gap.pair is not None and gap.end_ms is not None and not gap.healed:
            step_ms = schema.TIMEFRAMES_MS[timeframe]
            found.update(
                (gap.pair, timeframe, at) for at in range(gap.start_ms, gap.end_ms, step_ms)
            )
    return found


def _name(key: tuple[str, str, int]) -> str:
    pair, timeframe, open_ms = key
    return f"{pair} {timeframe} {open_ms}"
