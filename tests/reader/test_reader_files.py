"""The journal as a file: what is no journal, and journals that run, stop, die and are replaced."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stored import M3, PAIR, START_MS, Child, Writer, candle, entry, store, url, write

from marketfeed import schema
from marketfeed.journal.journal import Journal
from reader import MarketReader, StoreUnavailableError


def connect(path: Path) -> MarketReader:
    return MarketReader.connect(url(path), now_ms=lambda: START_MS)


def count(reader: MarketReader, pair: str = PAIR) -> int:
    return len(reader.get_ohlcv(pair, "3m"))


def is_immutable(reader: MarketReader) -> bool:
    return reader._store._file._idle[-1].opened.wal is None


def names(path: Path) -> set[str]:
    return {item.name for item in path.parent.iterdir()}


# --- no journal -------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(StoreUnavailableError) as caught:
        connect(path)
    text = str(caught.value)
    assert text.startswith(f"journal {path} ")
    return text


def test_no_file(path: Path) -> None:
    assert "is not there; start the collector" in refused(path)
    assert "is not there" in refused(path / "deeper.db")
    assert names(path) == set(), "nothing is created"


def test_a_directory(path: Path) -> None:
    path.mkdir()
    assert "is no file" in refused(path)


def test_a_fifo(path: Path) -> None:
    os.mkfifo(path)
    assert "is no file" in refused(path)


def test_no_sqlite_file(path: Path) -> None:
    path.write_bytes(b"open,high,low,close\n" * 1000)
    assert "is not an SQLite file" in refused(path)


@pytest.mark.parametrize("wal", [False, True])
def test_a_foreign_sqlite_file(path: Path, wal: bool) -> None:
    db = sqlite3.connect(path)
    if wal:
        db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE candle(pair_id, timeframe_ms, open_time)")
    db.commit()
    assert "not a journal of marketfeed (application_id 0x0, expected 0x4d4b5446)" in refused(path)
    db.close()


@pytest.mark.parametrize("content", [b"", None])
def test_an_empty_file(path: Path, content: bytes | None) -> None:
    if content is None:
        db = sqlite3.connect(path)
        db.execute("PRAGMA journal_mode = WAL")
        db.close()
    else:
        path.write_bytes(content)
    assert "is empty: no collector has written to it yet" in refused(path)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (4, "has schema version 4: reading it takes version 4, this reader is version 3: it was"),
        (4, "written by a newer marketfeed; install that version here too"),
        (
            1,
            "has schema version 1, this reader reads version 2 and newer: it was written by an older",
        ),
        (0, "older marketfeed; start a collector of this version on it"),
    ],
)
def test_another_version(path: Path, version: int, words: str) -> None:
    store(path, entry())
    db = sqlite3.connect(path)
    db.execute("DROP TABLE meta")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    assert words in refused(path)


def test_a_version_that_changes_meanwhile(path: Path) -> None:
    with Journal.open(path) as journal:
        write(journal, entry(), candle(START_MS))
        with connect(path) as reader:
            assert count(reader) == 1
            (asked,) = journal.db.execute("SELECT readers_from FROM meta").fetchone()
            assert asked == schema.SCHEMA_VERSION
            journal.db.execute("UPDATE meta SET readers_from = ?", (asked + 1,))
            journal.db.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
            with pytest.raises(StoreUnavailableError, match="newer marketfeed"):
                count(reader)
            journal.db.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")
            assert count(reader) == 1


def test_a_damaged_file(path: Path) -> None:
    store(path, entry(), [candle(START_MS + n * M3) for n in range(-3000, 1)])
    with connect(path) as reader:
        assert count(reader) == 500
        stat = path.stat()
        with path.open("r+b") as file:
            for page in range(4, stat.st_size // 4096):
                file.seek(page * 4096)
                file.write(b"\xff" * 4096)
        with pytest.raises(StoreUnavailableError, match=r"is damaged.*sets it aside"):
            count(reader)


def test_a_cut_file(path: Path) -> None:
    store(path, entry(), [candle(START_MS + n * M3) for n in range(-3000, 1)])
    os.truncate(path, 8192)
    with pytest.raises(StoreUnavailableError):
        count(connect(path))


def test_a_locked_file(path: Path) -> None:
    store(path, entry())
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("BEGIN EXCLUSIVE")
    db.execute("CREATE TABLE x(y)")

    def attempt() -> str:
        try:
            connect(path)
        except StoreUnavailableError as error:
            return str(error)
        return "opened"

    with Child(attempt=attempt) as child:
        assert "stayed locked for 2 s" in child("attempt")
        # A lock that goes in time is only waited for.
        child.start("attempt")
        assert not child.has_answered(within_s=0.1)
        db.execute("ROLLBACK")
        db.close()
        assert child.answer() == "opened"


# --- running, stopping, starting again --------------------------------------------------------------


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    with Writer(path) as process:
        yield process


def test_while_the_collector_writes(path: Path, writer: Writer) -> None:
    writer("open")
    writer("write", entry(), candle(START_MS))
    with connect(path) as reader:
        assert not is_immutable(reader)
        for number in range(1, 20):
            assert count(reader) == number
            writer("write", candle(START_MS + number * M3))
        assert count(reader) == 20


def test_after_a_clean_stop_nothing_is_created(path: Path) -> None:
    store(path, entry(), candle(START_MS))
    before = names(path)
    with connect(path) as reader:
        assert is_immutable(reader)
        assert count(reader) == 1
        assert names(path) == before
    assert names(path) == before


def test_an_immutable_reader_notices_a_start(path: Path, writer: Writer) -> None:
    store(path, entry(), candle(START_MS))
    with connect(path) as reader:
        assert is_immutable(reader)
        assert count(reader) == 1
        writer("open")
        assert count(reader) == 1
        assert not is_immutable(reader)
        writer("write", candle(START_MS + M3))
        assert count(reader) == 2


def test_an_immutable_reader_notices_a_whole_run(path: Path, writer: Writer) -> None:
    store(path, entry(), candle(START_MS))
    with connect(path) as reader:
        for number in range(2, 6):
            writer("open")
            writer("write", candle(START_MS + number * M3))
            writer("stop")
            assert count(reader) == number
            assert is_immutable(reader)


def test_a_reader_lives_through_stops_and_starts(path: Path, writer: Writer) -> None:
    writer("open")
    writer("write", entry(), candle(START_MS))
    with connect(path) as reader:
        for number in range(1, 5):
            assert count(reader) == number
            writer("stop")
            assert count(reader) == number
            writer("open")
            assert count(reader) == number
            writer("write", candle(START_MS + number * M3))
            assert count(reader) == number + 1


def test_after_a_kill(path: Path, writer: Writer) -> None:
    writer("open")
    writer("write", entry(), candle(START_MS))
    with connect(path) as before:
        assert count(before) == 1
        writer("write", candle(START_MS + M3))
        writer.kill()
        assert count(before) == 2
        with connect(path) as reader:
            assert count(reader) == 2
        with Writer(path) as second:
            second("open")
            second("write", candle(START_MS + 2 * M3))
            assert count(before) == 3


def test_answers_while_a_collector_starts_and_stops_all_the_time(path: Path) -> None:
    """Whatever the moment: the answer is a whole state of the journal, and never an older one."""
    store(path, entry(), candle(START_MS))

    def runs(number: int) -> None:
        for turn in range(number):
            with Journal.open(path) as journal:
                for part in range(3):
                    write(journal, candle(START_MS + (turn * 3 + part + 1) * M3))

    with Child(runs=runs) as process, connect(path) as reader:
        process.start("runs", 25)
        seen = [count(reader)]
        while not process.has_answered():
            frame = reader.get_ohlcv(PAIR, "3m")
            assert frame.attrs["missing"] == []
            seen.append(len(frame))
        process.answer()
        assert count(reader) == 76
    assert seen == sorted(seen)


# --- replaced ---------------------------------------------------------------------------------------


def test_a_journal_that_was_set_aside_as_damaged(path: Path, writer: Writer) -> None:
    store(path, entry(), [candle(START_MS + n * M3) for n in range(5)])
    with connect(path) as reader:
        assert count(reader) == 5
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 65536)
        writer("open")  # finds the damage
        writer("write", entry(), candle(START_MS))
        assert any(".corrupt-" in name for name in names(path))
        assert count(reader) == 1


def test_a_journal_moved_away_while_it_runs(path: Path, writer: Writer) -> None:
    writer("open")
    writer("write", entry(), [candle(START_MS + n * M3) for n in range(5)])
    with connect(path) as reader:
        assert count(reader) == 5
        for suffix in ("-wal", "-shm", ""):
            Path(f"{path}{suffix}").rename(f"{path}.away{suffix}")
        store(path.with_name("new.db"), entry(), candle(START_MS))
        path.with_name("new.db").rename(path)
        assert count(reader) == 1
        assert is_immutable(reader)


def test_a_restored_backup(path: Path, tmp_path: Path) -> None:
    store(path, entry(), [candle(START_MS + n * M3) for n in range(5)])
    shutil.copy(path, tmp_path / "backup")
    store(path, [candle(START_MS + n * M3) for n in range(5, 9)])
    with connect(path) as reader:
        assert count(reader) == 9
        (tmp_path / "backup").replace(path)
        assert count(reader) == 5


def test_a_journal_that_vanishes_and_comes_back(path: Path, tmp_path: Path) -> None:
    store(path, entry(), candle(START_MS))
    with connect(path) as reader:
        assert count(reader) == 1
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(StoreUnavailableError, match="is not there"):
            count(reader)
        with pytest.raises(StoreUnavailableError, match="is not there"):
            reader.get_mark_price(PAIR)
        (tmp_path / "elsewhere").rename(path)
        assert count(reader) == 1


# --- another user -----------------------------------------------------------------------------------

NOBODY = 65534

as_root = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="only root can become another user"
)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A collector's directory: its group may read, others may not even look."""
    # Not in tmp_path: pytest closes the directory above it to others, whenever any pytest starts.
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o711)
        folder = Path(above) / "shared"
        folder.mkdir()
        os.chown(folder, 0, NOBODY)
        folder.chmod(0o2750)
        yield folder / "journal.db"


def other_user(path: Path, uid: int = NOBODY) -> Child:
    """A process of another user with a reader that it keeps."""
    import reader.stores.sqlite  # noqa: F401, PLC0415 - the interpreter itself may be out of its reach

    readers: list[MarketReader] = []

    def counted() -> tuple[int, bool]:
        if not readers:
            readers.append(connect(path))
        return count(readers[0]), is_immutable(readers[0])

    return Child(uid, count=counted, uid=os.geteuid)


@as_root
def test_another_user_reads_while_the_collector_runs_and_after(shared: Path) -> None:
    with (
        Writer(shared, umask=0o027) as writer,
        other_user(shared) as early,
        other_user(shared) as stopped,
        other_user(shared) as late,
    ):
        assert early("uid") == NOBODY
        writer("open")
        writer("write", entry(), candle(START_MS))
        assert shared.stat().st_mode & 0o777 == 0o640
        assert early("count") == (1, False)
        writer("write", candle(START_MS + M3))
        assert early("count") == (2, False)
        # The reader's own lock keeps the -wal where it is; both still see everything.
        writer("stop")
        assert early("count") == (2, False)
        assert stopped("count") == (2, False)
        early.end()
        stopped.end()
        writer("open")
        writer("stop")
        assert names(shared) == {"journal.db", "journal.db.lock"}
        assert late("count") == (2, True)
        assert names(shared) == {"journal.db", "journal.db.lock"}
        writer("open")
        assert late("count") == (2, False)
        writer("write", candle(START_MS + 2 * M3))
        assert late("count") == (3, False)
        writer("stop")
        assert late("count")[0] == 3


@as_root
def test_another_user_reads_after_a_kill(shared: Path) -> None:
    with (
        Writer(shared, umask=0o027) as writer,
        Writer(shared, umask=0o027) as second,
        other_user(shared) as early,
        other_user(shared) as late,
        other_user(shared) as lost,
    ):
        writer("open")
        writer("write", entry(), candle(START_MS))
        assert early("count") == (1, False)
        writer("write", candle(START_MS + M3))
        writer.kill()
        assert early("count") == (2, False)
        assert late("count") == (2, False)
        second("open")
        second("write", candle(START_MS + 2 * M3))
        assert early("count") == (3, False)
        assert late("count") == (3, False)
        early.end()
        late.end()
        second.kill()
        # A -wal whose -shm is gone cannot be read by one who may not make a new one.
        Path(f"{shared}-shm").unlink()
        with pytest.raises(StoreUnavailableError, match="a start of the collector makes it"):
            lost("count")
        with Writer(shared, umask=0o027) as third:
            third("open")
            assert lost("count") == (3, False)


@as_root
def test_a_user_who_may_not_read_is_reported(shared: Path) -> None:
    store(shared, entry(), candle(START_MS))
    shared.chmod(0o600)
    with other_user(shared) as child:
        with pytest.raises(StoreUnavailableError, match=r"Permission denied.*collector's group"):
            child("count")
        shared.parent.chmod(0o700)
        with pytest.raises(StoreUnavailableError, match=r"Permission denied.*collector's group"):
            child("count")
        shared.parent.chmod(0o2750)
        shared.chmod(0o644)
        assert child("count") == (1, True)
