"""How a reader was connected, so that a copy of it, in this process or another, connects anew."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

from reader import arguments
from reader.errors import ArgumentError
from reader.stores.address import (
    BUCKET_VARIABLE,
    CA_FILE_VARIABLE,
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
    URL_FORMS,
    URL_VARIABLE,
    open_store,
)
from reader.stores.store import Store


@dataclass(frozen=True, slots=True)
class Connecting:
    """The arguments of `MarketReader.connect`, with the environment's values where it gives them.

    `token` is one that was given as an argument, None where the environment gives it. A pickle does not
    hold it; `had_token` is true there: the environment has to give one then.
    """

    url: str
    token: str | None = field(repr=False)
    bucket: str | None
    timeout_s: float | None
    ca_file: str | None
    had_token: bool = False

    @classmethod
    def checked(
        cls,
        url: str | None,
        token: str | None,
        bucket: str | None,
        timeout_s: float | None,
        ca_file: str | os.PathLike[str] | None,
    ) -> "Connecting":
        """Check what `connect` was given, but for what `open` checks. Raises ArgumentError."""
        address = os.environ.get(URL_VARIABLE, "") if url is None else url
        if not address:
            raise ArgumentError(
                f"no store to read from: set {URL_VARIABLE}, or pass url; {URL_FORMS} is expected"
            )
        if timeout_s is not None:
            seconds = arguments.seconds("timeout_s", timeout_s)
            if not 0 < seconds < math.inf:
                raise ArgumentError(
                    f"timeout_s: a number of seconds above 0 is expected, found {timeout_s!r}"
                )
            timeout_s = seconds
        if bucket is None:
            bucket = os.environ.get(BUCKET_VARIABLE) or None
        authority = (
            os.environ.get(CA_FILE_VARIABLE) or None if ca_file is None else os.fspath(ca_file)
        )
        return cls(address, token, bucket, timeout_s, authority)

    def open(self) -> Store:
        """Open the store. Raises ArgumentError, StoreUnavailableError, StoreAuthError."""
        variables = (TOKEN_VARIABLE, TOKEN_FILE_VARIABLE)
        if self.had_token and not any(os.environ.get(name) for name in variables):
            raise ArgumentError(
                f"the pickled reader of {self.url} was given its token as an argument, which no pickle "
                f"holds: set {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE} where it is unpickled"
            )
        return open_store(
            self.url,
            token=self.token,
            bucket=self.bucket,
            timeout_s=self.timeout_s,
            ca_file=self.ca_file,
        )

    def at(self, source: str) -> "Connecting":
        """The same, whatever the working directory: of a journal the address that the store itself has."""
        return replace(self, url=source) if source.startswith("sqlite:") else self

    def without_token(self) -> "Connecting":
        """What a pickle may hold."""
        had_token = self.had_token or self.token is not None
        return replace(self, token=None, had_token=had_token)

    def __reduce__(self) -> tuple[type["Connecting"], tuple[object, ...]]:
        safe = self.without_token()
        values = (safe.url, None, safe.bucket, safe.timeout_s, safe.ca_file, safe.had_token)
        return Connecting, values


class ConnectsAnew:
    """A reader of which a copy, and what a pickle of it makes, connects anew."""

    def __init__(
        self, store: Store, now_ms: Callable[[], int] | None, connecting: Connecting | None
    ) -> None:
        self._given_now_ms = now_ms
        self._connecting = None if connecting is None else connecting.at(store.source)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return connected_anew, (type(self), *self._made())

    def __copy__(self) -> Self:
        return connected_anew(type(self), *self._made())

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self.__copy__()

    def _made(self) -> tuple[Connecting, Callable[[], int] | None]:
        if self._connecting is None:
            raise TypeError("a reader that `connect` has not made cannot be copied or pickled")
        return self._connecting, self._given_now_ms


_Reader = TypeVar("_Reader", bound=ConnectsAnew)


def connected_anew(
    kind: type[_Reader], connecting: Connecting, now_ms: Callable[[], int] | None
) -> _Reader:
    """A reader that is connected as another was. Raises what `Connecting.open` raises."""
    return kind(connecting.open(), now_ms, connecting)
