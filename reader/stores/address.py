"""The choice of a store by its address and the environment."""

import os
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from reader.errors import ArgumentError
from reader.stores.store import Store

URL_VARIABLE: Final = "MARKETFEED_URL"
TOKEN_VARIABLE: Final = "MARKETFEED_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_VARIABLE: Final = "MARKETFEED_TOKEN_FILE"  # noqa: S105
BUCKET_VARIABLE: Final = "MARKETFEED_BUCKET"
CA_FILE_VARIABLE: Final = "MARKETFEED_CA_FILE"
BUCKET: Final = "market_data"
URL_FORMS: Final = (
    "sqlite:////absolute/path/journal.db, sqlite:///relative/path/journal.db or http(s)://host:8086"
)


def open_store(
    url: str,
    *,
    token: str | None = None,
    bucket: str | None = None,
    timeout_s: float | None = None,
    ca_file: str | os.PathLike[str] | None = None,
) -> Store:
    """Open the store at `url`.

    `token`, `bucket` and `ca_file`, by default those of the environment, and `timeout_s` are for a database
    over HTTP.

    Raises ArgumentError for an address that cannot be used, StoreUnavailableError, StoreAuthError.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ArgumentError(f"{URL_VARIABLE}: {URL_FORMS} is expected: {error}") from None
    if parts.scheme in ("http", "https"):
        return _open_influx(parts, token, bucket, timeout_s, ca_file)
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

    from reader.stores.sqlite import SqliteStore  # noqa: PLC0415 - a store's modules load when it is used

    return SqliteStore(Path(path))


def _open_influx(
    url: SplitResult,
    token: str | None,
    bucket: str | None,
    timeout_s: float | None,
    ca_file: str | os.PathLike[str] | None,
) -> Store:
    if "@" in url.netloc:
        raise ArgumentError(
            f"{URL_VARIABLE}: {URL_FORMS} is expected, without a user or password in it; "
            f"credentials are a token ({TOKEN_VARIABLE}; for InfluxDB 1.x user:password)"
        )
    try:
        usable = url.hostname and url.port != 0 and not url.query and not url.fragment
    except ValueError:
        usable = False
    if not usable:
        raise ArgumentError(f"{URL_VARIABLE}: {URL_FORMS} is expected, not {url.geturl()!r}")
    database = os.environ.get(BUCKET_VARIABLE) or BUCKET if bucket is None else bucket
    if not database:
        raise ArgumentError(f"bucket: the name of a bucket is expected, found {database!r}")

    from reader.stores.influx import InfluxStore  # noqa: PLC0415 - a store's modules load when it is used
    from reader.stores.influx_http import READ_S, InfluxHttp  # noqa: PLC0415

    def current_token() -> str | None:
        return _token() if token is None else _checked("token", token)

    read_s = READ_S if timeout_s is None else timeout_s
    authority = _authority(ca_file) if url.scheme == "https" else None
    http = InfluxHttp(url, database, current_token, read_s=read_s, ca_file=authority)
    return InfluxStore(http)


def _authority(ca_file: str | os.PathLike[str] | None) -> str | None:
    """The file of a private authority's certificate, None for the system's authorities."""
    name = CA_FILE_VARIABLE if ca_file is None else "ca_file"
    path = os.environ.get(CA_FILE_VARIABLE) or None if ca_file is None else os.fspath(ca_file)
    if path is None:
        return None
    import ssl  # noqa: PLC0415 - for https alone

    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise ArgumentError(
            f"{name}: a file of certificates (PEM) is expected, found {path!r}: "
            f"{error.strerror or 'it holds none'}"
        ) from None
    return path


def _token() -> str | None:
    """The token that the environment gives or names a file of, None if there is none."""
    value, file = (os.environ.get(name) for name in (TOKEN_VARIABLE, TOKEN_FILE_VARIABLE))
    if value and file:
        raise ArgumentError(f"{TOKEN_VARIABLE} and {TOKEN_FILE_VARIABLE} are both set: one of them")
    if not file:
        return _checked(TOKEN_VARIABLE, value) if value else None
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ArgumentError(f"{TOKEN_FILE_VARIABLE}: {file} cannot be read: {reason}") from error
    return _checked(TOKEN_FILE_VARIABLE, text)


def _checked(name: str, token: str) -> str:
    token = token.strip()
    # It goes into a header; and it is not echoed.
    if not token or not token.isascii() or not token.isprintable():
        raise ArgumentError(f"{name}: a token is expected, one line of plain ASCII characters")
    return token
