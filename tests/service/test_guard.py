"""Who may ask the status port: a real server, asked by real requests."""

import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web
from pydantic import SecretStr

from marketfeed.service.guard import HEALTH, TRUSTED, Guard
from marketfeed.settings.secrets import SecretSource

TOKEN = "an-invented-token-0123"  # noqa: S105
OTHER = "another-invented-token"
NO_TOKEN = SecretSource(None, None)
WIDE = "0.0.0.0"  # noqa: S104 - what the settings say; bound is 127.0.0.1


@contextlib.asynccontextmanager
async def serving(host: str, token: SecretSource) -> AsyncIterator[str]:
    async def get(request: web.Request) -> web.Response:
        return web.json_response({"trusted": request[TRUSTED]})

    app = web.Application()
    Guard(host, token).add_to(app)
    for path in (HEALTH, "/", "/status"):
        app.router.add_get(path, get)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def ask(
    host: str, token: SecretSource, path: str, *many: Mapping[str, str]
) -> list[tuple[int, Mapping[str, str], str]]:
    """Ask once with each of `many` headers; status, headers and text of the answers."""

    async def run() -> list[tuple[int, Mapping[str, str], str]]:
        answers = []
        async with serving(host, token) as url, aiohttp.ClientSession() as session:
            for headers in many:
                async with session.get(url + path, headers=headers) as answer:
                    answers.append((answer.status, answer.headers.copy(), await answer.text()))
        return answers

    return uvloop.run(run())


def basic(user: str, password: str) -> dict[str, str]:
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- without a token ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.1.2.3", "[::1]:9108"]
)
def test_this_host_is_answered_under_its_own_names(host: str) -> None:
    [(status, headers, text)] = ask("127.0.0.1", NO_TOKEN, "/status", {"Host": host})
    assert (status, text) == (200, '{"trusted": true}')
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/status", HEALTH, "/nothing"])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9108", "127.0.0.1.evil.example", "[", "a@[::1", "10.0.0.1"],
)
def test_a_name_that_was_turned_to_this_host_is_not(host: str, path: str) -> None:
    [(status, headers, text)] = ask("127.0.0.1", NO_TOKEN, path, {"Host": host})
    assert status == 421
    assert "trusted" not in text
    assert "Content-Security-Policy" in headers


def test_pages_of_other_sites_get_nothing_but_a_link_may_lead_here() -> None:
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    sibling = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    answers = ask("localhost", NO_TOKEN, "/status", foreign, sibling, linked, own)
    assert [status for status, *_ in answers] == [403, 403, 200, 200]


def test_bound_wider_without_a_token_only_health_is_shown_and_no_more_than_that() -> None:
    for path in ("/", "/status"):
        [(status, _, text)] = ask(WIDE, NO_TOKEN, path, {})
        assert status == 401
        assert "trusted" not in text
    assert ask(WIDE, NO_TOKEN, HEALTH, {})[0][2] == '{"trusted": false}'


# --- with one -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", WIDE])
def test_with_a_token_whoever_knows_it_is_answered_whatever_the_name(host: str) -> None:
    token = SecretSource(SecretStr(TOKEN), None)
    known = [
        bearer(TOKEN),
        basic("", TOKEN),
        basic("me", TOKEN),
        {"Authorization": f"bEaReR {TOKEN}"},
    ]
    known = [headers | {"Host": "status.example"} for headers in known]
    assert {status for status, *_ in ask(host, token, "/status", *known)} == {200}


def test_who_does_not_know_it_is_asked_for_it() -> None:
    token = SecretSource(SecretStr(TOKEN), None)
    wrong = [
        {},
        bearer(""),
        bearer(OTHER),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "x"),
        basic(TOKEN, ""),
        basic(TOKEN, OTHER),
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Basic \xe4\xf6=="},
        {"Authorization": "Bearer \xe4\xf6"},
        {"Authorization": f"Token {TOKEN}"},
    ]
    for path in ("/", "/status", "/nothing"):
        for status, headers, text in ask(WIDE, token, path, *wrong):
            assert status == 401
            assert headers["WWW-Authenticate"].startswith('Basic realm="marketfeed"')
            assert TOKEN not in text
    presented = ask(WIDE, token, HEALTH, {}, bearer(OTHER), bearer(TOKEN))
    assert [text for *_, text in presented] == [
        '{"trusted": false}',
        '{"trusted": false}',
        '{"trusted": true}',
    ]


def test_a_token_file_is_read_again_and_without_one_nobody_is_let_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"

    async def run() -> None:
        async with (
            serving(WIDE, SecretSource(None, file)) as url,
            aiohttp.ClientSession() as session,
        ):

            async def status(presented: str) -> int:
                async with session.get(url + "/status", headers=bearer(presented)) as answer:
                    return answer.status

            assert [await status(TOKEN), await status("")] == [401, 401]
            file.write_text(TOKEN + "\n")
            assert [await status(TOKEN), await status(OTHER)] == [200, 401]
            new = tmp_path / "new"
            new.write_text(OTHER)
            new.rename(file)
            assert [await status(TOKEN), await status(OTHER)] == [401, 200]
            file.write_text("")
            assert [await status(OTHER), await status("")] == [401, 401]

    uvloop.run(run())
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    # Once for each time that it could not be read, however often somebody asked.
    assert len(logged) == 2
    assert all("nobody is let in" in line and TOKEN not in line for line in logged)
