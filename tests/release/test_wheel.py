"""The wheel that feeders pin: installed alone, it is the reader and needs nothing of the collector."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from marketfeed import __version__
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import Candle, CatalogEntry

ROOT = Path(__file__).parents[2]
PAIR = "BTC/USDT:USDT"
T0 = 1_790_000_160_000
M1 = 60_000
ASK = """
import json, sys
import reader
from reader.freqtrade import install
url, now_ms, pair = sys.argv[1:]
frame = reader.MarketReader.connect(url, now_ms=lambda: int(now_ms)).get_ohlcv(pair, "1m", 5)
print(json.dumps({
    "rows": len(frame), "close": float(frame["close"].iloc[-1]), "file": reader.__file__,
    "loaded": [name for name in ("cryptofeed", "uvloop", "aiohttp", "pydantic", "typer", "yaml")
               if name in sys.modules],
}))
"""


@pytest.mark.long(40)
def test_the_reader_works_from_the_wheel_alone(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(dist), str(ROOT)],
        check=True,
    )
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"marketfeed-{__version__}-py3-none-any.whl"
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", str(wheel)], check=True)
    path = tmp_path / "journal.db"
    batch = Batch()
    batch.add(CatalogEntry(PAIR, "BTCUSDT", ("1m",), T0, None, None, T0))
    batch.extend(
        [
            Candle(PAIR, "1m", T0 + n * M1, 1, 2, 0.5, 1.5 + n, 1, 1, 1, 1, True, T0 + (n + 1) * M1)
            for n in range(5)
        ]
    )
    with Journal.open(path) as journal:
        journal.write(batch)
    done = subprocess.run(
        # Beside no source: what answers is what was installed.
        [str(python), "-I", "-c", ASK, f"sqlite:///{path}", str(T0 + 5 * M1 + 5_000), PAIR],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["file"].startswith(str(tmp_path / "env"))
    assert (answer["rows"], answer["close"], answer["loaded"]) == (5, 5.5, [])
