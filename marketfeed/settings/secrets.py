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


class SecretSource:
    """A secret of the settings as it is now: `given`, or what the file at `path` holds, read when it changes.

    `what` it is in errors and logs: a token, a password.
    """

    def __init__(self, given: SecretStr | None, path: Path | None, what: str = "token") -> None:
        self._given = None if given is None else given.get_secret_value()
        self._path = path
        self._what = what
        self._stamp: tuple[int, int] | None = None
        self._read = ""

    @property
    def wanted(self) -> bool:
        """Whether there is one, readable or not."""
        return self._given is not None or self._path is not None

    def read(self) -> str | None:
        """The secret, None if there is none. Raises OSError."""
        if self._path is None:
            return self._given
        stat = self._path.stat()
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != self._stamp:
            content = self._path.read_bytes().strip()
            if re.fullmatch(rb"[ -~]+", content) is None:
                # No header can hold it, and errors that show it must not arise.
                what = f"it holds no {self._what}: one line of printable ASCII"
                raise OSError(errno.EINVAL, what)
            self._read, self._stamp = content.decode("ascii"), stamp
            log.info("%s read path=%s", self._what, self._path)
        return self._read
