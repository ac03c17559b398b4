"""The proofs of what is forwarded, in short and with scripted bots: the commands run, and find nothing.

With real bots, and as long as they are:
`make test-freqtrade WHAT="burst conflicts recovery health ledgers meta kills"`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0
"""Far more than it takes: to end a run that hangs."""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("examples", marks=pytest.mark.long(11)),
        pytest.param("burst --pairs 60 --window-s 3", marks=pytest.mark.long(40)),
        pytest.param("conflicts --window-s 6", marks=pytest.mark.long(95)),
        pytest.param("meta --calm 4 --burst 4 --kills 1", marks=pytest.mark.long(50)),
        pytest.param("kills --quick", marks=pytest.mark.long(70)),
    ],
)
def test_a_proof_finds_nothing(command: str, tmp_path: Path) -> None:
    name, *more = command.split()
    arguments = [*more, "--bots", "scripted", "--json", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(
        [sys.executable, "-m", f"tests.freqtrade.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.stdout, done.stderr[-4_000:]
    report = json.loads(done.stdout)
    assert report["findings"] == [], f"{report}\n{done.stderr[-4_000:]}"
    assert done.returncode == 0
