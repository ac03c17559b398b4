"""The released version, installed once for all tests that go to it and back."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# Processes, the InfluxDB and the bot that other tests have.
sys.path += [str(TESTS / name) for name in ("faults", "influxdb", "aggregator")]

from released import COMMIT, NotHereError, Released, obtain  # noqa: E402 - the directories first

from tests.faults.scoreboard import PATH, Scoreboard  # noqa: E402


@pytest.fixture(scope="session")
def released() -> Released:
    """The released version, in an environment of its own; skipped where its commit cannot be obtained."""
    try:
        return obtain()
    except NotHereError as error:
        pytest.skip(f"the released version, {COMMIT[:7]}, cannot be obtained: {error}")


@pytest.fixture(scope="session")
def scoreboard(pytestconfig: pytest.Config) -> Scoreboard:
    """Where a test writes what an upgrade has cost."""
    return Scoreboard(pytestconfig.stash[PATH])
