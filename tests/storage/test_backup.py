"""`marketfeed backup`: whole, of one moment, beside a writer; never over another file, nothing left half."""

import errno
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_schema import KIND as LEDGER
from marketfeed.commands.check import check_file
from marketfeed.errors import BackupError, JournalError, JournalForeignError
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.records import Candle
from marketfeed.storage import backup
from marketfeed.storage.backup import back_up
from marketfeed.storage.reading import inspect
from reader import MarketReader
from tests.sweeps import delete

PAIR = "BTC/USDT:USDT"
T0 = 1_767_225_600_000
MINUTE = 60_000


def candles(first: int, count: int) -> Batch:
    batch = Batch()
    batch.extend(
        Candle(PAIR, "1m", T0 + n * MINUTE, 1, 2, 0.5, 1.5, n, n, n / 2, n, True, T0 + n * MINUTE)
        for n in range(first, first + count)
    )
    return batch


def opens(path: Path) -> list[int]:
    with Journal.open(path) as journal:
        assert journal.set_aside is None
        return [candle.open_time_ms for candle in journal.candles(PAIR, "1m", 0, 2**62)]


def nothing(_: str, __: float) -> None:
    """Tell nobody."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where copies go; nothing unfinished is left there."""
    (folder := tmp_path / "copies").mkdir()
    yield folder
    assert [file.name for file in folder.iterdir() if "unfinished" in file.name] == []


def test_beside_a_writer_it_is_of_one_moment(path: Path, folder: Path) -> None:
    stop = threading.Event()
    with Journal.open(path) as journal:
        journal.write(candles(0, 20_000))

        def write_on() -> None:
            at = 20_000
            while not stop.is_set():
                # 60 a commit: a copy that is of two moments would hold part of a commit.
                journal.write(candles(at, 60))
                at += 60

        writing = threading.Thread(target=write_on)
        writing.start()
        stages: list[tuple[str, float]] = []
        try:
            reports = [
                back_up(KIND, path, folder / f"{n}.db", lambda *progress: stages.append(progress))
                for n in range(5)
            ]
        finally:
            stop.set()
            writing.join()
    for report in reports:
        copy = Path(report.path)
        assert {file.name for file in folder.glob(f"{copy.stem}.*")} == {copy.name}
        assert copy.stat().st_mode & 0o777 == 0o640
        assert copy.stat().st_size == report.bytes
        with MarketReader.connect(f"sqlite:///{copy}") as reader:
            # The catalog is empty: only that it is recognised and read counts here.
            assert reader.pairs() == []
        found = opens(copy)
        assert found == [T0 + n * MINUTE for n in range(len(found))]
        assert len(found) >= 20_000
        assert len(found) % 60 == 20_000 % 60
    assert stages[-1] == ("done", 1.0)
    assert {stage for stage, _ in stages} >= {"copying", "checking the copy"}
    fractions = [fraction for _, fraction in stages]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    # The copies did not keep the writer's file from being folded together in the end.
    assert not Path(f"{path}-wal").exists()


def test_of_a_stopped_journal_and_back_again(path: Path, folder: Path) -> None:
    with Journal.open(path) as journal:
        journal.write(candles(0, 500))
    before = {file.name for file in path.parent.iterdir()}
    report = back_up(KIND, path, folder / "copy.db", nothing)
    assert {file.name for file in path.parent.iterdir()} == before
    path.write_bytes(b"damaged")
    path.unlink()
    (folder / "copy.db").rename(path)
    assert len(opens(path)) == 500
    with Journal.open(path) as journal:
        journal.write(candles(500, 1))
        assert report.schema_version == KIND.version
    assert len(opens(path)) == 501


def test_after_a_kill_what_is_in_the_wal_is_copied(path: Path, folder: Path) -> None:
    code = f"""
import os
from pathlib import Path
from tests.storage.test_backup import candles
from marketfeed.journal.journal import Journal
journal = Journal.open(Path({str(path)!r}))
journal.write(candles(0, 100))
os.kill(os.getpid(), 9)
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=False, cwd=root)
    assert Path(f"{path}-wal").exists()
    back_up(KIND, path, folder / "copy.db", nothing)
    assert len(opens(folder / "copy.db")) == 100


def test_compacted_it_has_no_page_that_is_free(path: Path, folder: Path) -> None:
    stages: list[str] = []
    with Journal.open(path) as journal:
        journal.write(candles(0, 20_000))
        (pair_id,) = journal.db.execute("SELECT id FROM pair").fetchone()
        assert delete(journal, "candle", pair_id, T0 + 15_000 * MINUTE) == 15_000
    finding, _ = check_file(KIND, path)
    free = int(re.findall(r"([\d,]+) bytes of it are free", finding.text)[0].replace(",", ""))
    assert "marketfeed backup --compact" in finding.text
    plain = back_up(KIND, path, folder / "plain.db", nothing)
    small = back_up(
        KIND, path, folder / "small.db", lambda stage, _: stages.append(stage), compact=True
    )
    assert plain.bytes == path.stat().st_size
    # What check says that it frees, but for pages that were half full: those it may save on top.
    assert small.bytes <= plain.bytes - free < plain.bytes / 2
    assert "done" in stages
    assert (folder / "small.db").stat().st_mode & 0o777 == 0o640
    assert opens(folder / "small.db") == opens(path)
    assert "bytes of it are free" not in check_file(KIND, folder / "small.db")[0].text


def test_beside_a_writer_it_is_compacted_as_it_stood(path: Path, folder: Path) -> None:
    with Journal.open(path) as journal:
        journal.write(candles(0, 500))
        report = back_up(KIND, path, folder / "copy.db", nothing, compact=True)
        journal.write(candles(500, 10))
    assert report.checked
    assert len(opens(folder / "copy.db")) == 500


@pytest.mark.parametrize("compact", [False, True])
def test_a_copy_that_lets_the_wal_grow_too_large_is_given_up(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, compact: bool
) -> None:
    """As onto a disk so slow that the writer has committed too much meanwhile."""
    monkeypatch.setattr(backup, "_LOOK_S", 0.0)
    grown = iter([0, *[10**9] * 10**6])
    monkeypatch.setattr(backup, "wal_bytes", lambda _: next(grown))
    with Journal.open(path) as journal:
        journal.write(candles(0, 30_000 if compact else 10))
        with pytest.raises(BackupError, match="its -wal has grown to 1,000 MB"):
            back_up(KIND, path, folder / "copy.db", nothing, compact=compact)
    assert list(folder.iterdir()) == []


def test_a_large_copy_is_checked_whole_when_asked(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "CHECKED_BYTES", 1_000)
    with Journal.open(path) as journal:
        journal.write(candles(0, 1_000))
    assert not back_up(KIND, path, folder / "quick.db", nothing).checked
    assert back_up(KIND, path, folder / "whole.db", nothing, check=True).checked


def test_between_file_systems_it_is_read_and_written(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with Journal.open(path) as journal:
        journal.write(candles(0, 1_000))
        back_up(KIND, path, folder / "copy.db", nothing)
    assert len(opens(folder / "copy.db")) == 1_000


def test_nothing_is_overwritten(path: Path, folder: Path) -> None:
    with Journal.open(path) as journal:
        journal.write(candles(0, 1))
    copy = folder / "copy.db"
    copy.write_text("mine")
    (folder / "link.db").symlink_to("nowhere")
    for name in ("copy.db", "link.db"):
        with pytest.raises(BackupError, match="it is there already"):
            back_up(KIND, path, folder / name, nothing)

    def comes_meanwhile(stage: str, _: float) -> None:
        if stage == "writing to the disk":
            (folder / "late.db").write_text("another's")

    with pytest.raises(BackupError, match="it is there already"):
        back_up(KIND, path, folder / "late.db", comes_meanwhile)
    assert copy.read_text() == "mine"
    assert (folder / "late.db").read_text() == "another's"


def test_what_is_no_journal_is_refused(path: Path, folder: Path) -> None:
    with pytest.raises(BackupError, match="there is none"):
        back_up(KIND, path, folder / "copy.db", nothing)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other(x)")
    with pytest.raises(JournalForeignError):
        back_up(KIND, path, folder / "copy.db", nothing)
    path.write_bytes(b"x" * 8192)
    with pytest.raises(JournalError, match="not a database"):
        back_up(KIND, path, folder / "copy.db", nothing)
    store = path.with_name("good.db")
    Journal.open(store).close()
    with pytest.raises(BackupError, match="No such file"):
        back_up(KIND, store, folder / "nowhere" / "copy.db", nothing)
    assert list(folder.iterdir()) == []


def test_a_damaged_journal_gives_no_backup(path: Path, folder: Path) -> None:
    with Journal.open(path) as journal:
        journal.write(candles(0, 5_000))
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        file.write(b"\xff" * 8192)
    with pytest.raises(BackupError, match=r"damaged|malformed"):
        back_up(KIND, path, folder / "copy.db", nothing)
    assert list(folder.iterdir()) == []


def test_a_kill_leaves_no_name(path: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "killed").mkdir()
    with Journal.open(path) as journal:
        journal.write(candles(0, 5_000))
    code = f"""
import os
from pathlib import Path
from marketfeed.storage import backup
from marketfeed.storage.backup import back_up
from marketfeed.storage.reading import inspect
from marketfeed.journal.journal import KIND
def tell(stage, _):
    if stage == "checking the copy":
        os.kill(os.getpid(), 9)
back_up(KIND, Path({str(path)!r}), Path({str(folder / "copy.db")!r}), tell)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert not (folder / "copy.db").exists()
    back_up(KIND, path, folder / "copy.db", nothing)
    assert len(opens(folder / "copy.db")) == 5_000


def test_the_command(path: Path, folder: Path, tmp_path: Path) -> None:
    with Journal.open(path) as journal:
        journal.write(candles(0, 10))
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"journal": {"path": str(path)}}))

    def backup(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "marketfeed", "backup", "--config", config, folder / name]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MARKETFEED_")}
        return subprocess.run(
            [*map(str, command), *more], capture_output=True, text=True, check=False, env=env
        )

    done = backup("one.db")
    assert done.returncode == 0, done.stderr
    assert f"{folder / 'one.db'}: 0.1 MB, schema version {KIND.version}, checked" in done.stdout
    report = json.loads(backup("two.db", "--json").stdout)
    assert report["path"] == str(folder / "two.db")
    assert report["bytes"] == (folder / "two.db").stat().st_size
    again = backup("one.db")
    assert again.returncode == 1
    assert "it is there already; nothing is overwritten" in again.stderr
    assert len(opens(folder / "two.db")) == 10
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.beat()
    config.write_text(json.dumps({"aggregator": {"ledger": {"path": str(tmp_path / "ledger.db")}}}))
    assert backup("three.db", "--ledger").returncode == 0
    found = inspect(LEDGER, folder / "three.db")
    assert found is not None
    assert found.version == LEDGER.version


IN_ITS_PLACE = """
import os, sys
from pathlib import Path
from tests.storage.test_backup import candles
from marketfeed.journal.journal import Journal
path = Path(sys.argv[1])
for suffix in ("", "-wal", "-shm"):
    os.rename(f"{path}{suffix}", f"{path}.old{suffix}")
journal = Journal.open(path)
journal.write(candles(100_000, 3_000))
journal.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
journal.write(candles(103_000, 50))
os._exit(0)
"""


def replace_with_another(path: Path) -> None:
    """Another journal in the place of this one, left as by a kill."""
    (path.parent / f"{path.name}.lock").unlink()
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", IN_ITS_PLACE, str(path)], check=True, cwd=root)


@pytest.mark.parametrize("always", [False, True])
def test_a_journal_that_is_replaced_meanwhile_is_not_mixed_with_its_successor(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, always: bool
) -> None:
    # As of a large one: that is not looked through, and a mixture would be kept.
    monkeypatch.setattr(backup, "CHECKED_BYTES", 0)
    copy_chunk, times = backup._copy_chunk, [0]

    def then_replace(source: int, copy: int, offset: int) -> int:
        copied = copy_chunk(source, copy, offset)
        if not offset and os.fstat(source).st_ino == path.stat().st_ino:
            times[0] += 1
            if times[0] == 1 or always:
                for left in path.parent.glob("*.old*"):
                    left.rename(left.with_name(f"{times[0]}.{left.name}"))
                replace_with_another(path)
        return copied

    monkeypatch.setattr(backup, "_copy_chunk", then_replace)
    with Journal.open(path) as journal:
        journal.write(candles(0, 5_000))
        journal.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        journal.write(candles(5_000, 5))
        if always:
            with pytest.raises(BackupError, match="it was replaced by another file"):
                back_up(KIND, path, folder / "copy.db", nothing)
            return
        back_up(KIND, path, folder / "copy.db", nothing)
    assert times == [2]
    assert opens(folder / "copy.db") == [T0 + n * MINUTE for n in range(100_000, 103_050)]


def test_a_wal_that_begins_anew_while_it_is_copied_is_copied_again(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_chunk = backup._copy_chunk
    monkeypatch.setattr(backup, "_CHUNK_BYTES", 64 * 1024)
    with Journal.open(path) as journal:
        journal.write(candles(0, 3_000))
        # All of it is in the file: a reader that begins now hinders no -wal from beginning anew.
        assert journal.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
        wal = Path(f"{path}-wal").stat().st_ino
        wrote = [0]

        def then_commit(source: int, copy: int, offset: int) -> int:
            copied = copy_chunk(source, copy, offset)
            if os.fstat(source).st_ino == wal and offset and wrote[0] < 3:
                wrote[0] += 1
                journal.write(candles(3_000 + wrote[0] * 500 - 500, 500))
            return copied

        monkeypatch.setattr(backup, "_copy_chunk", then_commit)
        back_up(KIND, path, folder / "copy.db", nothing)
    assert wrote == [3]
    found = opens(folder / "copy.db")
    # What was committed before the copy's end, and nothing of it is lost or torn.
    assert len(found) > 3_000
    assert found == [T0 + n * MINUTE for n in range(len(found))]
