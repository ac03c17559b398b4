"""What the simulated exchange knows of a plan's pairs, asked over HTTP: candles, settlements, lives."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from marketfeed.schema import TIMEFRAMES_MS, floor_to, to_minute
from tests.faults.proc_commands import Exchange, get
from tests.upgrade.mixed_plan import ENDING, PAIRS, REUSED, TIMEFRAMES, Plan

END_OF_TIME_MS: Final = 2**60
_MOST: Final = 1_500

Row = Sequence[Any]
"""open, high, low, close, volume."""


class LifeSpan(NamedTuple):
    """One contract of a pair: it trades from `listed_ms` until `ended_ms`."""

    symbol: str
    listed_ms: int
    ended_ms: int | None

    def owns(self, length_ms: int) -> tuple[int, int]:
        """From where to where candles of that length are its: one that its end cuts is nobody's."""
        end_ms = END_OF_TIME_MS if self.ended_ms is None else floor_to(self.ended_ms, length_ms)
        return floor_to(self.listed_ms, length_ms), end_ms


class Known:
    """Candles by pair, timeframe and open time; settlements by pair, minute and kind; contracts by pair."""

    def __init__(self, lives: Mapping[str, Sequence[LifeSpan]]) -> None:
        self.lives = lives
        self.candles: dict[tuple[str, str], dict[int, Row]] = {
            (pair, timeframe): {} for pair in PAIRS for timeframe in TIMEFRAMES
        }
        self.settled: dict[str, dict[tuple[int, str], float]] = {pair: {} for pair in PAIRS}

    def life_at(self, pair: str, timeframe: str, open_ms: int) -> LifeSpan | None:
        """The contract whose candle opens then."""
        for life in self.lives[pair]:
            first_ms, end_ms = life.owns(TIMEFRAMES_MS[timeframe])
            if first_ms <= open_ms < end_ms:
                return life
        return None

    def settled_of(self, pair: str, start_ms: int, end_ms: int) -> list[tuple[int, str, float]]:
        """What was settled of the pair's last contract by `end_ms`, oldest first."""
        listed_ms = max(start_ms, self._begun(pair, end_ms).listed_ms)
        return sorted(
            (at_ms, kind, rate)
            for (at_ms, kind), rate in self.settled[pair].items()
            if listed_ms <= at_ms < end_ms
        )

    def _begun(self, pair: str, now_ms: int) -> LifeSpan:
        return [one for one in self.lives[pair] if one.listed_ms < now_ms][-1]


class Truth(Known):
    """Grows as the exchange goes on; nothing that was once so is forgotten."""

    def __init__(self, sim: Exchange, plan: Plan) -> None:
        self._sim = sim
        self._plan = plan
        self._number = 0
        super().__init__(self._contracts())
        for pair, timeframe in self.candles:
            self._take_history(pair, timeframe)
        for pair in PAIRS:
            self._take_settled(pair)

    def now_ms(self) -> int:
        """The exchange's time."""
        return int(get(f"{self._sim.rest_url}/simulator/state").json["exchange_time_ms"])

    def update(self) -> None:
        """Take in the candles that have closed since."""
        for one in self._sim.published(self._number):
            self._number = one.number
            row = (one.open, one.high, one.low, one.close, one.volume)
            self.candles[one.pair, one.timeframe][one.open_time_ms] = row

    def settle(self) -> None:
        """Take in what has been settled since of what trades."""
        for pair in PAIRS:
            if pair != ENDING:
                # Of a symbol REST tells what settled before the contract, too, as if it had been its own.
                self._take_settled(pair, self.lives[pair][-1].listed_ms)

    def _rest(self, endpoint: str, **query: object) -> Any:
        answer = get(f"{self._sim.rest_url}/fapi/v1/{endpoint}?{urlencode(query)}")
        assert answer.status == 200, answer
        return json.loads(answer.body)

    def _contracts(self) -> dict[str, list[LifeSpan]]:
        plan = self._plan
        listed_ms = {
            one["symbol"]: int(one["onboardDate"]) for one in self._rest("exchangeInfo")["symbols"]
        }
        return contracts(plan, listed_ms)

    def _take_history(self, pair: str, timeframe: str) -> None:
        now_ms, length_ms = self.now_ms(), TIMEFRAMES_MS[timeframe]
        query = {"interval": timeframe, "startTime": self._plan.since_ms, "limit": _MOST}
        for row in self._rest("klines", symbol=symbol(pair), **query):
            if int(row[0]) + length_ms <= now_ms:
                self.candles[pair, timeframe][int(row[0])] = tuple(map(float, row[1:6]))

    def _take_settled(self, pair: str, from_ms: int = 0) -> None:
        query = {"startTime": max(from_ms, self._plan.since_ms), "limit": 1_000}
        for row in self._rest("fundingRate", symbol=symbol(pair), **query):
            key = to_minute(int(row["fundingTime"])), str(row["rateType"])
            self.settled[pair][key] = float(row["fundingRate"])


def symbol(pair: str) -> str:
    """The exchange's name of a pair's contract."""
    return pair.partition("/")[0] + "USDT"


def contracts(plan: Plan, listed_ms: Mapping[str, int]) -> dict[str, list[LifeSpan]]:
    """The contracts of each pair by the plan, of which the first were listed then, by symbol."""
    found = {pair: [LifeSpan(symbol(pair), listed_ms[symbol(pair)], None)] for pair in PAIRS}
    found[ENDING] = [found[ENDING][0]._replace(ended_ms=plan.ending_ms)]
    found[REUSED] = [
        found[REUSED][0]._replace(ended_ms=plan.reused_end_ms),
        LifeSpan(symbol(REUSED), plan.again_ms, None),
    ]
    return found
