"""Random histories of a real desk on a real ledger: what is promised about money, by the time that truly was.

Restarts, clocks that are set back meanwhile, commits that fail, news of orders that come late, trades that
bots name: whatever happens, no two orders of a pair go to opposite bots from windows that opened within a
window, and no second order of a pair and side goes within its cool-down, unless the earlier one surely opened
nothing. `HISTORIES` is how many are tried.
"""

import asyncio
import itertools
import os
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from office import Office
from voting import LONG, RULES, SHORT, T0, WINDOW

from marketfeed.aggregator import inbox
from marketfeed.aggregator.ledger_tables import STEPS, Forward, State, found_words

PAIRS = ("BTC/USDT:USDT", "ETH/USDT:USDT")


class Order(NamedTuple):
    """A forward as the bot's side knows it. `from_true` is when it was sent, or its trade opened."""

    window: int
    pair: str
    side: str
    state: State
    from_true: int


class Trade(NamedTuple):
    pair: str
    side: str
    opened_true: int


class DeskHistory(RuleBasedStateMachine):
    """`true` is the time that truly is; the clock is `set_ms` away from it, as it was set back."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.retry_s, inbox.RETRY_S = inbox.RETRY_S, 0.0  # type: ignore[misc]
        self.office: Office | None = None

    def teardown(self) -> None:
        if self.office is not None:
            self.do(self.office.__aexit__())
        self.runner.close()
        self.directory.cleanup()
        inbox.RETRY_S = self.retry_s  # type: ignore[misc]

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(180):
                return await coroutine

        return self.runner.run(bounded())

    @initialize(
        quorum=st.sampled_from([1, 3]),
        conflict=st.sampled_from(["both", "neither"]),
        cooldown_ms=st.sampled_from([0, 120_000]),
        grace_ms=st.sampled_from([0, 3_000]),
    )
    def start(self, quorum: int, conflict: Any, cooldown_ms: int, grace_ms: int) -> None:
        self.rules = msgspec.structs.replace(
            RULES,
            min_agreements=quorum,
            on_conflict=conflict,
            cooldown_ms=cooldown_ms,
            early_grace_ms=grace_ms,
        )
        self.true, self.set_ms = T0, 0
        self.opened: dict[int, int] = {}
        self.orders: dict[int, Order] = {}
        self.trades: list[Trade] = []
        self.counted: dict[tuple[str, str, float], int] = {}
        self.seen = 0
        self.late: list[Forward] = []
        self.open()

    def open(self) -> None:
        path = Path(self.directory.name) / "ledger.db"
        self.office = Office(path, self.rules, self.true + self.set_ms)
        self.do(self.office.__aenter__())
        # As every start does: the bots name their trades.
        self.office.desk.merge_trades(
            (trade.pair, trade.side, trade.opened_true + self.set_ms)  # type: ignore[misc]
            for trade in self.trades
        )

    @property
    def at(self) -> Office:
        assert self.office is not None
        return self.office

    # --- what happens -------------------------------------------------------------------------------

    @rule(
        feeder=st.sampled_from(LONG + SHORT),
        pair=st.sampled_from(PAIRS),
        confidence=st.sampled_from([0.5, 0.72, 0.9]),
        after_ms=st.sampled_from([0, 100, 14_999, 20_000]),
    )
    def vote(self, feeder: str, pair: str, confidence: float, after_ms: int) -> None:
        self.pass_time(after_ms)
        self.post(feeder, pair, confidence)
        self.look()

    @rule(house=st.sampled_from([LONG, SHORT]), pair=st.sampled_from(PAIRS))
    def full_house(self, house: tuple[str, ...], pair: str) -> None:
        for feeder in house:
            self.post(feeder, pair, 0.9)
        self.pass_time(0)

    def post(self, feeder: str, pair: str, confidence: float) -> None:
        reply = self.do(self.at.post(feeder, confidence, pair))
        assert reply.status == 200
        ((number, outcome),) = self.do(
            self.at.query("SELECT number, outcome FROM signal ORDER BY number DESC LIMIT 1")
        )
        self.opened[number] = self.true
        if outcome == "voted":
            name = (feeder, pair, confidence)
            assert self.true - self.counted.get(name, 0) >= 15_000
            self.counted[name] = self.true

    @rule(ms=st.sampled_from([1, 2_999, 30_000, 59_900, 60_000, 95_000]))
    def pass_time(self, ms: int) -> None:
        self.true += ms
        self.do(self.at.wait(ms))
        self.look()

    @rule(ms=st.sampled_from([100, 60_000]), feeder=st.sampled_from(["73", "120"]))
    def fail(self, ms: int, feeder: str) -> None:
        """The disk takes nothing for a moment: no vote, and no decision."""
        self.do(self.at.fail())
        self.true += ms
        self.at.now_ms += ms
        assert self.do(self.at.post(feeder, 0.71, PAIRS[0])).status == 503
        self.do(self.at.heal())
        self.pass_time(0)

    @rule(
        back_ms=st.sampled_from([0, 0, 5_000, 3_600_000]),
        down_ms=st.sampled_from([0, 1_000, 25_000, 300_000]),
    )
    def restart(self, back_ms: int, down_ms: int) -> None:
        self.late.clear()
        self.do(self.at.__aexit__())
        self.true += down_ms
        self.set_ms -= back_ms
        self.open()
        self.pass_time(0)

    @precondition(lambda self: self.office is not None and self.moving())
    @rule(data=st.data(), heard=st.booleans())
    def step(self, data: st.DataObject, heard: bool) -> None:
        """A forwarder takes an order a step further; the desk may hear of it later."""
        order = data.draw(st.sampled_from(self.moving()), "order")
        state: State = data.draw(
            st.sampled_from([s for s, origins in STEPS.items() if order.state in origins]), "state"
        )
        more: dict[str, Any] = {}
        from_true = order.from_true
        if state == "sending":
            forward = self.do(self.at.forward(order.window))
            if self.at.desk.held(order.pair, order.window):
                return
            if self.at.desk.contested(forward):
                state = "expired"
            from_true = self.true
        if state == "found":
            from_true = min(order.from_true + 3_000, self.true)
            more["answer"] = found_words(1, from_true + self.set_ms, added=False)
        stepped = self.do(self.at.step(order.window, state, heard=heard, **more))
        if not heard:
            self.late.append(stepped)
        self.orders[order.window] = order._replace(state=state, from_true=from_true)

    @precondition(lambda self: self.office is not None and self.late)
    @rule()
    def hear(self) -> None:
        """In their order, as the forwarders tell it."""
        for forward in self.late:
            self.at.desk.heard(forward)
        self.late.clear()

    @rule(pair=st.sampled_from(PAIRS), side=st.sampled_from(["long", "short"]))
    def trade(self, pair: str, side: Any) -> None:
        """A bot names a trade that the ledger does not know."""
        self.trades.append(Trade(pair, side, self.true))
        self.at.desk.merge_trades([(pair, side, self.at.now_ms)])

    def moving(self) -> list[Order]:
        """The orders that may take a step; those whose last is on its way to the desk wait for that."""
        on_the_way = {forward.window for forward in self.late}
        return [
            order
            for order in self.orders.values()
            if order.state in ("queued", "sending", "unknown", "lost")
            and order.window not in on_the_way
        ]

    # --- what is promised ---------------------------------------------------------------------------

    def look(self) -> None:
        """Look at what has been decided since, as the orders stood then."""
        made = self.do(
            self.at.query(
                """SELECT window, pair, side, outcome, passed, reasons FROM decision
                   WHERE seq > ? ORDER BY seq""",
                self.seen,
            )
        )
        ((self.seen,),) = self.do(self.at.query("SELECT coalesce(max(seq), 0) FROM decision"))
        for window, pair, side, outcome, _, reasons in made:
            if outcome == "forward":
                self.goes(window, pair, side)
            elif self.set_ms == 0 and reasons.startswith(
                ("cool-down for", "the order of", "what b")
            ):
                assert self.stands_in_the_way(pair, side), reasons
        states = dict(self.do(self.at.query("SELECT window, state FROM forward")))
        assert states == {window: order.state for window, order in self.orders.items()}

    def goes(self, window: int, pair: str, side: str) -> None:
        assert not self.stands_in_the_way(pair, side)
        for older in list(self.orders.values()):
            if (older.pair, older.side, older.state) == (pair, side, "queued"):
                self.orders[older.window] = older._replace(state="expired")
        self.orders[window] = Order(window, pair, side, "queued", 0)
        if self.rules.on_conflict == "neither":
            of_pair = [order for order in self.orders.values() if order.pair == pair]
            for one, other in itertools.combinations(of_pair, 2):
                if one.side != other.side:
                    apart = abs(self.opened[one.window] - self.opened[other.window])
                    assert apart >= WINDOW
            for trade in self.trades:
                if trade.pair == pair and trade.side != side:
                    assert abs(self.opened[window] - trade.opened_true) >= WINDOW

    def stands_in_the_way(self, pair: str, side: str) -> bool:
        cooled = self.true - self.rules.cooldown_ms
        return any(
            order.state in ("sending", "unknown")
            or (
                order.side == side
                and order.state in ("accepted", "found", "lost")
                and order.from_true > cooled
            )
            for order in self.orders.values()
            if order.pair == pair
        ) or any(
            (trade.pair, trade.side) == (pair, side) and trade.opened_true > cooled
            for trade in self.trades
        )


DeskHistory.TestCase.settings = settings(
    max_examples=int(os.environ.get("HISTORIES", "15")), stateful_step_count=30, deadline=None
)
TestDeskHistory = DeskHistory.TestCase
