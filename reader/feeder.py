"""What an exchange would answer to a bot that downloads candles, out of what is stored.

Nothing of Freqtrade is in here. A `Download` is one request as Freqtrade makes it; the answer is its rows
as ccxt gives them, or an error that is the reason for none: bad rows are never given.

* Rows without a hole, but where the exchange has twice answered without: it would give none now. They reach
  up to the newest closed candle, and the forming one is behind it, without which Freqtrade would wait
  another 15 s. It has the state of some seconds ago; Freqtrade drops it.
* A candle that has just closed is waited for: a quiet pair's is sent 2 s after the close, and the bot
  asks 1 s after it.
* StaleDataError when it does not come, NotStoredError for what the store does not hold (any more).
* Rows of the pair's current contract alone: the bot puts answers together, and another contract of the same
  name would be joined to it.
* StaleDataError for all when nothing is collected: such a store is new, the wrong one, or has lost its
  catalog. What it holds is not known then, and a fleet whose bots all ask it must not turn to the exchange.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from marketfeed import schema
from reader.arguments import timestamp
from reader.errors import ReaderError, StaleDataError, nothing_live
from reader.frames import Floats, Times
from reader.reader import MarketReader
from reader.values import Life, PairInfo

FUTURES: Final = "futures"
FUNDING_RATE: Final = "funding_rate"
MARK: Final = "mark"
KINDS: Final = (FUTURES, FUNDING_RATE, MARK)
"""Freqtrade's candle types that can be answered."""

LATE_S: Final = 6.0
"""So long after its close a candle is waited for (by REST the collector has it after some 5 s)."""

_LONGEST_INTERVAL_MS: Final = schema.LONGEST_INTERVAL_MS
_LOOK_EVERY_S: Final = 0.05

Row = list[float]


class NotStoredError(ReaderError):
    """The store does not hold what was asked for: the pair, the timeframe, or that far back."""


class Download(NamedTuple):
    """One request. `since_ms` None: the newest `limit` rows, else the first `limit` from there on.

    `kind` is one of KINDS; `listed_ms` is when the exchange listed the pair, if that is known. With `is_told`
    that is what the store's collectors tell: nothing older is of this contract.
    """

    pair: str
    timeframe: str
    kind: str
    since_ms: int | None
    limit: int
    listed_ms: int | None = None
    is_told: bool = False

    def reaches_listing(self) -> bool:
        """Whether any candle of it may be of this contract."""
        length_ms = schema.TIMEFRAMES_MS[self.timeframe]
        return (
            not self.is_told
            or self.since_ms is None
            or schema.floor_to(self.listed_ms or 0, length_ms)
            < schema.ceil_to(self.since_ms, length_ms) + self.limit * length_ms
        )


class Feeder:
    """Answers downloads out of `reader`. `now_ms` is another clock than the reader's."""

    def __init__(
        self,
        reader: MarketReader,
        now_ms: Callable[[], int] | None = None,
        late_s: float = LATE_S,
    ) -> None:
        self._reader = reader
        self._now_ms = now_ms or reader.now_ms
        self._late_s = late_s

    def answer(self, downloads: Sequence[Download]) -> list[list[Row] | ReaderError]:
        """Answer many downloads at once, in their order; waits for candles that have just closed.

        Raises StoreUnavailableError or StoreAuthError when nothing can be answered, StaleDataError when
        nothing is collected.
        """
        collected = {info.pair: info for info in self._reader.pairs()}
        if not collected:
            raise nothing_live(collected=False)
        lives = self._reader.current_lives()
        downloads = [_of_current(asked, lives.get(asked.pair)) for asked in downloads]
        answers: dict[int, list[Row] | ReaderError] = {}
        groups: dict[tuple[str, int | None, int], list[int]] = defaultdict(list)
        for number, asked in enumerate(downloads):
            problem = _cannot(asked, collected)
            if problem is not None:
                answers[number] = problem
            elif asked.since_ms == 0:
                # "When did it begin?" What is stored cannot answer that; no rows are an answer to it.
                answers[number] = []
            elif asked.kind != FUNDING_RATE and not asked.reaches_listing():
                answers[number] = []
            elif asked.kind == FUTURES:
                groups[asked.timeframe, asked.since_ms, asked.limit].append(number)
            elif asked.kind == FUNDING_RATE:
                answers[number] = self._settled(asked, collected[asked.pair])
            else:
                answers[number] = self._mark(asked, collected[asked.pair])
        for numbers in groups.values():
            chosen = [downloads[number] for number in numbers]
            answers.update(zip(numbers, self._candles(chosen, collected), strict=True))
        return [answers[number] for number in range(len(downloads))]

    # --- candles ----------------------------------------------------------------------------------

    def _candles(
        self, downloads: Sequence[Download], collected: Mapping[str, PairInfo]
    ) -> list[list[Row] | ReaderError]:
        """Answer downloads that differ in their pairs alone."""
        version = self._reader.version()
        answers = self._look(downloads, collected)
        length_ms = schema.TIMEFRAMES_MS[downloads[0].timeframe]
        # Those that lack more than one candle are not worth the others' waiting.
        late = [
            asked
            for asked in downloads
            if isinstance(answer := answers[asked.pair], StaleDataError)
            and answer.ages[asked.pair] < length_ms / 1000 + self._late_s
        ]
        if late:
            self._wait(late[0].timeframe, [asked.pair for asked in late], version)
            answers |= self._look(late, collected)
        return [answers[asked.pair] for asked in downloads]

    def _look(
        self, downloads: Sequence[Download], collected: Mapping[str, PairInfo]
    ) -> dict[str, list[Row] | ReaderError]:
        """Read as much as the exchange would give; ages are judged here, by the bot's clock."""
        asked = downloads[0]
        pairs = [each.pair for each in downloads]
        if asked.since_ms is None:
            frames = self._reader.get_ohlcv_many(
                pairs, asked.timeframe, asked.limit, include_forming=True, max_age_s=None
            )
        else:
            frames = self._reader.get_ohlcv_many(
                pairs,
                asked.timeframe,
                since=asked.since_ms,
                until=asked.since_ms + asked.limit * schema.TIMEFRAMES_MS[asked.timeframe],
                include_forming=True,
                max_age_s=None,
            )
        now_ms = self._now_ms()
        return {
            each.pair: _judge(each, frames[each.pair], collected[each.pair], now_ms)
            for each in downloads
        }

    def _wait(self, timeframe: str, pairs: Iterable[str], version: Hashable) -> None:
        """Wait until the newest closed candle of all `pairs` is stored, or it is too late for it.

        `version` was taken before the look: what was stored in between is not waited for.
        """
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        now_ms = self._now_ms()
        close_ms = schema.floor_to(now_ms, length_ms)
        expected_ms = close_ms - length_ms
        deadline_s = time.monotonic() + self._late_s - (now_ms - close_ms) / 1000
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._reader.wait_change(version, min(left_s, 1.0))
            version = self._reader.version()
            newest = self._reader.newest(timeframe)
            if all(newest.get(pair, 0) >= expected_ms for pair in pairs):
                return
            time.sleep(min(_LOOK_EVERY_S, left_s))

    # --- settled funding rates and mark prices ----------------------------------------------------

    def _settled(self, asked: Download, info: PairInfo) -> list[Row] | ReaderError:
        now_ms = self._now_ms()
        since_ms = asked.since_ms
        frame = self._reader.get_funding_history(
            asked.pair, None if since_ms is None else max(0, since_ms - _LONGEST_INTERVAL_MS)
        )
        times_ms = _times(frame)
        if not len(times_ms):
            return _not_stored(asked, "no settled rate is stored")
        # What was announced tells what lacks. Of before that, only a gap longer than all intervals does.
        gaps = np.flatnonzero(np.diff(times_ms) > _LONGEST_INTERVAL_MS)
        missing_ms: list[int] = frame.attrs["missing"]
        if since_ms is not None and len(gaps):
            return _not_stored(asked, f"a settled rate lacks after {_at(times_ms[gaps[-1]])}")
        if since_ms is not None:
            missing_ms = [at for at in missing_ms if at >= since_ms]
        last_ms = int(times_ms[-1])
        if missing_ms and (since_ms is not None or missing_ms[-1] > last_ms):
            return _not_stored(asked, f"the settled rate of {_at(missing_ms[-1])} lacks")
        first = gaps[-1] + 1 if len(gaps) else 0
        if missing_ms:
            first = max(first, int(np.searchsorted(times_ms, missing_ms[-1])))
        known_ms = max(last_ms, frame.attrs["settled_to"] or 0)
        due_ms = known_ms + _LONGEST_INTERVAL_MS + schema.SETTLED_LATE_MS
        if now_ms > due_ms and not _has_ended(info, now_ms):
            return _not_stored(asked, f"the newest settled rate is of {_at(last_ms)}")
        rows = [
            [ms, rate] for ms, rate in zip(times_ms.tolist(), frame["rate"].tolist(), strict=True)
        ]
        if since_ms is None:
            return rows[first:][-asked.limit :]
        begun_ms = max(since_ms, (asked.listed_ms or 0) + _LONGEST_INTERVAL_MS)
        if times_ms[0] > begun_ms:
            return _not_stored(asked, f"settled rates are stored from {_at(times_ms[0])} on")
        return [row for row in rows if row[0] >= since_ms][: asked.limit]

    def _mark(self, asked: Download, info: PairInfo) -> list[Row] | ReaderError:
        length_ms = schema.TIMEFRAMES_MS[asked.timeframe]
        now_ms = self._now_ms()
        current_ms = schema.floor_to(now_ms, length_ms)
        first_ms = (
            current_ms - (asked.limit - 1) * length_ms
            if asked.since_ms is None
            else schema.ceil_to(asked.since_ms, length_ms)
        )
        end_ms = min(current_ms + length_ms, first_ms + asked.limit * length_ms)
        if info.ended is not None:
            end_ms = min(end_ms, schema.floor_to(_ms(info.ended), length_ms))
        if first_ms >= end_ms or end_ms <= schema.floor_to(asked.listed_ms or 0, length_ms):
            return []
        frame = self._reader.get_mark_candles(
            asked.pair, asked.timeframe, since=first_ms, until=end_ms
        )
        rows = _rows(_values(frame))
        times_ms = _times(frame)
        there = np.union1d(times_ms, frame.attrs["absent"]).astype(np.int64)
        holes = np.flatnonzero(np.diff(there) > length_ms)
        # In the very first moments of an hour there is no mark price of it yet.
        due_ms = min(end_ms - length_ms, schema.floor_to(now_ms - schema.MINUTE_MS, length_ms))
        if not len(there) or there[-1] < due_ms:
            try:
                self._reader.get_mark_price(asked.pair)
            except StaleDataError as error:
                return error
            return _not_stored(asked, "the newest candle's first mark price is not stored")
        if asked.since_ms is None:
            first_ms = int(there[holes[-1] + 1]) if len(holes) else 0
            return [row for row in rows if row[0] >= first_ms]
        wanted_ms = max(first_ms, schema.ceil_to(asked.listed_ms or 0, length_ms))
        if there[0] > wanted_ms or len(holes):
            first = there[holes[-1] + 1] if len(holes) else there[0]
            return _not_stored(asked, f"mark prices are stored from {_at(first)} on")
        return rows


def _cannot(asked: Download, collected: Mapping[str, PairInfo]) -> NotStoredError | None:
    info = collected.get(asked.pair)
    if info is None or not info.timeframes:
        return _not_stored(asked, "the pair is not collected")
    if asked.timeframe not in schema.TIMEFRAMES_MS or (
        asked.kind == FUTURES and schema.resampling_source(asked.timeframe, info.timeframes) is None
    ):
        return _not_stored(
            asked, f"the timeframe is not collected, nor made of {', '.join(info.timeframes)}"
        )
    return None


def _of_current(asked: Download, life: Life | None) -> Download:
    """The same, with the listing of the pair's current contract, if that is told."""
    if life is None or life.listed is None:
        return asked
    return asked._replace(listed_ms=_ms(life.listed), is_told=True)


def _judge(
    asked: Download, frame: pd.DataFrame, info: PairInfo, now_ms: int
) -> list[Row] | ReaderError:
    """Return the candles that are read as rows, or what is wrong with them at `now_ms`."""
    length_ms = schema.TIMEFRAMES_MS[asked.timeframe]
    current_ms = schema.floor_to(now_ms, length_ms)
    end_ms = current_ms
    if info.ended is not None:
        end_ms = min(end_ms, schema.floor_to(_ms(info.ended), length_ms))
    if asked.since_ms is None:
        first_ms = end_ms - (asked.limit - 1) * length_ms
    else:
        first_ms = schema.ceil_to(asked.since_ms, length_ms)
        end_ms = min(end_ms, first_ms + asked.limit * length_ms)
    # The first candle opens before the listing. Put together from parts it is none, unless the listing is
    # told: then they are all there.
    whole = asked.is_told or asked.timeframe in info.timeframes
    listed_on = schema.floor_to if whole else schema.ceil_to
    first_ms = max(first_ms, listed_on(asked.listed_ms or 0, length_ms))
    values = _values(frame)
    # A forming candle never counts as closed, however late it is.
    closed = values[: len(values) - frame.attrs["forming"]]
    closed = closed[closed[:, 0] < end_ms]
    times_ms = closed[:, 0].astype(np.int64)
    expected = np.arange(first_ms, end_ms, length_ms, dtype=np.int64)
    absent = np.setdiff1d(expected, times_ms, assume_unique=True)
    newest_ms = int(times_ms[-1]) if len(times_ms) else None
    # Of one that is put together the exchange may well have what lacks a part here.
    if len(absent) and frame.attrs["absent"] and asked.timeframe in info.timeframes:
        absent = np.setdiff1d(absent, frame.attrs["absent"])
        # Rows from further back in their place might have a hole that is the store's own.
        closed = closed[closed[:, 0] >= first_ms]
    if len(absent):
        tail = newest_ms is None or int(absent[0]) > newest_ms
        if not tail or newest_ms is None:
            return _not_stored(
                asked, f"{len(absent)} of {len(expected)} candles, the first of {_at(absent[0])}"
            )
        age_s = (now_ms - newest_ms - length_ms) / 1000
        return StaleDataError(
            f"{asked.pair} {asked.timeframe}: the newest stored candle closed {age_s:.1f} s ago, "
            f"that of {_at(end_ms - length_ms)} is not there. Does the collector run?",
            {asked.pair: age_s},
        )
    rows = _rows(closed)
    if asked.since_ms is None:
        rows = rows[-(asked.limit - 1) :]
    reaches_now = asked.since_ms is None or asked.since_ms + asked.limit * length_ms > current_ms
    if reaches_now and not _has_ended(info, now_ms):
        forming = values[values[:, 0] == current_ms]
        if len(forming):
            rows += _rows(forming[:1])
        elif rows:
            # No trade yet in this interval: so the exchange shows it, too.
            close = rows[-1][4]
            rows.append([current_ms, close, close, close, close, 0.0])
    return rows


def _not_stored(asked: Download, why: str) -> NotStoredError:
    since = "" if asked.since_ms is None else f" from {_at(asked.since_ms)} on"
    return NotStoredError(f"{asked.pair} {asked.timeframe} {asked.kind}{since}: {why}")


def _values(frame: pd.DataFrame) -> Floats:
    return np.column_stack([_times(frame), frame.iloc[:, 1:].to_numpy(np.float64)])


def _times(frame: pd.DataFrame) -> Times:
    times: Times = frame["date"].dt.as_unit("ms").astype("int64").to_numpy()
    return times


def _rows(values: Floats) -> list[Row]:
    # Times as whole numbers: pandas dates floats in nanoseconds, and the dtype would differ.
    times = values[:, 0].astype(np.int64).tolist()
    columns = [values[:, number].tolist() for number in range(1, values.shape[1])]
    return [list(row) for row in zip(times, *columns, strict=True)]


def _has_ended(info: PairInfo, now_ms: int) -> bool:
    """Whether the pair trades no more; an end may be announced days ahead."""
    return info.ended is not None and _ms(info.ended) <= now_ms


def _ms(time: pd.Timestamp) -> int:
    return int(time.value // 1_000_000)


def _at(ms: int | np.int64) -> str:
    return timestamp(int(ms)).strftime("%Y-%m-%d %H:%M")
