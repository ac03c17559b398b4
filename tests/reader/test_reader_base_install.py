"""The base install alone, as feeders have it: no extra, nothing of the collector.

The environment is kept between runs, in $MARKETFEED_TEST_CACHE or ~/.cache/marketfeed-tests, and made
anew when the requirements or the interpreter change.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stored import M3, PAIR, START_MS, candle, entry, store, url

ROOT = Path(__file__).parents[2]

READ = """
import json, sys
import reader
with reader.MarketReader.connect(sys.argv[1], now_ms=lambda: int(sys.argv[2])) as opened:
    frame = opened.get_ohlcv(sys.argv[3], "3m")
try:
    import marketfeed.collector.collector
except ModuleNotFoundError as error:
    lacking = error.name
print(json.dumps({
    "rows": len(frame),
    "close": frame["close"].tolist(),
    "file": reader.__file__,
    "lacking": lacking,
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | environment,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def base_python() -> Path:
    """The interpreter of an environment that holds the distribution without extras."""
    project = (ROOT / "pyproject.toml").read_bytes()
    key = hashlib.sha256(project + str(ROOT).encode() + sys.version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("MARKETFEED_TEST_CACHE", "~/.cache/marketfeed-tests")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"base-{key}"
    python = home / "bin" / "python"
    with (cache / f"base-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            run(sys.executable, "-m", "venv", "--clear", home)
            run(python, "-m", "pip", "install", "--quiet", "--editable", ROOT)
            (home / "complete").touch()
    return python


@pytest.mark.long(20)
def test_the_base_install_reads_a_journal(base_python: Path, path: Path) -> None:
    candles = [candle(START_MS + n * M3) for n in range(3)]
    store(path, entry(), candles)
    answer = json.loads(
        run(
            base_python, "-c", READ, url(path), str(START_MS + 3 * M3), PAIR, PYTHONWARNINGS="error"
        )
    )
    assert answer["rows"] == 3
    assert answer["close"] == [item.close for item in candles]
    assert answer["file"] == str(ROOT / "reader" / "__init__.py")
    assert answer["lacking"] not in (None, "marketfeed")
    assert not {"cryptofeed", "aiohttp", "uvloop", "pydantic"} & set(answer["loaded"])


def test_the_base_install_is_consistent_and_small(base_python: Path) -> None:
    run(base_python, "-m", "pip", "check")
    listed = json.loads(
        run(base_python, "-m", "pip", "list", "--format", "json", "--exclude", "pip")
    )
    names = {item["name"].lower() for item in listed} - {"setuptools"}
    assert {"marketfeed", "msgspec", "pandas", "urllib3"} <= names
    # What pandas brings along.
    assert names <= {
        *("marketfeed", "msgspec", "pandas", "urllib3"),
        *("numpy", "python-dateutil", "pytz", "six", "tzdata"),
    }
