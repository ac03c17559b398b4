"""Whole connections fail, in every way: each is found and replaced, and the others go on."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fault_line import START_MS, Line, run_line
from scoreboard import Row, Scoreboard

from marketfeed.collector.parts import SILENT_AFTER_S, SILENT_AT_LEAST_S
from marketfeed.schema import MINUTE_MS
from marketfeed.simulator.fault_kinds import (
    Close,
    Drop,
    Fault,
    HalfOpen,
    Mute,
    MuteConnection,
    Refuse,
    StopListening,
)

SPEED = 10.0
"""At which ten exchange seconds are the wall second that a silent connection is given at least."""
TWO_CONNECTIONS: dict[str, Any] = {"pairs": 60, "timeframes": ("1m", "3m", "5m"), "speed": SPEED}
"""240 streams: a connection carries 200."""
# How often the feed looks for idle connections, in exchange seconds.
LOOK_S = SILENT_AT_LEAST_S / 4 * SPEED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def opened(line: Line) -> list[int]:
    return [connection.opened for connection in line.report.connections]


def frames(line: Line) -> list[int]:
    return [connection.frames for connection in line.report.connections]


def test_a_half_open_connection_is_replaced(path: Path, scoreboard: Scoreboard) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        first, _ = line.sim.hub.connections
        # Which of the collector's connections that is, their streams show.
        assert line.collector._reporter.parts is not None
        mine = line.collector._reporter.parts.feed.connections()
        at = [set(one.streams) for one in mine].index(set(first.names))
        name = line.report.connections[at].name
        others = frames(line)[1 - at]
        fault_ms = await line.start(HalfOpen(first.number))
        found_ms = await line.until(lambda: line.reports(name))
        noticed_s = (found_ms - fault_ms) / 1000
        assert noticed_s <= SILENT_AFTER_S + LOOK_S + line.margin_s()
        await line.assert_shown(name)
        replaced = [2, 1] if at == 0 else [1, 2]
        whole_ms = await line.until(lambda: opened(line) == replaced and line.flowing)
        assert "no market data" in line.report.connections[at].last_error
        assert await line.metric("marketfeed_connection_events_total", state="closed") == 1.0
        assert frames(line)[1 - at] > others
        await line.until(lambda: bool(line.gaps()) and all(gap.healed for gap in line.gaps()))
        lost = [gap.kind for gap in line.gaps() if gap.pair is None]
        assert lost == [f"connection_{name}"]
        # The socket that the exchange has kept is nobody's any more.
        assert len(line.sim.hub.connections) == 3
        await line.sim.faults.end()
        await line.sim.wait_connections(2)
        scoreboard.add(
            Row(
                fault="one of two connections half-open",
                lost="its mark prices meanwhile",
                noticed_after_s=noticed_s,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, **TWO_CONNECTIONS)


def test_a_connection_that_is_silent_from_its_first_second(
    path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.sim.hub.streams_wanted == 240)
        fault_ms = line.sim.now_ms()
        # It is replaced at once when it is found: on a busy machine nobody sees it in between.
        found_ms = await line.until(lambda: line.reports("is silent for") or max(opened(line)) > 1)
        noticed_s = (found_ms - fault_ms) / 1000
        assert noticed_s <= SILENT_AFTER_S + LOOK_S + line.margin_s()
        whole_ms = await line.until(lambda: line.flowing and max(opened(line)) > 1)
        assert sorted(opened(line)) == [1, 2]
        replaced = line.report.connections[opened(line).index(2)]
        assert "no market data" in replaced.last_error
        scoreboard.add(
            Row(
                fault="one of two connections silent from its first second, ACKs too",
                lost="its mark prices meanwhile",
                noticed_after_s=noticed_s,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, before=[MuteConnection("new", count=1)], **TWO_CONNECTIONS)


def test_acknowledged_and_silent(path: Path, scoreboard: Scoreboard) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.report.answers >= 2)
        fault_ms = line.sim.now_ms()
        found_ms = await line.until(lambda: line.reports("feed-1") and line.reports("feed-2"))
        noticed_s = (found_ms - fault_ms) / 1000
        assert noticed_s <= SILENT_AFTER_S + LOOK_S + line.margin_s()
        await line.until(lambda: line.report.overdue.get("mark_price") == 60)
        await line.assert_shown("60 series are silent", "mark_price")
        assert await line.metric("marketfeed_overdue_series", channel="mark_price") == 60.0
        assert line.report.frames == line.report.answers
        await line.until(lambda: min(opened(line)) >= 2)
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.flowing)
        scoreboard.add(
            Row(
                fault="everything acknowledged, no data at all",
                lost="mark prices meanwhile",
                noticed_after_s=noticed_s,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, before=[Mute()], **TWO_CONNECTIONS)


def assert_at_most_one_connect_a_second(line: Line) -> None:
    stamps_s = list(line.sim.hub.handshakes_s)
    assert len(stamps_s) >= 3
    # A stall of this machine may make one come late, and the next one seem early.
    gaps_s = [later - one for one, later in pairwise(stamps_s)]
    assert min(gaps_s) >= 1.0 - 2 * line.stall_s - 0.01, (gaps_s, line.stall_s)


def test_a_server_that_closes_with_1000_at_once(path: Path, scoreboard: Scoreboard) -> None:
    async def check(line: Line) -> None:
        fault_ms = line.sim.now_ms()
        found_ms = await line.until(
            lambda: line.reports("feed-1 is", "closed by the exchange: 1000")
        )
        await line.assert_shown("closed by the exchange: 1000")
        await line.until(lambda: len(line.sim.hub.handshakes_s) >= 3)
        assert_at_most_one_connect_a_second(line)
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.flowing)
        assert_at_most_one_connect_a_second(line)
        scoreboard.add(
            Row(
                fault="the server closes with 1000 at once, again and again",
                lost="everything meanwhile; at most one connect a second",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, before=[Close("new", 1000)], speed=SPEED)


@pytest.mark.parametrize(
    ("fault", "words"),
    [(Refuse(503, count=1), "503"), (StopListening(for_s=12.0), "Connect")],
    ids=["503", "tcp"],
)
def test_refused_connections(path: Path, scoreboard: Scoreboard, fault: Fault, words: str) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        fault_ms = await line.start(fault)
        await line.sim.faults.start(Drop())
        found_ms = await line.until(lambda: line.reports("feed-1 is"))
        await line.until(lambda: line.reports("feed-1 is failed", words))
        await line.assert_shown("feed-1 is failed", words)
        assert line.report.connections[0].state == "failed"
        assert await line.metric("marketfeed_connections", state="failed") == 1.0
        whole_ms = await line.until(lambda: line.flowing)
        close_ms = START_MS + MINUTE_MS
        await line.settled(close_ms)
        gap = next(gap for gap in line.gaps() if gap.kind == "connection_feed-1")
        assert gap.healed
        assert gap.end_ms is not None
        # By the collector's own clock, which is some milliseconds off.
        assert gap.start_ms - 1_000 <= found_ms <= gap.end_ms <= whole_ms + 1_000
        verdict = line.judge(START_MS, close_ms)
        assert (verdict.good, verdict.published) == (True, 8), verdict
        scoreboard.add(
            Row(
                fault=f"connections refused ({'HTTP 503' if words == '503' else 'TCP'})",
                lost=f"mark prices meanwhile; {verdict.text()}",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=SPEED, start_ms=START_MS + 45_000)


def test_all_connections_dropped_at_once(path: Path, scoreboard: Scoreboard) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        close_ms = START_MS + MINUTE_MS
        # Two seconds before the close, and nobody is let in again until five after it.
        await line.until(lambda: line.sim.now_ms() >= close_ms - 2_000)
        await line.start(Refuse(503, for_s=7.0))
        fault_ms = await line.start(Drop())
        found_ms = await line.until(lambda: line.reports("feed-1 is") and line.reports("feed-2 is"))
        whole_ms = await line.until(lambda: opened(line) == [2, 2] and line.flowing)
        await line.healed(close_ms)
        verdict = line.judge(START_MS, close_ms)
        assert verdict.good, verdict
        assert (verdict.listed, verdict.published) == (0, 60)
        connections = [gap for gap in line.gaps() if gap.kind.startswith("connection")]
        assert [gap.kind for gap in connections] == ["connection_feed-1", "connection_feed-2"]
        for gap in connections:
            assert gap.pair is None
            assert gap.healed
            assert gap.end_ms is not None
            assert gap.start_ms <= close_ms < gap.end_ms
            assert gap.reason == "connection lost"
        lost = [gap for gap in line.gaps() if gap.pair and gap.start_ms == START_MS]
        assert [gap.state for gap in lost] == ["healed"] * 60
        scoreboard.add(
            Row(
                fault="all connections dropped at once, over a close",
                lost=f"mark prices meanwhile; {verdict.text()}",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
                others_disturbed="all were struck",
            )
        )

    run_line(path, check, start_ms=START_MS + 45_000, **TWO_CONNECTIONS)
