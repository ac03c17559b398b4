"""The text in which a pair's lives are told: `schema.LIVES` of a bucket, made alike of a journal's rows."""

from typing import Final

import msgspec

from marketfeed import schema
from reader.life import LifeRow

PURE = True

_TEXT: Final = msgspec.json.Decoder(list[tuple[int, int | None, str]])


def parsed(text: str) -> tuple[LifeRow, ...]:
    """Read such text, oldest first. Raises ValueError, naming what was found and expected."""
    try:
        return tuple(sorted((LifeRow(*row) for row in _TEXT.decode(text)), key=lambda one: one[0]))
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{schema.LIVES}: [[listed_ms, ended_ms or null, symbol], …] is expected, "
            f"found {text[:80]!r}: {error}"
        ) from error
