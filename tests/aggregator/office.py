"""A desk on a real ledger, in this process, by a clock that tests set."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any, Self

from voting import PAIR

from marketfeed.aggregator.ballots import Decision, Rules
from marketfeed.aggregator.inbox import Desk, Post, Reply
from marketfeed.aggregator.ledger_tables import Forward, State
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.signals import Signal


class Office:
    """One start of it. `now_ms` is what its clock shows."""

    def __init__(self, path: Path, rules: Rules, now_ms: int) -> None:
        self.rules = rules
        self.now_ms = now_ms
        self.ledger = LedgerThread(path)
        self.counters = AggregatorCounters()
        self.forwarded: list[Decision] = []
        self.desk = Desk(
            rules, self.ledger, lambda: self.now_ms, self.counters, self.forwarded.append
        )
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.ledger.__aenter__()
        await self.desk.open()
        self._running = asyncio.create_task(self.desk.run())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """As a kill would: nothing more is decided or stored."""
        assert self._running is not None
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        await self.ledger.__aexit__()

    async def post(
        self, feeder: str, confidence: float = 0.9, pair: str = PAIR, account: str = "fleet"
    ) -> Reply:
        """Hand in a signal, and wait for its answer."""
        side = self.rules.electorate.side_of[feeder]
        signal = Signal(pair, side, feeder, feeder, confidence)
        return await self.desk.post(Post(signal, account, "127.0.0.1", None, b"{}"))

    async def wait(self, ms: int) -> None:
        """Let time pass, and everything be decided that is due then."""
        self.now_ms += ms
        # A turn that begins when the one before has ended.
        for _ in range(2):
            before = self.desk.turns
            self.desk.wake()
            while self.desk.turns == before:
                assert self._running is not None
                if self._running.done():
                    await self._running
                await asyncio.sleep(0)

    async def step(self, window: int, state: State, *, heard: bool = True, **more: Any) -> Forward:
        """Take a forward there, and let the desk hear of it."""
        (forward,) = await self.query("SELECT bot FROM forward WHERE window = ?", window)
        stepped = await self.ledger.call(
            lambda ledger: ledger.step(window, forward[0], state, self.now_ms, **more)
        )
        if heard:
            self.desk.heard(stepped)
        return stepped

    async def forward(self, window: int) -> Forward:
        """A forward as it stands."""
        everything: tuple[State, ...] = (
            *("queued", "sending", "unknown", "accepted", "refused", "expired", "found", "lost"),
        )
        found = await self.ledger.call(lambda ledger: ledger.forwards(everything))
        return next(forward for forward in found if forward.window == window)

    async def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the ledger's own connection finds."""
        return await self.ledger.call(lambda ledger: ledger.db.execute(text, values).fetchall())

    async def states(self) -> list[tuple[str, str, str]]:
        """Side, state and answer of all forwards, in the order of their windows."""
        return await self.query("SELECT side, state, answer FROM forwarded ORDER BY window")

    async def fail(self) -> None:
        """Let no vote and no decision be stored from now on, as a full disk would."""
        for table in ("signal", "decision"):
            await self.query(
                f"CREATE TEMP TRIGGER full_{table} BEFORE INSERT ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )

    async def heal(self) -> None:
        """Let everything be stored again."""
        for table in ("signal", "decision"):
            await self.query(f"DROP TRIGGER full_{table}")
