"""Many windows that are due at once: decided in the order of one by one, and each looked at once."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from office import Office
from voting import LONG, PAIR, RULES, SHORT, T0, WINDOW

from marketfeed.aggregator.ballots import Decision, Rules, Vote
from marketfeed.aggregator.signals import Signal
from marketfeed.aggregator.votes import Votes
from marketfeed.aggregator.window import Window

PAIRS = tuple(f"P{number}/USDT:USDT" for number in range(4))


class OneByOne(Votes):
    """Decides as was done before: all open windows are looked through after each decision."""

    def due(self, now_ms: int) -> list[Decision]:
        decisions: list[Decision] = []
        while now_ms >= self._idle_until_ms:
            ready = [window for window in self._open.values() if now_ms >= self._due_ms(window)]
            if not ready:
                self._idle_until_ms = self._next_ms(now_ms + self._rules.window_ms)
                break
            window = min(ready, key=lambda item: (item.closes_ms, item.number))
            decisions.extend(self._decide(window, now_ms))
        return decisions


class Counting(Votes):
    looks = 0

    def _due_ms(self, window: Window) -> int:
        self.looks += 1
        return super()._due_ms(window)


rules_given = st.builds(
    lambda conflict, grace, votes: msgspec.structs.replace(
        RULES, on_conflict=conflict, early_grace_ms=grace, min_agreements=votes
    ),
    st.sampled_from(("neither", "both")),
    st.sampled_from((None, 0, 3_000)),
    st.sampled_from((1, 3)),
)
# Long pauses, so that many are due at once; few feeders' votes are lacking, so that houses are full.
steps_given = st.lists(
    st.tuples(
        st.sampled_from((0, 0, 0, 1, 1_500, 3_000, 40_000, 60_000, 95_000)),
        st.sampled_from(PAIRS),
        st.sampled_from((LONG, SHORT)),
        st.integers(1, 5),
        st.booleans(),
    ),
    max_size=40,
)


def drive(votes: Votes, steps: list[tuple[int, str, tuple[str, ...], int, bool]]) -> list[object]:
    found: list[object] = []
    now_ms, number = T0, 0
    for pause_ms, pair, feeders, count, looks in steps:
        now_ms += pause_ms
        for feeder in feeders[:count]:
            found.append(votes.due(now_ms))
            number += 1
            side = "long" if feeders is LONG else "short"
            signal = Signal(pair, side, feeder, feeder, 0.9)
            found.append(votes.add(Vote(number, now_ms, signal, str(number).encode())))
        if looks:
            found.append(votes.due(now_ms))
    return [*found, votes.due(now_ms + WINDOW), votes.open_windows()]


@given(rules_given, steps_given)
def test_what_is_due_is_decided_in_the_order_of_one_by_one(
    rules: Rules, steps: list[tuple[int, str, tuple[str, ...], int, bool]]
) -> None:
    assert drive(Votes(rules), steps) == drive(OneByOne(rules), steps)


def test_each_window_that_is_due_is_looked_at_a_few_times() -> None:
    count = 500
    votes = Counting(RULES)
    for number in range(1, count + 1):
        pair = PAIR.replace("BTC", f"A{number}")
        signal = Signal(pair, "long", "73", "73", 0.9)
        votes.due(T0)
        votes.add(Vote(number, T0, signal, str(number).encode()))
    votes.looks = 0
    assert len(votes.due(T0 + WINDOW)) == count
    assert votes.looks <= 3 * count


def test_an_account_opens_no_more_windows_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketfeed.aggregator.votes.OPEN_AT_MOST", 2)

    async def scenario() -> None:
        async with Office(tmp_path / "ledger.db", RULES, T0) as office:
            for pair in PAIRS[:2]:
                assert (await office.post("73", pair=pair)).status == 200
            reply = await office.post("73", pair=PAIRS[2])
            assert reply.status == 429
            assert "windows open, as many as it may have" in reply.text
            assert (await office.post("74", pair=PAIRS[1])).status == 200
            assert (await office.post("73", pair=PAIRS[2], account="other")).status == 200
            # As does a ledger that is read anew.
            await office.desk.open()
            assert (await office.post("73", pair=PAIRS[3])).status == 429
            await office.wait(WINDOW)
            assert (await office.post("73", pair=PAIRS[3])).status == 200

    asyncio.run(scenario())
