"""Secrets that stand in files: checked when settings are loaded, read when they are used."""

import errno
import logging
import os
import re
from pathlib import Path

from pydantic import AfterValidator, SecretStr, ValidationInfo

from marketfeed.settings.values import expected

log = logging.getLogger(__name__)


def secret_file(secret: str) -> AfterValidator:
    """The path of a file that is there, instead of the key named like it without `_file`.

    `secret` is what errors call that key.
    """

    def check(path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None:
            return None
        if info.data.get(str(info.field_name).removesuffix("_file")) is not None:
            raise expected(f"nothing, as {secret} is set: one of the two")
        try:
            readable = path.exists() and not path.is_dir() and os.access(path, os.R_OK)
        except OSError:
            readable = False
        if not readable:
            raise expected("a file that exists and that this user may read")
        return path

    return AfterValidator(check)


def read_secret(path: Path, what: str) -> str:
    """The secret that the file at `path` holds, `what` it is in errors. Raises OSError."""
    content = path.read_bytes().strip()
    if re.fullmatch(rb"[ -~]+", content) is None:
        # No header can hold it, and errors that show it must not arise.
        raise OSError(errno.EINVAL, f"it holds no {what}: one line of printable ASCII")
    return content.decode("ascii")


class Token:
    """One or the other of `token` and `path`; the file is read again whenever it changes."""

    def __init__(self, token: SecretStr | None, path: Path | None) -> None:
        self._given = None if token is None else token.get_secret_value()
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._read = ""

    @property
    def wanted(self) -> bool:
        """Whether there is one, readable or not."""
        return self._given is not None or self._path is not None

    def read(self) -> str | None:
        """The token, None if there is none. Raises OSError."""
        if self._path is None:
            return self._given
        stat = self._path.stat()
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != self._stamp:
            self._read = read_secret(self._path, "token")
            self._stamp = stamp
            log.info("token read path=%s", self._path)
        return self._read
