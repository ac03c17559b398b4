"""The scoreboard of faults: tests write rows, the end of the run shows them (tests/conftest.py)."""

import pytest

from tests.faults.scoreboard import PATH, Scoreboard


@pytest.fixture(scope="session")
def scoreboard(pytestconfig: pytest.Config) -> Scoreboard:
    """Where a test of a fault writes its row: `scoreboard.add(Row(fault=…, lost=…, …))`."""
    return Scoreboard(pytestconfig.stash[PATH])
