"""An earlier commit of this repository, run from its own files with the packages of these tests."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from influxd import cache_dir
from proc_commands import TIMEOUT_S, environment

ROOT: Final = Path(__file__).parents[2]
BEFORE_QUOTES: Final = "a188e89a52bcb589cd8beb3d3a33c2997e445344"
"""The last one that writes journals of version 3 without `taker_buy_quote_volume`."""


class Earlier(NamedTuple):
    """The files of a commit, at `home`."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment for it."""
        return environment(PYTHONPATH=str(self.home), PYTHONSAFEPATH="1")

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line of a `marketfeed` command."""
        return [sys.executable, "-m", "marketfeed", *map(str, arguments)]

    def python(self, text: str, *arguments: str | Path) -> str:
        """Run a program with its packages; returns what that prints. Raises AssertionError when it fails."""
        done = subprocess.run(
            [sys.executable, "-c", text, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env=self.environment,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def obtain(commit: str) -> Earlier | None:
    """Unpack a commit, if that is not done yet; None where this repository does not have it."""
    home = cache_dir().absolute() / f"earlier-{commit[:12]}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as name:
            archive, files = Path(name) / "source.tar", Path(name) / "files"
            files.mkdir()
            for command in (
                [
                    "git",
                    "-C",
                    ROOT,
                    "archive",
                    f"--output={archive}",
                    commit,
                    "marketfeed",
                    "reader",
                ],
                ["tar", "-xf", archive, "-C", files],
            ):
                done = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
                if done.returncode != 0:
                    return None
            # Tests of several runs may want it at once: the first one's is as good.
            if not home.exists():
                files.rename(home)
    found = Earlier(home)
    place = found.python("import marketfeed; print(marketfeed.__file__)")
    assert Path(place.strip()).is_relative_to(home), place
    return found
