"""How a token is sent, and that nobody who repeats a request's header shows it."""

from base64 import b64encode

import pytest

from marketfeed.influxdb.writer import authorization, hide_token

USER = "ship:canary-word"


@pytest.mark.parametrize(
    ("token", "api", "value"),
    [
        (USER, "v1", "Basic " + b64encode(USER.encode()).decode()),
        (USER, "v2", f"Token {USER}"),
        ("abc==", "v1", "Token abc=="),
        ("abc==", "v2", "Token abc=="),
    ],
)
def test_the_header(token: str, api: str, value: str) -> None:
    assert authorization(token, api) == value
    headers = {"Authorization": value}
    for secret in (token, value.partition(" ")[2]):
        words = f"bad header: {value!r}, {secret}, done".encode()
        assert secret.encode() not in hide_token(words, headers)
        assert b"done" in hide_token(words, headers)


def test_a_password_alone_is_hidden_too() -> None:
    headers = {"Authorization": authorization(USER, "v1")}
    assert hide_token(b"user ship, password canary-word", headers) == b"user ship, password ***"
    assert hide_token(b"no token was sent", {}) == b"no token was sent"
