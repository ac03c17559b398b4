"""Properties of the simulated market: trades, candles of all timeframes, and when frames go out."""

import itertools
import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_candles import PAIRS, RATES, START_MS, bar_of

from marketfeed import schema
from marketfeed.binance.decode import FrameDecoder, Reject
from marketfeed.errors import SettingsError
from marketfeed.records import Candle
from marketfeed.schema import MINUTE_MS
from marketfeed.simulator import catalogue, dataset
from marketfeed.simulator.frames import Bar, combined_head
from marketfeed.simulator.history import GeneratedSource
from marketfeed.simulator.instrument import Instrument
from marketfeed.simulator.market import Market, kline_stream
from marketfeed.simulator.pair import PairMarket
from marketfeed.simulator.trades import Trade
from marketfeed.simulator.venue import Event, Stream

TIMEFRAMES = ("1m", "3m", "5m")
MINUTES = 15


class TappedMarket(PairMarket):
    """Keeps the trades that it planned."""

    __slots__ = ("planned",)

    def _make_plan(self, open_ms: int) -> list[Trade]:
        plan = super()._make_plan(open_ms)
        planned = getattr(self, "planned", [])
        planned += plan[:-1]
        self.planned = planned
        return plan


def tapped(instrument: Instrument, seed: int, *, empty_closes: bool = True) -> TappedMarket:
    streams = {name: Stream(kline_stream(instrument.symbol, name)) for name in TIMEFRAMES}
    for stream in streams.values():
        stream.wanted = True
    source = GeneratedSource(instrument, seed)
    return TappedMarket(instrument, source, streams, START_MS, seed, empty_closes=empty_closes)


def running_bars(trades: Sequence[Trade], last_price: int) -> list[Bar]:
    """The candle after 0, 1, 2 … of the trades."""
    bars = [bar_of([], last_price)]
    for _, price, lots, bought in trades:
        bar = bars[-1] if bars[-1].trades else Bar(price, price, price, price, 0, 0, 0, 0, 0)
        bars.append(
            Bar(
                bar.open, max(bar.high, price), min(bar.low, price), price, bar.volume + lots,
                bar.trades + 1, bar.quote + price * lots, bar.taker_buy + lots * bought,
                bar.taker_buy_quote + price * lots * bought,
            )
        )  # fmt: skip
    return bars


def shown(event: Event, instrument: Instrument) -> tuple[int, bool, Bar]:
    """Open time, whether closed, and the numbers of a kline frame."""
    k = json.loads(event.data)["k"]

    def units(text: str, precision: int) -> int:
        assert len(text.partition(".")[2]) == precision
        return int(text.replace(".", ""))

    price, lots = instrument.price_precision, instrument.quantity_precision
    quote = instrument.quote_precision
    bar = Bar(
        units(k["o"], price), units(k["h"], price), units(k["l"], price), units(k["c"], price),
        units(k["v"], lots), k["n"], units(k["q"], quote), units(k["V"], lots),
        units(k["Q"], quote),
    )  # fmt: skip
    assert k["L"] - k["f"] + 1 == k["n"] or (k["f"], k["L"], k["n"]) == (-1, -1, 0)
    return k["t"], k["x"], bar


@settings(max_examples=25)
@given(
    pair=st.sampled_from(PAIRS), rate=RATES, seed=st.integers(0, 10**6), empty_closes=st.booleans()
)
def test_frames_follow_the_trades_and_the_clock(
    pair: str, rate: float, seed: int, empty_closes: bool
) -> None:
    instrument = catalogue.make_instrument(pair, rate)
    market = tapped(instrument, seed, empty_closes=empty_closes)
    first_price = market.last_price
    events: list[Event] = []
    end_ms = START_MS + MINUTES * MINUTE_MS
    market.advance(end_ms + 2_000, events)
    trades = market.planned
    times = [time_ms for time_ms, *_ in trades]
    assert times == sorted(times)
    assert all(price % instrument.tick_units == 0 and lots >= 1 for _, price, lots, _ in trades)

    by_stream = defaultdict(list)
    for event in events:
        by_stream[event.stream.name].append(event)
    for timeframe in TIMEFRAMES:
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        name = kline_stream(instrument.symbol, timeframe)
        closed: dict[int, int] = {}
        last_frame_ms = 0
        # Open time -> the trades in the interval, and the candle after each of them.
        within: dict[int, tuple[Sequence[Trade], list[Bar]]] = {}
        for open_ms in range(START_MS, end_ms + length_ms, length_ms):
            first, end = bisect_left(times, open_ms), bisect_left(times, open_ms + length_ms)
            inside = trades[first:end]
            last_price = trades[first - 1][1] if first else first_price
            within[open_ms] = (inside, running_bars(inside, last_price))
        for event in by_stream[name]:
            open_ms, is_closed, bar = shown(event, instrument)
            inside, bars = within[open_ms]
            # What a frame shows is what its first n trades make.
            assert bar == bars[bar.trades]
            assert open_ms not in closed
            if is_closed:
                after = times[bisect_left(times, open_ms + length_ms) :][:1]
                assert event.time_ms == min([open_ms + length_ms + 2_000, *after])
                assert bar.trades == len(inside)
                assert empty_closes or inside
                closed[open_ms] = event.time_ms
                assert event.closed is not None
                assert event.closed.open_time_ms == open_ms
                assert event.closed.trades == bar.trades
                assert event.closed.close == bar.close / instrument.price_scale
            else:
                assert event.time_ms < open_ms + length_ms
                assert bar.trades >= 1
                assert event.time_ms - last_frame_ms >= 250
                # It goes out at a trade, and shows that one.
                assert inside[bar.trades - 1][0] == event.time_ms
                previous_open_ms = open_ms - length_ms
                if empty_closes and previous_open_ms >= START_MS:
                    assert previous_open_ms in closed
            last_frame_ms = event.time_ms
        expected = {
            open_ms
            for open_ms in range(START_MS, end_ms - length_ms + 1, length_ms)
            if empty_closes or within[open_ms][0]
        }
        assert closed.keys() == expected


@settings(max_examples=20)
@given(pair=st.sampled_from(PAIRS), rate=RATES, seed=st.integers(0, 10**6))
def test_three_minutes_make_a_3m_candle(pair: str, rate: float, seed: int) -> None:
    instrument = catalogue.make_instrument(pair, rate)
    market = tapped(instrument, seed)
    events: list[Event] = []
    market.advance(START_MS + MINUTES * MINUTE_MS + 2_000, events)
    bars: dict[tuple[str, int], Bar] = {}
    for event in events:
        open_ms, is_closed, bar = shown(event, instrument)
        if is_closed:
            bars[event.stream.name.rpartition("_")[2], open_ms] = bar
    for (timeframe, open_ms), bar in bars.items():
        count = schema.TIMEFRAMES_MS[timeframe] // MINUTE_MS
        minutes = [bars["1m", open_ms + at * MINUTE_MS] for at in range(count)]
        assert bar == Bar(
            minutes[0].open,
            max(minute.high for minute in minutes),
            min(minute.low for minute in minutes),
            minutes[-1].close,
            *(sum(minute[at] for minute in minutes) for at in range(4, 9)),
        )
        # The same from REST.
        assert market.bars(open_ms // MINUTE_MS, count, count) == [bar]


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    steps=st.lists(st.integers(1, 40_000), min_size=1, max_size=40),
    offset_ms=st.integers(0, 200_000),
)
def test_the_seed_decides_everything_and_steps_nothing(
    seed: int, steps: list[int], offset_ms: int
) -> None:
    def run(cuts: Sequence[int]) -> list[tuple[int, str, bytes]]:
        instruments = catalogue.instruments(PAIRS)
        market = Market(
            instruments,
            TIMEFRAMES,
            start_ms=START_MS + offset_ms,
            seed=seed,
            bystanders=catalogue.bystanders(START_MS),
        )
        for stream in market.streams.values():
            stream.wanted = True
        found: list[tuple[int, str, bytes]] = []
        for now_ms in cuts:
            found += [
                (event.time_ms, event.stream.name, event.data) for event in market.advance(now_ms)
            ]
        return found

    cuts = list(itertools.accumulate(steps, initial=START_MS + offset_ms))
    in_steps = run(cuts)
    assert in_steps == run(cuts[-1:])
    times = [time_ms for time_ms, *_ in in_steps]
    assert times == sorted(times)
    assert all(START_MS + offset_ms < time_ms <= cuts[-1] for time_ms in times)


def test_frames_of_streams_nobody_wants_are_not_written_but_closed_candles_are_kept() -> None:
    market = Market(catalogue.instruments(3), ("1m",), start_ms=START_MS)
    events = market.advance(START_MS + 3 * MINUTE_MS)
    assert events
    assert all(event.closed is not None for event in events)


def test_bitcoin_follows_the_made_day() -> None:
    day = dataset.made_day()
    rows = [line.split(",") for line in dataset.made_csv().splitlines()[1:]]
    offset_minutes = 700
    start_ms = schema.floor_to(START_MS, schema.DAY_MS) + offset_minutes * MINUTE_MS
    market = Market(catalogue.instruments(1), ("1m",), start_ms=start_ms, day=day)
    events = market.advance(start_ms + 31 * MINUTE_MS)
    candles = [event.closed for event in events if event.closed is not None]
    assert len(candles) >= 30
    for at, candle in enumerate(candles):
        row = rows[offset_minutes + at]
        assert candle.open_time_ms == start_ms + at * MINUTE_MS
        assert [candle.open, candle.high, candle.low, candle.close] == [float(n) for n in row[1:5]]
        assert candle.volume == float(row[5])
        assert candle.quote_volume == pytest.approx(float(row[7]), rel=0.01)
        taker_buy = float(row[9]) / float(row[5])
        assert candle.taker_buy_volume / candle.volume == pytest.approx(taker_buy, abs=0.2)
        assert candle.trades == min(1_800, int(row[8]) // 2)


def test_bitcoin_starts_the_day_again_at_midnight() -> None:
    day = dataset.made_day()
    midnight_ms = schema.floor_to(START_MS, schema.DAY_MS)
    start_ms = midnight_ms - 2 * MINUTE_MS
    market = Market(catalogue.instruments(1), ("1m",), start_ms=start_ms, day=day)
    candles = [
        e.closed for e in market.advance(midnight_ms + 2 * MINUTE_MS) if e.closed is not None
    ]
    assert [candle.close for candle in candles[:3]] == [
        day.bars[at].close / 100 for at in (-2, -1, 0)
    ]


def test_live_trading_goes_on_from_history_and_agrees_with_a_later_start() -> None:
    instruments = catalogue.instruments(PAIRS)
    market = Market(instruments, ("1m",), start_ms=START_MS + 20_000)
    market.advance(START_MS + 30 * MINUTE_MS)
    later = Market(instruments, ("1m",), start_ms=START_MS + 60 * MINUTE_MS)
    for instrument in instruments:
        for timeframe in ("1m", "3m", "15m"):
            step_ms = schema.TIMEFRAMES_MS[timeframe]
            first_ms = START_MS - 4 * step_ms
            count = (START_MS + 30 * MINUTE_MS - first_ms) // step_ms
            lived = market.candles(instrument.symbol, timeframe, first_ms, count)
            remembered = later.candles(instrument.symbol, timeframe, first_ms, count)
            assert [bar[:6] for bar in lived] == [bar[:6] for bar in remembered]
            for earlier, bar in itertools.pairwise(lived):
                assert earlier.close == bar.open


def test_the_forming_candle_begins_in_history() -> None:
    # 7 minutes into a 15m candle.
    start_ms = START_MS + 7 * MINUTE_MS + 30_000
    market = Market(catalogue.instruments(PAIRS), ("15m",), start_ms=start_ms)
    events = market.advance(START_MS + 15 * MINUTE_MS + 2_000)
    closed = [event.closed for event in events if event.closed is not None]
    assert len(closed) == len(PAIRS)
    for candle in closed:
        (bar,) = market.candles(candle.symbol, "15m", START_MS, 1)
        assert candle.open_time_ms == START_MS
        assert candle.trades == bar.trades
        scale = next(i for i in market.instruments if i.symbol == candle.symbol).price_scale
        assert candle.high == bar.high / scale


@pytest.mark.parametrize("timeframes", [(), ("1m", "1m"), ("7m",)])
def test_wrong_timeframes_are_refused(timeframes: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError):
        Market(catalogue.instruments(1), timeframes, start_ms=START_MS)


def test_the_decoder_takes_every_frame() -> None:
    instruments = catalogue.instruments(40)
    market = Market(
        instruments, tuple(schema.TIMEFRAMES_MS), start_ms=START_MS,
        bystanders=catalogue.bystanders(START_MS), day=dataset.made_day(),
    )  # fmt: skip
    for stream in market.streams.values():
        stream.wanted = True
    decoder = FrameDecoder({instrument.symbol: instrument.pair for instrument in instruments})
    expected = {"unknown_symbol", "coin_m"}
    closed = 0
    for event in market.advance(START_MS + 4 * MINUTE_MS):
        frame = combined_head(event.stream.name) + event.data + b"}"
        for item in decoder.decode(frame):
            if isinstance(item, Reject):
                assert item.reason in expected
                assert event.stream.name.startswith("!")
            elif isinstance(item, Candle) and item.closed:
                truth = event.closed
                assert truth is not None
                for name in set(Candle.__struct_fields__) - {"closed"}:
                    assert getattr(item, name) == getattr(truth, name)
                closed += 1
    assert closed >= 40 * 3
