"""A reader of one version in a process of its own: what it answers of all pairs, as plain JSON.

Run as a program by the interpreter of one version or another; the standard library and `reader` are all that
is imported. Settings are one JSON argument: `url`, `bucket`, `pairs`, `timeframes`, `since_ms`; with `torn`
it is asked again where a point was read while it was written, as released readers do not. Each line of
standard input is the exchange's time in ms at which everything is asked; the answer is a line. What raises is
`{"error": its class, "text": its words}` in the place of the answer.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from reader import MarketReader
from reader.feeder import FUNDING_RATE, FUTURES, Download, Feeder

ANY_AGE_S = 1e9
"""Any age passes; what lacks at the end counts as missing all the same."""


class Look:
    """One reader; `now_ms` is the time it is asked at."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.now_ms = 0
        self.market = MarketReader.connect(
            given["url"], bucket=given["bucket"], now_ms=lambda: self.now_ms
        )
        # Time stands still for it: there is nothing to wait for.
        self.feeder = Feeder(self.market, lambda: self.now_ms, 0.0)

    def answer(self, now_ms: int) -> dict[str, Any]:
        """Everything at once."""
        self.now_ms = now_ms
        pairs, frames = self.given["pairs"], self.given["timeframes"]
        found = {
            "pairs": tried(self.pairs),
            "frames": {
                pair: {frame: tried(lambda: self.candles(pair, frame)) for frame in frames}  # noqa: B023
                for pair in pairs
            },
            "settled": {pair: tried(lambda: self.settled(pair)) for pair in pairs},  # noqa: B023
            "marks": {pair: tried(lambda: self.mark(pair)) for pair in pairs},  # noqa: B023
            "rates": tried(self.rates),
            "feeder": tried(self.downloads),
        }
        if hasattr(self.market, "lives"):
            found["lives"] = {pair: tried(lambda: self.lives(pair)) for pair in pairs}  # noqa: B023
            found["strict"] = {pair: tried(lambda: self.strict(pair)) for pair in pairs}  # noqa: B023
            found["older"] = {
                frame: tried(lambda: self.older(frame))  # noqa: B023
                for frame in frames
            }
        return found

    def pairs(self) -> dict[str, Any]:
        return {
            one.pair: {"timeframes": list(one.timeframes), "ended": ms(one.ended)}
            for one in self.market.pairs()
        }

    def candles(self, pair: str, timeframe: str, **more: Any) -> dict[str, Any]:
        since_ms = self.given["since_ms"]
        frame = self.market.get_ohlcv(pair, timeframe, since=since_ms, max_age_s=ANY_AGE_S, **more)
        columns = ("open", "high", "low", "close", "volume")
        times = map(ms, frame["date"])
        rows = zip(times, *(frame[name].tolist() for name in columns))  # noqa: B905
        return {
            "rows": [list(row) for row in rows],
            "missing": [ms(at) for at in frame.attrs["missing"]],
            "absent": [ms(at) for at in frame.attrs.get("absent", ())],
            "lives": frame.attrs.get("lives"),
        }

    def older(self, timeframe: str) -> dict[str, Any]:
        return self.candles(self.given["reused"], timeframe, until=self.given["reused_end_ms"])

    def strict(self, pair: str) -> dict[str, Any]:
        since_ms, timeframe = self.given["since_ms"], self.given["timeframes"][0]
        self.market.get_ohlcv(pair, timeframe, since=since_ms, strict=True, max_age_s=ANY_AGE_S)
        return {}

    def settled(self, pair: str) -> dict[str, Any]:
        frame = self.market.get_funding_history(pair, self.given["since_ms"])
        kinds = frame["kind"].tolist() if "kind" in frame else [None] * len(frame)
        rows = zip(map(ms, frame["date"]), frame["rate"].tolist(), kinds)  # noqa: B905
        return {
            "rows": [list(row) for row in rows],
            "missing": list(frame.attrs.get("missing", ())),
            "settled_to": frame.attrs.get("settled_to"),
        }

    def mark(self, pair: str) -> dict[str, Any]:
        found = self.market.get_mark_price(pair, max_age_s=None)
        return {"price": float(found), "time": ms(found.time)}

    def rates(self) -> dict[str, Any]:
        found = self.market.get_all_pairs_funding_rates(max_age_s=None)
        return {
            pair: {
                "rate": float(one),
                "settled": one.settled_rate,
                "next": ms(one.next_funding_time),
                "interval_h": getattr(one, "interval_h", None),
            }
            for pair, one in found.items()
        }

    def lives(self, pair: str) -> list[list[Any]]:
        return [[one.symbol, ms(one.listed), ms(one.ended)] for one in self.market.lives(pair)]

    def downloads(self) -> dict[str, Any]:
        """Through the feeders' seam: candles of the newest and settled rates."""
        asked = {}
        for pair in self.given["pairs"]:
            for frame in self.given["timeframes"]:
                asked[f"{pair} {frame}"] = Download(pair, frame, FUTURES, None, 20)
            since_ms = self.given["since_ms"]
            asked[f"{pair} settled"] = Download(pair, "1h", FUNDING_RATE, since_ms, 1_000, since_ms)
        answers = self.feeder.answer(list(asked.values()))
        return {
            name: error(one) if isinstance(one, Exception) else {"rows": one}
            for name, one in zip(asked, answers)  # noqa: B905
        }


def ms(time: Any) -> "int | None":
    """A time as ms since the epoch."""
    return None if time is None else time.value // 1_000_000


def error(one: Exception) -> dict[str, Any]:
    """What was raised, as an answer."""
    return {"error": type(one).__name__, "text": str(one)}


TORN = "no marketfeed wrote"
"""In the words of what a released reader raises where a point lacks some of its fields."""
again_s: "list[float]" = []
"""Wall seconds after which such a question is asked again."""


def tried(ask: Callable[[], Any]) -> Any:
    """The answer, or what was raised."""
    for pause_s in [*again_s, None]:
        try:
            return ask()
        except Exception as problem:
            found = problem
        if pause_s is None or TORN not in str(found):
            break
        time.sleep(pause_s)
    return error(found)


def main() -> None:
    """See the module's docstring."""
    given = json.loads(sys.argv[1])
    again_s.extend([0.1, 1.0] if given.get("torn") else [])
    look = Look(given)
    for line in sys.stdin:
        answer = look.answer(int(line))
        # What Freqtrade is given are rows of numbers, some of them of numpy.
        sys.stdout.write(json.dumps(answer, default=float) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
