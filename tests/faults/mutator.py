"""Spoils frames: quick enough for millions, and the same for the same seed.

`spoil` may change what a frame says; `rewrite` changes how it is written only.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

_NUMBER: Final = re.compile(rb"-?\d+(?:\.\d+)?")
_HOSTILE: Final = (
    b"-1", b"0", b"-0.0", b"1e400", b"-1e400", b"1e-400", b"1e308", b"NaN", b"Infinity", b"-Infinity",
    b"nan", b"inf", b"+1", b" 1", b"1_000", b"0x10", b"01", b"1.", b".5", b"1e", b"--1", b"", b"null",
    b"true", b"false", b"[]", b"{}", b'"', b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551616", b"-9223372036854775809", b"4102444800000", b"9" * 400, b"0." + b"3" * 400,
    b"9" * 5_000, "１２".encode(), "٣".encode(), b"1,5", b"1 000", b"1\\u0030", b"99999999999999999999.5",
)  # fmt: skip
_TEXTS: Final = (
    b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"\\", b"\\x41",
    "é".encode(), "币安".encode(), "\u202e".encode(), b"\x80" * 8, b"\r\n", b"'", b"/*x*/", b"//",
)  # fmt: skip
_PIECES: Final = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"1", b'"e":"kline",', b'"x":true,',
    b'"data":{', b'"data":[', b'"k":{', b'"s":"BTCUSDT",', b'"st":2,', b'"result":null,', b'"id":1,',
    b'"error":{', b'"stream":"x",', b'"e":"markPriceUpdate",',
)  # fmt: skip
_KEYS: Final = tuple(f'"{key}":'.encode() for key in (*"eEsktTiochlvnxqVpr", "st", "data"))
_DEPTHS: Final = (10, 100, 1_000, 5_000)

Spoil = Callable[[bytes, random.Random], bytes]


class Mutator:
    """Makes broken frames out of `frames`."""

    def __init__(self, frames: Sequence[bytes], seed: int) -> None:
        self._frames = frames
        self._random = random.Random(seed)
        self._spoils: tuple[Spoil, ...] = (
            _flip, _flip, _truncate, self._splice, _change_number, _change_number, _change_number,
            _swap_numbers, _nest, _repeat_key, _put_text, _put_piece, _cut_out, _repeat, _requote,
        )  # fmt: skip

    def spoil(self) -> bytes:
        """Take a frame and spoil it, once as a rule, sometimes again and again."""
        random_ = self._random
        frame = random_.choice(self._frames)
        while True:
            frame = random_.choice(self._spoils)(frame, random_)
            if random_.random() < 0.75:
                return frame

    def rewrite(self) -> tuple[bytes, bytes]:
        """Take a frame, and write the same in another way; returns both."""
        random_ = self._random
        frame = random_.choice(self._frames)
        text = _write(_shuffled(json.loads(frame), random_, 0), random_)
        return frame, text.encode()

    def _splice(self, frame: bytes, random_: random.Random) -> bytes:
        other = random_.choice(self._frames)
        return frame[: random_.randrange(len(frame) + 1)] + other[random_.randrange(len(other)) :]


def _flip(frame: bytes, random_: random.Random) -> bytes:
    spoilt = bytearray(frame or b"{")
    for _ in range(random_.choice((1, 1, 2, 5))):
        spoilt[random_.randrange(len(spoilt))] = random_.randrange(256)
    return bytes(spoilt)


def _truncate(frame: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(frame) + 1)
    return frame[:at] if random_.random() < 0.8 else frame[at:]


def _numbers(frame: bytes) -> list[re.Match[bytes]]:
    return list(_NUMBER.finditer(frame))


def _change_number(frame: bytes, random_: random.Random) -> bytes:
    found = _numbers(frame)
    if not found:
        return frame
    match = random_.choice(found)
    kind = random_.random()
    if kind < 0.5:
        new = random_.choice(_HOSTILE)
    elif kind < 0.8:
        # A digit more, less, or another one: often a number that is still believable.
        text = match[0]
        at = random_.randrange(len(text) + 1)
        new = text[:at] + b"%d" % random_.randrange(10) + text[at + random_.randrange(2) :]
    else:
        new = b"%d" % (
            int(match[0].partition(b".")[0][:18] or b"0") + random_.choice((-60_000, -1, 1, 60_000))
        )
    return frame[: match.start()] + new + frame[match.end() :]


def _swap_numbers(frame: bytes, random_: random.Random) -> bytes:
    found = _numbers(frame)
    if len(found) < 2:
        return frame
    one, two = sorted(random_.sample(found, 2), key=re.Match.start)
    return b"".join(
        (frame[: one.start()], two[0], frame[one.end() : two.start()], one[0], frame[two.end() :])
    )


def _nest(frame: bytes, random_: random.Random) -> bytes:
    depth = random_.choice(_DEPTHS) if random_.random() < 0.05 else random_.randrange(1, 8)
    opening, closing = random_.choice(
        ((b"[", b"]"), (b'{"data":', b"}"), (b'{"k":', b"}"), (b"[", b""))
    )
    if random_.random() < 0.5:
        return opening * depth + frame + closing * depth
    at = random_.randrange(len(frame) + 1)
    return frame[:at] + opening * depth + b"1" + closing * depth + frame[at:]


def _repeat_key(frame: bytes, random_: random.Random) -> bytes:
    at = frame.find(b"{", random_.randrange(len(frame) + 1)) + 1
    value = random_.choice((b'"1"', b"1", b"null", b'"BTCUSDT"', b"true", b"{}", b"[]", b'"kline"'))
    return frame[:at] + random_.choice(_KEYS) + value + b"," + frame[at:]


def _put(frame: bytes, what: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(frame) + 1)
    return frame[:at] + what + frame[at + random_.randrange(3) :]


def _put_text(frame: bytes, random_: random.Random) -> bytes:
    return _put(frame, random_.choice(_TEXTS), random_)


def _put_piece(frame: bytes, random_: random.Random) -> bytes:
    return _put(frame, random_.choice(_PIECES), random_)


def _cut_out(frame: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(frame) + 1)
    return frame[:at] + frame[at + random_.choice((1, 2, 5, 20, 80)) :]


def _repeat(frame: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(frame) + 1)
    end = at + random_.choice((1, 5, 20, 80))
    return frame[:end] + frame[at:end] * random_.choice((1, 2, 9)) + frame[end:]


def _requote(frame: bytes, random_: random.Random) -> bytes:
    found = _numbers(frame)
    if not found:
        return frame
    match = random_.choice(found)
    start, end = match.span()
    if frame[start - 1 : start] == b'"' == frame[end : end + 1]:
        return frame[: start - 1] + match[0] + frame[end + 1 :]
    return frame[:start] + b'"' + match[0] + b'"' + frame[end:]


# --- written in another way -----------------------------------------------------------------------

_UNKNOWN: Final = (
    ("ap2", "1.5"),
    ("new", None),
    ("deep", {"a": [1, {"b": []}]}),
    ("信", "x"),
    ("z", -1),
)
_DECIMAL: Final = re.compile(r"-?\d+\.\d+")


def _shuffled(value: Any, random_: random.Random, depth: int) -> Any:
    """Write an equal value: keys in another order, unknown ones added, decimals with zeros at their end."""
    if isinstance(value, dict):
        items = [(key, _shuffled(item, random_, depth + 1)) for key, item in value.items()]
        if random_.random() < 0.5:
            items.append(random_.choice(_UNKNOWN))
        random_.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        return [_shuffled(item, random_, depth + 1) for item in value]
    if isinstance(value, str) and _DECIMAL.fullmatch(value) and random_.random() < 0.3:
        return value + "0" * random_.randrange(1, 4)
    return value


def _write(value: Any, random_: random.Random) -> str:
    """JSON with blanks between tokens, and letters written as escapes, here and there."""
    blank = random_.choice(("", "", " ", "\n\t", "\r\n  "))
    if isinstance(value, dict):
        pairs = (
            f"{_text(key, random_)}{blank}:{blank}{_write(item, random_)}"
            for key, item in value.items()
        )
        return "{" + blank + f"{blank},".join(pairs) + blank + "}"
    if isinstance(value, list):
        return "[" + f",{blank}".join(_write(item, random_) for item in value) + blank + "]"
    return _text(value, random_) if isinstance(value, str) else json.dumps(value)


def _text(value: str, random_: random.Random) -> str:
    if random_.random() < 0.9:
        return json.dumps(value, ensure_ascii=random_.random() < 0.5)
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in value) + '"'
