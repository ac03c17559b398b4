"""When a generation of connections is to be replaced, and when the next one has proven itself.

Binance cuts a connection after 24 h. Pure: the caller passes the time; `now_s` is monotonic exchange
seconds, `now_ms` exchange time. Streams are named as in frames, in bytes.
"""

from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from marketfeed import schema

PURE = True

_PREFIX: Final = b'{"stream":"'
_MARK: Final = b"markPrice"


class Ages(msgspec.Struct, frozen=True, kw_only=True):
    """How old connections become, in exchange seconds.

    A generation is replaced at an age drawn from `roll_from_s` to `roll_before_s`, that of its oldest
    open connection. A next one that has not proven itself after `prove_s` is given up, and another one
    tried after `retry_s`. At `hard_s` one that is merely open is taken, as the exchange cuts the old
    one soon. It is watched beside the old one for `watch_s` at least. Nothing begins or ends within
    `quiet_s` of a candle's close.
    """

    roll_from_s: float = 23.0 * 3600
    roll_before_s: float = 23.5 * 3600 - 300
    hard_s: float = 23.0 * 3600 + 55 * 60
    prove_s: float = 60.0
    retry_s: float = 120.0
    watch_s: float = 10.0
    quiet_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.roll_from_s <= self.roll_before_s <= self.hard_s:
            raise ValueError("expected 0 < roll_from_s <= roll_before_s <= hard_s")

    def may_start(self, age_s: float, due_age_s: float, since_last_s: float) -> bool:
        """Whether the next generation is to be opened; `since_last_s` is since one was given up."""
        if age_s < min(due_age_s, self.hard_s):
            return False
        # Near the end there is no time to wait: the next attempt has to be over before the hard limit.
        return since_last_s >= self.retry_s or age_s >= self.hard_s - self.prove_s


def is_quiet(now_ms: int, timeframes: Iterable[str], quiet_s: float) -> bool:
    """Whether no candle of `timeframes` closes within `quiet_s` before or after `now_ms`."""
    margin_ms = quiet_s * 1000
    lengths_ms = (schema.TIMEFRAMES_MS[timeframe] for timeframe in timeframes)
    return all(margin_ms <= now_ms % length_ms <= length_ms - margin_ms for length_ms in lengths_ms)


def stream_of(frame: bytes) -> bytes:
    """The stream that a combined frame names; empty for an answer to a command."""
    if not frame.startswith(_PREFIX):
        return b""
    return frame[len(_PREFIX) : frame.find(b'"', len(_PREFIX))]


class Proof:
    """What two generations have brought side by side.

    The new one is proven when it has been open for `watch_s` since the last mark price stream came on
    it, all of those have come, and so has every kline stream that came on the old one meanwhile. A
    kline of the old one counts only once the symbol's mark price has come on the new one: its SUBSCRIBE
    has been carried out then, and the next trade must show on both. (A pair that trades once in minutes
    would otherwise be held against the new one, for a trade that came before.) A mark price that the
    old one, connected all the while, has not brought either is not held against the new one: the
    exchange sends none.
    """

    def __init__(self, watch_s: float) -> None:
        self._watch_s = watch_s
        self._watched_from_s: float | None = None
        self._steady = True
        self._old: set[bytes] = set()
        self._new: set[bytes] = set()
        self._known: set[bytes] = set()
        self._known_before = 0

    def watch(self, now_s: float, *, old_open: bool, new_open: bool) -> None:
        """Note whether all connections of each are open now."""
        self._steady = self._steady and old_open
        if not new_open:
            self._watched_from_s = None
        elif self._watched_from_s is None:
            # From here on both must bring the same.
            self._watched_from_s = now_s
            self._steady = old_open
            self._old.clear()
            self._new.clear()
            self._known.clear()
        elif len(self._known) > self._known_before:
            # Its klines count from here on only: as long as for the others.
            self._watched_from_s = now_s
        self._known_before = len(self._known)

    def from_old(self, frame: bytes) -> None:
        """Note a frame of the old generation."""
        stream = stream_of(frame)
        if stream in self._old:
            return
        symbol, _, channel = stream.partition(b"@")
        if channel.startswith(_MARK) or symbol in self._known:
            self._old.add(stream)

    def from_new(self, frame: bytes) -> None:
        """Note a frame of the new generation."""
        stream = stream_of(frame)
        if stream in self._new:
            return
        self._new.add(stream)
        symbol, _, channel = stream.partition(b"@")
        if channel.startswith(_MARK):
            self._known.add(symbol)

    def lacking(self, streams: Collection[str]) -> list[str]:
        """Which of `streams` the new generation should have brought and has not."""
        return [name for name in streams if self._is_lacking(name.encode())]

    def is_given(self, streams: Collection[str], now_s: float) -> bool:
        """Whether the new generation is proven for `streams`."""
        since_s = self._watched_from_s
        return (
            since_s is not None and now_s - since_s >= self._watch_s and not self.lacking(streams)
        )

    def _is_lacking(self, stream: bytes) -> bool:
        if stream in self._new:
            return False
        is_mark = stream.partition(b"@")[2].startswith(_MARK)
        return stream in self._old or (is_mark and not self._steady)
