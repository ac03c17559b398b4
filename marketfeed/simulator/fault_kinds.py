"""The faults that the simulated exchange can have, as records: in-process and as JSON over HTTP.

As JSON, `fault` names the kind and the fields are those of the record:
`{"fault": "mute", "stream": "btcusdt@markPrice", "for_s": 30}`.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias

import msgspec

OVERSIZE_BYTES: Final = 1 << 20
"""An oversize frame is longer than this."""

Which: TypeAlias = int | Literal["open", "new", "all"]
"""Which connections: one by its number; those open now; those that open from now on; both."""


class _Timed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every fault lasts `for_s` exchange seconds (None: until it is ended) or strikes `count` times."""

    for_s: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.for_s is not None and not self.for_s > 0.0:
            raise ValueError(f"for_s: more than 0 is expected, not {self.for_s}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count: 1 or more is expected, not {self.count}")


class _OfStream(_Timed, frozen=True, kw_only=False):
    """A fault of frames. `stream` is a stream's name, `*` and `?` stand for anything; None is all."""

    stream: str | None = None

    def concerns(self, stream: str | None) -> bool:
        """Whether frames of `stream` are meant; None are answers to requests, which never are."""
        return stream is not None and (
            self.stream is None or self.stream == stream or fnmatchcase(stream, self.stream)
        )


class Mute(_OfStream, frozen=True, tag_field="fault", tag="mute"):
    """Frames are lost; requests are answered as ever. `count` is of frames, whoever listens to them.

    With `closing_only` it is the closing frames of candles alone; with `new_connections` those to
    connections alone that open from now on.
    """

    closing_only: bool = False
    new_connections: bool = False


class Spoil(_OfStream, frozen=True, tag_field="fault", tag="spoil"):
    """A `share` (0 to 1) of the frames arrives otherwise than it was sent; `count` is of those.

    `duplicate` sends a frame twice. `reorder` holds one back until up to eight others of its connection
    have passed. `garble` overwrites a range with bytes that stand in no JSON (a changed digit would be
    another fact: TLS excludes it). `truncate` cuts the end off, be it all. `oversize` pads with blanks
    to more than `OVERSIZE_BYTES`. `seed` decides which frames, and where.
    """

    how: Literal["duplicate", "reorder", "garble", "truncate", "oversize"] = "garble"
    share: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share: more than 0 and at most 1 is expected, not {self.share}")


class ShiftStamps(_OfStream, frozen=True, tag_field="fault", tag="shift_stamps"):
    """Frames are stamped (`E`) `offset_ms` too late or (negative) too early; `count` is of frames."""

    offset_ms: int = 0


class Lack(_OfStream, frozen=True, tag_field="fault", tag="lack"):
    """Mark prices come without a value: `key` is empty (`""`), null or absent; `count` is of frames.

    Index price `i`, next settlement `T` and rate `r` are what a contract may lack.
    """

    key: Literal["i", "T", "r"] = "i"
    how: Literal["empty", "null", "absent"] = "empty"


class Lag(_OfStream, frozen=True, tag_field="fault", tag="lag"):
    """Frames come `by_s` exchange seconds late, as they were; what is late when this ends comes at once.

    `count` is of frames. REST answers as ever.
    """

    by_s: float = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.by_s > 0.0:
            raise ValueError(f"by_s: more than 0 is expected, not {self.by_s}")


class _OfConnections(_Timed, frozen=True, kw_only=False):
    """A fault of whole connections; `count` is of connections."""

    connections: Which = "open"


class MuteConnection(_OfConnections, frozen=True, tag_field="fault", tag="mute_connection"):
    """Nothing is sent any more, no answer either; pings are answered as ever."""


class HalfOpen(_OfConnections, frozen=True, tag_field="fault", tag="half_open"):
    """Nothing is read or written any more, as if the cable were cut; the socket is kept."""


class Drop(_OfConnections, frozen=True, tag_field="fault", tag="drop"):
    """The connection is cut by a TCP reset; a new one right after its handshake."""


class Close(_OfConnections, frozen=True, tag_field="fault", tag="close"):
    """The connection is closed with a close frame of `code`; a new one right after its handshake."""

    code: int = 1000


class Refuse(_Timed, frozen=True, tag_field="fault", tag="refuse"):
    """WebSocket handshakes are answered with this HTTP status; `count` is of handshakes."""

    status: int = 503


class StopListening(_Timed, frozen=True, tag_field="fault", tag="stop_listening"):
    """Connects are refused by TCP, those over HTTP too: only its end (`for_s`) is the way back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.for_s is None:
            raise ValueError("for_s: expected, no other fault could be sent any more")


class _OfRest(_Timed, frozen=True, kw_only=False):
    """A fault of REST. `endpoint` is a name such as `exchangeInfo`, `*` stands for anything; None is all."""

    endpoint: str | None = None

    def concerns(self, endpoint: str) -> bool:
        """Whether requests to `endpoint` are meant."""
        return self.endpoint is None or fnmatchcase(endpoint, self.endpoint)


class RefuseRest(_OfRest, frozen=True, tag_field="fault", tag="refuse_rest"):
    """Requests are answered with this status; `Retry-After` is sent if given (seconds)."""

    status: int = 503
    retry_after_s: int | None = None


class HangRest(_OfRest, frozen=True, tag_field="fault", tag="hang_rest"):
    """Requests are answered only once this has ended."""


class ShrinkExchangeInfo(_Timed, frozen=True, tag_field="fault", tag="shrink_exchange_info"):
    """exchangeInfo lists a `share` (0 to 1) of its contracts less, those that `seed` picks."""

    share: float = 0.5
    seed: int = 1


class ShiftClock(_Timed, frozen=True, tag_field="fault", tag="shift_clock"):
    """The server's time is answered `offset_ms` too late or (negative) too early; frames keep theirs."""

    offset_ms: int = 0


FrameFault: TypeAlias = Mute | Spoil | ShiftStamps | Lack | Lag
ConnectionFault: TypeAlias = MuteConnection | HalfOpen | Drop | Close
RestFault: TypeAlias = RefuseRest | HangRest
Fault: TypeAlias = (
    Mute | Spoil | ShiftStamps | Lack | Lag | MuteConnection | HalfOpen | Drop | Close | Refuse
    | StopListening | RefuseRest | HangRest | ShrinkExchangeInfo | ShiftClock
)  # fmt: skip


class ActiveFault(msgspec.Struct, frozen=True):
    """A fault at work. `until_ms` is exchange time, None without an end; `struck` how often it struck."""

    number: int
    fault: Fault
    until_ms: int | None
    struck: int


class FaultReport(msgspec.Struct, frozen=True):
    """What `/simulator/faults` answers: the faults at work, and the numbers of open connections."""

    faults: Sequence[ActiveFault]
    connections: Sequence[int]
