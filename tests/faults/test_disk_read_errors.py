"""Reads of a healthy file that fail with EIO, once or for good: it is never set aside.

strace makes the N-th `pread64` of each thread fail, through the real `marketfeed run`. READ_ERRORS says how
many N are tried (`make proofs`: 12).
"""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import proc_tools
import pytest
from proc_commands import (
    TIMEOUT_S,
    Collecting,
    Exchange,
    environment,
    exchange,
    run_command,
    write_config,
)
from scoreboard import Row, Scoreboard

from marketfeed.aggregator.ledger import Ledger
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import Candle
from marketfeed.schema import MINUTE_MS
from tests.waiting import wait_until

ERRORS: Final = int(os.environ.get("READ_ERRORS", "3"))
OTHER_PAIRS: Final = 6
CANDLES: Final = 20_000
"""Of each of them: a journal of more than 10 MB."""
FIRST: Final = 3
"""In threads that only read files: before that the loader of a program reads its libraries."""
CHILD: Final = Path(__file__).with_name("read_error_child.py")
REASON: Final = (
    r"(?s)cannot be read from its disk \((Input/output error|disk I/O error).*left as it is"
)


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with exchange(tmp_path_factory.mktemp("exchange")) as running:
        yield running


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, venue: Exchange) -> Path:
    """A journal that a collector has left, with more than 10 MB of pairs that it no longer collects."""
    directory = tmp_path_factory.mktemp("left")
    config = write_config(directory, venue.ws_url, venue.rest_url)
    with Collecting(run_command(config), directory / "run.log") as collector:
        wait_until(lambda: sum(t["candles"] for t in collector.status()["timeframes"]) >= 6)
        assert collector.stop() == 0
    path = directory / "journal.db"
    with Journal.open(path) as journal:
        newest_ms = max(journal.newest_candles().values())
        for number in range(OTHER_PAIRS):
            fill(journal, f"OTHER{number}/USDT:USDT", newest_ms, CANDLES)
    assert path.stat().st_size > 10_000_000
    return path


def fill(journal: Journal, pair: str, newest_ms: int, count: int) -> None:
    """Store so many candles up to a time."""
    batch = Batch()
    batch.candles = [
        Candle(
            pair, "1m", at_ms, 1.0, 1.5, 0.5, 1.25, 7.0, 8.0, 3.0, 4, True, at_ms + MINUTE_MS
        )
        for at_ms in range(newest_ms - (count - 1) * MINUTE_MS, newest_ms + 1, MINUTE_MS)
    ]  # fmt: skip
    journal.write(batch)


def stored(path: Path) -> set[tuple[Any, ...]]:
    """Every closed candle of a journal, with its pair and numbers."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return set(
            db.execute(
                """SELECT pair.pair, timeframe_ms, open_time, open, high, low, close, volume, trades, seq
                   FROM candle JOIN pair ON pair.id = pair_id"""
            )
        )


def failing(when: str, trace: Path) -> list[str | Path]:
    """What to put before a command so that its reads fail."""
    return [
        proc_tools.strace().path, "-f", "-qq", "-o", trace,
        "-e", "trace=pread64", "-e", f"inject=pread64:error=EIO:when={when}",
    ]  # fmt: skip


def traced_environment() -> dict[str, str]:
    return environment(**proc_tools.strace().environment())


@pytest.fixture(scope="module")
def reads(left: Path, tmp_path_factory: pytest.TempPathFactory, venue: Exchange) -> int:
    """How many reads the thread of a journal makes until a collector delivers."""
    directory = tmp_path_factory.mktemp("counted")
    trace = directory / "trace"
    config = use(left, directory, venue)
    # Later than any read: nothing fails.
    with Collecting(
        [*failing("65535", trace), *run_command(config)],  # type: ignore[list-item]
        directory / "run.log",
        traced_environment(),
    ) as collector:
        wait_until(lambda: collector.process.poll() is not None or "status_url=" in collector.log)
        if collector.process.poll() is not None:
            why = f"no tracing here: {collector.log[-300:]}"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
        wait_until(collector.is_delivering)
        end_traced(collector)
    found = Counter(line.split(maxsplit=1)[0] for line in trace.read_text().splitlines())
    return max(found.values())


def use(left: Path, directory: Path, venue: Exchange) -> Path:
    """The settings of a collector with a copy of that journal."""
    shutil.copyfile(left, directory / "journal.db")
    return write_config(directory, venue.ws_url, venue.rest_url)


def end_traced(collector: Collecting) -> None:
    """Stop what strace runs, not strace."""
    pid = collector.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    assert collector.wait() == 0, collector.log


def chosen(reads: int, count: int) -> Sequence[int]:
    """So many N from the first reads to the last, close together where a start begins."""
    highest = reads - 1
    return sorted(
        {round(FIRST * (highest / FIRST) ** (n / max(count - 1, 1))) for n in range(count)}
    )


@pytest.mark.long(30)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_no_read_error_at_a_start_sets_a_healthy_journal_aside(
    left: Path,
    tmp_path: Path,
    venue: Exchange,
    scoreboard: Scoreboard,
    reads: int,
    *,
    lasting: bool,
) -> None:
    config = use(left, tmp_path, venue)
    path = tmp_path / "journal.db"
    outcomes: Counter[str] = Counter()
    for number in chosen(reads, ERRORS):
        rows = stored(path)
        assert len(rows) > OTHER_PAIRS * CANDLES
        outcome, log = started(config, tmp_path, f"{number}+" if lasting else str(number))
        outcomes[outcome] += 1
        if outcome == "ended":
            assert re.search(REASON, log) or re.search("Input/output error|disk I/O error", log), (
                log
            )
        assert list(tmp_path.glob("*.corrupt-*")) == [], log
        # Again, without: everything is there.
        with Collecting(run_command(config), tmp_path / "again.log") as collector:
            wait_until(collector.is_delivering)
            assert collector.status()["journal"]["set_aside"] is None
            assert collector.stop() == 0
        assert rows <= stored(path)
        assert list(tmp_path.glob("*.corrupt-*")) == []
    assert outcomes["ended" if lasting else "went on"] > 0, outcomes
    scoreboard.add(
        Row(
            fault=f"EIO for a read at a start, {'and all after it' if lasting else 'once'}: "
            f"{outcomes.total()} starts",
            lost=f"nothing: {outcomes['went on']} went on, {outcomes['ended']} exit 1 with the reason",
        )
    )


def started(config: Path, directory: Path, when: str) -> tuple[str, str]:
    """Start a collector whose reads fail: whether it `went on` or `ended`, and its log."""
    trace, log = directory / "trace", directory / "run.log"
    with Collecting(
        [*failing(when, trace), *run_command(config)],  # type: ignore[list-item]
        log,
        traced_environment(),
    ) as collector:

        def is_through() -> bool:
            if collector.process.poll() is not None:
                return True
            if "status_url=" not in collector.log:
                return False
            try:
                # Reads that fail for good may show as a journal that cannot be written, while it goes on.
                return collector.is_delivering() or b"cannot be" in collector.health().body
            except ValueError:
                return False  # it has just ended: no answer

        wait_until(is_through, timeout_s=TIMEOUT_S)
        if collector.process.poll() is None:
            end_traced(collector)
            return "went on", collector.log
        assert collector.process.returncode == 1, collector.log
        assert "INJECTED" in trace.read_text()
        return "ended", collector.log


def run_child(directory: Path, when: str, *arguments: str | Path) -> tuple[int, str, int]:
    """Run the child: its exit code, what it printed, and how many reads failed."""
    trace = directory / "trace"
    done = subprocess.run(
        [*failing(when, trace), sys.executable, CHILD, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=traced_environment(),
    )
    failed = trace.read_text().count("INJECTED")
    return done.returncode, done.stdout + done.stderr, failed


def test_reads_that_fail_now_and_then_while_running(reads: int, tmp_path: Path) -> None:
    """More than once in the life of a process."""
    assert reads
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        fill(journal, "BTC/USDT:USDT", 1_790_000_160_000, 10_000)
        count = sum(journal.row_counts().values())
    code, text, failed = run_child(tmp_path, "60+1000", "journal", path, "40")
    assert code == 0, text
    found = json.loads(text.splitlines()[0])
    assert failed >= 3
    # Asked again, it could be read each time: nobody is refused, and it is shown.
    assert found["met"] == 0, text
    assert "malformed" in found["why"] or "disk I/O error" in found["why"], text
    assert found["set_aside"] == ""
    assert found["counts"] == [count]
    assert list(tmp_path.glob("*.corrupt-*")) == []


@pytest.mark.parametrize("when", ["3", "5", "7", "3+", "5+"])
def test_a_ledger_is_not_set_aside_either(reads: int, tmp_path: Path, when: str) -> None:
    assert reads
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.beat()
        expected = {"loss": "", "next_seq": ledger.next_seq}
    code, text, failed = run_child(tmp_path, when, "ledger", path, "0")
    assert failed
    if code == 0:
        assert json.loads(text.splitlines()[0]) == expected
    else:
        assert code == 1
        assert re.search(REASON, text), text
        assert "Traceback" not in text
    assert list(tmp_path.glob("*.corrupt-*")) == []
    with Ledger.open(path) as again:
        assert again.loss == ""
