"""MarketReader: market data for a bot, with its age, completeness and source.

Nothing here ever answers an error with an empty frame: what cannot be answered raises.
"""

import math
import os
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import TracebackType
from typing import Self

import pandas as pd

from marketfeed import schema
from reader import arguments, collected, frames, funding, latest, marks, ohlcv, running
from reader.arguments import DEFAULT, MaxAge, Time
from reader.clock import clock_of
from reader.connecting import Connecting, ConnectsAnew
from reader.errors import ArgumentError
from reader.gaplog import GapLog
from reader.rows import CatalogRow
from reader.stores.store import Store
from reader.values import FundingRate, Life, MarkPrice, PairInfo
from reader.waiting import Awaited


class MarketReader(ConnectsAnew):
    """Reads what the collector stores. Make one with `connect`.

    Safe in threads, and after a fork in parent and child. Close it, or use it as a context manager.

    Times in: a datetime with a time zone, or ms since the epoch; `since` is inclusive and `until`
    exclusive, both on the candle's open time. Times out: `pandas.Timestamp` in UTC. All of them are
    exchange time. Ages are seconds by `now_ms`, never below zero: the clock that `connect` was given, else
    the collector's where it runs on this host, else the wall clock, unless a server's `Date` differs.
    A copy, and a reader that was pickled, connects anew; a token given as an argument is not pickled.

    `max_age_s` of a method is the greatest age it lets pass before it raises StaleDataError; None
    switches that off. Every method raises StoreUnavailableError when the store cannot be read,
    UnknownPairError for what is no pair or not collected, and ArgumentError (a ValueError) for other
    arguments that cannot be used.
    """

    def __init__(
        self,
        store: Store,
        now_ms: Callable[[], int] | None = None,
        connecting: Connecting | None = None,
    ) -> None:
        self._store = store
        super().__init__(store, now_ms, connecting)
        self._clock = clock_of(store.clock, now_ms)
        self._gap_log = GapLog()

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        token: str | None = None,
        bucket: str | None = None,
        now_ms: Callable[[], int] | None = None,
        timeout_s: float | None = None,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Open the store at `url`, by default `MARKETFEED_URL` of the environment.

        `sqlite:////abs/journal.db` or `sqlite:///rel.db` for a journal on this host; other characters
        than those of a plain path are percent-encoded. `http(s)://host:8086` for an InfluxDB that a
        collector ships to: `bucket` of it (`MARKETFEED_BUCKET`, market_data), with `token`
        (`MARKETFEED_TOKEN` or `MARKETFEED_TOKEN_FILE`; the file is read again when the server refuses
        its token). `timeout_s` is how long such a server may keep silent before a call raises (wall
        seconds, 30 by default), `ca_file` (`MARKETFEED_CA_FILE`) the certificate of a private authority
        (PEM) for https. `now_ms` gives exchange time in ms, for readers of a simulated exchange.

        Raises ArgumentError for a missing or wrong address, StoreUnavailableError, StoreAuthError.
        """
        made = Connecting.checked(url, token, bucket, timeout_s, ca_file)
        return cls(made.open(), now_ms, made)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MarketReader {self._store.source}>"

    def now_ms(self) -> int:
        """Return the time that ages count from: exchange time, ms since the epoch."""
        return self._clock.now_ms()

    def close(self) -> None:
        """Let go of the store. Safe to call twice; other calls raise afterwards."""
        self._store.close()

    # --- candles ----------------------------------------------------------------------------------

    def get_ohlcv(
        self,
        pair: str,
        timeframe: str,
        limit: int | None = None,
        *,
        since: Time | None = None,
        until: Time | None = None,
        include_forming: bool = False,
        strict: bool = False,
        max_age_s: MaxAge = DEFAULT,
        columns: Iterable[str] = (),
    ) -> pd.DataFrame:
        """Return closed candles of `pair`: date (open time), open, high, low, close, volume, oldest first.

        The newest `limit` closed candles of the range since <= open time < until: 500 when neither
        `limit` nor `since` is given, all of the range when only `since` is. `include_forming` puts the
        forming candle, as it stood last, behind them; it does not count against `limit`.

        A timeframe that is not collected is resampled from the largest collected one that divides it;
        a candle of which a part is absent is left out and counts as missing. The first one of a contract has
        no parts before its listing.

        All candles are of one contract of the pair's name (`lives`): of the current one or, where `until`
        lies before its listing, of an older one, of which no more is promised than is stored.

        `columns` puts behind the volume, as asked: quote_volume, trades (whole), taker_buy_volume (base),
        taker_buy_quote_volume (NaN where it is not known: an older collector has stored the candle).

        `attrs`: pair, timeframe, source, age_s (since the newest candle's close; None when there is
        none), missing (open times in ms without a candle between the first stored one and now, or in the
        range), absent (those of `missing` that the exchange twice answered without), forming (whether the
        last row is the forming candle), and short: why the frame does not reach as far back as asked, None
        where it does. That is "listed" (the pair was listed then), "history" (what the collectors tell of
        begins later: nothing older is promised, or it is not filled yet) or "unknown" (they tell nothing).
        A gap
        is logged once; `strict` raises GapError instead, also of absent candles. `lives` are the contracts
        [listed, ended or None, symbol] (ms) whose stored candles were asked for, oldest first: the frame is
        of the last, and with `strict` there may be no other. A time of which nothing is told has symbol "".

        `max_age_s` is 2 × timeframe + 30 s by default. It is not applied to a delisted pair, nor to a
        range whose `until` is past. A pair without any candle yet raises StaleDataError, unless
        `max_age_s` is None: then the frame is empty. A live pair's candle counts as missing 15 s after
        its close, unless `max_age_s` is None: then the newest stored one is the end. Where the frame
        ends with the forming candle, what opens before that has closed: it is missing at once.

        Raises StaleDataError, GapError, UnknownPairError, UnknownTimeframeError.
        """
        return self._frames(
            [pair],
            timeframe,
            limit,
            since,
            until,
            include_forming=include_forming,
            strict=strict,
            max_age_s=max_age_s,
            columns=columns,
            young_ok=False,
        )[pair]

    def get_ohlcv_many(
        self,
        pairs: Iterable[str],
        timeframe: str,
        limit: int | None = None,
        *,
        since: Time | None = None,
        until: Time | None = None,
        include_forming: bool = False,
        strict: bool = False,
        max_age_s: MaxAge = DEFAULT,
        columns: Iterable[str] = (),
    ) -> dict[str, pd.DataFrame]:
        """Return `get_ohlcv` of many pairs, pair -> frame in their order, all up to the same close.

        The newest open time of all is fixed first, and every pair is cut there: a candle that closes while
        they are read is in none of the frames. A journal is asked pair by pair: no transaction stays open.

        One pair that is unknown, stale or (with `strict`) has a gap makes the call raise; the error
        names all such pairs. A pair that was listed so lately that its first candle has not closed is
        none of these: its frame is empty, its age_s None, and that is logged once; with `strict`
        it raises StaleDataError, as it does in `get_ohlcv`.
        """
        return self._frames(
            pairs,
            timeframe,
            limit,
            since,
            until,
            include_forming=include_forming,
            strict=strict,
            max_age_s=max_age_s,
            columns=columns,
            young_ok=not strict,
        )

    def _frames(
        self,
        pairs: Iterable[str],
        timeframe: str,
        limit: int | None,
        since: Time | None,
        until: Time | None,
        *,
        include_forming: bool,
        strict: bool,
        max_age_s: MaxAge,
        columns: Iterable[str],
        young_ok: bool,
    ) -> dict[str, pd.DataFrame]:
        names = arguments.pair_names(pairs)
        now_ms = self.now_ms()
        entries: Mapping[str, CatalogRow] = collected.entries(self._store, names)
        ohlcv.sources(entries.values(), timeframe)  # raises where one pair lacks it
        request = arguments.candle_request(
            timeframe,
            limit,
            since,
            until,
            include_forming=include_forming,
            strict=strict,
            max_age_s=max_age_s,
            columns=columns,
        )
        entries, found = ohlcv.read(self._store, entries, request, now_ms)
        self._clock.saw(one.reach_ms for one in found.values())
        answer = ohlcv.judge(found, entries, request, self._store.source, now_ms, young_ok=young_ok)
        for pair, frame in answer.items():
            row = entries[pair].of(found[pair].part)
            empty = frame.attrs["age_s"] is None and not row.is_over(now_ms)
            if empty and request.max_age_s is not None:
                self._gap_log.note_young(pair, timeframe)
            if frame.attrs["missing"]:
                self._gap_log.note(pair, timeframe, frame.attrs["missing"])
        return answer

    def newest(self, timeframe: str) -> dict[str, int]:
        """Return pair -> open time (ms) of its newest closed candle; cheap enough to ask all the time.

        Pairs without a candle are left out, ended ones are not. In a resampled timeframe it is the
        newest candle whose last part is stored. Those of a pair's current life alone count.
        """
        return ohlcv.newest(self._store, timeframe)

    def wait_closed(self, timeframe: str, open_time: Time, timeout_s: float) -> tuple[str, ...]:
        """Wait until the candle of `open_time` is stored for every live pair; return the pairs without.

        An empty answer means that all are there; otherwise `timeout_s` (wall seconds) have passed. Of
        a resampled timeframe the last part is waited for. Not waited for are pairs that had ended before
        the candle closed, or were listed after; those not collected in that timeframe; and those of which
        the collectors tell that the exchange twice answered without the candle or, of a halted pair,
        without what follows its newest one.

        Raises StaleDataError when there is no live pair at all, UnknownTimeframeError.
        """
        deadline_s = time.monotonic() + arguments.seconds("timeout_s", timeout_s)
        open_ms = arguments.time_ms("open_time", open_time)
        awaited = Awaited(self._store, timeframe, open_ms)
        while True:
            # Asked before the look, so that what is stored in between is found at the next turn.
            version = self._store.version()
            without = awaited.without(self.now_ms())
            if not without or time.monotonic() >= deadline_s:
                return without
            self._changed_since(version, min(deadline_s, awaited.again_s))

    def ready(self, pair: str, timeframe: str, n: int) -> bool:
        """Return whether the newest `n` closed candles of `pair` are stored: what is due, without a hole.

        Of a pair that was listed since, whether all are. What the exchange twice answered without may be
        absent, where the collectors tell (`absent` of `get_ohlcv`). A candle is due 15 s after its close.
        False for a pair without any candle, one that the settings have dropped, and more candles than
        `history.days` promises.

        Raises UnknownPairError, UnknownTimeframeError.
        """
        count = arguments.candles("n", n)
        entries: Mapping[str, CatalogRow] = collected.entries(
            self._store, [arguments.pair_name(pair)]
        )
        ohlcv.sources(entries.values(), timeframe)
        request = arguments.candle_request(
            timeframe, count, None, None, include_forming=False, strict=False, max_age_s=math.inf
        )
        now_ms = self.now_ms()
        entries, found = ohlcv.read(self._store, entries, request, now_ms)
        entry = entries[pair].of(found[pair].part)
        return frames.is_ready(found[pair], request, entry, count, now_ms)

    def version(self) -> Hashable:
        """Return a value that differs once anything may have been stored; for `wait_change`."""
        return self._store.version()

    def wait_change(self, version: Hashable, timeout_s: float) -> bool:
        """Wait until the store is not at `version` any more; False after `timeout_s` wall seconds.

        Take the version, look, then wait: so nothing that is stored in between is missed.
        """
        return self._changed_since(
            version, time.monotonic() + arguments.seconds("timeout_s", timeout_s)
        )

    # --- mark prices and funding ------------------------------------------------------------------

    def get_mark_price(self, pair: str, *, max_age_s: MaxAge = DEFAULT) -> MarkPrice:
        """Return the newest mark price of `pair`.

        Raises StaleDataError when it is older than `max_age_s` (30 s by default), for an ended pair
        as well, and when none is stored.
        """
        limit_s = arguments.max_age(max_age_s, latest.MARK_PRICE_MAX_AGE_S)
        now_ms = self.now_ms()
        entries = collected.entries(self._store, [arguments.pair_name(pair)])
        rows = running.mark_prices(self._store, entries)
        self._clock.saw(row.time_ms for row in rows.values())
        latest.refuse_stale("mark price", [pair], rows, limit_s, now_ms, absent_ok=False)
        return latest.mark_price(rows[pair], now_ms)

    def get_mark_candles(
        self, pair: str, timeframe: str = "1h", *, since: Time, until: Time | None = None
    ) -> pd.DataFrame:
        """Return candles of the mark price of `pair` with since <= open time < until, oldest first.

        Columns as of `get_ohlcv`, volume 0. The exchange's own, as far back as history is kept, of hours
        and what hours divide. Shorter ones, the hour that forms and the last one until it is fetched (some
        minutes) are made of the stored mark prices (two days of them: `journal.retention.mark_price`),
        without those whose first or last minute has none. `attrs`: pair, timeframe, source, made (of mark
        prices: open times), absent (the exchange twice answered without), lives (as of `get_ohlcv`).

        Raises UnknownPairError, UnknownTimeframeError.
        """
        name = arguments.pair_name(pair)
        length_ms = ohlcv.length_ms(timeframe)
        start_ms = schema.ceil_to(arguments.time_ms("since", since), length_ms)
        until_ms = None if until is None else arguments.time_ms("until", until)
        entries = collected.entries(self._store, [name])
        found = marks.asked(self._store, entries, length_ms, start_ms, until_ms, self.now_ms())
        attrs = {"pair": name, "timeframe": timeframe, "source": self._store.source}
        return marks.frame(found, attrs)

    def get_funding_rate(self, pair: str, *, max_age_s: MaxAge = DEFAULT) -> FundingRate:
        """Return the newest running funding rate of `pair`.

        Raises StaleDataError when it is older than `max_age_s` (150 s by default), for an ended pair
        as well, and when none is stored.
        """
        limit_s = arguments.max_age(max_age_s, latest.FUNDING_RATE_MAX_AGE_S)
        now_ms = self.now_ms()
        entries = collected.entries(self._store, [arguments.pair_name(pair)])
        rows = running.funding_rates(self._store, entries)
        self._clock.saw(row.time_ms for row in rows.values())
        latest.refuse_stale("funding rate", [pair], rows, limit_s, now_ms, absent_ok=False)
        return latest.funding_rate(rows[pair], now_ms, funding.intervals_h(self._store, rows)[pair])

    def get_all_pairs_funding_rates(self, *, max_age_s: MaxAge = DEFAULT) -> dict[str, FundingRate]:
        """Return pair -> newest running funding rate of all pairs that have not ended, in one query.

        Raises StaleDataError, naming the pairs, when one is older than `max_age_s` (150 s by default)
        or absent. A pair of which the exchange gives no rate (a fresh mark price has come without) is left
        out and logged once. With `max_age_s=None` all are returned, and pairs without any rate are left
        out. When there is no live pair at all it is raised whatever `max_age_s` is.
        """
        now_ms = self.now_ms()
        rows = self._live_rates(max_age_s, now_ms).rows
        hours = funding.intervals_h(self._store, rows)
        return {pair: latest.funding_rate(row, now_ms, hours[pair]) for pair, row in rows.items()}

    def funding_frame(self, *, max_age_s: MaxAge = DEFAULT) -> pd.DataFrame:
        """Return `get_all_pairs_funding_rates` as a frame indexed by pair.

        Columns rate, settled_rate (NaN where none is known), next_funding_time, time, age_s,
        interval_h (NaN likewise). `attrs`: without (pairs left out: the exchange gives no rate).
        """
        now_ms = self.now_ms()
        rows, without = self._live_rates(max_age_s, now_ms)
        return frames.funding_frame(
            rows, funding.intervals_h(self._store, rows), now_ms, {"without": list(without)}
        )

    def get_funding_history(
        self, pair: str, since: Time | None = None, until: Time | None = None
    ) -> pd.DataFrame:
        """Return the settled funding rates of `pair` with since <= time < until: columns date, rate, kind.

        `date` is rounded to the minute; oldest first. `kind` is `Regular` or `Special`: there may be both at
        one time, and both are paid (`sum_settlements`). `attrs`: pair, source, missing (of the last two
        weeks, from `since` or the first row on, when something was settled that is not stored, ms),
        settled_to (up to when, ms, all is stored by the collector's word, None without),
        lives (as of `get_ohlcv`).
        """
        start_ms = 0 if since is None else arguments.time_ms("since", since)
        end_ms = arguments.MAX_TIME_MS if until is None else arguments.time_ms("until", until)
        if start_ms >= end_ms:
            raise ArgumentError(
                f"since: must lie before until; found since={since!r}, until={until!r}"
            )
        entries = collected.entries(self._store, [arguments.pair_name(pair)])
        first_ms, last_ms = (None if since is None else start_ms, None if until is None else end_ms)
        return funding.asked(self._store, entries, first_ms, last_ms, self.now_ms())

    # --- what there is ----------------------------------------------------------------------------

    def pairs(self) -> list[PairInfo]:
        """Return what is collected, ordered by pair, ended and dropped pairs included."""
        return [collected.info(entry) for entry in self._store.catalog()]

    def lives(self, pair: str) -> list[Life]:
        """Return the contracts that `pair` has been the name of, oldest first; the last is the current one.

        Empty where no collector tells of them: an older one does not. Raises UnknownPairError.
        """
        entry = collected.entries(self._store, [arguments.pair_name(pair)])[pair]
        return [collected.told(row) for row in entry.lives]

    def current_lives(self) -> dict[str, Life]:
        """Return the current contract of every pair of which collectors tell: the last of `lives`."""
        return {
            row.pair: collected.told(row.lives[-1]) for row in self._store.catalog() if row.lives
        }

    # --- inside -----------------------------------------------------------------------------------

    def _changed_since(self, version: Hashable, deadline_s: float) -> bool:
        while self._store.version() == version:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(self._store.poll_s, left_s))
        return True

    def _live_rates(self, max_age_s: MaxAge, now_ms: int) -> running.Rates:
        rates = running.live_rates(self._store, max_age_s, now_ms)
        self._clock.saw(row.time_ms for row in rates.rows.values())
        self._gap_log.note_without_rate(rates.without)
        return rates
