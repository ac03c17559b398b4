"""Refused posts: what is alike is one row, what a flood may take is bounded, and whose room is whose."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.aggregator.events import Flow, RefusedFlow, recent
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_refused import KEPT
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.aggregator.refused_posts import (
    ALIKE_OF_SENDER,
    ALIKE_PENDING,
    LINES_OF_STRANGERS,
    LOG_EVERY_S,
    MORE_KINDS,
    NO_ACCOUNT,
    SENDERS_KEPT,
    WARN_FOR_S,
    WARNINGS_SHOWN,
    RefusedPost,
    RefusedPosts,
    network,
)
from marketfeed.aggregator.refused_request import no_http
from marketfeed.storage.database import convert

T0 = 1_790_000_000_000
POST = RefusedPost(
    account="fleet",
    identity="shown",
    address="10.0.0.7",
    feeder="73",
    request="POST /api/v1/forceenter",
    status=422,
    reason="missing_confidence",
    sentence="no confidence",
    digest=b"\x01" * 32,
    body_bytes=120,
    first_ms=T0,
    last_ms=T0,
)


def like(**changes: object) -> RefusedPost:
    return msgspec.structs.replace(POST, **changes)


def stranger(number: int, **changes: object) -> RefusedPost:
    address = f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"
    return like(account=f"n{number}", identity="unknown", address=address, feeder="", **changes)


# --- what waits, is warned of, and is logged ------------------------------------------------------


def test_what_is_alike_is_one_row() -> None:
    posts = RefusedPosts(["fleet"])
    posts.add(POST, 0.0)
    posts.add(like(first_ms=T0 + 5, last_ms=T0 + 5, digest=b"\x02" * 32, body_bytes=7), 0.1)
    posts.add(like(feeder="74"), 0.2)
    first, other = posts.take()
    assert (first.times, first.first_ms, first.last_ms) == (2, T0, T0 + 5)
    assert (first.digest, first.body_bytes) == (b"\x02" * 32, 7)
    assert (other.feeder, other.times) == ("74", 1)
    assert posts.take() == []
    posts.put_back([first, other])
    posts.add(like(last_ms=T0 + 9), 0.3)
    assert [post.times for post in posts.take()] == [3, 1]


@given(
    st.lists(
        st.builds(
            like,
            account=st.sampled_from(["fleet", "f73", "admin", "root"]),
            identity=st.sampled_from(["shown", "claimed", "unknown", "none"]),
            address=st.sampled_from(["10.0.0.7", "10.0.0.8", "2001:db8::1", "2001:db8::2"]),
            sentence=st.integers(0, 60).map(str),
            status=st.sampled_from([401, 422]),
        ),
        max_size=400,
    )
)
def test_none_is_lost_and_what_waits_is_bounded(given_posts: list[RefusedPost]) -> None:
    posts = RefusedPosts(["fleet", "f73"])
    for post in given_posts:
        posts.add(post, 0.0)
    assert posts.counts.total() == len(given_posts)
    waiting = posts.take()
    assert sum(post.times for post in waiting) == len(given_posts)
    kinds: dict[str, int] = {}
    for post in waiting:
        kinds[post.sender()] = kinds.get(post.sender(), 0) + (post.sentence != MORE_KINDS)
    assert max(kinds.values(), default=0) <= ALIKE_OF_SENDER


def test_a_flood_of_strangers_takes_no_room_of_an_account() -> None:
    posts = RefusedPosts(["fleet"])
    lines = sum(posts.add(stranger(number), 0.0) > 0 for number in range(20_000))
    assert lines == LINES_OF_STRANGERS
    assert posts.add(POST, 0.0) == 1
    for number in range(20_000, 30_000):
        posts.add(stranger(number), 1.0)
    assert posts.counts[NO_ACCOUNT, "422"] == 30_000
    assert len(posts._senders) == SENDERS_KEPT
    waiting = posts.take()
    assert POST in waiting
    assert len(waiting) <= ALIKE_PENDING + 2
    assert sum(post.times for post in waiting) == 30_001
    first, *others = posts.warnings(1.0)
    assert first == (
        "account fleet at 10.0.0.7: a request was refused at 14:13:20 UTC: "
        "422 of feeder 73: no confidence"
    )
    assert len(others) == WARNINGS_SHOWN
    assert others[-1].startswith("requests of 990 more senders were refused: see ")


def test_a_sender_has_a_line_a_minute_for_each_status() -> None:
    posts = RefusedPosts(["fleet"])
    assert posts.add(POST, 0.0) == 1
    assert [posts.add(POST, 0.1 * number) for number in range(1, 10)] == [0] * 9
    assert posts.add(like(status=401, identity="claimed"), 2.0) == 1
    assert posts.add(POST, LOG_EVERY_S) == 10


def test_a_warning_ends_some_time_after_the_last_post() -> None:
    posts = RefusedPosts(["fleet"])
    posts.add(POST, 0.0)
    posts.add(like(last_ms=T0 + 60_000), 60.0)
    (words,) = posts.warnings(60.0 + WARN_FOR_S - 1)
    assert words.startswith(
        "account fleet at 10.0.0.7: 2 requests refused since 14:13:20 UTC, the last at 14:14:20 UTC: "
    )
    assert posts.warnings(60.0 + WARN_FOR_S) == []
    posts.add(POST, 2 * WARN_FOR_S)
    assert posts.warnings(2 * WARN_FOR_S)[0].startswith(
        "account fleet at 10.0.0.7: a request was refused at"
    )


def test_who_it_is() -> None:
    assert network("10.0.0.7") == "10.0.0.7"
    assert network("2001:db8::1") == network("2001:db8::ffff") == "2001:db8::/64"
    assert network("?") == "?"
    unknown = like(account="admin", identity="unknown")
    assert unknown.who() == "10.0.0.7 as 'admin'"
    assert like(account="", identity="none").who() == "10.0.0.7"
    # Who only claims to be an account has no room of it, and names that are none share one.
    assert like(identity="claimed").sender() != POST.sender()
    assert unknown.sender() == like(account="root", identity="unknown").sender()


# --- what is stored -------------------------------------------------------------------------------


def test_the_ledger_keeps_the_newest_and_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        flow, alone = Flow(path), RefusedFlow(path)
        ledger.note_refused([POST, like(feeder="74", last_ms=T0 + 1)])
        assert [post.feeder for post in alone.read()] == ["73", "74"]
        assert [(event.what, event.who) for event in flow.read()] == [
            ("refused", "73"),
            ("refused", "74"),
        ]
        ledger.note_refused([like(first_ms=T0 + 9, last_ms=T0 + 9, digest=b"", times=3)])
        (post,) = alone.read()
        assert (post.times, post.first_ms, post.last_ms, post.digest) == (4, T0, T0 + 9, b"")
        (event,) = flow.read()
        assert event.text == "account fleet at 10.0.0.7: 422 of feeder 73: no confidence (4 times)"
        assert (flow.read(), alone.read()) == ([], [])
        assert [it.times for it in recent(path, 10).refused] == [4, 1]
        kinds = [like(sentence=str(number)) for number in range(3 * ALIKE_OF_SENDER)]
        ledger.note_refused(kinds)
        assert [post.sentence for post in alone.read()] == [
            str(number) for number in range(2 * ALIKE_OF_SENDER, 3 * ALIKE_OF_SENDER)
        ]
        for many in range(3):
            ledger.note_refused(stranger(number + 500 * many) for number in range(500))
        kept = RefusedFlow(path).read(2 * KEPT)
        assert len(kept) == KEPT
        # What strangers send takes the place of what strangers sent.
        assert sum(post.identity == "shown" for post in kept) == ALIKE_OF_SENDER
        assert kept[-1].account == "n1499"


def test_a_ledger_of_before_gets_the_table_and_goes_without_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.db.execute("DROP TABLE refused_post")
        assert RefusedFlow(path).read() == Flow(path).read() == recent(path, 5).refused == []
        ledger.note_refused([POST])
        assert RefusedFlow(path).read() == []
    with Ledger.open(path) as ledger:
        ledger.note_refused([POST])
        assert RefusedFlow(path).read() == [POST]
    convert(KIND, path, 1)
    convert(KIND, path, 2)
    with Ledger.open(path) as ledger:
        ledger.note_refused([POST])


@pytest.mark.parametrize(
    ("sent", "hints"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", True),
        (b"\x05\x01\x00", False),
        (b"nonsense of a stranger\r\n\r\n", False),
    ],
)
def test_only_tls_is_taken_for_https(sent: bytes, hints: bool) -> None:
    async def refused_by() -> HttpProcessingError:
        loop = asyncio.get_running_loop()
        with pytest.raises(HttpProcessingError) as caught:
            HttpRequestParser(BaseProtocol(loop), loop, 2**16).feed_data(sent)
        return caught.value

    post = no_http("10.0.0.7", asyncio.run(refused_by()), 0)
    assert post.sentence.startswith("no HTTP that can be read (BadHttpM")
    assert ("https://" in post.sentence) == hints
    assert "stranger" not in post.sentence
