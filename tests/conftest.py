"""Fixtures for all tests."""

import os
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NOBODY = 65534


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
