"""The schema version of a durable file as people meet it: what it means, and how it is changed."""

import time
from pathlib import Path
from typing import Final

import msgspec

from marketfeed.storage.database import Kind, convert
from marketfeed.storage.reading import require

_LACKS: Final = {("journal", 2): "taker_buy_quote_volume, and no hourly mark candle,"}
"""What is not stored in a file of an older version."""
_COMMANDS: Final = {
    "journal": "marketfeed upgrade",
    "ledger": "marketfeed upgrade --ledger",
}


class Conversion(msgspec.Struct, frozen=True):
    """A file that was taken from one schema version to another, in `seconds` of wall time."""

    path: str
    before: int
    after: int
    seconds: float


def versions(kind: Kind) -> range:
    """The versions to which a file can be taken."""
    return range(min(kind.ways_back) - 1, kind.version + 1)


def change_version(kind: Kind, path: Path, version: int) -> Conversion:
    """Take the file at `path` to one of `versions`; nobody may be writing it. Raises as `convert` does."""
    # Reports what is there before anything is opened to be written.
    require(kind, path, writing=True)
    started_s = time.perf_counter()
    before = convert(kind, path, version)
    return Conversion(str(path), before, version, time.perf_counter() - started_s)


def about_version(kind: Kind, version: int) -> str:
    """What a version means for who reads or writes the file beside this marketfeed."""
    text = f"schema version {version}"
    if version > kind.version:
        return f"{text} (newer than this one's, {kind.version})"
    if not kind.ways_back and version == kind.version:
        return text
    command = _COMMANDS[kind.name]
    if version < kind.version:
        lacks = _LACKS.get((kind.name, version))
        without = f"; until then no {lacks} is stored" if lacks else ""
        return f"{text}: `{command}` makes it {kind.version}, once all readers know that{without}"
    older = max(versions(kind)[:-1])
    return f"{text}: who knows only {older} refuses it, `{command} --to {older}` takes it back"
