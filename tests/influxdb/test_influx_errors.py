"""What a reader raises when an InfluxDB cannot be asked, or not like this: typed, and what to do."""

import asyncio
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from both import Both
from front import Front, Rights
from influxd import Influxd
from scripted import Scripted, http
from stored import M1, M3, PAIR, START_MS, candle, entry

from marketfeed.simulator.tls import self_signed, server_context
from reader import MarketReader, ReaderError, StoreAuthError, StoreUnavailableError
from reader.errors import ArgumentError
from reader.feeder import FUTURES, Download
from reader.freqtrade import Installed
from reader.stores.address import URL_FORMS
from reader.stores.influx import InfluxStore
from reader.stores.influx_answers import StatementAnswer
from reader.stores.influx_http import InfluxHttp
from tests.ports import held_port
from tests.waiting import wait_until

HIDDEN = "hunter2"
READER = "readers-own"
WRITER = "writers-own"
BOT = "bot:secret"

NOTHING = msgspec.json.encode({"results": [{"statement_id": n} for n in range(3)]})
EMPTY = http("200 OK", NOTHING, Content_Type="application/json")
"""The answer of a database without points to the two first questions, with their closing statement."""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "TOKEN_FILE", "BUCKET", "URL"):
        monkeypatch.delenv(f"MARKETFEED_{name}", raising=False)


def connect(url: str, **options: str | float) -> MarketReader:
    return MarketReader.connect(url, now_ms=lambda: START_MS + M3, **options)


@pytest.fixture
def filled(front: Front, tmp_path: Path) -> Front:
    both = Both(front.influxd, front.buckets["market_data"].database, tmp_path / "journal.db")
    both.add(entry(), candle(START_MS))
    return front


# --- not there --------------------------------------------------------------------------------------


def test_nobody_listens() -> None:
    with pytest.raises(
        StoreUnavailableError, match=r"cannot be reached \(Connection refused\); does"
    ):
        connect(f"http://127.0.0.1:{held_port()}")


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(
        StoreUnavailableError, match=r"no-such-host.*cannot be reached \(.*not known"
    ):
        connect("http://no-such-host.invalid:8086")


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_a_bucket_that_does_not_exist(influxd: Influxd, front: Front, api: str) -> None:
    url, token = (influxd.url, None) if api == "v1" else (front.url, front.token)
    with pytest.raises(StoreUnavailableError) as caught:
        connect(url, bucket="nope", **({} if token is None else {"token": token}))
    assert "no bucket or database 'nope'" in str(caught.value)
    assert "database not found: nope" in str(caught.value)
    assert "MARKETFEED_BUCKET" in str(caught.value)
    assert "marketfeed setup" in str(caught.value)


def test_before_2_5_a_bucket_needs_a_mapping(influxd: Influxd) -> None:
    with Front(influxd, virtual_mappings=False) as front:
        front.add_bucket("market_data")
        with pytest.raises(StoreUnavailableError, match="its mapping"):
            connect(front.url, token=front.token)


# --- credentials ------------------------------------------------------------------------------------


def test_without_a_token_or_with_a_wrong_one(filled: Front) -> None:
    for options in ({}, {"token": "wrong-secret"}):
        with pytest.raises(
            StoreAuthError, match=r"401: [Uu]nauthorized.*MARKETFEED_TOKEN_FILE"
        ) as caught:
            connect(filled.url, **options)
        assert "wrong-secret" not in str(caught.value)


def test_a_token_that_may_not_read_this_bucket(filled: Front) -> None:
    filled.tokens[WRITER] = Rights(read=frozenset({"other"}))
    with pytest.raises(StoreUnavailableError, match="that InfluxQL and this token can see"):
        connect(filled.url, token=WRITER)
    filled.tokens[READER] = Rights(frozenset({"market_data"}), frozenset(), manage=False)
    with connect(filled.url, token=READER) as reader:
        assert len(reader.get_ohlcv(PAIR, "3m")) == 1


def test_a_new_token_in_the_file_is_taken_when_the_old_one_is_refused(
    filled: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{filled.token}\n")
    monkeypatch.setenv("MARKETFEED_TOKEN_FILE", str(file))
    with connect(filled.url) as reader:
        filled.tokens = {"second": Rights()}
        for content in (filled.token, ""):
            file.write_text(content)
            with pytest.raises(StoreAuthError):
                reader.get_ohlcv(PAIR, "3m")
        file.write_text("second")
        assert len(reader.get_ohlcv(PAIR, "3m")) == 1
        file.unlink()
        assert len(reader.get_ohlcv(PAIR, "3m")) == 1
        filled.tokens = {}
        with pytest.raises(StoreAuthError):
            reader.get_ohlcv(PAIR, "3m")


def test_users_of_1_x(tmp_path: Path) -> None:
    with Influxd(tmp_path / "influxd", auth=True) as server:
        server.query("CREATE USER boss WITH PASSWORD 'secret' WITH ALL PRIVILEGES")
        for text in (
            "CREATE DATABASE market_data",
            "CREATE USER bot WITH PASSWORD 'secret'",
            "CREATE USER other WITH PASSWORD 'secret'",
            "GRANT READ ON market_data TO bot",
        ):
            server.query(text, user="boss:secret")
        with connect(server.url, token=BOT) as reader:
            assert reader.pairs() == []
        for token in ("bot:wrong", "nobody:secret", "other:secret"):
            with pytest.raises(StoreAuthError):
                connect(server.url, token=token)


# --- while it runs ----------------------------------------------------------------------------------


def test_a_restart_is_not_noticed_and_an_outage_is(tmp_path: Path) -> None:
    with Influxd(tmp_path / "influxd") as server:
        both = Both(server, "market_data", tmp_path / "journal.db")
        server.query("CREATE DATABASE market_data")
        both.add(entry(), candle(START_MS))
        with connect(server.url) as reader:
            for end in (server.stop, server.kill):
                end()
                server.start()
                assert len(reader.get_ohlcv(PAIR, "3m")) == 1
                end()
                for _ in range(2):
                    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                        reader.get_ohlcv(PAIR, "3m")
                server.start()
                assert len(reader.get_ohlcv(PAIR, "3m")) == 1


def test_a_server_that_hangs(tmp_path: Path) -> None:
    with Influxd(tmp_path / "influxd") as server:
        server.query("CREATE DATABASE market_data")
        with connect(server.url, timeout_s=0.2) as reader:
            server.pause()
            try:
                started_s = time.monotonic()
                with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.2 s"):
                    reader.pairs()
                assert time.monotonic() - started_s >= 0.2
            finally:
                server.resume()
            assert reader.pairs() == []


class Counting(InfluxHttp):
    asked = 0

    def ask(
        self, statements: Sequence[str], parameters: Mapping[str, str]
    ) -> list[StatementAnswer]:
        self.asked += 1
        return super().ask(statements, parameters)


def test_a_bot_does_not_wait_for_a_server_that_hangs_once_for_every_chunk(tmp_path: Path) -> None:
    """Freqtrade refreshes 656 series in seven chunks, and waits for each in its one thread."""
    now_ms = int(time.time() * 1000)
    current_ms = now_ms - now_ms % M1
    candles = [candle(current_ms + n * M1, timeframe="1m") for n in range(-40, 1)]
    download = Download(PAIR, "1m", FUTURES, None, 20, START_MS)

    def refresh(installed: Installed) -> list[object]:
        async def chunk() -> list[object]:
            waiting = [installed.rows(download) for _ in range(5)]
            return await asyncio.gather(*waiting, return_exceptions=True)

        return asyncio.run(chunk())

    with Influxd(tmp_path / "influxd") as server:
        server.query("CREATE DATABASE market_data")
        Both(server, "market_data", tmp_path / "journal.db").add(entry(PAIR, ("1m",)), candles)
        http = Counting(urlsplit(server.url), "market_data", read_s=1.0)
        with MarketReader(InfluxStore(http)) as reader:
            held_up = Installed(reader, "exchange")
            assert [len(rows) for rows in refresh(held_up)] == [20] * 5
            server.pause()
            try:
                asked = http.asked
                for _ in range(7):
                    for problem in refresh(held_up):
                        assert isinstance(problem, StoreUnavailableError)
                        assert "no answer within 1 s" in str(problem)
                assert http.asked == asked + 1
                # It is asked again some time later.
                quick = Installed(reader, "exchange", rest_s=0.2)
                assert isinstance(refresh(quick)[0], StoreUnavailableError)
            finally:
                server.resume()
            wait_until(lambda: isinstance(refresh(quick)[0], list))
            assert (held_up.answered["futures"], quick.answered["futures"]) == (5, 5)


def test_a_connection_that_was_closed_while_idle_is_replaced_once() -> None:
    def drop(connection: socket.socket, request: bytes) -> None:
        connection.close()

    with Scripted(EMPTY, drop, EMPTY) as server, connect(server.url) as reader:
        assert reader.pairs() == []
        assert len(server.requests) == 3
        assert server.connections == 2
    with Scripted(EMPTY, drop) as server, connect(server.url) as reader:
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            reader.pairs()
        assert len(server.requests) == 3, "asked on the kept connection and on one more"
    with Scripted(drop) as server:
        with pytest.raises(StoreUnavailableError, match="closed connection without response"):
            connect(server.url)
        assert len(server.requests) == 1


def test_connections_are_kept() -> None:
    with Scripted(EMPTY) as server, connect(server.url) as reader:
        for _ in range(5):
            assert reader.pairs() == []
        assert (len(server.requests), server.connections) == (6, 1)
    with Scripted(EMPTY, keep=False) as server, connect(server.url) as reader:
        for _ in range(3):
            assert reader.pairs() == []


CUT = {
    "in the middle": http("200 OK", NOTHING, Content_Length="1000"),
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{",
    "before its end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    "without a head": b"HTTP/1.1 200",
    "that is none": b"SSH-2.0-OpenSSH_9\r\n",
}


@pytest.mark.parametrize("cut", CUT.values(), ids=CUT.keys())
@pytest.mark.parametrize("reset", [False, True])
def test_an_answer_that_breaks_off(cut: bytes, reset: bool) -> None:
    def break_off(connection: socket.socket, request: bytes) -> None:
        connection.sendall(cut)
        if reset:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()

    with Scripted(break_off) as server:
        with pytest.raises(StoreUnavailableError) as caught:
            connect(server.url)
        assert server.url in str(caught.value)


ANSWERS: list[tuple[bytes, type[ReaderError], str]] = [
    (http("403 Forbidden", b'{"message": "no"}'), StoreAuthError, r"\(status 403: no\)"),
    (http("404 Not Found", b"404 page not found\n"), StoreUnavailableError, "is it an InfluxDB"),
    (
        http("404 Not Found", b'{"code": "not found", "message": "database not found: x"}'),
        StoreUnavailableError,
        "has no bucket or database 'market_data'",
    ),
    (http("400 Bad Request", b'{"error": "odd"}'), StoreUnavailableError, "400: odd; is it"),
    (http("301 Moved", Location="https://x/"), StoreUnavailableError, "redirects to https://x/"),
    (http("500 Internal Server Error"), StoreUnavailableError, "status 500; try again"),
    (http("503 Busy", b'{"error": "wait"}'), StoreUnavailableError, "503: wait; try again"),
    (http("204 No Content"), StoreUnavailableError, "status 204"),
    (http("200 OK", b"<html>hello</html>"), StoreUnavailableError, "is it an InfluxDB"),
    (http("200 OK"), StoreUnavailableError, "is it an InfluxDB"),
    (http("200 OK", b"{}"), StoreUnavailableError, "max-row-limit"),
    (http("200 OK", b'{"error": "boom"}'), StoreUnavailableError, "could not answer: boom"),
    (
        http("200 OK", b'{"results": [{"statement_id": 0, "error": "timeout"}]}'),
        StoreUnavailableError,
        "could not answer: timeout",
    ),
]


@pytest.mark.parametrize(("answer", "kind", "text"), ANSWERS, ids=lambda value: str(value)[:40])
def test_answers_that_are_none(answer: bytes, kind: type[ReaderError], text: str) -> None:
    with Scripted(answer) as server:
        with pytest.raises(kind, match=text) as caught:
            connect(server.url, token=HIDDEN)
        assert server.url in str(caught.value)
        assert HIDDEN not in str(caught.value)
        assert len(server.requests) == 1, "nothing is tried again"


def test_what_is_sent() -> None:
    with (
        Scripted(EMPTY) as server,
        connect(
            f"{server.url}/behind/a/proxy/", token=f" {HIDDEN}\n", bucket="a&b=c;d é"
        ) as reader,
    ):
        assert reader.pairs() == []
        assert HIDDEN not in repr(reader)
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /behind/a/proxy/query HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Token hunter2" in head
    assert b"\r\nAccept: application/x-msgpack\r\n" in head
    assert body.startswith(b"db=a%26b%3Dc%3Bd+%C3%A9&q=SELECT+")
    assert b"&epoch=ms&params=%7B%7D" in body


def test_a_closed_reader_says_so(filled: Front) -> None:
    reader = connect(filled.url, token=filled.token)
    reader.close()
    reader.close()
    calls: list[Callable[[], object]] = [
        lambda: reader.get_ohlcv(PAIR, "3m"),
        lambda: reader.newest("3m"),
        lambda: reader.get_mark_price(PAIR),
    ]
    for call in calls:
        with pytest.raises(ReaderError, match="is closed"):
            call()


# --- TLS --------------------------------------------------------------------------------------------

READ = """
import sys
from reader import MarketReader, StoreUnavailableError
try:
    with MarketReader.connect(sys.argv[1]) as reader:
        print(reader.pairs())
except StoreUnavailableError as error:
    print(error)
"""


def test_certificates_are_checked(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with Scripted(EMPTY, tls=server_context(certificate, key)) as server:

        def read(url: str, **more: str) -> str:
            done = subprocess.run(
                [sys.executable, "-c", READ, url],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | more,
            )
            return done.stdout

        assert "MARKETFEED_CA_FILE or ca_file= names a private authority" in read(server.url)
        assert read(server.url, SSL_CERT_FILE=str(certificate)) == "[]\n"
        assert read(server.url, MARKETFEED_CA_FILE=str(certificate)) == "[]\n"
        with MarketReader.connect(server.url, ca_file=certificate) as reader:
            assert reader.pairs() == []
        # The system's authorities are no part of it.
        other = tmp_path / "other"
        other.mkdir()
        assert "is not trusted by" in read(
            server.url, MARKETFEED_CA_FILE=str(self_signed(other)[0])
        )
        assert "cannot be reached" in read(server.url.replace("https:", "http:"))


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path in (empty, tmp_path / "missing.pem"):
        with pytest.raises(ArgumentError, match=f"ca_file: .*{path.name}"):
            MarketReader.connect("https://influxdb.example:8086", ca_file=path)


# --- addresses and the environment ------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://:8086",
        "https:///path",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://host:8086?db=x",
        "http://host:8086/#x",
        "http://[::1",
    ],
)
def test_addresses_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ArgumentError, match="MARKETFEED_URL") as caught:
        connect(url)
    assert URL_FORMS in str(caught.value)


def test_a_password_has_no_place_in_the_address() -> None:
    with pytest.raises(ArgumentError, match="MARKETFEED_TOKEN") as caught:
        connect("http://user:hunter2@host:8086")
    assert "hunter2" not in str(caught.value)


def test_the_environment_names_bucket_and_token(
    filled: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = filled.add_bucket("other")
    Both(filled.influxd, bucket.database, tmp_path / "other.db").add(entry("A/B:B"))
    monkeypatch.setenv("MARKETFEED_URL", filled.url)
    monkeypatch.setenv("MARKETFEED_TOKEN", filled.token)
    with MarketReader.connect() as reader:
        assert [info.pair for info in reader.pairs()] == [PAIR]
    monkeypatch.setenv("MARKETFEED_BUCKET", "other")
    with MarketReader.connect() as reader:
        assert [info.pair for info in reader.pairs()] == ["A/B:B"]
    with MarketReader.connect(bucket="market_data") as reader:
        assert [info.pair for info in reader.pairs()] == [PAIR]
    monkeypatch.setenv("MARKETFEED_TOKEN", "wrong")
    with pytest.raises(StoreAuthError):
        MarketReader.connect()
    with MarketReader.connect(token=filled.token) as reader:
        assert len(reader.pairs()) == 1


def test_tokens_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9"
    for token in ("", "  ", "two\nlines-of-hunter2", "hunter2\u20ac", "hunter2\0"):
        with pytest.raises(ArgumentError, match="one line of plain ASCII") as caught:
            connect(url, token=token)
        assert "hunter2" not in str(caught.value)
    file = tmp_path / "token"
    monkeypatch.setenv("MARKETFEED_TOKEN_FILE", str(file))
    with pytest.raises(ArgumentError, match=r"TOKEN_FILE: .*/token cannot be read: No such file"):
        connect(url)
    file.write_bytes(b"\xff\xfehunter2")
    with pytest.raises(ArgumentError, match="it is not text") as caught:
        connect(url)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("MARKETFEED_TOKEN", "hunter2")
    with pytest.raises(ArgumentError, match="both set") as caught:
        connect(url)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ArgumentError, match="name of a bucket"):
        connect(url, bucket="")


def test_no_thread_is_left_behind(filled: Front) -> None:
    before = threading.active_count()
    with connect(filled.url, token=filled.token) as reader:
        assert len(reader.get_ohlcv(PAIR, "3m")) == 1
        assert threading.active_count() == before
