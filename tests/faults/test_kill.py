"""kill -9 at random moments of a running collector: what was committed is there, once, numbered once.

`KILLS=1000` kills more often than the 50 times of every run; `SEED` repeats a run's moments. Nothing is
claimed about power loss: the page cache survives a kill (test_durability.py looks at what is synced).
"""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from kill_child import Committed, Message, Saved, Saving
from kill_model import Known, LostError
from scoreboard import Row, Scoreboard

from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Promise
from marketfeed.journal.journal import Journal
from marketfeed.records import Candle, MarkPrice

KILLS = int(os.environ.get("KILLS", "50"))
SEED = int(os.environ.get("SEED", "1"))
RUNNER = Path(__file__).with_name("kill_runner.py")
START_S, EACH_S = 180.0, 10.0
"""Far more than it takes: to end a run that hangs."""


@pytest.mark.long(40)
def test_kills_lose_nothing_that_was_committed(tmp_path: Path, scoreboard: Scoreboard) -> None:
    done = subprocess.run(
        [sys.executable, RUNNER, str(KILLS), str(SEED), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(RUNNER.parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=START_S + EACH_S * KILLS,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    sys.stdout.write(done.stdout)
    log = (tmp_path / "log").read_text("utf-8")[-4_000:]
    assert report["fault"] == "", f"{report}\n{done.stderr}\n{log}"
    assert report["kills"] == KILLS
    # It was no walk in the park: kills in the middle of commits, and files that had to be recovered.
    assert report["commits"] > KILLS
    assert report["killed_while"]["committing"] > 0
    assert report["wal_left"] > KILLS / 2
    assert report["candles"] > 0
    assert report["wrong_candles"] == 0
    assert report["series_checked"] > KILLS
    scoreboard.add(
        Row(
            fault=f"kill -9, {KILLS} times",
            lost=(
                f"nothing of {report['commits']:,} commits; no number given twice; "
                f"coverage of {report['series_checked']:,} series as their rows"
            ),
        )
    )


T0 = 1_790_000_040_000
PAIR = "BTC/USDT:USDT"
CANDLES = [
    Candle(PAIR, "1m", T0 + n * 60_000, 2.0, 3.0, 1.0, 2.5, 9.0, 20.0, 4.0, 7, True, T0)
    for n in (0, 1)
]
MARK = MarkPrice(PAIR, T0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("SELECT 1", ""),
        ("DELETE FROM candle WHERE open_time = (SELECT min(open_time) FROM candle)", "is gone"),
        ("DELETE FROM mark_price", "is gone"),
        ("UPDATE candle SET close = 2.75 WHERE seq = 1", "was another row's"),
        ("UPDATE candle SET seq = 2 WHERE seq = 1", "another row's"),
        ("UPDATE candle SET seq = 4 WHERE seq = 1", "beyond"),
        ("UPDATE sequence SET next = 2", "went back"),
        ("INSERT INTO mark_price VALUES (1, 0, 0, 1.0, 1.0, 1)", "twice"),
    ],
)
def test_the_comparison_finds_what_a_kill_might_do(
    tmp_path: Path, damage: str, finding: str
) -> None:
    (directory := tmp_path / "journal").mkdir()
    (scratch := tmp_path / "scratch").mkdir()
    path, known = directory / "journal.db", Known()
    batch = Batch()
    batch.extend([*CANDLES, MARK])
    with Journal.open(path) as journal:
        journal.write(batch)
        reported: Message = Committed(journal.next_seq, CANDLES, [], [MARK], [], [], [])
    known.note(reported)
    known.look(path, scratch)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(damage)
    if not finding:
        known.look(path, scratch)
        return
    with pytest.raises(LostError, match=finding):
        known.look(path, scratch)


def test_the_comparison_finds_what_coverage_does_not_tell(tmp_path: Path) -> None:
    (directory := tmp_path / "journal").mkdir()
    (scratch := tmp_path / "scratch").mkdir()
    path = directory / "journal.db"
    with Journal.open(path) as journal:
        journal.promise([Promise(PAIR, "1m", T0 + 240_000, 240_000)])
        journal.write(Batch(candles=CANDLES))
    Known().look(path, scratch)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE gap SET start = start + 60000")
    with pytest.raises(LostError, match=r"coverage, trusted True: .*not stored, and in no hole"):
        Known().look(path, scratch)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE gap SET start = start - 60000")
        db.execute("DELETE FROM candle")
    with pytest.raises(LostError, match="coverage, trusted False"):
        Known().look(path, scratch)


def test_the_comparison_finds_a_number_used_again(tmp_path: Path) -> None:
    (directory := tmp_path / "journal").mkdir()
    (scratch := tmp_path / "scratch").mkdir()
    path, known = directory / "journal.db", Known()
    batch = Batch()
    batch.add(MARK)
    with Journal.open(path) as journal:
        journal.write(batch)
    known.look(path, scratch)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM mark_price")
    known.look(path, scratch)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO mark_price VALUES (1, 0, 0, 1.0, 1.0, 1)")
    with pytest.raises(LostError, match="another row's"):
        known.look(path, scratch)


def test_the_comparison_goes_by_the_order_of_documents_and_not_by_their_times(
    tmp_path: Path,
) -> None:
    (directory := tmp_path / "journal").mkdir()
    (scratch := tmp_path / "scratch").mkdir()
    path, known = directory / "journal.db", Known()

    def save(document: Saving) -> None:
        with Journal.open(path) as journal:
            journal.save_document(document.name, document.body, document.saved_ms)

    saved, on_its_way = Saving("rest_budget", b"1", T0), Saving("rest_budget", b"2", T0 - 60_000)
    known.note(saved)
    save(saved)
    known.note(Saved())
    # Killed before it was committed, and after: by a clock that had gone back.
    known.note(on_its_way)
    known.look(path, scratch)
    known.note(on_its_way)
    save(on_its_way)
    known.look(path, scratch)
    # What was there last has to stay, and whoever was killed before it was committed has left it.
    save(saved)
    with pytest.raises(LostError, match=f"document rest_budget of {T0 - 60_000} is gone"):
        known.look(path, scratch)
    save(on_its_way)
    known.look(path, scratch)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM document")
    with pytest.raises(LostError, match="is gone"):
        known.look(path, scratch)
