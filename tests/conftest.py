"""Fixtures for all tests."""

import os
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.dealing import dealt
from tests.faults import scoreboard

NOBODY = 65534
_ROWS_BEFORE = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Choose where the rows of faults go: side by side, where the process that began this one names."""
    begun_by: dict[str, Any] | None = getattr(config, "workerinput", None)
    # There is none with `-p no:cacheprovider`.
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if begun_by is not None:
        path = Path(begun_by["scoreboard"])
    elif named := os.environ.get(scoreboard.VARIABLE):
        path = Path(named).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
    elif cache is None:
        path = Path(tempfile.mkdtemp(prefix="marketfeed-tests-")) / "faults.jsonl"
    else:
        path = cache.mkdir("scoreboard") / "faults.jsonl"
        path.unlink(missing_ok=True)
    config.stash[scoreboard.PATH] = path
    config.stash[_ROWS_BEFORE] = len(scoreboard.read_rows(path))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long ones: side by side, whoever were left with one of them would end alone."""
    begun_by: dict[str, Any] = getattr(config, "workerinput", {})
    items[:] = dealt(items, _long_s, begun_by.get("workercount", 1))


def _long_s(item: pytest.Item) -> float:
    mark = item.get_closest_marker("long")
    if mark is None:
        return 0.0
    if not mark.args:
        raise pytest.UsageError(f"{item.nodeid}: found long, expected long(seconds)")
    return float(mark.args[0])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a process that runs tests beside others the place of its rows."""
    node.workerinput["scoreboard"] = str(node.config.stash[scoreboard.PATH])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the rows that this run has written."""
    path = config.stash[scoreboard.PATH]
    rows = scoreboard.read_rows(path)[config.stash[_ROWS_BEFORE] :]
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"rows in {path}; times in exchange seconds")
        for line in scoreboard.table(rows):
            terminalreporter.write_line(line)


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """A directory that other users may enter, too (pytest's own are for one user alone)."""
    path = Path(tempfile.mkdtemp(prefix="marketfeed-tests-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def as_nobody() -> Callable[[Callable[[], None]], None]:
    """Run a function in a child process as a user who may nothing; its failure fails the test.

    Without root the function just runs: then this user is such a one.
    """

    def run(function: Callable[[], None]) -> None:
        if os.geteuid() != 0:
            function()
            return
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside threads: the child runs this function and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                function()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "see the child's traceback"

    return run


# How long an example takes is the machine's load: no test is decided by that.
hypothesis.settings.register_profile("marketfeed", deadline=None)
hypothesis.settings.load_profile("marketfeed")
