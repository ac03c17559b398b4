"""A point that is read while influxd writes it lacks some of its fields: it is asked for again."""

from collections.abc import Callable

import msgspec
import pytest
from scripted import Scripted, http
from stored import M1, PAIR, START_MS

from reader import MarketReader, StoreUnavailableError
from reader.stores import influx_http

COLUMNS = ("time", "open", "high", "low", "close", "volume")
WHOLE = [START_MS, 1.0, 2.0, 0.5, 1.5, 9.0]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influx_http, "AGAIN_S", (0.0, 0.0))


def answer(*statements: list[list[object]]) -> bytes:
    """An answer of one series of PAIR for each statement that has rows, and the closing statement's."""
    results = [
        {"statement_id": number, "series": [{"tags": {"pair": PAIR}, "values": rows}]}
        if rows
        else {"statement_id": number}
        for number, rows in enumerate((*statements, []))
    ]
    body = msgspec.json.encode({"results": results})
    return http("200 OK", body, Content_Type="application/json")


FIRST = [START_MS, "1m"]
LAST = [START_MS, "1m", 0, None, False]
START = (answer([FIRST], [LAST]), answer([], []), answer([]))
"""The catalog, and coverage of which nobody tells."""


def torn(field: int) -> list[object]:
    return [None if number == field else value for number, value in enumerate(WHOLE)]


def candles(reader: MarketReader) -> list[list[float]]:
    frame = reader.get_ohlcv(PAIR, "1m", since=START_MS, until=START_MS + M1)
    return [row.tolist() for row in frame.iloc[:, 1:].to_numpy()]


def connect(url: str) -> MarketReader:
    return MarketReader.connect(url, now_ms=lambda: START_MS + M1 + 5_000)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("field", range(1, 6))
def test_a_torn_row_is_asked_for_again(field: int, times: int) -> None:
    with (
        Scripted(*START, *[answer([torn(field)])] * times, answer([WHOLE])) as server,
        connect(server.url) as reader,
    ):
        assert candles(reader) == [WHOLE[1:]]
        assert len(server.requests) == len(START) + times + 1


def test_what_stays_torn_is_named() -> None:
    with (
        Scripted(*START, answer([torn(4)])) as server,
        connect(server.url) as reader,
    ):
        with pytest.raises(StoreUnavailableError, match=r"no marketfeed wrote .*None|null"):
            candles(reader)
        assert len(server.requests) == len(START) + 3


ASKED: list[tuple[Callable[[MarketReader], object], bytes, bytes, object]] = [
    (
        lambda reader: float(reader.get_mark_price(PAIR)),
        answer([[START_MS + M1, None, 7.0]]),
        answer([[START_MS + M1, 7.5, 7.0]]),
        7.5,
    ),
    (
        lambda reader: reader.newest("1m"),
        answer([[START_MS, None]]),
        answer([[START_MS, 1.0]]),
        {PAIR: START_MS},
    ),
]


@pytest.mark.parametrize(("ask", "bad", "good", "expected"), ASKED)
def test_so_is_what_is_newest(
    ask: Callable[[MarketReader], object], bad: bytes, good: bytes, expected: object
) -> None:
    with Scripted(*START, bad, good) as server, connect(server.url) as reader:
        assert ask(reader) == expected


def test_so_is_the_catalog() -> None:
    """At the start, too."""
    bad = answer([FIRST], [[START_MS, None, 0, None, False]])
    with Scripted(bad, *START) as server, connect(server.url) as reader:
        assert [one.pair for one in reader.pairs()] == [PAIR]
