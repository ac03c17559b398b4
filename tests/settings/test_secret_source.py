"""A secret of the settings as it is now: given, or what a file holds."""

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from marketfeed.settings.secrets import SecretSource


def test_a_given_secret_and_none() -> None:
    given, none = SecretSource(SecretStr("invented"), None), SecretSource(None, None)
    assert (given.wanted, given.read()) == (True, "invented")
    assert (none.wanted, none.read()) == (False, None)


def test_a_file_is_read_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "password"
    file.write_text("first\n")
    secret = SecretSource(None, file, "password")
    assert secret.wanted
    assert [secret.read(), secret.read()] == ["first", "first"]
    (new := tmp_path / "new").write_text("second")
    new.replace(file)
    assert secret.read() == "second"
    assert [record.message for record in caplog.records] == [f"password read path={file}"] * 2
    file.unlink()
    with pytest.raises(FileNotFoundError):
        secret.read()


@pytest.mark.parametrize("content", [b"", b" \n", b"c4n4ry\nc4n4ry", b"c4n4ry\xff", b"c4n4\x00ry"])
def test_what_no_header_can_hold_is_refused_each_time_and_not_shown(
    tmp_path: Path, content: bytes
) -> None:
    (file := tmp_path / "token").write_bytes(content)
    secret = SecretSource(None, file)
    for _ in range(2):
        with pytest.raises(OSError, match="it holds no token: one line of printable") as caught:
            secret.read()
        assert "c4n4" not in str(caught.value)
    file.write_text("a-token")
    os.utime(file, ns=(1, 1))
    assert secret.read() == "a-token"
