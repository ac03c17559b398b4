"""A year of an exchange's listings through lives, roster and coverage alone, one answer an hour.

Contracts are listed (off the grid, too), halt, end (by date or by status alone), go on after all, come back
under the same symbol as another coin, or under the same name with another symbol; types change. Answers
lack rows, have rows that cannot be read, and dates of listing that are wrong. Rhythms of settlements change
(`simulated_rhythms.py`). What is held is held against what the exchange knows of itself, at every day's end.

Timeframes below an hour are promised and kept for days: a month of 3m would be most of the time.
"""

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.binance.symbols import NEVER_MS, ExchangeInfo, Instrument, select_all
from marketfeed.grid import TimeRange
from marketfeed.journal.coverage import (
    Covered,
    Promise,
    expected,
    mistakes,
    promised,
    stored,
    stored_before,
)
from marketfeed.pairs.known_lives import KnownLives
from marketfeed.pairs.lives import Lives
from marketfeed.pairs.lives import mistakes as mistakes_of_lives
from marketfeed.pairs.roster import Roster
from tests.pairs.simulated_rhythms import Rhythms

HOUR_MS: Final = schema.HOUR_MS
DAY_MS: Final = schema.DAY_MS
START_MS: Final = 20_400 * DAY_MS
KEEP_MS: Final = 30 * DAY_MS
KEEP_FINE_MS: Final = {"3m": DAY_MS // 2, "5m": DAY_MS // 2, "15m": DAY_MS}
"""How far back candles below an hour are promised; twice that is kept: a day's are there at its end."""
TIMEFRAMES: Final = (*KEEP_FINE_MS, "1h", "4h", "1d")
DELISTED_STATUSES: Final = ("SETTLING", "DELIVERED", "CLOSE", "DELIVERING")
HALTS: Final = ("TRADING_HALT", "BREAK", "HALT", "A_NEW_WORD", "")
SETTLES_MS: Final = 4 * HOUR_MS
"""So long after an end, and after a halt ends, answers may still have it otherwise."""


class Contract(msgspec.Struct):
    """One contract as the exchange itself knows it."""

    symbol: str
    pair: str
    listed_ms: int
    ended_ms: int | None = None
    announced: bool = False
    halted_until_ms: int = 0
    halt: str = ""
    kind: str = "PERPETUAL"
    end_status: str = "SETTLING"
    shown_listed_ms: int = 0
    changed_ms: int = 0

    def is_live(self, now_ms: int) -> bool:
        """Whether it is listed and not over."""
        return self.listed_ms <= now_ms and (self.ended_ms is None or now_ms < self.ended_ms)

    def row(self, now_ms: int) -> Instrument | None:
        """Its row of exchangeInfo; None before it trades."""
        if now_ms < self.listed_ms:
            return None
        status = self.halt if now_ms < self.halted_until_ms else "TRADING"
        over = self.ended_ms is not None and now_ms >= self.ended_ms
        if over:
            status = self.end_status
        delivery_ms = NEVER_MS
        if self.ended_ms is not None and self.announced:
            delivery_ms = self.ended_ms
        listed_ms = self.shown_listed_ms or self.listed_ms
        return Instrument(self.symbol, self.pair, "USDT", status, self.kind, listed_ms, delivery_ms)


class Year:
    """The exchange, what is held of it, and the rows that come of what is collected."""

    def __init__(self, seed: int, pairs: int = 12) -> None:
        self.rng = random.Random(seed)
        self.now_ms = START_MS
        self.contracts: list[Contract] = []
        self.known = KnownLives()
        self.roster = Roster(select_all(ExchangeInfo({}, 0), "USDT"))
        self.coverage: dict[tuple[str, str], Covered] = {}
        self.rows: dict[tuple[str, str], set[int]] = {}
        self.asked = 0
        self.rhythms = Rhythms(random.Random(f"rhythms {seed}"), START_MS)
        self._numbers = iter(range(1_000))
        for _ in range(pairs):
            self._list(START_MS - self.rng.randrange(400) * DAY_MS)

    def run(self, days: int) -> Iterator[int]:
        """Let days pass; yields after each, at its end."""
        for day in range(days):
            for _ in range(24):
                self._settle()
                self.now_ms += HOUR_MS
                self._trade()
                self._happen()
                self._answer()
            self._delete()
            yield day

    def _settle(self) -> None:
        """The next hour's settlements: frames come of what is collected and trades."""
        collected = {}
        for one in self.roster.instruments:
            contract = self._newest(one.pair)
            if contract.symbol == one.symbol and contract.listed_ms <= self.now_ms:
                collected[one.pair] = (contract, contract.listed_ms, contract.ended_ms)

        def is_heard(pair: str, now_ms: int) -> bool:
            contract = self._newest(pair)
            return contract.is_live(now_ms) and now_ms >= contract.halted_until_ms

        self.rhythms.pass_hour(self.now_ms, collected, is_heard)

    def _delete(self) -> None:
        """Retention, as `Covering.delete` tells coverage of it."""
        for key, known in self.coverage.items():
            keep_ms = KEEP_FINE_MS.get(key[1])
            if keep_ms is None:
                continue
            length_ms = schema.TIMEFRAMES_MS[key[1]]
            before_ms = schema.ceil_to(self.now_ms - 2 * keep_ms, length_ms)
            have = self.rows.get(key, set())
            old = {at_ms for at_ms in have if at_ms < before_ms}
            if old or (known.holes and known.holes[0].start_ms < before_ms):
                have -= old
                self.coverage[key] = stored_before(known, before_ms)

    # --- the exchange -----------------------------------------------------------------------------------

    def _list(self, listed_ms: int, symbol: str = "", pair: str = "") -> None:
        name = f"C{next(self._numbers)}"
        self.contracts.append(
            Contract(
                symbol or f"{name}USDT",
                pair or f"{name}/USDT:USDT",
                listed_ms,
                end_status=self.rng.choice(DELISTED_STATUSES),
            )
        )

    def _newest(self, pair: str) -> Contract:
        return [one for one in self.contracts if one.pair == pair][-1]

    def _happen(self) -> None:
        rng, now_ms = self.rng, self.now_ms
        for one in list(self.contracts):
            if one is not self._newest(one.pair):
                continue
            drawn = rng.random()
            if not one.is_live(now_ms):
                over_ms = None if one.ended_ms is None else now_ms - one.ended_ms
                if over_ms is not None and over_ms > 2 * DAY_MS and drawn < 1 / 1_500:
                    # Another coin, sometimes by another symbol: as a rule at no full hour.
                    other = f"{one.symbol}2" if rng.random() < 0.2 else one.symbol
                    self._list(now_ms + rng.randrange(1, 2 * DAY_MS), other, one.pair)
                elif over_ms is not None and over_ms < DAY_MS and drawn < 1 / 400:
                    # An end that is taken back.
                    one.ended_ms, one.announced, one.changed_ms = None, False, now_ms
            elif one.ended_ms is None and drawn < 1 / 4_000:
                one.ended_ms, one.announced = now_ms + rng.randrange(1, 9 * DAY_MS), True
            elif one.ended_ms is None and drawn < 1.4 / 4_000:
                one.ended_ms, one.announced = now_ms, False
            elif drawn < 4 / 4_000:
                one.halted_until_ms, one.halt = (
                    now_ms + rng.randrange(3 * DAY_MS),
                    rng.choice(HALTS),
                )
            elif drawn < 4.4 / 4_000:
                kinds = ("PERPETUAL", "TRADIFI_PERPETUAL", "HYPERPETUAL")
                one.kind = rng.choice(kinds)
            elif drawn < 5 / 4_000:
                # Wrong until it is put right.
                wrong_ms = one.listed_ms + rng.randrange(2, 40) * DAY_MS
                one.shown_listed_ms = 0 if one.shown_listed_ms or wrong_ms > now_ms else wrong_ms
            elif one.ended_ms is not None and one.announced and drawn < 8 / 4_000:
                one.changed_ms = now_ms
                one.ended_ms += rng.randrange(1, 2 * DAY_MS)
        if rng.random() < 1 / 400:
            self._list(now_ms + rng.randrange(1, DAY_MS))
        if rng.random() < 1 / 2_000:
            for one in self.contracts:
                one.halted_until_ms, one.halt = now_ms + 5 * HOUR_MS, "BREAK"

    def _info(self) -> ExchangeInfo:
        rows = [row for one in self.contracts if (row := one.row(self.now_ms)) is not None]
        lost = 0.3 if self.rng.random() < 0.03 else 0.0
        found: dict[str, Instrument] = {}
        beside: list[Instrument] = []
        odd: dict[str, str] = {}
        # The newest contract of a symbol has its row alone.
        for row in {row.symbol: row for row in rows}.values():
            if self.rng.random() < lost:
                continue
            if self.rng.random() < 0.0005:
                odd[row.symbol] = "onboardDate"
            elif row.pair in found:
                beside.append(found[row.pair])
                found[row.pair] = row
            else:
                found[row.pair] = row
        return ExchangeInfo(found, len(odd), odd, beside=tuple(beside))

    def _trade(self) -> None:
        """What has closed of what is collected is stored, unless it gets lost, and is fetched."""
        length_ms = HOUR_MS
        for one in self.roster.instruments:
            contract = self._newest(one.pair)
            if contract.symbol != one.symbol or self.now_ms < contract.listed_ms:
                continue
            for timeframe in TIMEFRAMES:
                key, length_ms = (one.pair, timeframe), schema.TIMEFRAMES_MS[timeframe]
                known = self.coverage.get(key)
                if known is None:
                    continue
                due_ms = schema.floor_to(self.now_ms, length_ms)
                end_ms = contract.ended_ms
                if end_ms is not None:
                    due_ms = min(due_ms, schema.floor_to(end_ms, length_ms))
                first_ms = schema.floor_to(contract.listed_ms, length_ms)
                have = self.rows.setdefault(key, set())
                lacking = [
                    at
                    for start_ms, end_ms, *_ in (*known.holes, (known.end_ms, due_ms))
                    for at in range(max(start_ms, first_ms), min(end_ms, due_ms), length_ms)
                ]
                came = [at for at in lacking if self.rng.random() < 0.9]
                if came:
                    have.update(came)
                    self.coverage[key] = stored(known, came, length_ms)

    # --- what is held -----------------------------------------------------------------------------------

    def _heard_ms(self, pair: str) -> int:
        """Frames come while a contract is live and has not halted."""
        contract = self._newest(pair)
        if contract.is_live(self.now_ms):
            return max(
                contract.listed_ms, self.now_ms if self.now_ms >= contract.halted_until_ms else 0
            )
        if contract.ended_ms is not None and contract.ended_ms <= self.now_ms:
            return contract.ended_ms
        return 0

    def _answer(self) -> None:
        info = self.known.take_in(self._info(), self.now_ms, self._heard_ms)
        for doubt in self.known.doubts:
            self.asked += 1
            day_ms = doubt.day_ms
            traded = any(
                one.symbol == doubt.symbol
                and one.listed_ms < day_ms + DAY_MS
                and (one.ended_ms is None or one.ended_ms > day_ms)
                for one in self.contracts
            )
            self.known.answered(doubt, traded, None)
        wanted = select_all(info, "USDT", ("perpetual", "tradifi"))
        self.roster.update(info, wanted, self.now_ms)
        self.roster.expire(self.now_ms, self._heard_ms, schema.MINUTE_MS)
        for one in self.roster.instruments:
            for timeframe in TIMEFRAMES:
                self._promise(one, timeframe)

    def _promise(self, one: Instrument, timeframe: str) -> None:
        key, length_ms = (one.pair, timeframe), schema.TIMEFRAMES_MS[timeframe]
        have = self.rows.get(key, set())
        known = self.coverage.get(key)
        until_ms = self.now_ms if one.ended_ms is None else min(self.now_ms, one.ended_ms)
        listed_ms = schema.floor_to(min(one.listed_ms, self.now_ms), length_ms)
        # As `gaps/promises.py` does: what is new, what has ended, what has become another contract.
        if (
            known is not None
            and known.from_ms >= listed_ms
            and not (one.ended_ms is not None and known.holes and known.holes[-1].end_ms > until_ms)
        ):
            self.coverage[key] = expected(known, schema.floor_to(until_ms, length_ms))
            return
        keep_ms = KEEP_FINE_MS.get(timeframe)
        # Of a new listing all is promised, where it is as lately as that is kept.
        age_ms = self.now_ms - one.listed_ms
        reach_ms = age_ms if keep_ms is None or age_ms <= keep_ms else 0
        promise = Promise(
            *key, self.now_ms, keep_ms or KEEP_MS, one.listed_ms, reach_ms, 0, one.ended_ms
        )

        def lacking(where: TimeRange) -> list[TimeRange]:
            opens = range(where.start_ms, where.end_ms, length_ms)
            return [TimeRange(at, at + length_ms) for at in opens if at not in have]

        covered = promised(known, promise, max(have, default=None), lacking)
        self.coverage[key] = expected(covered, schema.floor_to(until_ms, length_ms))

    # --- what is wrong ----------------------------------------------------------------------------------

    def wrong(self) -> list[str]:
        """What of all that is held is not as the exchange has it."""
        return [
            *self._wrong_lives(),
            *self._wrong_roster(),
            *self._wrong_series(),
            *self.rhythms.wrong(self.now_ms),
        ]

    def _wrong_lives(self) -> Iterator[str]:
        for pair, lives in self.known.lives.items():
            yield from mistakes_of_lives(lives)
            mine = [
                one
                for one in self.contracts
                if one.pair == pair and one.listed_ms + SETTLES_MS <= self.now_ms
            ]
            for one in mine:
                yield from self._wrong_end(one, lives)
            for life in lives:
                if life.listed_ms + SETTLES_MS > self.now_ms:
                    continue
                if not any(
                    one.symbol == life.symbol
                    and schema.floor_to(one.listed_ms, DAY_MS)
                    == schema.floor_to(life.listed_ms, DAY_MS)
                    for one in mine
                ):
                    yield f"{pair}: a life that no contract has had: {life}, of {mine}"

    def _wrong_end(self, one: Contract, lives: Lives) -> Iterator[str]:
        """An end is where it was: by its date to the ms, by its status when that was seen."""
        day_ms = schema.floor_to(one.listed_ms, DAY_MS)
        life = next(
            (
                life
                for life in lives
                if life.symbol == one.symbol and schema.floor_to(life.listed_ms, DAY_MS) == day_ms
            ),
            None,
        )
        settled = max(one.changed_ms, one.ended_ms or 0) + SETTLES_MS <= self.now_ms
        if life is None or not settled:
            return
        if one.ended_ms is None or life.ended_ms is None:
            right = life.ended_ms == one.ended_ms
        else:
            late_ms = life.ended_ms - one.ended_ms
            right = late_ms == 0 if one.announced else 0 <= late_ms <= SETTLES_MS
        if not right:
            yield f"{one.pair}: another end than its own: {life}, {one}"

    def _wrong_roster(self) -> Iterator[str]:
        for one in self.contracts:
            if one is not self._newest(one.pair) or one.listed_ms + SETTLES_MS > self.now_ms:
                continue
            if one.kind == "HYPERPETUAL" or self.now_ms < one.halted_until_ms + SETTLES_MS:
                # What nobody collects does not join, and what ends while it has halted is seen to.
                continue
            over = one.ended_ms is not None and one.ended_ms + SETTLES_MS <= self.now_ms
            if one.ended_ms is None and one.pair not in self.roster:
                yield f"{one.pair} trades, and is not collected: {one}, {self.known.lives.get(one.pair)}"
            if over and one.pair in self.roster:
                yield f"{one.pair} is over, and is collected: {one}, {self.known.lives[one.pair]}"
            if one.ended_ms is None and one.pair in self.roster.halted:
                yield f"{one.pair} trades, and is called halted"

    def _wrong_series(self) -> Iterator[str]:
        for key, covered in self.coverage.items():
            pair, length_ms = key[0], schema.TIMEFRAMES_MS[key[1]]
            have = sorted(self.rows.get(key, ()))
            for text in mistakes(covered, have, length_ms):
                yield f"{key}: {text}"
            if pair not in self.roster:
                continue
            life = self.known.lives[pair][-1]
            first_ms = schema.floor_to(life.listed_ms, length_ms)
            if covered.from_ms < first_ms:
                yield f"{key}: promised from {covered.from_ms}, listed {first_ms}"
            contract = self._newest(pair)
            if (
                contract.symbol == life.symbol
                and covered.from_ms < schema.floor_to(contract.listed_ms, length_ms)
                and self.now_ms >= contract.listed_ms + SETTLES_MS
            ):
                yield f"{key}: promised from before its contract: {covered.from_ms}, {contract}"


class Passed(NamedTuple):
    """What came of one year."""

    wrong: list[str]
    days: int
    contracts: int
    lives: int
    settled: int
    special: int
    changed: int


def pass_year(seed: int) -> Passed:
    """Let one year pass."""
    year, wrong, days = Year(seed, pairs=8), [], 0
    for day in year.run(365):
        days += 1
        wrong += [f"seed {seed}, day {day}: {text}" for text in year.wrong()]
    rhythms, lives = year.rhythms, sum(map(len, year.known.lives.values()))
    passed = (rhythms.settled, rhythms.special, rhythms.changed)
    return Passed(wrong, days, len(year.contracts), lives, *passed)


def main() -> int:
    """Let so many years pass as the first argument says (40), and say what was wrong."""
    years = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    found: list[Passed] = []
    with ProcessPoolExecutor() as pool:
        for seed, one in enumerate(pool.map(pass_year, range(years))):
            found.append(one)
            for text in one.wrong:
                print(text, flush=True)  # noqa: T201
            sys.stderr.write(f"seed {seed}: {len(one.wrong)} wrong, {len(found)} of {years}\n")
    wrong = sum(len(one.wrong) for one in found)
    days, contracts, lives, settled, special, changed = (
        sum(column) for column in zip(*(one[1:] for one in found), strict=True)
    )
    print(  # noqa: T201
        f"{years} years, {days:,} days' ends: {contracts:,} contracts, {lives:,} lives, "
        f"{settled:,} settlements ({special:,} special), {changed:,} changes of a rhythm, {wrong} wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
