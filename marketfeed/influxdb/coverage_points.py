"""Says in a bucket what of each series it has without a hole: measurement `feed_coverage`.

An interval is never taken back late: what a bucket has not acknowledged is in none, and one that shrinks is
written at the next look. Within an hour a pair's point is written over.
"""

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.influxdb import line_protocol as lines
from marketfeed.influxdb.bucket_coverage import (
    NONE_REFUSED,
    Points,
    Refused,
    Unacknowledged,
    intervals,
    settled_parts,
)
from marketfeed.influxdb.outbox import Outbox
from marketfeed.journal.coverage import Covered, Key
from marketfeed.records import Life, lives_text
from marketfeed.storage.ranges import Acknowledged

log = logging.getLogger(__name__)

SETTLED_MATTER_MS: Final = 14 * schema.DAY_MS
"""So far back (exchange ms) readers ask what was announced, and so which settlements a bucket lacks."""

Coverage = Mapping[Key, Covered]
LivesOf = Mapping[str, Sequence[Life]]
Held = Callable[[str], Sequence[TimeRange]]


def _nothing(_: str) -> Sequence[TimeRange]:
    return ()


class CoveragePoints:
    """What is to be said of the bucket `target`.

    `stored` gives the coverage of the file that is shipped, as of its last commit, `now_ms` the exchange's
    time; without one of them there is nothing to say. `lives` gives the contracts that pairs have been the
    names of. All is said anew `every_s` (monotonic).
    """

    def __init__(
        self,
        target: str,
        every_s: float,
        stored: Callable[[], Coverage] | None,
        now_ms: Callable[[], int] | None,
        lives: Callable[[], LivesOf] | None = None,
    ) -> None:
        self.is_due = stored is not None and now_ms is not None
        """Whether there is anything to say, ever."""
        self._target = target
        self._stored = stored or dict
        self._now_ms = now_ms or (lambda: 0)
        self._lives = lives or dict
        # What was last written of each pair's lives.
        self._lives_written: dict[str, str] = {}
        self._lives_due: dict[str, str] = {}
        self._collector: Final = socket.gethostname()
        self._points = Points(every_s)
        self._unacknowledged = Unacknowledged()
        self._unacknowledged_marks = Unacknowledged()
        self._refused: Refused = NONE_REFUSED
        self._before: Coverage = {}
        self._line_keys: dict[Key, str] = {}
        self._settled_to_ms: Mapping[str, int] = {}
        # Of which pairs something was said of settlements.
        self._settled_told: set[str] = set()
        self._due: dict[str, dict[str, TimeRange]] = {}

    def begin_anew(self) -> None:
        """Shipping begins anew, from another file or because all is to be shipped again."""
        self._unacknowledged = Unacknowledged()
        self._unacknowledged_marks = Unacknowledged()

    def look(self, outbox: Outbox, acknowledged: Acknowledged) -> None:
        """Look which rows have not been acknowledged. Raises JournalError."""
        # As it is before the rows are read: all that it says is stored is among them, or was deleted since.
        self._before = dict(self._stored())
        refused = outbox.look_at_candles(self._unacknowledged, acknowledged, self._target)
        self._settled_to_ms = outbox.settled_to(acknowledged)
        outbox.look_at_marks(self._unacknowledged_marks, acknowledged)
        if refused.is_unknown and not self._refused.is_unknown:
            log.warning(
                "lines were refused that are not known any more, the bucket's coverage stays empty until "
                "`marketfeed setup --ship-again` target=%r",
                self._target,
            )
        self._refused = refused

    def lines(self, now_s: float, held: Held = _nothing) -> list[str]:
        """The lines to write now; `held` says where rows of a measurement have been passed over.

        After `look`, once the file's thread has done all that the rows told of: coverage follows its rows.
        """
        now, names = self._stored(), self._keys(self._before)
        marks = {key: one for key, one in self._before.items() if key[1] == schema.MARK_1H}
        candles = {key: one for key, one in self._before.items() if key not in marks}
        found = {
            **intervals(candles, now, self._unacknowledged, self._refused, names, held),
            **intervals(marks, now, self._unacknowledged_marks, self._refused, names, held),
        }
        settled = {
            pair: f"{schema.FUNDING_SETTLED},pair={lines.escape_tag(pair)}" for pair, _ in found
        }
        found |= settled_parts(
            self._settled_to_ms,
            self._refused,
            settled,
            self._settled_told,
            self._now_ms() - SETTLED_MATTER_MS,
            held(schema.FUNDING_SETTLED),
        )
        self._due = self._points.due(found, now_s)
        self._lives_due = {
            pair: lives_text(every) for pair, every in self._lives().items() if every
        }
        for (pair, timeframe), part in found.items():
            # Known anew, as nearly never: all that is said of the pair is.
            if self._lives_due.get(pair, "") != self._lives_written.get(pair, ""):
                self._due.setdefault(pair, {})[timeframe] = part
        hour_ms = schema.floor_to(self._now_ms(), schema.HOUR_MS)
        return [
            lines.coverage_text(
                lines.escape_tag(pair),
                self._collector,
                parts,
                hour_ms,
                self._lives_due.get(pair, ""),
            )
            for pair, parts in self._due.items()
        ]

    def written(self, now_s: float) -> None:
        """Note that `lines` have been written."""
        self._points.written(self._due, now_s)
        self._settled_told.update(
            pair for pair, parts in self._due.items() if schema.SETTLED_TO in parts
        )
        self._lives_written |= {pair: self._lives_due.get(pair, "") for pair in self._due}

    def _keys(self, series: Coverage) -> Mapping[Key, str]:
        """How lines of candles begin, of each series."""
        if not self._line_keys.keys() >= series.keys():
            self._line_keys = {
                (
                    pair,
                    timeframe,
                ): f"{_measurement(timeframe)},pair={lines.escape_tag(pair)}"
                for pair, timeframe in series
            }
        return self._line_keys


def _measurement(series: str) -> str:
    return series if series == schema.MARK_1H else schema.ohlcv_measurement(series)
