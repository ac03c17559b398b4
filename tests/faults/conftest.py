"""The scoreboard of the session: tests write rows, the end of the session shows them."""

import os
from pathlib import Path

import pytest
from scoreboard import VARIABLE, Scoreboard, table

_BOARD = pytest.StashKey[Scoreboard]()


@pytest.fixture(scope="session")
def scoreboard(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Scoreboard:
    """Where a test of a fault writes its row: `scoreboard.add(Row(fault=…, lost=…, …))`."""
    named = os.environ.get(VARIABLE)
    # There is none with `-p no:cacheprovider`.
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    if named:
        path = Path(named).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
    elif cache is None:
        path = tmp_path_factory.mktemp("scoreboard") / "faults.jsonl"
    else:
        path = cache.mkdir("scoreboard") / "faults.jsonl"
        path.unlink(missing_ok=True)
    pytestconfig.stash[_BOARD] = board = Scoreboard(path)
    return board


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the rows that this session has written."""
    board = config.stash.get(_BOARD, None)
    if board is not None and board.rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"rows in {board.path}; times in exchange seconds")
        for line in table(board.rows):
            terminalreporter.write_line(line)
