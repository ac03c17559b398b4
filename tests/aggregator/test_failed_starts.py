"""A start that fails, or a service that dies of what is known: one sentence, no traceback, the exit code."""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import DEADLINE_S, Process, config

sys.path.append(str(Path(__file__).parents[1] / "faults"))

from proc_commands import run_marketfeed

BOTS = {"long": "http://127.0.0.1:9"}


@pytest.fixture
def taken_port() -> Iterator[int]:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


def complaint(file: Path, code: int) -> str:
    """What a start prints that is no line of the log, when it ends with `code`."""
    ended = run_marketfeed("aggregate", "--config", file)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ExceptionGroup" not in ended.stderr
    return "\n".join(line for line in ended.stderr.splitlines() if not line.startswith("time="))


def test_a_port_that_is_taken(tmp_path: Path, taken_port: int) -> None:
    # By then all else runs: what has ended it is one of many tasks.
    assert complaint(config(tmp_path, BOTS, port=taken_port), 1) == (
        f"marketfeed: cannot listen on 127.0.0.1 port {taken_port} (aggregator.host, aggregator.port): "
        "Address already in use: another process has this port"
    )


def test_a_ledger_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = config(tmp_path, BOTS, fresh=True, ledger={"path": str(tmp_path / "folder")})
    assert complaint(file, 1).startswith(f"marketfeed: ledger {tmp_path}/folder: ")


def test_a_ledger_that_another_one_writes(tmp_path: Path) -> None:
    file = config(tmp_path, BOTS)
    first = Process(file)
    try:
        text = complaint(file, 1)
    finally:
        first.stop()
    assert text == (
        f"marketfeed: ledger {tmp_path}/ledger.db: another process is writing it (process "
        f"{first.process.pid}); stop that one first, or give this one a ledger of its own"
    )


def test_a_password_file_that_is_not_there(tmp_path: Path) -> None:
    file = config(tmp_path, BOTS)
    (tmp_path / "bot_word").unlink()
    text = "expected a file that exists and that this user may read"
    assert complaint(file, 2).splitlines() == [
        "a mistake in the settings:",
        f"  aggregator.bots.long.password_file: {text}; found '{tmp_path}/bot_word' ({file} line 7)",
    ]


def test_a_ledger_that_goes_while_it_runs(tmp_path: Path) -> None:
    running = Process(config(tmp_path, BOTS))
    try:
        (tmp_path / "ledger.db").unlink()
        assert running.process.wait(DEADLINE_S) == 1
    finally:
        running.kill()
    assert "Traceback" not in "".join(running.lines)
    assert running.lines[-1].startswith(f"marketfeed: ledger {tmp_path}/ledger.db: ")
