"""The values of a posted body: numbers, what is repeated of a wrong one, what is kept unread. Pure."""

import math
import re
from collections.abc import Container, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

PURE = True

UNKNOWN_FIELDS_BYTES: Final = 1_024
"""How much is kept of the fields of a body that nothing is made of, as JSON."""
_SECRET: Final = re.compile("pass|secret|token|key|auth|sign(?!al)|credential", re.IGNORECASE)
"""A name that may be that of a secret."""
_HIDDEN: Final = "…"
_DECIMAL: Final = re.compile(
    r"[+-]?([0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15})(e[+-]?[0-9]{1,2})?", re.IGNORECASE
)


def number_of(raw: object) -> float | None:
    """A finite number, or the text of one (Freqtrade accepts both). None: it is none."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, str):
        if not _DECIMAL.fullmatch(raw.strip()):
            return None
        raw = float(raw)
    if not isinstance(raw, int | float):
        return None
    try:
        value = float(raw)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def exact_of(raw: object) -> Decimal | None:
    """The same as the decimal number that is written there, with as many decimals."""
    if number_of(raw) is None:
        return None
    return Decimal(raw.strip() if isinstance(raw, str) else repr(raw))


def repeatable(found: object) -> object:
    """What is repeated of a wrong value: a body that is nested deeply cannot be encoded again."""
    if not found or isinstance(found, str | int | float):
        return found
    return named(found)


def named(found: object) -> str:
    """What kind of JSON value it is, in words; its digits may be thousands."""
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int | float):
        return "a number out of range"
    return "an object" if isinstance(found, dict) else "an array"


def unknown_fields(data: Mapping[str, Any], known: Container[str]) -> str | None:
    """Those that are not known, as JSON, in their order: what a newer feeder sends, for whoever looks.

    One that does not fit into `UNKNOWN_FIELDS_BYTES` with those before it, or is nested too deeply, is left
    out; those after it are not. Of what is called as a secret may be, at any depth, the value is not kept.
    """
    kept, size = [], 1
    for name, value in data.items():
        if name in known:
            continue
        try:
            field = msgspec.json.encode(without_secrets({name: value}))[1:-1]
        except RecursionError:
            continue
        if size + len(field) + 1 <= UNKNOWN_FIELDS_BYTES:
            kept.append(field.decode())
            size += len(field) + 1
    return f"{{{','.join(kept)}}}" if kept else None


def without_secrets(value: Any) -> Any:
    """A decoded JSON value with "…" in place of what is called as a secret may be. Raises RecursionError."""
    if isinstance(value, dict):
        return {
            name: _HIDDEN if _SECRET.search(name) else without_secrets(inner)
            for name, inner in value.items()
        }
    return [without_secrets(inner) for inner in value] if isinstance(value, list) else value
