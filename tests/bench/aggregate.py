"""What the aggregator takes, and how soon it sends: signals/s that are on the disk, and close to order.

The first part floods the real service, and by turns a plain aiohttp.web server that commits each signal by
itself, from the same keep-alive clients. The second lets windows close and waits for the orders at the
socket of a bot whose queue is empty.
"""

import asyncio
import contextlib
import itertools
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec
import numpy as np
import uvloop

from marketfeed.aggregator.auth import hash_password
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.settings.aggregator import AggregatorSettings
from marketfeed.storage.reading import reading
from tests.bench import jobs
from tests.bench.child import BenchError, Child, Service
from tests.bench.order_sink import PASSWORD, OrderSink
from tests.bench.report import Column, Row, Section
from tests.waiting import wait_until

CLIENTS: Final = 10
"""As many as there are feeders."""
PAIRS: Final = 164
TURNS: Final = 3
TURN_S: Final = 3.3
WARM_UP_S: Final = 0.3
COMMITS: Final = 500
DECISIONS: Final = 200
DECIDE_EVERY_S: Final = 0.05
WINDOW_S: Final = 1.0
READY_S: Final = 20.0
ARRIVED_S: Final = 20.0
GOAL_MS: Final = 15.0
"""From the last vote to the bot's socket: p99 at most."""
GRACE: Final = "early_grace_s"
"""How long an early decision waits for votes of the other side, from the window's first vote on."""
USERNAME: Final = "fleet"
_WORD: Final = "invented-fleet-password"
LONG: Final = ("73", "74", "75", "79", "108")
SHORT: Final = ("120", "121", "122", "123", "124")
_VOTING: Final = tuple(
    (side, name) for side, all_ in (("long", LONG), ("short", SHORT)) for name in all_[:4]
)
"""Four of five of each side: nothing is decided before the window ends, after the measurement."""

ReportProgress = Callable[[str], None]


class Taken(msgspec.Struct):
    """What one server took in all of its turns."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    waits_s: list[float] = []

    def rate(self) -> float:
        """Signals per wall second."""
        return len(self.waits_s) / self.wall_s

    def values(self) -> dict[str, float]:
        """The table's numbers."""
        signals = len(self.waits_s)
        return {
            "signals/s": self.rate(),
            "CPU s/1,000": 1_000 * self.cpu_s / signals,
            "per CPU s": signals / self.cpu_s,
            **_percentiles(self.waits_s),
        }


class _Server(NamedTuple):
    process: Service | Child
    port: int
    stored: Callable[[], int]


def aggregate(report_progress: ReportProgress) -> Section:
    """Flood the service and the plain way by turns, then time decisions on their way to a bot."""
    with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
        directory = Path(name)
        commit_ms = _bare_commit_ms(directory / "bare.db")
        taken = _signals(report_progress, directory)
        report_progress(f"aggregate: {2 * DECISIONS} decisions on their way to a bot")
        (directory / "close").mkdir()
        closed_ms, early_ms = uvloop.run(_close_to_order(directory / "close"))
        grace_ms = []
        if GRACE in AggregatorSettings.model_fields:
            report_progress(f"aggregate: {DECISIONS} decisions that wait for the other side")
            (directory / "grace").mkdir()
            grace_ms = uvloop.run(_grace_to_order(directory / "grace"))
    ours, plain = taken["ours"], taken["plain"]
    rows = [
        Row(
            f"marketfeed aggregate, {CLIENTS} clients",
            {**ours.values(), "× plain": ours.rate() / plain.rate()},
            "per CPU s ≥ the plain server's",
            ours.values()["per CPU s"] >= plain.values()["per CPU s"],
        ),
        Row(
            "  aiohttp.web, a transaction for each signal",
            {**plain.values(), "× plain": 1.0},
        ),
        _order_row(f"window of {WINDOW_S:g} s closed → the bot's socket", closed_ms, goal=False),
        _order_row("last of five votes posted → the bot's socket (both)", early_ms, goal=True),
    ]
    if grace_ms:
        rows.append(
            _order_row("… beyond the grace for the other side (neither)", grace_ms, goal=True)
        )
    columns = (
        Column("signals/s", 0),
        Column("CPU s/1,000", 2),
        Column("per CPU s", 0),
        Column("× plain", 2),
        Column("p50 ms", 2),
        Column("p99 ms", 2),
        Column("max ms", 1),
    )
    turns = (
        f"{TURNS} turns of {TURN_S:g} s each, by turns; every signal was answered 200 after its commit, "
        "and is counted in the file afterwards; CPU of the server's process, all threads"
    )
    plainly = (
        "plain: Basic with the same cached hash; pair, side and tag read, one INSERT; no vote, no "
        f"window; both: uvloop, WAL, synchronous=FULL (a commit of one row here: p50 {commit_ms:.2f} ms)"
    )
    orders = (
        f"orders: {DECISIONS} of each sort, one every {1_000 * DECIDE_EVERY_S:g} ms, so that none waits for "
        "another; `sending` is on the disk before each; when a window opened is known to 1 ms, which counts "
        "against us"
    )
    notes = [turns, plainly, orders]
    return Section("Signals stored per core, and close to order", columns, rows, notes)


def _order_row(what: str, waits_ms: list[float], *, goal: bool) -> Row:
    values = _percentiles(waits_ms, 1.0)
    if not goal:
        return Row(what, values)
    return Row(what, values, f"p99 ≤ {GOAL_MS:g} ms", values["p99 ms"] <= GOAL_MS)


def _percentiles(waits: list[float], to_ms: float = 1_000.0) -> dict[str, float]:
    p50, p99, most = (float(v) for v in np.percentile(waits, (50, 99, 100)) * to_ms)
    return {"p50 ms": p50, "p99 ms": p99, "max ms": most}


def _bare_commit_ms(path: Path) -> float:
    """What this disk takes for one: the plain way pays it for each signal, the ledger for each group."""
    taken_ms = []
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE signal(id INTEGER PRIMARY KEY, tag TEXT NOT NULL)")
        for _ in range(COMMITS):
            started_s = time.perf_counter()
            db.execute("INSERT INTO signal (tag) VALUES ('long from 73 conf=0.89')")
            taken_ms.append(1_000 * (time.perf_counter() - started_s))
    return float(np.median(taken_ms))


# --- signals --------------------------------------------------------------------------------------


def _signals(report_progress: ReportProgress, directory: Path) -> dict[str, Taken]:
    hashed = hash_password(_WORD)
    taken = {"ours": Taken(), "plain": Taken()}
    posted = dict.fromkeys(taken, 0)
    numbers = itertools.count()
    with (
        _ours(directory, hashed) as ours,
        _plain(directory / "plain.db", hashed) as plain,
    ):
        servers = {"ours": ours, "plain": plain}
        for kind, server in servers.items():
            # The password is hashed once, and the connections' code is warm.
            posted[kind] += len(uvloop.run(_flood(server.port, numbers, WARM_UP_S)))
        for turn in range(TURNS):
            for kind, server in servers.items():
                report_progress(f"aggregate: turn {turn + 1} of {TURNS}, {kind}")
                cpu_s, started_s = server.process.cpu_s(), time.perf_counter()
                waits_s = uvloop.run(_flood(server.port, numbers, TURN_S))
                taken[kind].wall_s += time.perf_counter() - started_s
                taken[kind].cpu_s += server.process.cpu_s() - cpu_s
                taken[kind].waits_s += waits_s
                posted[kind] += len(waits_s)
        for kind, server in servers.items():
            if (stored := server.stored()) != posted[kind]:
                raise BenchError(f"{kind}: {posted[kind]} signals answered, {stored} stored")
    return taken


@contextlib.contextmanager
def _ours(directory: Path, hashed: str) -> Iterator[_Server]:
    # Nothing is decided, so that nothing goes there.
    config = write_config(directory, hashed, "http://127.0.0.1:9", window_s=600)
    with Service("aggregate", "--config", str(config)) as service:
        yield _Server(service, _port(service), lambda: _stored(directory))


def _stored(directory: Path) -> int:
    with reading(KIND, directory / "ledger.db") as db:
        (count,) = db.execute("SELECT count(*) FROM signal").fetchone()
    return int(count)


@contextlib.contextmanager
def _plain(path: Path, hashed: str) -> Iterator[_Server]:
    def stored() -> int:
        with contextlib.closing(sqlite3.connect(path)) as db:
            (count,) = db.execute("SELECT count(*) FROM signal").fetchone()
        return int(count)

    with Child("aggregate_plain", jobs.PlainJob(str(path), USERNAME, hashed)) as child:
        yield _Server(child, child.receive(jobs.Listening, READY_S).port, stored)


async def _flood(port: int, numbers: Iterator[int], seconds: float) -> list[float]:
    """Post from each client as soon as its last signal was answered; how long each answer took (s)."""
    end_s = time.perf_counter() + seconds
    waits_s: list[float] = []

    async def post() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while (started_s := time.perf_counter()) < end_s:
                writer.write(_request(next(numbers)))
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                if not head.startswith(b"HTTP/1.1 200 "):
                    raise BenchError(f"a signal was answered {head[:40]!r} {body[:200]!r}")
                waits_s.append(time.perf_counter() - started_s)
        finally:
            writer.close()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(post())
    except* (OSError, EOFError, BenchError) as errors:
        raise BenchError(f"posting failed: {errors.exceptions[0]!r}") from errors
    return waits_s


_AUTHORIZATION: Final = aiohttp.BasicAuth(USERNAME, _WORD).encode()
_HEAD: Final = (
    "POST /api/v1/forceenter HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    f"Authorization: {_AUTHORIZATION}\r\nContent-Length: "
)


def _request(number: int) -> bytes:
    # Another profit in each: none is a repeat of one before.
    side, feeder = _VOTING[number // PAIRS % len(_VOTING)]
    body = signal_of(f"P{number % PAIRS}/USDT:USDT", side, feeder, profit=number / 100)
    return f"{_HEAD}{len(body)}\r\n\r\n".encode() + body


def signal_of(pair: str, side: str, feeder: str, profit: float = 3.05) -> bytes:
    """A body as feeders post them today."""
    tag = f"{side} from {feeder} conf=0.89 (DQ: profit={profit:.2f}%, safety=0.39%)"
    body = {"pair": pair, "side": side, "leverage": 3, "ordertype": "market", "enter_tag": tag}
    return msgspec.json.encode(body)


# --- orders ---------------------------------------------------------------------------------------


async def _close_to_order(directory: Path) -> tuple[list[float], list[float]]:
    """Milliseconds from the window's end, and from the posting of the last of five votes, to the bot."""
    async with _ordering(directory, window_s=WINDOW_S, on_conflict="both") as (sink, decide):
        late = [f"LATE{number}/USDT:USDT" for number in range(DECISIONS)]
        early = [f"EARLY{number}/USDT:USDT" for number in range(DECISIONS)]
        await decide(late, LONG[:3])
        await sink.arrived(late, ARRIVED_S)
        last_ns = await decide(early, LONG)
        await sink.arrived(early, ARRIVED_S)
    if sink.orders != 2 * DECISIONS + 1:
        raise BenchError(f"{sink.orders} orders for {2 * DECISIONS + 1} decisions")
    received_ns, opened_ms = sink.received_ns, _opened_ms(directory)
    closed_ms = [received_ns[pair] / 1e6 - opened_ms[pair] - 1_000 * WINDOW_S for pair in late]
    return closed_ms, [(received_ns[pair] - last_ns[pair]) / 1e6 for pair in early]


async def _grace_to_order(directory: Path) -> list[float]:
    """Milliseconds from the end of the grace for the other side, with all votes there, to the bot."""
    grace_s = AggregatorSettings.model_fields[GRACE].default
    async with _ordering(directory, window_s=10 * grace_s, on_conflict="neither") as (sink, decide):
        names = [f"GRACE{number}/USDT:USDT" for number in range(DECISIONS)]
        await decide(names, LONG)
        await sink.arrived(names, ARRIVED_S)
    opened_ms = _opened_ms(directory)
    return [sink.received_ns[pair] / 1e6 - opened_ms[pair] - 1_000 * grace_s for pair in names]


def _opened_ms(directory: Path) -> dict[str, int]:
    with reading(KIND, directory / "ledger.db") as db:
        return dict(db.execute("SELECT pair, opened FROM decision"))


_Decide = Callable[[list[str], tuple[str, ...]], Awaitable[dict[str, int]]]


@contextlib.asynccontextmanager
async def _ordering(directory: Path, **rules: Any) -> AsyncIterator[tuple[OrderSink, _Decide]]:
    """A bot, the service, and a function that lets feeders vote for pairs, one every so often.

    It returns when (ns) the last vote of each pair was posted.
    """
    sink = OrderSink()
    async with sink, aiohttp.ClientSession() as session:
        config = write_config(directory, hash_password(_WORD), sink.url, **rules)
        with Service("aggregate", "--config", str(config)) as service:
            url = f"http://127.0.0.1:{await asyncio.to_thread(_port, service)}/api/v1/forceenter"

            async def post(pair: str, feeder: str) -> int:
                sent_ns = time.time_ns()
                async with session.post(
                    url,
                    data=signal_of(pair, "long", feeder),
                    headers={"Authorization": _AUTHORIZATION},
                ) as answer:
                    if answer.status != 200:
                        raise BenchError(f"a vote was answered {answer.status}")
                return sent_ns

            async def decide(names: list[str], feeders: tuple[str, ...]) -> dict[str, int]:
                last_ns = {}
                started_s = time.perf_counter()
                for number, pair in enumerate(names):
                    due_s = started_s + number * DECIDE_EVERY_S
                    await asyncio.sleep(max(due_s - time.perf_counter(), 0))
                    for feeder in feeders:
                        last_ns[pair] = await post(pair, feeder)
                return last_ns

            # The password is hashed, and the bot was ordered from, before what is measured.
            await decide(["WARM/USDT:USDT"], LONG)
            await sink.arrived(["WARM/USDT:USDT"], ARRIVED_S)
            yield sink, decide
            await asyncio.sleep(0.2)


def write_config(directory: Path, hashed: str, bot_url: str, **changes: Any) -> Path:
    """Write the settings of an aggregator with ten feeders and one bot; YAML is a superset of JSON."""
    (word := directory / "bot_word").write_text(PASSWORD)
    word.chmod(0o600)
    # One that has been in use: a fresh one forwards nothing for a while.
    with Ledger.open(directory / "ledger.db") as ledger:
        ledger.release()
    aggregator = {
        "port": 0,
        "status": {"port": 0},
        "ledger": {"path": str(directory / "ledger.db")},
        "feeders": {"long": LONG, "short": SHORT},
        "accounts": [{"username": USERNAME, "hash": hashed}],
        "bots": {"long": {"url": bot_url, "password_file": str(word)}},
        **changes,
    }
    (path := directory / "config.yaml").write_bytes(msgspec.json.encode({"aggregator": aggregator}))
    return path


def _port(service: Service) -> int:
    def listening() -> bool:
        service.check()
        return "url" in service.urls

    wait_until(listening, "the aggregator", timeout_s=READY_S)
    return int(service.urls["url"].rpartition(":")[2])
