"""Journals of versions 1 to 3 and ledgers of version 1, as older releases leave them; what a file holds.

Their tables are made by the SQL of the release that made them (tests/data), without product code.
"""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from marketfeed import schema
from marketfeed.aggregator.ledger_schema import KIND as LEDGER

DATA: Final = Path(__file__).parent / "data"
PAIR, ETH, CHINESE, DROPPED = "BTC/USDT:USDT", "ETH/USDT:USDT", "币安/USDT:USDT", "OLD/USDT:USDT"
T0: Final = 1_791_360_000_000
M1: Final = 60_000
CANDLES: Final = 400
GAPS: Final = 300
TARGET, OTHER = "http://influx.example fleet market", "http://influx.example - ship again: x"
SHIPPED: Final = [(1, 9), (11, 11), (14, 350), (400, 401)]
"""What TARGET has acknowledged: with holes."""
Shape = dict[str, tuple[Any, ...]]
Content = dict[str, list[tuple[Any, ...]]]


def journal(path: Path, version: int) -> Path:
    """A stopped journal of version 1 or 2, with something of everything in it."""
    with _made(path, f"journal_version_{version}.sql", schema.APPLICATION_ID, version) as db:
        _fill_journal(db, version)
    return path


def journal_3(path: Path) -> Path:
    """A stopped journal of version 3 from before `taker_buy_quote_volume`, with the same in it."""
    older = journal(path.with_name(f"{path.name}.2"), 2)
    with _made(path, "journal_version_3.sql", schema.APPLICATION_ID, 3) as db:
        db.execute("COMMIT")
        db.execute("ATTACH ? AS older", (str(older),))
        db.execute("BEGIN")
        named = db.execute("SELECT name FROM older.sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in named:
            names = [f'"{row[1]}"' for row in db.execute(f"PRAGMA older.table_info({table})")]
            if table not in {"sequence", "shipped"} and not table.startswith("sqlite_"):
                columns = ", ".join(names)
                db.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM older.{table}")  # noqa: S608
        db.execute("UPDATE catalog SET dropped = 1 WHERE timeframes LIKE ',%'")
        db.execute("UPDATE catalog SET timeframes = ltrim(timeframes, ',')")
        db.execute("UPDATE sequence SET next = ?", (440 + GAPS,))
    return path


def ledger(path: Path) -> Path:
    """A stopped ledger of version 1, with forwards in every state."""
    with _made(path, "ledger_version_1.sql", LEDGER.application_id, 1) as db:
        _fill_ledger(db)
    return path


def empty(path: Path, text: str, application_id: int, version: int) -> Path:
    """A file as such a release makes it at its first start."""
    with _made(path, text, application_id, version):
        pass
    return path


@contextlib.contextmanager
def _made(path: Path, text: str, application_id: int, version: int) -> Any:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript((DATA / text).read_text("utf-8"))
        db.execute(f"PRAGMA application_id = {application_id}")
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("BEGIN")
        yield db
        db.execute("COMMIT")


def _put(db: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    for row in rows:
        # Without naming the columns, as the release does.
        db.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)  # noqa: S608


def _fill_journal(db: sqlite3.Connection, version: int) -> None:
    _put(db, "pair", enumerate((PAIR, ETH, CHINESE, DROPPED), 1))
    _put(
        db,
        "candle",
        (
            (1 + n % 2, M1, T0 + n // 2 * M1, 1.0, 2.0, 0.5, 1.5 + n, 10.0, 15.0, 5.0, n, n + 1)
            for n in range(CANDLES)
        ),
    )
    at_ms = T0 + CANDLES // 2 * M1
    _put(db, "forming", [(1, M1, at_ms, 1.0, 2.0, 0.5, 1.7, 1.0, 2.0, 0.5, 3, at_ms + 9, 401)])
    _put(db, "mark_price", ((1, T0 + n * M1, 7, 1.5 + n, 1.25, 402 + n) for n in range(20)))
    _put(db, "funding_rate", [(1, T0, 3, 0.0001, None, T0 + 8 * 60 * M1, 430)])
    _put(
        db, "funding_settled", [(1, T0, "regular", 0.0001, 7.0, 431), (2, T0, "x", 0.1, None, 432)]
    )
    catalog = [
        (1, "BTCUSDT", "1m,3m", T0, None, None, T0, 433),
        (2, "ETHUSDT", "1m", T0, T0 - 5, None, T0, 434),
        (3, "币安USDT", ",3m,1h", T0, None, T0 + 7, T0 + 7, 435),
        (4, "OLDUSDT", ",1m", T0, T0 - 9, T0 + 8, T0 + 8, 436),
    ]
    _put(db, "catalog", catalog)
    gaps = [
        ("candle_1m", 1, T0 - M1, T0, 0, "did not come", 437),
        ("connection_feed-1", 0, T0, None, 0, "reset", 438),
        ("disk_budget_mark_price", 0, T0, T0 + 9, 0, "deleted", 439),
        *(("candle_3m", 1, T0 - n * M1, T0, n % 2, "late", 440 + n) for n in range(GAPS)),
    ]
    if version == 1:
        _put(db, "gap", gaps)
    else:
        _put(db, "gap", ((*row[:6], _state(row), row[6]) for row in gaps))
    _put(db, "dead_letter", [(5, T0, "odd", b"{\x00}"), (9, T0, "odder", b"")])
    _put(db, "document", [("pairs", T0, b"\x78\x9c"), ("exchangeInfo", T0 + 1, b"y" * 9_000)])
    db.execute("UPDATE sequence SET next = ?", (440 + GAPS,))
    _note(db)


def _note(db: sqlite3.Connection) -> None:
    _put(db, "shipped", [(TARGET, *one) for one in SHIPPED])
    _put(db, "shipped", [(OTHER, 3, 700), ("empty of itself", 1, 1)])
    _put(db, "shipped", [("ship again: " + TARGET, 1, 1), ("ship again: never shipped", 1, 1)])
    _put(db, "shipped", [("refused lines gone: " + TARGET, 1, 12), ("refused lines gone: x", 1, 1)])
    _put(db, "refused_line", [(3, T0, TARGET, "mark_price,pair=A x=1 5", "status 422")])


_STATES: Final = ("queued", "sending", "unknown", "accepted", "refused", "expired", "found", "lost")
ANSWERS: Final = (
    "trade 7",
    "trade 8 in the bot, opened 2026-01-01",
    "trade 9x",
    "trade ",
    "no",
    "",
)
LEDGER_ROWS: Final = 240


def _fill_ledger(db: sqlite3.Connection) -> None:
    db.execute("UPDATE heartbeat SET beats = 17")
    for n in range(1, LEDGER_ROWS + 1):
        side = "long" if n % 3 else "short"
        seq = 3 * n
        strength = None if n % 4 else 0.5
        signal = (
            n,
            T0 + n,
            "fleet",
            "127.0.0.1",
            f"key {n}" if n % 2 else None,
            hashlib.sha256(b"{}").digest(),
            b"d" * 16,
        )
        signal += (PAIR, side, "73", "market_73", 0.9, 2.0 if n % 2 else None, None, None, strength)
        signal += ("tag", "leverage", "voted", n, "counted", seq)
        decision = (n, PAIR, side, T0, T0 + n, T0 + n + 9, "forward", 1, "one\ntwo", 3, 4, 0.9)
        decision += ("73", "73,74", f"tag {n}", 1.0 + n % 5, "market", None, seq + 1)
        forward = (n, side, _STATES[n % 8], T0 + n, n % 3, T0, T0 + 5, 200, ANSWERS[n % 6], seq + 2)
        for table, row in (("signal", signal), ("decision", decision), ("forward", forward)):
            _put(db, table, [row])
    db.execute("UPDATE sequence SET next = ?", (3 * LEDGER_ROWS + 3,))
    db.execute("UPDATE sqlite_sequence SET seq = seq + 5 WHERE name = 'signal'")
    _note(db)


def _state(gap: tuple[Any, ...]) -> str:
    """The state of a gap that version 1 knew as healed or not."""
    if gap[4]:
        return "healed"
    return "unresolvable" if str(gap[0]).startswith("disk_budget") else "found"


# --- what a file is, and holds ---------------------------------------------------------------------------


def shape(path: Path) -> Shape:
    """Tables with their columns, indexes, triggers and views, whatever blanks they were written with."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        found: Shape = {}
        for kind, name, sql in db.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
        ).fetchall():
            text = "".join((sql or "").replace('"', "").split())
            columns = [tuple(row) for row in db.execute(f"PRAGMA table_xinfo({name})")]
            inside = [tuple(row) for row in db.execute(f"PRAGMA index_xinfo({name})")]
            found[f"{kind} {name}"] = (text, columns, inside)
        return found


def columns(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Table -> its `table_info`."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        names = [
            name
            for (name,) in db.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
            )
        ]
        return {name: db.execute(f"PRAGMA table_info({name})").fetchall() for name in names}


def version(path: Path) -> int:
    """The schema version of a file, which is whole."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def content(path: Path) -> Content:
    """Every row of a journal or ledger, in the words of the released version, whatever version it has."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        held = {
            name: db.execute(f"SELECT * FROM {name}").fetchall()  # noqa: S608
            for (name,) in db.execute(
                """SELECT name FROM sqlite_master WHERE type = 'table'
                   AND name NOT IN ('meta', 'shipped', 'shipping', 'sequence', 'coverage',
                                    'quote_asked', 'life', 'mark_1h', 'series_coverage',
                                    'series_deleted', 'beginning', 'clock',
                                    'meta_forward', 'meta_start', 'refused_post')"""
            ).fetchall()
        }
        held["sequence"] = db.execute("SELECT id, next FROM sequence").fetchall()
        held["shipped"] = shipped(db)
        (number,) = db.execute("PRAGMA user_version").fetchone()
    if "catalog" in held and number >= 3:
        held["catalog"] = [(*row[:2], "," * row[8] + row[2], *row[3:8]) for row in held["catalog"]]
        held["gap"] = [row[:8] for row in held["gap"]]
        held["candle"] = [row[:12] for row in held["candle"]]
        held["forming"] = [row[:13] for row in held["forming"]]
    if "gap" in held and number == 1:
        held["gap"] = sorted((*row[:6], _state(row), row[6]) for row in held["gap"])
    if "forward" in held and number >= 2:
        held["forward"] = [(*row[:9], row[10]) for row in held["forward"]]
        held["signal"] = [row[:22] for row in held["signal"]]
    return held


def shipped(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """The notes about shipping as version 2 has them, ranges that touch as one.

    Raises AssertionError when measurements differ.
    """
    rows = db.execute("SELECT * FROM shipped ORDER BY 1, 2, 3").fetchall()
    if rows and len(rows[0]) == 4:
        of: dict[str, dict[str, list[tuple[int, int]]]] = {}
        for target, measurement, first, last in rows:
            of.setdefault(target, {}).setdefault(measurement, []).append((first, last))
        rows = []
        for target, measurements in of.items():
            alike, *others = measurements.values()
            assert all(ranges == alike for ranges in others), measurements
            rows += [(target, *one) for one in alike]
    with contextlib.suppress(sqlite3.OperationalError):
        for target, again, gone in db.execute("SELECT * FROM shipping").fetchall():
            rows += [("ship again: " + target, 1, 1)] * again
            rows += [("refused lines gone: " + target, 1, gone)] * bool(gone)
    return sorted(_joined(rows))


def _joined(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    joined: list[tuple[Any, ...]] = []
    for target, first, last in sorted(rows):
        if joined and joined[-1][0] == target and first <= joined[-1][2] + 1:
            joined[-1] = (target, joined[-1][1], max(last, joined[-1][2]))
        else:
            joined.append((target, first, last))
    return joined
