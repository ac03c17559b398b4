"""Frames in a file: written once, played by a server to any number of receivers.

Two files: the frames back to back as they go over the wire, and an index (numpy arrays: where each
begins, its stream, when it is due, and the exchange's time).
"""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from marketfeed.records import Candle
from tests.bench.workload import Sending


@dataclass(frozen=True, slots=True)
class Written:
    """A tape as its maker knows it: `closed` is frame number -> the candle that it closes."""

    path: Path
    frames: int
    closed: dict[int, Candle]


def write(path: Path, load: Iterable[Sending]) -> Written:
    """Write a load to `path` and its index beside it."""
    names: dict[str, int] = {}
    begins = [0]
    streams: list[int] = []
    due_ns: list[int] = []
    event_ms: list[int] = []
    closed: dict[int, Candle] = {}
    with path.open("wb", buffering=1 << 20) as file:
        for number, sending in enumerate(load):
            file.write(sending.frame)
            begins.append(begins[-1] + len(sending.frame))
            streams.append(names.setdefault(sending.stream, len(names)))
            due_ns.append(sending.due_ns)
            event_ms.append(sending.event_ms)
            if sending.closed is not None:
                closed[number] = sending.closed
    np.savez(
        _index(path),
        names=np.array(list(names)),
        begins=np.array(begins, np.int64),
        streams=np.array(streams, np.int32),
        due_ns=np.array(due_ns, np.int64),
        event_ms=np.maximum.accumulate(np.array(event_ms, np.int64)),
    )
    return Written(path, len(streams), closed)


def event_times(path: Path) -> NDArray[np.int64]:
    """Exchange time (ms) as of each frame: the latest event up to it."""
    with np.load(_index(path)) as index:
        times: NDArray[np.int64] = index["event_ms"]
        return times


def _index(path: Path) -> Path:
    return path.with_suffix(".npz")


class Tape:
    """A tape to be played. `streams[n]` is the place of frame n's stream in `names`."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with np.load(_index(path)) as index:
            self.names: list[str] = index["names"].tolist()
            self._begins: list[int] = index["begins"].tolist()
            self.streams: NDArray[np.int32] = index["streams"]
            self.due_ns: list[int] = index["due_ns"].tolist()

    def __len__(self) -> int:
        return len(self.due_ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._data.close()

    def frame(self, number: int) -> bytes:
        """The frame as it goes over the wire."""
        return self._data[self._begins[number] : self._begins[number + 1]]

    def payloads(self, count: int) -> Iterator[bytes]:
        """The first `count` payloads, without their WebSocket headers."""
        for number in range(count):
            frame = self.frame(number)
            # Length in the second byte; 126: in the next two (RFC 6455, section 5.2).
            yield frame[4 if frame[1] == 126 else 2 :]
