"""kill -9 while the `-wal` is to begin anew: what was committed is there, and the file is whole."""

import contextlib
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from marketfeed.journal.journal import Journal

WITHIN, KILLS_AT_MOST = 3, 40
"""Until so many kills have met it in the middle."""
CHILD = """
import os, sys
from pathlib import Path
from marketfeed.journal.journal import Journal
from marketfeed.storage.folding import begin_anew
journal = Journal.open(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    # By begin_anew alone: it has something to do.
    journal.db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    for _ in range(40):
        number += 1
        journal.save_document(f"filler {number % 60}", os.urandom(60_000), number)
        print(number, flush=True)
    print("begins", flush=True)
    begin_anew(journal.db)
    print("begun", flush=True)
"""


def test_killed_while_the_wal_is_to_begin_anew(tmp_path: Path) -> None:
    path, moments = tmp_path / "journal.db", random.Random(1)
    committed = killed_within = 0
    for _ in range(KILLS_AT_MOST):
        command = [sys.executable, "-c", CHILD, str(path), str(committed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines: list[str] = []
            # The second time: beside what an earlier run of the -wal has left.
            while lines.count("begins") < 2:
                lines.append(child.stdout.readline().strip())
                assert lines[-1]
            time.sleep(moments.uniform(0.0, 0.004))
            child.kill()
            lines += child.stdout.read().split()
        killed_within += lines[-1] == "begins"
        committed = max(committed, *(int(line) for line in lines if line.isdigit()))
        with Journal.open(path) as journal:
            assert journal.set_aside is None
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (found,) = db.execute("SELECT max(saved) FROM document").fetchone()
            # One may have been committed that was not reported any more.
            assert committed <= found <= committed + 1
            committed = found
            (kept,) = db.execute(
                "SELECT count(*) FROM document WHERE name LIKE 'filler%'"
            ).fetchone()
            assert kept == 60
        if killed_within == WITHIN:
            return
    raise AssertionError(killed_within)
