"""A `-wal` that a kill left beside a reader: recovered, folded back and said, before anything is written."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marketfeed.journal.journal import Journal
from marketfeed.storage import database
from marketfeed.storage.database import recovery_s
from marketfeed.storage.files import wal_bytes

KILLED = """
import os, sys
from pathlib import Path
from marketfeed.journal.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
journal.db.execute("PRAGMA wal_autocheckpoint = 0")
for number in range(20):
    journal.save_document(f"a{number}", os.urandom(20_000), 1)
os._exit(0)
"""


@pytest.mark.parametrize("most", [1 << 30, 100_000])
def test_a_large_wal_is_folded_back_at_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    path = tmp_path / "journal.db"
    subprocess.run([sys.executable, "-c", KILLED, path], check=True, env=dict(os.environ))
    left = wal_bytes(path)
    assert left > 300_000
    monkeypatch.setattr(database, "WAL_BYTES", most)
    is_large = left > most
    assert (recovery_s(path) > 60.0) == is_large
    with caplog.at_level(logging.INFO), Journal.open(path) as journal:
        assert journal.load_document("a19") is not None
        assert wal_bytes(path) < left if is_large else wal_bytes(path) >= left
    assert ("left a large wal" in caplog.text) == is_large
    assert ("wal recovered" in caplog.text) == is_large
    assert recovery_s(tmp_path / "absent.db") == 0.0
