"""Frames to spoil: recorded ones, and those of a simulated market."""

import re
from functools import cache
from pathlib import Path
from typing import Final

from marketfeed.simulator import catalogue
from marketfeed.simulator.frames import combined_head
from marketfeed.simulator.market import Market

DATA: Final = Path(__file__).parents[1] / "data"
RECORDED_FILES: Final = (
    "recorded_mainnet_2021-07.raw",
    "closing_frames.jsonl",
    "control_frames.jsonl",
    "mainnet_2026-08-08_aggTrade_markPrice_forceOrder.jsonl",
    "mainnet_2026-10-07_all_markPrice_arr_1s_trimmed.json",
    "mainnet_2026-10-07_btcusdt_kline_1m_open.json",
    "mainnet_2026-10-07_markPrice_1s.json",
)
START_MS: Final = 1_790_000_040_000
GOOD: Final = ("BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT")
"""Pairs whose frames are never spoilt."""
SPOILT: Final = ("XRP/USDT:USDT", "DOGE/USDT:USDT", "SIM001/USDT:USDT")


def symbol(pair: str) -> str:
    """The exchange's name of a pair: BTCUSDT."""
    return pair.partition(":")[0].replace("/", "")


@cache
def recorded() -> tuple[bytes, ...]:
    """The recorded frames that the project has; of what it does not collect only a few."""
    frames = []
    others = 0
    for name in RECORDED_FILES:
        for line in (DATA / name).read_bytes().splitlines():
            frame = re.sub(rb"^[\d.]+: ", b"", line)
            wanted = b"@kline" in frame or b"arkPrice@" in frame or b'"stream"' not in frame
            others += not wanted
            if b"{" in frame[:40] and (wanted or others < 40):
                frames.append(frame)
    return tuple(frames)


@cache
def simulated(pairs: tuple[str, ...], minutes: int) -> tuple[bytes, ...]:
    """What the simulated exchange sends of these pairs in so many minutes."""
    market = Market(catalogue.instruments(pairs), ("1m", "3m"), start_ms=START_MS, seed=7)
    for stream in market.streams.values():
        # As if somebody listened. The arrays hold other pairs, too.
        stream.wanted = not stream.name.startswith("!")
    return tuple(
        combined_head(event.stream.name) + event.data + b"}"
        for second in range(1, minutes * 60 + 5)
        for event in market.advance(START_MS + second * 1_000)
        if event.stream.wanted
    )
