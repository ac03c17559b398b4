"""InfluxQL's answers: bytes to rows, and the errors that are hidden in them.

Pure. MessagePack is what is asked for: numbers arrive as they are stored, in half the bytes of JSON, and
the server needs half the time to write them. A server that does not speak it (InfluxDB 3) answers in
JSON, which is read as well. CSV is never asked for: an error in it looks like an empty answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

MSGPACK: Final = "application/x-msgpack"

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What bytes that are no answer raise when they are decoded."""

NOT_EXECUTED: Final = "not executed"
"""The error of statements after a failed one; 1.x may give it in place of the failed one's own."""

_TEXT: Final = 300

T = TypeVar("T")
_Numbers = TypeVar("_Numbers", bound=tuple[float | None, ...])
_Floats = NDArray[np.float64]


LAST: Final = "SELECT timeframes FROM feed_catalog WHERE time = 0"
"""A statement that answers with nothing, and costs nothing: where it was answered, those before it were
answered in full.

A server with a `max-row-limit` stops at that many rows and leaves out what follows, series and statements.
Its only other sign of that, `partial`, is set in long answers that are whole, and lacks where a series
happens to end there.
"""


class _Series(msgspec.Struct):
    values: msgspec.Raw = msgspec.Raw()
    tags: dict[str, str] = {}


class _Result(msgspec.Struct):
    series: list[_Series] = []
    error: str | None = None


class _Body(msgspec.Struct):
    results: list[_Result] = []
    error: str | None = None


class _Words(msgspec.Struct):
    error: str = ""
    message: str = ""


class RowType(Generic[T]):
    """The type of a statement's rows: a tuple of the time and the columns asked for."""

    def __init__(self, kind: type[T]) -> None:
        self._decoders: tuple[msgspec.json.Decoder[list[T]], msgspec.msgpack.Decoder[list[T]]] = (
            msgspec.json.Decoder(list[kind]),  # type: ignore[valid-type]  # known at run time
            msgspec.msgpack.Decoder(list[kind]),  # type: ignore[valid-type]  # known at run time
        )

    def decode(self, values: msgspec.Raw, *, packed: bool) -> list[T]:
        """Raises one of UNREADABLE for rows of another type."""
        return self._decoders[packed].decode(values)


@dataclass(frozen=True, slots=True)
class StatementAnswer:
    """The answer to one statement; its rows are decoded when they are asked for.

    `foreign` makes the error to raise for rows of another type.
    """

    _series: list[_Series]
    _packed: bool
    foreign: Callable[[object], Exception]

    def by_pair(self, kind: RowType[T]) -> dict[str, list[T]]:
        """The rows of each pair, of a statement with GROUP BY pair."""
        return {
            series.tags.get("pair", ""): self._decode(kind, series.values)
            for series in self._series
        }

    def by_tags(self, kind: RowType[T]) -> list[tuple[Mapping[str, str], list[T]]]:
        """The tags and rows of each series, of a statement that groups by several tags."""
        return [(series.tags, self._decode(kind, series.values)) for series in self._series]

    def numbers(
        self, kind: RowType[_Numbers], width: int, *, some_absent: bool = False
    ) -> dict[str, _Floats]:
        """The rows of each pair as an array of shape (n, `width`), in the order in which they came.

        With `some_absent` numbers may be None, and are NaN then.
        """
        found: dict[str, _Floats] = {}
        for series in self._series:
            rows = _fixed_rows(series.values, width) if self._packed else None
            if rows is None:
                points = self._decode(kind, series.values)
                if some_absent:
                    rows = np.array(points, np.float64).reshape(-1, width)
                else:
                    flat = chain.from_iterable(points)
                    rows = np.fromiter(flat, np.float64, width * len(points)).reshape(-1, width)
            found[series.tags.get("pair", "")] = rows
        return found

    def rows(self, kind: RowType[T]) -> list[T]:
        """All rows, of a statement without GROUP BY."""
        return [row for series in self._series for row in self._decode(kind, series.values)]

    def _decode(self, kind: RowType[T], values: msgspec.Raw) -> list[T]:
        try:
            return kind.decode(values, packed=self._packed)
        except UNREADABLE as error:
            raise self.foreign(error) from error


_ARRAY: Final = 0x90
_ARRAY_16: Final = 0xDC
_ARRAY_32: Final = 0xDD
_INT_64: Final = 0xD3
_FLOAT_64: Final = 0xCB
_CELL_BYTES: Final = 9


def _fixed_rows(values: msgspec.Raw, width: int) -> _Floats | None:
    """Read rows of one time and floats, all of them written in 9 bytes; None if any is not.

    That is how MessagePack writes a float64 and a time after January 1970 in ms. Read as one array, in a
    tenth of the time that it takes number by number.
    """
    data = memoryview(values)
    if data[0] == _ARRAY_32:
        count, start = int.from_bytes(data[1:5]), 5
    elif data[0] == _ARRAY_16:
        count, start = int.from_bytes(data[1:3]), 3
    else:
        count, start = data[0] - _ARRAY, 1
    row_bytes = 1 + width * _CELL_BYTES
    if width >= 16 or count < 1 or len(data) != start + count * row_bytes:
        return None
    cells = np.frombuffer(data, np.uint8, offset=start).reshape(count, row_bytes)
    marks = cells[:, 1::_CELL_BYTES]
    if (
        (cells[:, 0] != _ARRAY + width).any()
        or (marks[:, 0] != _INT_64).any()
        or (marks[:, 1:] != _FLOAT_64).any()
    ):
        return None
    payload = cells[:, 1:].reshape(count, width, _CELL_BYTES)[:, :, 1:].copy()
    rows = payload.view(">f8")[:, :, 0].astype(np.float64)
    rows[:, 0] = payload[:, 0].view(">i8")[:, 0]
    return rows


class Answers(NamedTuple):
    """What came: answers to as many statements as were answered, or the first error."""

    statements: list[StatementAnswer]
    error: str | None


_BODY_JSON: Final = msgspec.json.Decoder(_Body)
_BODY_MSGPACK: Final = msgspec.msgpack.Decoder(_Body)


def decode(content_type: str, body: bytes, foreign: Callable[[object], Exception]) -> Answers:
    """Read the body of an answer with status 200. Raises one of UNREADABLE when it is none."""
    packed = content_type == MSGPACK
    found = (_BODY_MSGPACK if packed else _BODY_JSON).decode(body)
    errors = [found.error, *(result.error for result in found.results)]
    reported = [error for error in errors if error is not None]
    if reported:
        # A failed statement makes "not executed" of those after it.
        return Answers([], next((e for e in reported if e != NOT_EXECUTED), reported[0]))
    return Answers([StatementAnswer(r.series, packed, foreign) for r in found.results], None)


def words(content_type: str, body: bytes) -> str:
    """The message of an answer that is an error, on one line."""
    decoder = msgspec.msgpack.decode if content_type == MSGPACK else msgspec.json.decode
    try:
        decoded = decoder(body, type=_Words)
    except UNREADABLE:
        decoded = _Words()
    text = decoded.message or decoded.error or body.decode("utf-8", "replace")
    return " ".join(text[:_TEXT].split())
