"""When a connection may be tried, what it carries and what it reports.

Nothing here touches a socket or a clock: `now_s` is monotonic wall seconds, passed in.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec

from marketfeed.errors import backoff_s

PURE = True

MARKET_ROUTE: Final = "/market/stream"
"""Where klines and mark prices are served. The unrouted path accepts, ACKs and stays silent."""


class FeedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the streams are read. Times are wall seconds: they concern the transport, not the market.

    `ws_url` is `wss://host` or, for a simulator, `ws://host:port`, without a path. `cafile` (PEM) is
    trusted instead of the system's certificates. A connection on which nothing at all arrived for
    `heartbeat_s` is pinged, and given up after half of it without an answer; one that is alive but
    brings no market data for `idle_timeout_s` is reopened. A wait between two attempts is drawn from
    0 to `backoff_base_s` doubled with each failure, `backoff_cap_s` at most, and never lets two
    attempts come closer than `min_attempt_gap_s`; it starts anew after a connection that brought data
    and lasted for `steady_after_s`.
    """

    ws_url: str = "wss://fstream.binance.com"
    cafile: str | None = None
    streams_per_connection: int = 200
    names_per_subscribe: int = 200
    subscribes_per_s: float = 5.0
    heartbeat_s: float = 10.0
    idle_timeout_s: float = 60.0
    open_timeout_s: float = 10.0
    close_timeout_s: float = 0.4
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 60.0
    min_attempt_gap_s: float = 1.0
    steady_after_s: float = 10.0
    max_frame_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        scheme, separator, host = self.ws_url.partition("://")
        if scheme not in ("ws", "wss") or not separator or not host.rstrip("/"):
            raise ValueError(
                f"ws_url: expected wss://host or ws://host:port, found {self.ws_url!r}"
            )
        if min(self.streams_per_connection, self.names_per_subscribe) < 1:
            raise ValueError("streams_per_connection and names_per_subscribe must be 1 or more")

    @property
    def address(self) -> str:
        """The URL that every connection opens; what it carries is set by SUBSCRIBE frames."""
        return self.ws_url.rstrip("/") + MARKET_ROUTE


ConnectionState = Literal["connecting", "open", "failed", "closed"]
"""`failed`: an attempt failed; `closed`: it was open. After both, the next attempt is waited for."""


class ConnectionStatus(msgspec.Struct, frozen=True):
    """One connection as it stands. `since_s` and `last_frame_s` are monotonic wall seconds.

    `frames` counts market data (no answers to commands) over the connection's whole life, `opened`
    how often it was opened; `last_frame_s` is None before the first one. `last_error` is why the
    last attempt failed or the last connection ended, and stays until the next such event.
    """

    name: str
    streams: tuple[str, ...]
    state: ConnectionState
    since_s: float
    opened: int
    frames: int
    last_frame_s: float | None
    last_error: str


class ConnectLimiter:
    """At most `attempts` connection attempts in any `window_s`, over all connections that share it.

    Binance allows 300 per 5 minutes and IP, and bots on the same host need some of them. One object
    serves all generations of connections.
    """

    def __init__(self, attempts: int = 200, window_s: float = 300.0) -> None:
        self._window_s = window_s
        self._granted_s: deque[float] = deque(maxlen=attempts)

    def reserve(self, now_s: float) -> float:
        """Book the next free attempt and return how many seconds from `now_s` on it may be made."""
        granted = self._granted_s
        at_s = max(now_s, granted[0] + self._window_s) if len(granted) == granted.maxlen else now_s
        granted.append(at_s)
        return at_s - now_s


class Backoff:
    """The waits of one connection between its attempts: exponential, with full jitter.

    `jitter(low, high)` draws a number from the range (`random.uniform`). After "Exponential Backoff And
    Jitter" (AWS Architecture Blog, 2015).
    """

    def __init__(
        self,
        base_s: float,
        cap_s: float,
        gap_s: float,
        jitter: Callable[[float, float], float],
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._gap_s = gap_s
        self._jitter = jitter
        self._last_attempt_s = -math.inf
        self.failures = 0
        """Attempts in a row that led to no steady connection."""

    def wait_s(self, now_s: float) -> float:
        """Seconds from `now_s` to the next attempt; none before the very first."""
        if self._last_attempt_s == -math.inf:
            return 0.0
        ceiling_s = backoff_s(self.failures + 1, self._base_s, self._cap_s)
        gap_s = self._last_attempt_s + self._gap_s - now_s
        return max(self._jitter(0.0, ceiling_s), gap_s)

    def attempted(self, now_s: float) -> None:
        """Note that an attempt is over, however it went."""
        self._last_attempt_s = now_s

    def ended(self, *, steady: bool) -> None:
        """Note how the attempt went: `steady` is a connection that brought data, and for a while."""
        self.failures = 0 if steady else self.failures + 1


def spread(streams: Iterable[str], loads: Sequence[int], limit: int) -> list[list[str]]:
    """Divide `streams` over connections that carry `loads` streams already; none exceeds `limit`.

    Returns what to add to each of them, followed by as many new connections as are needed. The
    streams of one symbol stay together where they fit, and neighbours in `streams` (pairs come sorted
    by volume) go to different connections, so that each gets a fair mixture.
    """
    groups: dict[str, list[str]] = {}
    for stream in dict.fromkeys(streams):
        groups.setdefault(stream.partition("@")[0], []).append(stream)
    room = sum(max(limit - load, 0) for load in loads)
    missing = sum(map(len, groups.values())) - room
    new = math.ceil(missing / limit) if missing > 0 else 0
    carried = [*loads, *[0] * new]
    added: list[list[str]] = [[] for _ in carried]

    def put(names: list[str]) -> bool:
        index = min(range(len(carried)), key=carried.__getitem__, default=-1)
        if index < 0 or carried[index] + len(names) > limit:
            return False
        carried[index] += len(names)
        added[index] += names
        return True

    homeless = [stream for group in groups.values() if not put(group) for stream in group]
    for stream in homeless:
        put([stream])
    return added
