"""The choice of a store by its address."""

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from reader.errors import ArgumentError
from reader.store import Store

URL_VARIABLE: Final = "MARKETFEED_URL"
URL_FORMS: Final = "sqlite:////absolute/path/journal.db or sqlite:///relative/path/journal.db"


def open_store(url: str) -> Store:
    """Open the store at `url`.

    Raises ArgumentError for an address that cannot be used, StoreUnavailableError.
    """
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        raise ArgumentError(
            f"{URL_VARIABLE}: this version reads journals only ({URL_FORMS}), not a database over "
            f"{parts.scheme}"
        )
    if parts.scheme != "sqlite":
        # Not echoed: an address may hold a password.
        raise ArgumentError(f"{URL_VARIABLE}: {URL_FORMS} is expected; another address was found")
    if parts.netloc or parts.query or parts.fragment or len(parts.path) < 2:
        raise ArgumentError(
            f"{URL_VARIABLE}: {URL_FORMS} is expected (three slashes, then the path; ? and # in it "
            f"are written %3F and %23), not {url!r}"
        )
    path = unquote(parts.path[1:], errors="surrogateescape")
    if "\0" in path:
        raise ArgumentError(f"{URL_VARIABLE}: the path holds a zero byte: {url!r}")

    from reader.sqlite import SqliteStore  # noqa: PLC0415 - a store's modules load when it is used

    return SqliteStore(Path(path))
