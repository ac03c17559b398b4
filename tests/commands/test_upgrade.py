"""`marketfeed upgrade` and `run --upgrade`, and what `check` and `status` report of a schema version."""

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_schema import KIND as LEDGER
from marketfeed.cli import main
from marketfeed.commands.check import check_file
from marketfeed.commands.upgrade import upgrade_at_start
from marketfeed.journal.journal import KIND, Journal
from marketfeed.storage.database import convert
from tests.newer_version import LETS_IN
from tests.newer_version import upgrade as make_newer
from tests.older_versions import content, journal, ledger, version

TIMEOUT_S = 180.0
OLD_READERS = "who knows only 2 refuses it, `marketfeed upgrade --to 2` takes it back"
NEW_READERS = (
    "schema version 2: `marketfeed upgrade` makes it 3, once all readers know that; until then no "
    "taker_buy_quote_volume, and no hourly mark candle, is stored"
)


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MARKETFEED_")}
    return kept | {"COLUMNS": "200", "NO_COLOR": "1"} | more


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings with a journal and a ledger beside them, and no exchange that answers."""
    path = tmp_path / "config.yaml"
    settings: dict[str, Any] = {
        "exchange": {
            "ws_url": "ws://127.0.0.1:1",
            "rest_url": "http://127.0.0.1:1",
            "pairs": ["BTC/USDT:USDT"],
            "timeframes": ["1m"],
        },
        "journal": {"path": str(tmp_path / "journal.db"), "max_bytes": "64MB"},
        "aggregator": {"ledger": {"path": str(tmp_path / "ledger.db")}},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture
def path(config: Path) -> Path:
    return config.with_name("journal.db")


class Done(NamedTuple):
    """A command that has ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def marketfeed(
    config: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run a command in this process: a start of Python takes longer than most of them."""
    for name in [name for name in os.environ if name.startswith("MARKETFEED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["marketfeed", *arguments, "--config", str(config)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        out, err = capfd.readouterr()
        return Done(int(exited.value.code or 0), out, err)

    return run


# --- upgrade ---------------------------------------------------------------------------------------------


def test_there_and_back_in_words_and_as_json(path: Path, marketfeed: Run) -> None:
    before = content(journal(path, 2))
    there = marketfeed("upgrade")
    assert (there.returncode, version(path)) == (0, 3), there.stderr
    assert re.fullmatch(
        rf"{path}: schema version 3: {re.escape(OLD_READERS)} \(was 2, \d\.\d\d s\)\n", there.stdout
    )
    again = marketfeed("upgrade", "--json")
    assert again.returncode == 0
    found = json.loads(again.stdout)
    assert found.pop("seconds") < TIMEOUT_S
    assert found == {"path": str(path), "before": 3, "after": 3}
    assert "(was so already, " in marketfeed("upgrade").stdout
    back = marketfeed("upgrade", "--to", "2")
    assert (back.returncode, version(path)) == (0, 2)
    assert back.stdout.startswith(f"{path}: {NEW_READERS} (was 3, ")
    assert content(path) == before


def test_the_ledger_there_and_back(config: Path, path: Path, marketfeed: Run) -> None:
    beside = config.with_name("ledger.db")
    before = content(ledger(beside))
    assert marketfeed("upgrade", "--ledger").returncode == 0
    assert version(beside) == 2
    back = marketfeed("upgrade", "--ledger", "--to=1")
    assert (back.returncode, version(beside)) == (0, 1)
    assert "`marketfeed upgrade --ledger` makes it 2" in back.stdout
    assert content(beside) == before
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--to=1"], "--to: found 1, expected 2 or 3 for the journal"),
        (["--to=4"], "--to: found 4, expected 2 or 3 for the journal"),
        (["--to=-1"], "--to: found -1, expected 2 or 3 for the journal"),
        (["--to=x"], "Input should be a valid integer"),
        (["--ledger", "--to=0"], "--to: found 0, expected 1 or 2 for the ledger"),
        (["--ledger", "--to=3"], "--to: found 3, expected 1 or 2 for the ledger"),
    ],
)
def test_a_version_that_there_is_not(
    path: Path, marketfeed: Run, arguments: list[str], expected: str
) -> None:
    journal(path, 2)
    done = marketfeed("upgrade", *arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stdout == ""
    assert version(path) == 2


def refused(marketfeed: Run, path: Path, *arguments: str) -> str:
    """What `upgrade` prints when it exits with 1; nothing has been touched."""
    before = path.read_bytes() if path.exists() else None
    done = marketfeed("upgrade", *arguments)
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert (path.read_bytes() if path.exists() else None) == before
    assert list(path.parent.glob("*.corrupt-*")) == []
    assert done.stderr.startswith("marketfeed: ")
    return done.stderr


def test_no_file(config: Path, path: Path, marketfeed: Run) -> None:
    assert f"journal {path}: there is none yet, or journal.path names another place" in refused(
        marketfeed, path
    )
    assert "aggregator.ledger.path names another place" in refused(
        marketfeed, config.with_name("ledger.db"), "--ledger"
    )
    # As of a collector that was killed at its first start.
    path.touch()
    assert "there is none yet" in refused(marketfeed, path, "--to=2")


def test_a_file_that_is_held(config: Path, path: Path, marketfeed: Run) -> None:
    journal(path, 2)
    beside = ledger(config.with_name("ledger.db"))
    held = f"another process is writing it (process {os.getpid()}); stop that one first"
    with Journal.open(path), Ledger.open(beside):
        assert held in marketfeed("upgrade").stderr
        done = marketfeed("upgrade", "--ledger", "--to=1")
        assert done.returncode == 1
        assert held in done.stderr
    assert (version(path), version(beside)) == (2, 2)


def damage_page(path: Path, table: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        (root,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)


@pytest.mark.parametrize("what", ["all", "cut off", "shipped", "catalog"])
def test_a_damaged_file_stays_in_its_place(path: Path, marketfeed: Run, what: str) -> None:
    journal(path, 2)
    if what == "all":
        path.write_bytes(b"x" * 8_192)
    elif what == "cut off":
        os.truncate(path, path.stat().st_size // 2 // 4_096 * 4_096)
    else:
        damage_page(path, what)
    output = refused(marketfeed, path)
    assert f"journal {path}: " in output
    assert any(word in output for word in ("malformed", "not a database"))


def test_a_file_of_something_else(path: Path, marketfeed: Run) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE note(text)")
    assert "this is an SQLite file, but no journal of marketfeed" in refused(marketfeed, path)
    path.unlink()
    ledger(path)
    assert "but no journal of marketfeed (application_id 0x4d4b4c47" in refused(marketfeed, path)


def test_a_newer_version_s_file(path: Path, marketfeed: Run) -> None:
    """Even one that lets this version write: only who wrote it knows what is in it."""
    Journal.open(path).close()
    make_newer(path, LETS_IN)
    newer = "schema version 4 is newer than this marketfeed's, 3: the one that wrote it takes it"
    for arguments in ([], ["--to=2"], ["--to=3"]):
        assert newer in refused(marketfeed, path, *arguments)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET writers_from = 4")
    assert "written by a newer marketfeed (schema version 4: writing it takes version 4" in refused(
        marketfeed, path, "--to=2"
    )


# --- run --upgrade ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulator() -> Iterator[dict[str, str]]:
    with background("simulate", "--pairs=2", "--speed=60", "--timeframes=1m", "--port=0") as line:
        yield line(r"ws_url=(?P<ws_url>\S+) rest_url=(?P<rest_url>\S+)").groupdict()


Line = Callable[[str], re.Match[str]]


@contextlib.contextmanager
def background(*arguments: str | Path, **variables: str) -> Iterator[Line]:
    """A command that runs on, and is to end well; yields what waits for a line of its log."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "marketfeed", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**variables),
        )
        assert process.stderr is not None

        def line(pattern: str) -> re.Match[str]:
            assert process.stderr is not None
            for text in process.stderr:
                log.write(text)
                if match := re.search(pattern, text):
                    return match
            log.seek(0)
            raise AssertionError(f"no {pattern!r} in:\n{log.read()}")

        try:
            yield line
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            process.stderr.close()
            code = process.wait(TIMEOUT_S)
        assert code == 0


def started(config: Path, simulator: dict[str, str], *options: str) -> tuple[str, str]:
    """Start a collector and stop it; what it logs first of the journal, and what `status` shows."""
    variables = {f"MARKETFEED_EXCHANGE__{name.upper()}": url for name, url in simulator.items()}
    with background("run", "--config", config, *options, **variables) as line:
        first = line(r"journal (?:migrated|not upgraded|damaged)[^\n]*|status_url=(\S+)")
        url = first[1] or line(r"status_url=(\S+)")[1]
        line("connection open")
        done = subprocess.run(
            [sys.executable, "-m", "marketfeed", "status", "--url", url],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env=environment(),
        )
    return first[0], " ".join(done.stdout.split())


@pytest.mark.long(12)
def test_run_goes_on_with_version_2_until_it_is_reported(
    config: Path, path: Path, simulator: dict[str, str]
) -> None:
    journal(path, 2)
    first, shown = started(config, simulator)
    assert first.startswith("status_url")
    assert NEW_READERS in shown
    assert version(path) == 2
    first, shown = started(config, simulator, "--upgrade")
    assert first.startswith("journal migrated")
    assert "from=2 to=3" in first
    assert f"schema version 3: {OLD_READERS}" in shown
    assert version(path) == 3


def test_run_upgrade_of_a_damaged_journal_begins_anew_as_any_start(
    config: Path, path: Path, simulator: dict[str, str]
) -> None:
    path.write_bytes(b"x" * 8_192)
    first, shown = started(config, simulator, "--upgrade")
    assert first.startswith("journal not upgraded, going on with it as it is")
    assert "file is not a database" in first
    assert f"schema version 3: {OLD_READERS}" in shown
    (aside,) = path.parent.glob("journal.db.corrupt-*")
    assert aside.read_bytes() == b"x" * 8_192


def test_run_upgrade_without_a_journal(config: Path, path: Path, simulator: dict[str, str]) -> None:
    first, shown = started(config, simulator, "--upgrade")
    assert first.startswith("status_url")
    assert f"schema version 3: {OLD_READERS}" in shown
    assert version(path) == 3
    assert list(path.parent.glob("*.corrupt-*")) == []


def test_a_start_that_cannot_upgrade_goes_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is wrong with the file, its start reports afterwards as it always does."""
    path.touch()
    upgrade_at_start(path)
    assert caplog.records == []
    assert path.read_bytes() == b""
    path.unlink()
    journal(path, 2)
    with Journal.open(path):
        upgrade_at_start(path)
    assert "another process is writing it" in caplog.text
    assert version(path) == 2


def test_a_start_for_whom_the_place_is_closed(
    shared_path: Path, as_nobody: Callable[[Callable[[], None]], None]
) -> None:
    folder = shared_path / "closed"
    folder.mkdir(mode=0o700)
    journal(folder / "journal.db", 2)
    if os.geteuid() != 0:
        folder.chmod(0)
    # It reports that, and leaves the rest to the collector's own start.
    as_nobody(lambda: upgrade_at_start(folder / "journal.db"))
    folder.chmod(0o700)
    assert version(folder / "journal.db") == 2


def test_systemd_is_asked_for_time_before(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        upgrade_at_start(path)
        upgrade_at_start(journal(path, 2))
        assert notified.recv(100) == b"EXTEND_TIMEOUT_USEC=60000000"
        assert version(path) == 3
        notified.setblocking(False)
        # None before, without a file, and none after, as there is nothing to do.
        upgrade_at_start(path)
        with pytest.raises(BlockingIOError):
            notified.recv(100)


# --- check -----------------------------------------------------------------------------------------------


def test_check_names_the_version_and_what_it_means(
    config: Path, path: Path, marketfeed: Run
) -> None:
    journal(path, 2)
    done = marketfeed("check", "--json")
    texts = {item["subject"]: item["text"] for item in json.loads(done.stdout)["findings"]}
    assert texts["journal"].endswith(f" bytes, {NEW_READERS}")
    assert NEW_READERS in " ".join(marketfeed("check").stdout.replace("│", " ").split())
    assert version(path) == 2


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, "schema version 1: `marketfeed upgrade` makes it 3, once all readers know that"),
        (2, NEW_READERS),
        (3, f"schema version 3: {OLD_READERS}"),
        (4, "schema version 4 (newer than this one's, 3)"),
    ],
)
def test_what_is_reported_of_a_journal(path: Path, number: int, expected: str) -> None:
    journal(path, min(number, 2))
    if number > 2:
        convert(KIND, path, 3)
    if number == 4:
        make_newer(path, LETS_IN)
    finding, size = check_file(KIND, path)
    assert (finding.verdict, finding.text) == ("good", f"{path}: {size:,} bytes, {expected}")


def test_what_is_reported_of_a_ledger(path: Path) -> None:
    ledger(path)
    assert check_file(LEDGER, path)[0].text.endswith(
        "schema version 1: `marketfeed upgrade --ledger` makes it 2, once all readers know that"
    )
    Ledger.open(path).close()
    assert check_file(LEDGER, path)[0].text.endswith(
        "schema version 2: who knows only 1 refuses it, "
        "`marketfeed upgrade --ledger --to 1` takes it back"
    )
