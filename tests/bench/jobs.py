"""What the benchmark and its processes send each other: one JSON line each, over stdin and stdout."""

import sys
from typing import TypeVar

import msgspec

T = TypeVar("T")


class SendJob(msgspec.Struct, frozen=True):
    """Play a tape to whoever subscribes to all of its streams.

    `paced`: each frame when it is due, in a write of its own (frames due at one instant share one);
    otherwise as fast as it is taken. `sent_path` is where to put the times of sending (ns, monotonic).
    """

    tape: str
    paced: bool
    sent_path: str | None = None


class Listening(msgspec.Struct, frozen=True):
    """Where a server listens, on 127.0.0.1."""

    port: int


class Sent(msgspec.Struct, frozen=True):
    """A tape was played. `late_ms` is how far behind the most delayed frame was (paced only)."""

    frames: int
    seconds: float
    late_ms: float


class ReceiveJob(msgspec.Struct, frozen=True):
    """Receive `frames` frames from the server at `port`; measure from frame `skip` (or the first) on.

    Ours: `journal` is the file to write, `tape` what is played, for the exchange's time. Peers:
    `closed_only` is cryptofeed's `candle_closed_only`; with `influx_port` points go there, and `points`
    of them are waited for.
    """

    port: int
    frames: int
    skip: int
    timeframes: tuple[str, ...]
    journal: str = ""
    tape: str = ""
    closed_only: bool = True
    influx_port: int | None = None
    points: int = 0


class Received(msgspec.Struct, frozen=True):
    """What receiving took, in CPU seconds (user and system, all threads) and wall seconds.

    The first two until the last frame was handled; `stored_…` until everything was stored as well.
    """

    frames: int
    cpu_s: float
    wall_s: float
    stored_cpu_s: float
    stored_wall_s: float
    commits: int = 0
    rejects: int = 0
    gaps: int = 0
    points: int = 0


class DecodeJob(msgspec.Struct, frozen=True):
    """Decode the first `frames` frames of a tape."""

    tape: str
    frames: int


class Points(msgspec.Struct, frozen=True):
    """What the server that stands for InfluxDB has taken."""

    points: int
    requests: int


class PlainJob(msgspec.Struct, frozen=True):
    """Take signals of one account, and store each in the SQLite file at `path`."""

    path: str
    username: str
    hashed: str


def take(kind: type[T]) -> T:
    """Read what this process is to do."""
    return msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)


def send(message: msgspec.Struct) -> None:
    """Tell the benchmark something."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def until_dismissed() -> None:
    """Wait until the benchmark needs this process no more (it closes stdin)."""
    sys.stdin.buffer.read()
