"""What a simulated week's exchange knows, and what of a collector's stores is not so.

What the exchange has is asked of its REST while it still has it: contract by contract, until another coin has
the name. Each `wrong_…` names what differs, in words; none is as it should be. Times are ms of exchange time.
"""

import contextlib
import json
import math
import urllib.error
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.journal.covering import read_coverage
from marketfeed.journal.reads import JournalReads
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS, TIMEFRAMES_MS, ceil_to, floor_to
from marketfeed.storage.files import connect_read_only
from reader import GapError, MarketReader, ReaderError
from reader.feeder import FUNDING_RATE, FUTURES, Download, Feeder
from tests.coverage_check import check_coverage
from tests.faults.fault_audit import get_patiently, rest_candles
from tests.faults.fault_truth import COLUMNS, read_gaps
from tests.pairs.week_events import FINAL_AFTER_MS, Contract

TIMEFRAMES: Final = ("1m", "5m", "1h", "4h", "1d")
RESAMPLED: Final = "15m"
SETTLES_MS: Final = 45 * MINUTE_MS
"""So long after a listing, an end or a halt the list may say it otherwise, or have been asked before it."""
LAST_SETTLED_MS: Final = HOUR_MS
"""What was settled so shortly before an end may be asked for after it: the exchange gives it no more."""
ASKED: Final = 200
"""Candles of a feeder's download."""

Numbers = tuple[float, ...]
Rate = tuple[int, float, str]


class Truth:
    """What the exchange at `rest_url` has of contracts, from `since_ms` on."""

    def __init__(self, rest_url: str, since_ms: int) -> None:
        self.since_ms = since_ms
        self._rest_url = rest_url
        self._candles: dict[int, dict[str, dict[int, Numbers]]] = {}
        self._rates: dict[int, list[Rate]] = {}
        self._until_ms: dict[int, int] = {}

    def fetch(self, one: Contract, until_ms: int) -> None:
        """Take in what has closed and was settled by then."""
        from_ms = max(
            self._until_ms.get(id(one), 0), floor_to(one.listed_ms, DAY_MS), self.since_ms
        )
        if until_ms <= from_ms:
            return
        mine = self._candles.setdefault(id(one), {name: {} for name in (*TIMEFRAMES, RESAMPLED)})
        for name in mine:
            length_ms = TIMEFRAMES_MS[name]
            where = TimeRange(floor_to(from_ms, length_ms), floor_to(until_ms, length_ms))
            if where.end_ms > where.start_ms:
                mine[name].update(rest_candles(self._rest_url, one.symbol, name, where))
        query = f"symbol={one.symbol}&startTime={from_ms}&endTime={until_ms - 1}&limit=1000"
        rows = json.loads(get_patiently(f"{self._rest_url}/fapi/v1/fundingRate?{query}"))
        self._rates.setdefault(id(one), []).extend(
            (
                floor_to(row["fundingTime"], MINUTE_MS),
                float(row["fundingRate"]),
                row["rateType"],
            )
            for row in rows
        )
        # By the minute: what is settled in one comes some ms after it.
        self._until_ms[id(one)] = floor_to(until_ms, MINUTE_MS)

    def finish(self, contracts: Iterable[Contract], now_ms: int) -> None:
        """Take in all of those that are over for long: the exchange may forget them then."""
        for one in contracts:
            if (
                not one.final
                and one.ended_ms is not None
                and one.ended_ms + FINAL_AFTER_MS <= now_ms
            ):
                # REST refuses at times: it is asked again then.
                with contextlib.suppress(urllib.error.HTTPError):
                    self.fetch(one, ceil_to(one.ended_ms, DAY_MS))
                    one.final = True

    def candles(self, one: Contract, timeframe: str, until_ms: int) -> dict[int, Numbers]:
        """Its own candles that have closed by then, by open time."""
        length_ms = TIMEFRAMES_MS[timeframe]
        first_ms, end_ms = one.owned(length_ms)
        first_ms = max(first_ms, ceil_to(self.since_ms, length_ms))
        return {
            at: numbers
            for at, numbers in self._all(one, timeframe).items()
            if first_ms <= at < end_ms and at + length_ms <= until_ms
        }

    def may_be(self, one: Contract, timeframe: str, open_ms: int, numbers: Numbers) -> bool:
        """Whether a candle, if not its own, is what the exchange answered: of an end that was not dated."""
        return one.by_status and self._all(one, timeframe).get(open_ms) == numbers

    def rates(self, one: Contract, until_ms: int) -> list[Rate]:
        """What was settled by then, and so long before its end that the collector could know of it."""
        if one.ended_ms is not None:
            until_ms = min(until_ms, one.ended_ms - LAST_SETTLED_MS)
        return [row for row in self._rates.get(id(one), ()) if row[0] < until_ms]

    def _all(self, one: Contract, timeframe: str) -> Mapping[int, Numbers]:
        return self._candles.get(id(one), {}).get(timeframe, {})


class Compared:
    """What was looked at: how many of what."""

    def __init__(self) -> None:
        self.candles = self.lives = self.settled = self.series = self.downloads = 0


def wrong_candles(
    journal: Path,
    truth: Truth,
    contracts: Sequence[Contract],
    now_ms: int,
    until_ms: int,
    told: Compared,
) -> Iterator[str]:
    """Of every contract's candles that closed by `until_ms`: stored with their numbers, and no others.

    Of one that halts, or did until lately, those from its halt on may be there and need not.
    """
    stored = _stored(journal, truth.since_ms)
    gaps = defaultdict(list)
    for gap in read_gaps(journal):
        if gap.pair is not None and gap.end_ms is not None and not gap.healed:
            gaps[gap.pair, gap.kind].append(gap)
    for one in contracts:
        halted_ms = one.halted_since(now_ms, SETTLES_MS)
        for name in TIMEFRAMES:
            length_ms = TIMEFRAMES_MS[name]
            have = stored.get((one.pair, name), {})
            for open_ms, numbers in truth.candles(one, name, until_ms).items():
                found = have.pop(open_ms, None)
                told.candles += 1
                if found == numbers:
                    continue
                where = f"{one.pair} {name} {_at(open_ms)}"
                if found is not None:
                    yield f"{where}: {found} is stored, {numbers} was"
                elif halted_ms is None or open_ms + length_ms <= halted_ms:
                    said = next(
                        (
                            f"{gap.reason}, {gap.state}"
                            for kind in (schema.gap_kind(name), schema.HISTORY_GAP + name)
                            for gap in gaps[one.pair, kind]
                            if gap.start_ms <= open_ms < (gap.end_ms or 0)
                        ),
                        "a hole without a reason",
                    )
                    yield f"{where}: missing ({said})"
    for one in contracts:
        for name in TIMEFRAMES:
            have = stored.get((one.pair, name), {})
            for open_ms, numbers in list(have.items()):
                if truth.may_be(one, name, open_ms, numbers):
                    del have[open_ms]
    for (pair, name), left in stored.items():
        for open_ms, numbers in left.items():
            if open_ms + TIMEFRAMES_MS[name] <= until_ms:
                yield f"{pair} {name} {_at(open_ms)}: {numbers} is stored, of no contract"


def _stored(journal: Path, since_ms: int) -> dict[tuple[str, str], dict[int, Numbers]]:
    found: dict[tuple[str, str], dict[int, Numbers]] = {}
    with contextlib.closing(connect_read_only(journal)) as db:
        for pair, length_ms, open_ms, *numbers in db.execute(
            f"""SELECT pair.pair, timeframe_ms, open_time, {COLUMNS}
                FROM candle JOIN pair ON pair.id = pair_id WHERE open_time >= ?""",  # noqa: S608
            (since_ms,),
        ):
            series = (pair, schema.TIMEFRAME_NAMES[length_ms])
            found.setdefault(series, {})[open_ms] = tuple(numbers)
    return found


def wrong_coverage(
    journal: Path, contracts: Sequence[Contract], now_ms: int, told: Compared
) -> Iterator[str]:
    """What is promised and missing is what the rows say; of a contract of the week all is promised."""
    checked = check_coverage(journal)
    told.series += checked.series
    yield from checked.mistakes
    if not checked.trusted:
        yield "coverage: somebody else has changed rows"
    with contextlib.closing(connect_read_only(journal)) as db:
        db.execute("BEGIN")
        series, _ = read_coverage(JournalReads(db))
    for one in newest(contracts, now_ms):
        if one.first or now_ms < one.listed_ms + SETTLES_MS:
            continue
        for name in TIMEFRAMES:
            known = series.get((one.pair, name))
            first_ms = floor_to(one.listed_ms, TIMEFRAMES_MS[name])
            if known is None:
                yield f"{one.pair} {name}: nothing is promised"
            elif known.from_ms != first_ms:
                yield f"{one.pair} {name}: promised from {_at(known.from_ms)}, listed {_at(first_ms)}"


def wrong_lives(
    reader: MarketReader, contracts: Sequence[Contract], now_ms: int, told: Compared
) -> Iterator[str]:
    """Each contract's beginning is known to the ms, an end by its date, too; one by status soon after it."""
    by_pair: defaultdict[str, list[Contract]] = defaultdict(list)
    for one in contracts:
        if one.listed_ms + SETTLES_MS <= now_ms:
            by_pair[one.pair].append(one)
    for pair, mine in by_pair.items():
        lives = reader.lives(pair)
        told.lives += len(lives)
        if len(lives) != len(mine):
            if all(is_settled(one, now_ms) for one in contracts if one.pair == pair):
                yield f"{pair}: {lives}, and it was {mine}"
            continue
        for life, one in zip(lives, mine, strict=True):
            if life.symbol != one.symbol or _ms(life.listed) != one.listed_ms:
                yield f"{pair}: {life} is not {one}"
            if not is_settled(one, now_ms):
                continue
            ended_ms = _ms(life.ended)
            if one.ended_ms is None or ended_ms is None or not one.by_status:
                right = ended_ms == one.ended_ms
            else:
                right = one.ended_ms <= ended_ms <= one.ended_ms + SETTLES_MS
            if not right:
                yield f"{pair}: {life} has another end than {one}"


def is_settled(one: Contract, now_ms: int) -> bool:
    """Whether nothing that the list may not tell yet has become of it."""
    return not any(
        time_ms <= now_ms < time_ms + SETTLES_MS
        for time_ms in (one.listed_ms, one.changed_ms, one.ended_ms or 0)
    )


def wrong_frames(
    reader: MarketReader, truth: Truth, contracts: Sequence[Contract], now_ms: int, until_ms: int
) -> Iterator[str]:
    """A reader's frames are each contract's own, resampled ones too, and no frame is of two."""
    for one in contracts:
        if not is_settled(one, now_ms) or not one.listed_ms < until_ms:
            continue
        over = one is not newest_of(contracts, one.pair)
        if over and one.by_status:
            # Of its last minutes the end as it was believed may have more than the end as it was.
            continue
        if one.halted_since(now_ms, SETTLES_MS) is not None:
            continue
        for name in (*TIMEFRAMES, RESAMPLED):
            length_ms = TIMEFRAMES_MS[name]
            want = truth.candles(one, name, until_ms)
            since_ms = max(truth.since_ms, floor_to(one.listed_ms, length_ms))
            # An end by status is believed to be some minutes later, whether another has followed or not.
            has_end = one.ended_ms is not None and (over or one.by_status)
            end_ms = floor_to(one.ended_ms if has_end and one.ended_ms else until_ms, length_ms)
            if since_ms >= end_ms or not want:
                continue
            frame = reader.get_ohlcv(one.pair, name, since=since_ms, until=end_ms, max_age_s=None)
            have = _rows(frame)
            words = _unlike(
                have, {at: row[:5] for at, row in want.items()}, exact=name != RESAMPLED
            )
            if words:
                yield f"{one.pair} {name} of {_at(one.listed_ms)}: {words}"
        if one.first or over:
            continue
        try:
            reader.get_ohlcv(
                one.pair, "1m", since=one.listed_ms - 5 * DAY_MS, strict=True, max_age_s=None
            )
        except GapError:
            continue
        if any(other.pair == one.pair and other is not one for other in contracts):
            yield f"{one.pair}: asked strictly across two contracts, it answered"


def _rows(frame: pd.DataFrame) -> dict[int, Numbers]:
    columns = ["open", "high", "low", "close", "volume"]
    return {
        at.value // 1_000_000: tuple(row)
        for at, row in zip(frame["date"], frame[columns].to_numpy().tolist(), strict=True)
    }


def _unlike(have: Mapping[int, Numbers], want: Mapping[int, Numbers], *, exact: bool) -> str:
    if missing := sorted(want.keys() - have.keys()):
        return f"{len(missing)} candles are not in the frame, the first {_at(missing[0])}"
    if more := sorted(have.keys() - want.keys()):
        return (
            f"{len(more)} candles are in the frame, and are not its own, the first {_at(more[0])}"
        )
    tolerance = 0.0 if exact else 1e-9
    for at, row in want.items():
        if not all(
            math.isclose(a, b, rel_tol=tolerance, abs_tol=0.0)
            for a, b in zip(have[at], row, strict=True)
        ):
            return f"{_at(at)}: {have[at]} is not {row}"
    return ""


def wrong_settled(
    reader: MarketReader,
    truth: Truth,
    contracts: Sequence[Contract],
    now_ms: int,
    until_ms: int,
    told: Compared,
) -> Iterator[str]:
    """Every settlement of a contract is there, Specials beside Regulars too, and none of another's."""
    for one in contracts:
        if not is_settled(one, now_ms) or one.listed_ms >= until_ms:
            continue
        want = truth.rates(one, until_ms)
        since_ms = max(truth.since_ms, floor_to(one.listed_ms, MINUTE_MS))
        end_ms = until_ms
        if one.ended_ms is not None:
            end_ms = min(end_ms, one.ended_ms - LAST_SETTLED_MS)
        if since_ms >= end_ms:
            continue
        frame = reader.get_funding_history(one.pair, since_ms, end_ms)
        times = [at.value // 1_000_000 for at in frame["date"]]
        have = list(zip(times, frame["rate"].tolist(), frame["kind"].tolist(), strict=True))
        told.settled += len(want)
        if sorted(have) != sorted(want):
            lacks, more = sorted(set(want) - set(have)), sorted(set(have) - set(want))
            yield (
                f"{one.pair} of {_at(one.listed_ms)}: settlements lack {_few(lacks)}, "
                f"and are not its own {_few(more)}"
            )
        elif frame.attrs["missing"]:
            yield f"{one.pair}: settlements are said to lack: {frame.attrs['missing'][:3]}"


def wrong_downloads(
    reader: MarketReader,
    truth: Truth,
    contracts: Sequence[Contract],
    clock_ms: Callable[[], int],
    until_ms: int,
    told: Compared,
) -> Iterator[str]:
    """A feeder gets candles and settlements of every contract that trades, and they are its own."""
    feeder, now_ms = Feeder(reader, clock_ms), clock_ms()
    for one in newest(contracts, now_ms):
        if not is_settled(one, now_ms) or not one.is_live(now_ms):
            continue
        if one.halted_since(now_ms, SETTLES_MS) is not None:
            continue
        for name in TIMEFRAMES:
            length_ms = TIMEFRAMES_MS[name]
            want = truth.candles(one, name, until_ms)
            # What closes between the day's end and now is not compared, and may just be coming.
            first_ms = max(floor_to(one.listed_ms, length_ms), truth.since_ms)
            last_ms = floor_to(until_ms, length_ms)
            limit = min(ASKED, (last_ms - first_ms) // length_ms)
            if limit < 1:
                continue
            since_ms = last_ms - limit * length_ms
            asked = Download(one.pair, name, FUTURES, since_ms, limit)
            rows = feeder.answer([asked])[0]
            told.downloads += 1
            if isinstance(rows, ReaderError):
                yield f"{one.pair} {name}: a feeder is refused: {rows}"
                continue
            have = {int(row[0]): tuple(row[1:6]) for row in rows}
            tail = {at: row[:5] for at, row in want.items() if at >= since_ms}
            if words := _unlike(have, tail, exact=True):
                yield f"{one.pair} {name}: a feeder gets another answer: {words}"
        since_ms = max(truth.since_ms, floor_to(one.listed_ms, MINUTE_MS))
        asked = Download(one.pair, "1h", FUNDING_RATE, since_ms, 1_000, one.listed_ms)
        rows = feeder.answer([asked])[0]
        told.downloads += 1
        want_rates = truth.rates(one, until_ms)
        if isinstance(rows, ReaderError):
            if want_rates:
                yield f"{one.pair}: a feeder is refused settlements: {rows}"
            continue
        have_rates = [(int(at), rate) for at, rate in rows if at < until_ms]
        if sorted(have_rates) != sorted((at, rate) for at, rate, _ in want_rates):
            yield f"{one.pair}: a feeder gets other settlements"


def newest(contracts: Sequence[Contract], now_ms: int) -> list[Contract]:
    """The newest contract of each pair that has been listed."""
    return list({one.pair: one for one in contracts if one.listed_ms <= now_ms}.values())


def newest_of(contracts: Sequence[Contract], pair: str) -> Contract:
    """The newest contract of a pair, listed yet or not."""
    return [one for one in contracts if one.pair == pair][-1]


def _ms(at: Any) -> int | None:
    return None if at is None else int(at.value // 1_000_000)


def _at(time_ms: int) -> str:
    return f"{pd.Timestamp(time_ms, unit='ms'):%m-%d %H:%M}"


def _few(rates: Sequence[Rate]) -> str:
    first = ", ".join(f"{_at(at)} {rate} {kind}" for at, rate, kind in rates[:3])
    return f"{len(rates)} ({first})" if rates else "none"
