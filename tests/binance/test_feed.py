"""The feed against a scripted exchange on loopback: real sockets, real cryptofeed."""

import asyncio
import contextlib
import datetime
import ipaddress
import json
import logging
import signal
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from cryptofeed.symbols import Symbols
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from scripted_exchange import (
    Happenings,
    Script,
    ScriptedExchange,
    Session,
    frame,
    market,
    scripted_exchange,
    silent,
)
from websockets.frames import Frame, Opcode

from marketfeed.binance.backoff import ConnectionStatus, ConnectLimiter, FeedOptions
from marketfeed.binance.feed import Feed
from marketfeed.binance.symbols import Instrument
from tests.ports import held_port

DATA: Final = Path(__file__).parent.parent / "data"
BTC: Final = "btcusdt@kline_1m"
ETH: Final = "ethusdt@kline_1m"
NONE: Final[tuple[Instrument, ...]] = ()


class Rig:
    """A feed, the exchange it reads from, and all that it has handed on."""

    def __init__(self, exchange: ScriptedExchange) -> None:
        self.exchange = exchange
        self.happenings = exchange.happenings
        self.until = self.happenings.until
        self.frames: list[bytes] = []
        self.names: list[str] = []
        self.states: list[ConnectionStatus] = []
        self.limiter = ConnectLimiter()
        self.options = FeedOptions(
            ws_url=exchange.url,
            min_attempt_gap_s=0.02,
            backoff_base_s=0.02,
            subscribes_per_s=1000.0,
        )

    def on_frame(self, data: bytes, name: str) -> None:
        self.frames.append(data)
        self.names.append(name)
        self.happenings.note()

    def on_state(self, status: ConnectionStatus) -> None:
        self.states.append(status)
        self.happenings.note()

    def feed(self, *streams: str, instruments: Sequence[Instrument] = NONE, **options: Any) -> Feed:
        self.options = msgspec.structs.replace(self.options, **options)
        return Feed(self.options, instruments, streams, self.on_frame, self.on_state, self.limiter)

    @property
    def data(self) -> Counter[str]:
        """How many frames came of each stream."""
        return Counter(
            json.loads(frame)["stream"] for frame in self.frames if frame.startswith(b'{"stream"')
        )


@contextlib.asynccontextmanager
async def rig(script: Script = market, tls: ssl.SSLContext | None = None) -> AsyncIterator[Rig]:
    async with scripted_exchange(Happenings(), script, tls) as exchange:
        yield Rig(exchange)


@contextlib.asynccontextmanager
async def running(feed: Feed) -> AsyncIterator[None]:
    """Run the feed, and see that nothing is left of it."""
    before = other_tasks()
    task = asyncio.get_running_loop().create_task(feed.run())
    try:
        yield
    finally:
        async with asyncio.timeout(180):
            await feed.stop()
            await task
        assert other_tasks() - before == set()


def other_tasks() -> set[asyncio.Task[Any]]:
    """All tasks but this one and the server's."""
    return {
        task
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task() and "websockets/asyncio/server" not in repr(task)
    }


def run(test: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(180):
            await test

    asyncio.run(limited())


# --- streams and subscriptions -----------------------------------------------------------------------


def test_656_streams_arrive_over_four_connections() -> None:
    async def test() -> None:
        kinds = ("kline_1m", "kline_3m", "kline_1h", "markPrice@1s")
        symbols = [f"s{number}usdt" for number in range(163)] + ["币安人生usdt"]
        streams = [f"{symbol}@{kind}" for symbol in symbols for kind in kinds]
        async with rig() as r, running(r.feed(*streams)):
            await r.until(lambda: len(r.frames) == 656 + 4)
            assert set(r.data) == set(streams)
            assert set(r.data.values()) == {1}
            assert [len(session.streams) for session in r.exchange.sessions] == [164] * 4
            assert {session.path for session in r.exchange.sessions} == {"/market/stream"}
            assert set(Counter(r.names).values()) == {165}

    run(test())


def test_subscribe_frames_are_small_and_paced() -> None:
    async def test() -> None:
        streams = [f"s{number}usdt@kline_1m" for number in range(400)]
        async with rig(silent) as r:
            feed = r.feed(
                *streams,
                streams_per_connection=1000,
                names_per_subscribe=50,
                subscribes_per_s=20.0,
            )
            async with running(feed):
                await r.until(
                    lambda: r.exchange.sessions and len(r.exchange.sessions[0].commands) == 8
                )
            (session,) = r.exchange.sessions
            assert [len(names) for _, names, _ in session.commands] == [50] * 8
            times_s = [time_s for _, _, time_s in session.commands]
            assert times_s[-1] - times_s[0] >= 6 / 20.0
            assert session.streams == set(streams)

    run(test())


def test_streams_come_and_go_without_a_new_connection() -> None:
    async def test() -> None:
        async with rig() as r:
            feed = r.feed(BTC, streams_per_connection=3)
            async with running(feed):
                await r.until(lambda: r.data[BTC])
                await feed.subscribe([ETH, BTC, ETH])
                await r.until(lambda: r.data[ETH])
                await feed.unsubscribe([BTC, "unknown@kline_1m"])
                await r.until(lambda: r.exchange.sessions[0].streams == {ETH})
                assert [c[:2] for c in r.exchange.sessions[0].commands] == [
                    ("SUBSCRIBE", [BTC]),
                    ("SUBSCRIBE", [ETH]),
                    ("UNSUBSCRIBE", [BTC]),
                ]
                assert [status.opened for status in feed.connections()] == [1]
                assert r.data == {BTC: 1, ETH: 1}

    run(test())


def test_streams_beyond_the_room_get_a_connection_of_their_own() -> None:
    async def test() -> None:
        async with rig() as r:
            feed = r.feed(BTC, ETH, streams_per_connection=3)
            async with running(feed):
                await r.until(lambda: len(r.data) == 2)
                more = [f"s{number}usdt@kline_1m" for number in range(5)]
                await feed.subscribe(more)
                await r.until(lambda: len(r.data) == 7)
                assert [len(status.streams) for status in feed.connections()] == [3, 2, 2]
                assert [status.opened for status in feed.connections()] == [1, 1, 1]
                assert len({status.name for status in feed.connections()}) == 3

    run(test())


def test_a_feed_may_start_empty() -> None:
    async def test() -> None:
        async with rig() as r:
            feed = r.feed()
            async with running(feed):
                await feed.subscribe([BTC])
                await r.until(lambda: r.data[BTC])

    run(test())


def test_a_silent_stream_is_subscribed_again() -> None:
    async def test() -> None:
        async with rig() as r:
            feed = r.feed(BTC, ETH)
            async with running(feed):
                await r.until(lambda: len(r.data) == 2)
                await feed.resubscribe([BTC, "unknown@kline_1m"])
                await r.until(lambda: r.data[BTC] == 2)
                (session,) = r.exchange.sessions
                assert [c[:2] for c in session.commands[1:]] == [
                    ("UNSUBSCRIBE", [BTC]),
                    ("SUBSCRIBE", [BTC]),
                ]

    run(test())


def test_what_is_asked_for_again_is_never_without_a_subscription_for_long() -> None:
    async def test() -> None:
        async with rig() as r:
            feed = r.feed(BTC, ETH, names_per_subscribe=1, subscribes_per_s=10.0)
            async with running(feed):
                await r.until(lambda: len(r.data) == 2)
                await feed.resubscribe([BTC, ETH])
                await r.until(lambda: r.data[BTC] == r.data[ETH] == 2)
                (session,) = r.exchange.sessions
                asked = session.commands[2:]
                assert [command[:2] for command in asked] == [
                    ("UNSUBSCRIBE", [BTC]),
                    ("SUBSCRIBE", [BTC]),
                    ("UNSUBSCRIBE", [ETH]),
                    ("SUBSCRIBE", [ETH]),
                ]
                # Paced all the same: the second pair waits for both of the first.
                assert asked[2][2] - asked[0][2] >= 0.19
                assert asked[1][2] - asked[0][2] < asked[2][2] - asked[1][2]

    run(test())


def test_what_changed_meanwhile_is_subscribed_on_reopening() -> None:
    async def test() -> None:
        async with rig() as r:
            feed = r.feed(BTC)
            async with running(feed):
                await r.until(lambda: r.data[BTC])
                r.exchange.refusing = True
                feed.reconnect("feed-1", "for the test")
                await r.until(lambda: feed.connections()[0].state == "failed")
                await feed.subscribe([ETH])
                await feed.unsubscribe([BTC])
                r.exchange.refusing = False
                await r.until(lambda: r.data[ETH])
                assert r.exchange.sessions[-1].streams == {ETH}

    run(test())


def test_answers_are_handed_on_and_are_no_market_data() -> None:
    async def test() -> None:
        async with rig(silent) as r:
            feed = r.feed(BTC)
            async with running(feed):
                await r.until(lambda: r.frames)
                assert [json.loads(data) for data in r.frames] == [{"result": None, "id": 1}]
                (status,) = feed.connections()
                assert (status.frames, status.last_frame_s) == (0, None)

    run(test())


def test_fragments_and_binary_frames_are_frames() -> None:
    async def fragments(session: Session) -> None:
        await session.command()
        await session.socket.send(iter(["frag", "men", "ted 币安"]))
        await session.socket.send(b"binary")
        await session.command()

    async def test() -> None:
        async with rig(fragments) as r, running(r.feed(BTC)):
            await r.until(lambda: len(r.frames) == 3)
            assert r.frames[1:] == ["fragmented 币安".encode(), b"binary"]

    run(test())


async def deaf(session: Session) -> None:
    """Half-open: takes in nothing any more, no ping and no close either."""
    await session.command()
    session.socket.transport.pause_reading()
    await session.socket.wait_closed()


# --- faults ------------------------------------------------------------------------------------------


def test_a_server_that_closes_at_once_is_not_hammered() -> None:
    async def close_at_once(session: Session) -> None:
        await session.socket.close(1000, "bye")

    async def test() -> None:
        async with rig(close_at_once) as r:
            feed = r.feed(BTC, ETH, streams_per_connection=1, min_attempt_gap_s=1.0)
            async with running(feed):
                await r.until(lambda: len(r.exchange.sessions) >= 8)
                assert {status.last_error for status in feed.connections()} == {
                    "closed by the exchange: 1000 bye"
                }
            # Two connections, so every second connect is at least one gap later; some ms may be lost
            # between the client's clock and the server's accepting.
            times_s = [session.opened_s for session in r.exchange.sessions]
            for first, later in zip(times_s, times_s[2:], strict=False):
                assert later - first > 0.9

    run(test())


def test_a_refusing_server_is_tried_until_it_answers() -> None:
    async def test() -> None:
        async with rig() as r:
            r.exchange.refusing = True
            async with running(r.feed(BTC)):
                await r.until(lambda: len(r.exchange.requests) == 5)
                assert not r.exchange.sessions
                r.exchange.refusing = False
                await r.until(lambda: r.data[BTC])
            states = [status.state for status in r.states]
            assert states[:10] == ["connecting", "failed"] * 5
            assert states[-3:] == ["connecting", "open", "closed"]
            assert "503" in r.states[1].last_error
            assert r.states[-1].opened == 1

    run(test())


def test_the_limiter_holds_for_all_feeds_together() -> None:
    async def test() -> None:
        async with rig() as r:
            r.limiter = ConnectLimiter(attempts=1, window_s=0.5)
            async with running(r.feed(BTC)):
                await r.until(lambda: r.data[BTC])
                async with running(r.feed(ETH)):
                    await r.until(lambda: r.data[ETH])
            first, second = (session.opened_s for session in r.exchange.sessions)
            assert second - first > 0.4  # the server notes the first a little late

    run(test())


def test_failing_callbacks_disturb_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with rig() as r:
            seen = 0

            def failing_frame(data: bytes, name: str) -> None:
                nonlocal seen
                seen += 1
                r.happenings.note()
                raise ValueError(f"frame {seen}")

            def failing_state(status: ConnectionStatus) -> None:
                r.states.append(status)
                raise ValueError("state")

            streams = [f"s{number}usdt@kline_1m" for number in range(11)]
            feed = Feed(r.options, NONE, streams, failing_frame, failing_state, r.limiter)
            async with running(feed):
                await r.until(lambda: seen == 12)
                (status,) = feed.connections()
                assert (status.state, status.opened, status.frames) == ("open", 1, 11)
                assert feed.frame_errors == 12
            assert len(r.exchange.sessions) == 1

    with caplog.at_level(logging.WARNING):
        run(test())
    lines = [line for line in caplog.messages if line.startswith("on_frame failed")]
    assert lines == ["on_frame failed errors=1 since_last_line=1"]


def test_a_half_open_peer_is_found_by_its_missing_pong() -> None:
    async def test() -> None:
        async with rig(deaf) as r, running(r.feed(BTC, heartbeat_s=0.2)):
            await r.until(lambda: r.exchange.sessions)
            r.exchange.script = market
            await r.until(lambda: r.data[BTC])
            ended = [status.last_error for status in r.states if status.state == "closed"]
            assert len(ended) == 1
            assert "PONG" in ended[0]
            assert len(r.exchange.sessions) == 2
            r.exchange.sessions[0].socket.transport.abort()

    run(test())


def test_a_connection_without_market_data_is_reopened() -> None:
    async def test() -> None:
        async with rig(silent) as r, running(r.feed(BTC, idle_timeout_s=0.2)):
            await r.until(lambda: r.exchange.sessions and r.exchange.sessions[0].commands)
            r.exchange.script = market
            await r.until(lambda: r.data[BTC])
            ended = [status.last_error for status in r.states if status.state == "closed"]
            assert len(ended) == 1
            assert ended[0].startswith("no market data for 0.")

    run(test())


def test_an_oversized_frame_closes_and_reopens() -> None:
    async def oversized(session: Session) -> None:
        await session.command()
        await session.socket.send("x" * 5000)
        await session.command()

    async def test() -> None:
        async with rig(oversized) as r, running(r.feed(BTC, max_frame_bytes=1024)):
            await r.until(lambda: r.exchange.sessions)
            r.exchange.script = market
            await r.until(lambda: r.data[BTC])
            (ended,) = [status.last_error for status in r.states if status.state == "closed"]
            assert "exceeds" in ended
            await r.until(lambda: r.exchange.sessions[0].closed)
            assert r.exchange.sessions[0].socket.close_code == 1009

    run(test())


def test_reconnect_closes_one_connection_and_reopens_it() -> None:
    async def test() -> None:
        async with rig() as r:
            feed = r.feed(BTC, ETH, streams_per_connection=1)
            async with running(feed):
                await r.until(lambda: len(r.data) == 2)
                feed.reconnect("feed-1", "for the test")
                feed.reconnect("unknown", "for the test")
                await r.until(lambda: r.data[BTC] == 2)
                assert [status.opened for status in feed.connections()] == [2, 1]
                assert feed.connections()[0].last_error == "for the test"
                assert r.data[ETH] == 1

    run(test())


def test_reconnect_works_on_a_flooding_peer_that_ignores_the_close() -> None:
    async def test() -> None:
        async with rig(flood) as r:
            feed = r.feed(BTC)
            async with running(feed):
                await r.until(lambda: len(r.frames) > 200)
                r.exchange.sessions[0].socket.transport.pause_reading()
                r.exchange.script = silent
                feed.reconnect("feed-1", "for the test")
                await r.until(lambda: len(r.exchange.sessions) == 2)
                r.exchange.sessions[0].socket.transport.abort()

    run(test())


def test_a_dead_handler_surfaces() -> None:
    class DeathError(BaseException):
        pass

    async def test() -> None:
        async with rig() as r:

            def deadly(data: bytes, name: str) -> None:
                raise DeathError("the end")

            feed = Feed(r.options, NONE, [BTC, ETH], deadly, r.on_state, r.limiter)
            with pytest.raises(
                (DeathError, BaseExceptionGroup), match=r"the end|TaskGroup"
            ) as caught:
                await feed.run()
            error: BaseException = caught.value
            while isinstance(error, BaseExceptionGroup):
                (error,) = error.exceptions
            assert isinstance(error, DeathError)
            assert other_tasks() == set()
            await r.until(lambda: r.exchange.sessions[0].closed)
            await feed.stop()

    run(test())


# --- stopping ----------------------------------------------------------------------------------------


async def flood(session: Session) -> None:
    await session.command()
    number = 0
    while True:
        await session.socket.send(frame(BTC, number))
        await asyncio.sleep(0)  # sending alone does not let the feed run
        number += 1


def test_nothing_comes_after_stop_however_fast_it_came_before() -> None:
    async def test() -> None:
        async with rig(flood) as r:
            feed = r.feed(BTC, ETH, streams_per_connection=1)
            async with running(feed):
                await r.until(lambda: len(r.frames) > 200)
                await feed.stop()
                count = len(r.frames)
                await r.until(lambda: all(session.closed for session in r.exchange.sessions))
                assert len(r.frames) == count
                assert {session.socket.close_code for session in r.exchange.sessions} == {1000}
                assert [status.state for status in feed.connections()] == ["closed", "closed"]

    run(test())


def test_frames_received_before_stop_are_handed_on() -> None:
    async def burst(session: Session) -> None:
        await session.command()
        frames = (Frame(Opcode.TEXT, frame(BTC, number).encode()) for number in range(100))
        session.socket.transport.write(b"".join(f.serialize(mask=False) for f in frames))
        await session.command()

    async def test() -> None:
        async with rig(burst) as r:
            stops: list[asyncio.Task[None]] = []

            def stop_at_first(data: bytes, name: str) -> None:
                r.on_frame(data, name)
                if not stops and r.data:
                    stops.append(asyncio.get_running_loop().create_task(feed.stop()))

            feed = Feed(r.options, NONE, [BTC], stop_at_first, r.on_state, r.limiter)
            async with running(feed):
                await r.until(lambda: stops)
                await stops[0]
                assert r.data[BTC] == 100

    run(test())


def test_stop_during_back_off() -> None:
    async def test() -> None:
        async with rig() as r:
            r.exchange.refusing = True
            feed = r.feed(BTC, min_attempt_gap_s=3600.0)
            async with running(feed):
                await r.until(lambda: r.states and r.states[-1].state == "failed")
            assert r.states[-1].state == "closed"

    run(test())


def test_stop_while_nobody_listens() -> None:
    async def test() -> None:
        async with rig() as r:
            async with running(r.feed(BTC, ws_url=f"ws://127.0.0.1:{held_port()}")):
                await r.until(lambda: len(r.states) >= 6)
            assert {status.state for status in r.states[:6]} == {"connecting", "failed"}

    run(test())


def test_stop_during_a_handshake_that_is_never_answered() -> None:
    async def test() -> None:
        happenings = Happenings()
        peers: list[asyncio.StreamWriter] = []

        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peers.append(writer)
            happenings.note()

        server = await asyncio.start_server(mute, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        exchange = ScriptedExchange(happenings, market)
        exchange.url = f"ws://{host}:{port}"
        r = Rig(exchange)
        feed = r.feed(BTC, open_timeout_s=0.1)
        async with running(feed):
            await r.until(lambda: len(peers) == 3)
            assert "TimeoutError" in r.states[1].last_error
        for peer in peers:
            peer.close()
        server.close()
        await server.wait_closed()

    run(test())


def test_stop_while_the_peer_is_half_open() -> None:
    async def test() -> None:
        async with rig(deaf) as r:
            async with running(r.feed(BTC)):
                await r.until(lambda: r.frames)
            r.exchange.sessions[0].socket.transport.abort()

    run(test())


def test_stop_before_run_and_twice() -> None:
    async def test() -> None:
        async with rig() as r:
            feed = r.feed(BTC)
            await feed.stop()
            await feed.stop()
            await feed.run()
            assert not r.states
            with pytest.raises(RuntimeError, match="once"):
                await feed.run()

    run(test())


def test_a_cancelled_run_leaves_nothing() -> None:
    async def test() -> None:
        async with rig() as r:
            task = asyncio.get_running_loop().create_task(r.feed(BTC).run())
            await r.until(lambda: r.data[BTC])
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert other_tasks() == set()
            await r.until(lambda: r.exchange.sessions[0].closed)

    run(test())


# --- TLS, and cryptofeed's manners -------------------------------------------------------------------


def self_signed(directory: Path) -> tuple[ssl.SSLContext, str]:
    """A server's context for 127.0.0.1, and the file to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "marketfeed test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = directory / "cert.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file = directory / "key.pem"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_file)
    return context, str(pem)


def test_a_self_signed_certificate_is_accepted_by_its_file_only(tmp_path: Path) -> None:
    context, pem = self_signed(tmp_path)

    async def test() -> None:
        async with rig(tls=context) as r:
            async with running(r.feed(BTC, cafile=pem)):
                await r.until(lambda: r.data[BTC])
            r.states.clear()
            async with running(r.feed(BTC, cafile=None)):
                await r.until(lambda: r.states and r.states[-1].state == "failed")
                assert "Certificate" in r.states[-1].last_error

    run(test())


def test_cryptofeed_asks_nobody_for_symbols() -> None:
    reached: list[object] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            reached.append(arguments[1] if event == "socket.connect" else arguments[0])

    sys.addaudithook(hook)

    async def test() -> None:
        Symbols.clear()
        async with rig() as r:
            async with running(r.feed(BTC)):
                await r.until(lambda: r.data[BTC])
            assert r.exchange.requests == ["/market/stream"]
            port = int(r.exchange.url.rpartition(":")[2])
            assert reached == [("127.0.0.1", port)]

    try:
        run(test())
    finally:
        watching = False


def test_symbols_are_those_of_what_is_collected_whatever_exchange_info_says_of_it() -> None:
    """A halted contract, and one whose row is missing, have to come through a rollover, too."""

    def collected(symbol: str, pair: str, status: str, contract_type: str) -> Instrument:
        return Instrument(symbol, pair, "USDT", status, contract_type, 0, 0)

    async def test() -> None:
        async with rig() as r:
            r.feed(
                BTC,
                instruments=(
                    collected("BTCUSDT", "BTC/USDT:USDT", "TRADING", "PERPETUAL"),
                    collected("币安人生USDT", "币安人生/USDT:USDT", "TRADING_HALT", "PERPETUAL"),
                    collected("TSLAUSDT", "TSLA/USDT:USDT", "SETTLING", "TRADIFI_PERPETUAL"),
                    collected("GONEUSDT", "GONE/USDT:USDT", "", ""),
                ),
            )
            symbols, _ = Symbols.get("BINANCE_FUTURES")
            assert {name: symbol for name, symbol in symbols.items() if "PERP" in name} == {
                "BTC-USDT-PERP": "BTCUSDT",
                "币安人生-USDT-PERP": "币安人生USDT",
                "TSLA-USDT-PERP": "TSLAUSDT",
                "GONE-USDT-PERP": "GONEUSDT",
            }

    run(test())


def test_the_process_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGABRT)
    handlers = [signal.getsignal(number) for number in signals]
    root = list(logging.getLogger().handlers)
    policy = asyncio.get_event_loop_policy()

    async def test() -> None:
        async with rig() as r, running(r.feed(BTC)):
            await r.until(lambda: r.data[BTC])
            assert [signal.getsignal(number) for number in signals if number != signal.SIGINT] == [
                handlers[1],
                *handlers[2:],
            ]
            logging.getLogger("feedhandler").warning("from cryptofeed 2")
            logging.getLogger("cryptofeed.feed").warning("from cryptofeed 3")
            logging.getLogger("feedhandler").info("chatter")
            r.exchange.sessions[0].socket.transport.abort()
            await r.until(lambda: r.data[BTC] == 2)

    with caplog.at_level(logging.INFO):
        run(test())
    assert list(tmp_path.iterdir()) == []  # no feedhandler.log
    assert asyncio.get_event_loop_policy() is policy
    assert logging.getLogger().handlers == root
    logged = [(record.name, record.getMessage()) for record in caplog.records]
    assert ("feedhandler", "from cryptofeed 2") in logged
    assert ("cryptofeed.feed", "from cryptofeed 3") in logged
    assert not [message for _, message in logged if message == "chatter"]
    # The end of the connection is logged once, in one line, by us.
    ends = [record for record in caplog.records if "connection" in record.getMessage()]
    assert [r.name for r in ends if r.levelno >= logging.WARNING] == [
        "marketfeed.binance.market_socket"
    ]


def test_statuses_tell_what_is_read() -> None:
    async def test() -> None:
        async with rig() as r:
            feed = r.feed(BTC, ETH)
            assert [(s.name, s.state, s.opened) for s in feed.connections()] == [
                ("feed-1", "connecting", 0)
            ]
            async with running(feed):
                await r.until(lambda: len(r.data) == 2)
                (status,) = feed.connections()
                assert status.streams == (BTC, ETH)
                assert (status.state, status.opened, status.frames) == ("open", 1, 2)
                assert status.last_frame_s is not None
                assert status.last_frame_s >= status.since_s
                assert status.last_error == ""

    run(test())
