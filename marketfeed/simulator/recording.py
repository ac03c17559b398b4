"""Reads recorded frames: cryptofeed's raw files, and lines of frames.

A raw file has a line `<url> <-> <time>` for each connect and `<time>: <payload>` for each message, times
in seconds since the epoch at which they were received. A `.jsonl` file has one frame a line, combined or
not; its time is the frame's own `E`. Frames that are neither klines nor mark prices are left out.
"""

from pathlib import Path
from typing import Final

import msgspec

from marketfeed.errors import SettingsError
from marketfeed.simulator.mark_prices import mark_stream
from marketfeed.simulator.market import kline_stream
from marketfeed.simulator.venue import ClosedCandle


class Recorded(msgspec.Struct, frozen=True):
    """One recorded frame: `data` is its data object, byte for byte; `time_ms` exchange time.

    `candle` is what a kline frame shows (`pair` empty), `row` the same as a row of `/fapi/v1/klines`.
    """

    time_ms: int
    stream: str
    symbol: str
    data: bytes
    candle: ClosedCandle | None = None
    closed: bool = False
    row: bytes = b""


class _Kline(msgspec.Struct):
    t: int
    T: int
    i: str
    o: str
    c: str
    h: str
    l: str  # noqa: E741 - the exchange's own name
    v: str
    n: int
    x: bool
    q: str
    V: str
    Q: str


class _Data(msgspec.Struct):
    e: str
    E: int
    s: str = ""
    k: _Kline | None = None


class _Combined(msgspec.Struct):
    stream: str
    data: msgspec.Raw


class _Keys(msgspec.Struct):
    stream: str | None = None


_decode_keys: Final = msgspec.json.Decoder(_Keys).decode
_decode_combined: Final = msgspec.json.Decoder(_Combined).decode
_decode_data: Final = msgspec.json.Decoder(_Data).decode


def read_recording(path: Path) -> list[Recorded]:
    """Return the kline and mark price frames of a file, in the order of time.

    Raises SettingsError, naming the line, if a line is none of the above, or if the file cannot be read
    or has no such frame.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SettingsError(f"replay: {error}") from error
    frames: list[Recorded] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            frame = _read_line(line)
        except (ValueError, msgspec.DecodeError) as error:
            raise SettingsError(f"replay: {path}: line {number}: {error}") from error
        if frame is not None:
            frames.append(frame)
    if not frames:
        raise SettingsError(f"replay: {path}: no kline or mark price frame in it")
    return sorted(frames, key=lambda frame: frame.time_ms)


def _read_line(line: bytes) -> Recorded | None:
    if line.startswith(b"{"):
        return _read_frame(line, None)
    if b" <-> " in line:
        return None
    time, _, payload = line.partition(b": ")
    return _read_frame(payload, round(float(time) * 1_000.0))


def _read_frame(payload: bytes, received_ms: int | None) -> Recorded | None:
    stream = _decode_keys(payload).stream
    raw = payload if stream is None else bytes(_decode_combined(payload).data)
    if raw.startswith(b"["):
        return None
    data = _decode_data(raw)
    time_ms = data.E if received_ms is None else received_ms
    if data.e == "markPriceUpdate":
        return Recorded(time_ms, stream or mark_stream(data.s, fast=False), data.s, raw)
    if data.e != "kline" or data.k is None:
        return None
    k = data.k
    return Recorded(
        time_ms=time_ms,
        stream=stream or kline_stream(data.s, k.i),
        symbol=data.s,
        data=raw,
        candle=ClosedCandle(
            symbol=data.s,
            pair="",
            timeframe=k.i,
            open_time_ms=k.t,
            open=float(k.o),
            high=float(k.h),
            low=float(k.l),
            close=float(k.c),
            volume=float(k.v),
            quote_volume=float(k.q),
            taker_buy_volume=float(k.V),
            taker_buy_quote_volume=float(k.Q),
            trades=k.n,
            event_time_ms=data.E,
        ),
        closed=k.x,
        row=msgspec.json.encode([k.t, k.o, k.h, k.l, k.c, k.v, k.T, k.q, k.n, k.V, k.Q, "0"]),
    )


def decimals(frame: Recorded) -> tuple[int, int]:
    """Return how many decimals a kline frame's prices and volumes are printed with."""
    row = msgspec.json.decode(frame.row)
    return len(row[1].partition(".")[2]), len(row[5].partition(".")[2])
