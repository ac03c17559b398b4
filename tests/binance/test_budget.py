"""The REST budget: never above the limit in any minute, nothing asked after a stop, the urgent first."""

import asyncio
import json
import time
from collections import Counter
from itertools import pairwise

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.binance.budget import (
    FUNDING_MARGIN_S,
    FUNDING_WINDOW_S,
    Budget,
    Cost,
    Instant,
    Priority,
)
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import parse_exchange_info
from marketfeed.simulator.fault_kinds import RefuseRest
from marketfeed.simulator.server import Simulator, SimulatorOptions

START_MS = 1_790_000_040_000
MINUTE_MS = schema.MINUTE_MS


def at(ms: float) -> Instant:
    return Instant(START_MS + int(ms), ms / 1000)


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(Priority), st.sampled_from((1, 2, 5, 10, 40)), st.floats(0.0, 3_000.0)
    ),
    max_size=150,
)


@given(REQUESTS, st.sampled_from((60, 100, 400)), st.integers(0, 59_999))
def test_no_minute_is_above_the_limit_wherever_a_request_arrives(
    requests: list[tuple[Priority, int, float]], limit: int, start_ms: int
) -> None:
    budget = Budget(limit)
    now_ms = float(start_ms)
    # By the minute of arrival, which is anywhere between sending and answer.
    early: Counter[int] = Counter()
    late: Counter[int] = Counter()
    for priority, weight, takes_ms in requests:
        for _ in range(200):
            wait_ms = budget.wait_ms(at(now_ms), Cost(weight), priority)
            if wait_ms <= 0.0:
                break
            now_ms += max(1.0, wait_ms)
        else:
            pytest.fail("never lets go")
        taken = budget.take(at(now_ms), Cost(weight))
        early[at(now_ms).now_ms // MINUTE_MS] += weight
        now_ms += takes_ms
        late[at(now_ms).now_ms // MINUTE_MS] += weight
        budget.answered(at(now_ms), taken, None)
    assert max(early.values(), default=0) <= limit
    assert max(late.values(), default=0) <= limit


@given(st.lists(st.floats(0.0, 60.0), max_size=60), st.integers(1, 20))
def test_funding_requests_stay_within_their_window(pauses_s: list[float], limit: int) -> None:
    budget = Budget(1_200, limit)
    now_ms, sent_s = 0.0, []
    cost = Cost(0, funding=True)
    for pause_s in pauses_s:
        now_ms += pause_s * 1000
        while (wait_ms := budget.wait_ms(at(now_ms), cost, Priority.SETTLED)) > 0.0:
            now_ms += wait_ms
        budget.take(at(now_ms), cost)
        sent_s.append(now_ms / 1000)
    for first, beyond in zip(sent_s, sent_s[limit:], strict=False):
        assert beyond - first >= FUNDING_WINDOW_S + FUNDING_MARGIN_S - 0.01


def test_old_history_is_spread_and_leaves_room_for_what_closes_now() -> None:
    budget = Budget(1_200)
    sent_ms = []
    now_ms = 0.0
    while now_ms < 2 * MINUTE_MS:
        wait_ms = budget.wait_ms(at(now_ms), Cost(2), Priority.HISTORY)
        if wait_ms > 0.0:
            now_ms += max(1.0, wait_ms)
            continue
        budget.answered(at(now_ms), budget.take(at(now_ms), Cost(2)), None)
        sent_ms.append(now_ms)
    assert len(sent_ms) == 2 * 540
    assert min(ms % MINUTE_MS for ms in sent_ms) >= 2_000.0
    # Four seconds after the close, what has not come is fetched: five timeframes of 164 pairs.
    before = sum(ms < 4_000.0 for ms in sent_ms)
    assert 1_200 - 2 * before >= 5 * 164
    assert max(later - earlier for earlier, later in pairwise(sent_ms)) < 12_000.0


def test_what_the_exchange_counts_holds_if_it_is_more() -> None:
    budget = Budget(100)
    taken = budget.take(at(1_000), Cost(1))
    budget.answered(at(1_100), taken, 95)
    assert budget.used(at(1_100)) == 95
    assert budget.wait_ms(at(1_100), Cost(2), Priority.HEAL) == MINUTE_MS - 1_100
    assert budget.wait_ms(at(1_100), Cost(2), Priority.LIVE) == 0.0
    across = budget.take(at(59_900), Cost(1))
    budget.answered(at(60_100), across, 97)
    assert budget.used(at(60_100)) == 1


def test_a_restart_knows_what_was_asked() -> None:
    budget = Budget(100)
    budget.take(at(10_000), Cost(60))
    for ms in (10_000, 11_000):
        budget.take(at(ms), Cost(0, funding=True))
    budget.stop(at(11_000), 600.0, 418, "banned")
    state = budget.state(at(12_000))
    # Another process: its monotonic clock starts anew.
    after = Budget(100)
    again = Instant(START_MS + 20_000, 3.0)
    after.restore(again, state)
    assert after.used(again) == 60
    assert after.funding_used(again) == 2
    assert after.stopped_s(again) == pytest.approx(591.0)
    assert (after.stopped_status, after.stopped_why) == (418, "banned")
    assert after.funding_used(Instant(START_MS + 330_000, 313.0)) == 0
    after.restore(again, b"garbage")
    # A clock that was an hour ahead when it was saved holds nothing up for an hour.
    late = Budget(100)
    late.restore(Instant(START_MS - 3_600_000, 3.0), state)
    assert late.funding_used(Instant(START_MS - 3_000_000, 603.0)) == 0
    assert late.stopped_s(Instant(START_MS - 3_600_000, 3.0)) == pytest.approx(599.0)


@pytest.mark.parametrize(("status", "most_s"), [(418, 3 * 86_400.0), (429, 600.0), (403, 600.0)])
def test_a_pause_that_was_saved_has_bounds_too(status: int, most_s: float) -> None:
    state = json.dumps(
        {
            "minute": 1,
            "used": 0,
            "funding_ms": [],
            "stopped_until_ms": START_MS + 1_764_457_200_000,
            "stopped_status": status,
            "stopped_why": "by an earlier version",
            "stopped_s": 1_764_457_200.0,
        }
    )
    budget = Budget(100)
    budget.restore(at(0), state.encode())
    assert budget.stopped_s(at(0)) == pytest.approx(most_s)


def test_the_most_urgent_goes_first_and_a_cancelled_one_not_at_all() -> None:
    async def run() -> None:
        clock = ExchangeClock(speed=600.0)
        turns = Turns(Budget(60), clock)
        first = await turns.wait(Cost(60), Priority.HISTORY)
        order: list[str] = []

        async def ask(name: str, priority: Priority) -> None:
            turns.answered(await turns.wait(Cost(60), priority), None)
            order.append(name)

        tasks = [
            asyncio.create_task(ask(name, priority))
            for name, priority in (
                ("old", Priority.HISTORY),
                ("cancelled", Priority.HEAL),
                ("hole", Priority.HEAL),
                ("hole after it", Priority.HEAL),
                ("listing", Priority.LIVE),
            )
        ]
        await asyncio.sleep(0)
        tasks[1].cancel()
        turns.answered(first, None)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["listing", "hole", "hole after it", "old"]
        assert turns.report().waiting == 0

    asyncio.run(run())


@pytest.mark.parametrize("status", [429, 418, 403])
def test_after_a_limit_all_wait_and_all_is_completed(status: int) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=4, speed=60.0, start_ms=START_MS)
        async with Simulator(options) as sim, aiohttp.ClientSession() as session:
            clock = ExchangeClock()
            turns = Turns(Budget(1_200), clock)
            rest = BinanceRest(session, sim.rest_url, turns=turns)
            await rest.server_time()
            info = parse_exchange_info(await rest.exchange_info())
            instrument = info.instruments["BTC/USDT:USDT"]
            await sim.faults.start(RefuseRest("klines", status, 30, count=1))
            end_ms = schema.floor_to(clock.now_ms(), MINUTE_MS) - MINUTE_MS

            async def fetch(number: int) -> int:
                since_ms = end_ms - (number + 1) * 10 * MINUTE_MS
                while True:
                    try:
                        rows = await rest.klines(
                            instrument, "1m", since_ms, since_ms + 10 * MINUTE_MS, Priority.HISTORY
                        )
                        return len(rows.candles)
                    except Exception:
                        heard_s.append(time.monotonic())
                        await asyncio.sleep(0)

            heard_s: list[float] = []
            found = await asyncio.gather(*(fetch(number) for number in range(6)))
            assert found == [10] * 6
            times_s = [at_s for at_s, name in sim.rest.asked if name == "klines"]
            # Six may be under way; the seventh comes thirty exchange seconds later, half a second here.
            assert len(times_s) == 7
            assert times_s[6] - heard_s[0] >= 0.49
            assert turns.report().refused == {str(status): 1}

    asyncio.run(run())
