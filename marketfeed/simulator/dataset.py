"""Makes the day that BTCUSDT repeats in the simulator: invented candles, in the public archive's format too.

They are the same on every machine and Python: whole numbers, drawn by `random.Random.random`, whose sequence
Python promises to keep. `python -m marketfeed.simulator.dataset [DIRECTORY]` writes the day's file and its
checksum file.
"""

import functools
import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from marketfeed import schema
from marketfeed.simulator.archive import COLUMNS, pack, row
from marketfeed.simulator.catalogue import make_instrument
from marketfeed.simulator.frames import Bar
from marketfeed.simulator.history import MINUTES_PER_DAY, MadeDay

DAY_MS: Final = 1_735_776_000_000
"""The start of the day, 2025-01-02."""
FILE_NAME: Final = "BTCUSDT-1m-2025-01-02.zip"

_SEED: Final = 1
_INSTRUMENT: Final = make_instrument("BTC/USDT:USDT", 5.0)
# In price units.
_TICK: Final = _INSTRUMENT.tick_units
_FIRST_PRICE: Final = 9_450_000
# Of a minute; a usual one is an eighth of it.
_LONGEST_MOVE: Final = 24_000
_LONGEST_WICK: Final = 6_000
_FEWEST_TRADES: Final = 200


@functools.cache
def made_day() -> MadeDay:
    """Return the day's one-minute candles."""
    return MadeDay(_INSTRUMENT.symbol, tuple(_bars(random.Random(_SEED))))


def made_csv() -> str:
    """Return the day as the archive writes one: a line of names and 1,440 rows."""
    length_ms = schema.MINUTE_MS
    lines = [
        row(_INSTRUMENT, DAY_MS + minute * length_ms, length_ms, bar)
        for minute, bar in enumerate(made_day().bars)
    ]
    return "\n".join([COLUMNS, *lines]) + "\n"


def made_zip() -> bytes:
    """Return the day's file as the archive serves one."""
    return pack(FILE_NAME.replace(".zip", ".csv"), made_csv())


def write(directory: Path) -> None:
    """Write the day's file and its checksum file. Raises OSError."""
    body = made_zip()
    (directory / FILE_NAME).write_bytes(body)
    checksum = f"{hashlib.sha256(body).hexdigest()}  {FILE_NAME}\n"
    (directory / f"{FILE_NAME}.CHECKSUM").write_text(checksum)


def _bars(chance: random.Random) -> Iterator[Bar]:
    def below(count: int) -> int:
        return int(chance.random() * count)

    def rarely_far(most: int) -> int:
        return below(below(below(most + 1) + 1) + 1)

    close = _FIRST_PRICE
    for _ in range(MINUTES_PER_DAY):
        # As on the exchange, half of the minutes open where the last one closed, others a tick aside.
        opens = close + (0, 0, _TICK, -_TICK)[below(4)]
        move = rarely_far(_LONGEST_MOVE // _TICK) * _TICK
        close = opens + (move if below(2) else -move)
        high = max(opens, close) + rarely_far(_LONGEST_WICK // _TICK) * _TICK
        low = min(opens, close) - rarely_far(_LONGEST_WICK // _TICK) * _TICK
        # A far move takes many trades.
        trades = _FEWEST_TRADES + below(2_400) + move // 4
        volume = trades * (20 + below(50))
        taker_buy = volume * (10 + below(80)) // 100
        fourfold = opens + high + low + close
        yield Bar(
            opens, high, low, close, volume, trades,
            volume * fourfold // 4, taker_buy, taker_buy * fourfold // 4,
        )  # fmt: skip


if __name__ == "__main__":
    write(Path(*sys.argv[1:2]))
