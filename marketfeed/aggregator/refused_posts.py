"""Posts that were refused: by whom, why, how often. One row for all that are alike of one sender.

Pure; times are `now_ms` (ms since the epoch) and `now_s` (monotonic s). A flood of bad posts is counted, not
kept: what waits to be stored, the senders that are remembered and the lines of the log are bounded, and who
has shown a password has room of its own that nobody else takes.
"""

import hashlib
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal

import msgspec

PURE = True

Identity = Literal["shown", "claimed", "unknown", "none"]
"""Of the account: its password was shown; it is one, but the password was not; it is none; none was named."""
RANKS: Final[tuple[Identity, ...]] = ("shown", "claimed", "unknown", "none")
"""Whose mistakes are of interest first."""

ALIKE_OF_SENDER: Final = 20
"""Rows of one sender that are kept apart."""
ALIKE_PENDING: Final = 200
"""Rows of strangers that are stored at once, each second: a signal waits some milliseconds behind them."""
SENDERS_KEPT: Final = 1_000
MAX_NAME: Final = 64
MAX_SENTENCE: Final = 300
"""Characters."""
WARN_FOR_S: Final = 900.0
"""So long after its last refused post a sender is warned of."""
WARNINGS_SHOWN: Final = 10
LOG_EVERY_S: Final = 60.0
"""A sender has a line in the log for each status within that time."""
LINES_OF_STRANGERS: Final = 60
"""Lines within LOG_EVERY_S for all senders together that have shown no password."""
MORE_KINDS: Final = "more kinds of mistakes than are kept apart"
MORE_SENDERS: Final = "more senders than are kept apart"
NO_ACCOUNT: Final = "?"
"""The account in metrics of all names that are none."""


class RefusedPost(msgspec.Struct, frozen=True):
    """Refused posts of one sender that are alike: how often, and when first and last.

    `account` is the name that was tried, cut; of one that is not like an account's its beginning and length.
    It is empty when there was none, or when it may be a password.
    `feeder` is who it seems to be from, empty when that is not known; `request` its method and path.
    `digest` is the SHA-256 of the last one's body, of `body_bytes`; empty and None when none was read: the
    password is looked at first.
    """

    account: str
    identity: Identity
    address: str
    feeder: str
    request: str
    status: int
    reason: str
    sentence: str
    digest: bytes
    body_bytes: int | None
    first_ms: int
    last_ms: int
    times: int = 1

    def sender(self) -> str:
        """Who shares the bounds of this one: an account at a network, and there all names that are none."""
        account = self.account if self.identity in ("shown", "claimed") else ""
        return f"{self.identity} {account} {network(self.address)}"

    def key(self) -> bytes:
        """What posts that are alike have in common, as a digest."""
        alike = (
            self.identity,
            self.account,
            self.address,
            self.feeder,
            self.request,
            self.status,
            self.reason,
            self.sentence,
        )
        return hashlib.sha256(msgspec.json.encode(alike)).digest()[:16]

    def who(self) -> str:
        """The sender in words."""
        if not self.address:
            return "many addresses"
        if self.identity in ("shown", "claimed"):
            return f"account {self.account} at {self.address}"
        return f"{self.address} as {self.account!r}" if self.account else self.address

    def why(self) -> str:
        """What was refused and why, in words."""
        of = f" of feeder {self.feeder}" if self.feeder else ""
        return f"{self.status}{of}: {self.sentence}"


@lru_cache(maxsize=4 * SENDERS_KEPT)
def network(address: str) -> str:
    """The address of who has one alone: of IPv6 that is a /64."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False))


class _Sender:
    """What is known of one sender while it is warned of."""

    def __init__(self, post: RefusedPost) -> None:
        self.last = post
        self.last_s = 0.0
        self.since_ms = post.first_ms
        self.times = 0
        self.logged_s: dict[int, float] = {}
        self.unlogged: Counter[int] = Counter()


class RefusedPosts:
    """What was refused since the start, as far as it is of interest. `accounts` are the known ones."""

    def __init__(self, accounts: Iterable[str]) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        """By account and status: that of a name which is none is NO_ACCOUNT."""
        self._accounts = frozenset(accounts)
        self._pending: dict[bytes, RefusedPost] = {}
        self._kinds: Counter[str] = Counter()
        self._senders: OrderedDict[str, _Sender] = OrderedDict()
        self._strangers_from_s = 0.0
        self._strangers = 0

    def add(self, post: RefusedPost, now_s: float) -> int:
        """Count a refused post. Returns of how many a line in the log is due; 0: none is."""
        account = post.account if post.account in self._accounts else NO_ACCOUNT
        self.counts[account, str(post.status)] += 1
        self._wait(post)
        sender = self._sender(post, now_s)
        sender.unlogged[post.status] += 1
        logged_s = sender.logged_s.get(post.status)
        if logged_s is not None and now_s - logged_s < LOG_EVERY_S:
            return 0
        if post.identity != "shown" and not self._has_line(now_s):
            return 0
        sender.logged_s[post.status] = now_s
        return sender.unlogged.pop(post.status)

    def take(self) -> list[RefusedPost]:
        """What is to be stored now; it waits no longer."""
        found, self._pending = list(self._pending.values()), {}
        self._kinds.clear()
        return found

    def put_back(self, posts: Iterable[RefusedPost]) -> None:
        """What could not be stored waits again."""
        for post in posts:
            self._wait(post)

    def warnings(self, now_s: float) -> list[str]:
        """The senders whose posts were refused of late, those that have shown a password first."""
        lately = [it for it in self._senders.values() if now_s - it.last_s < WARN_FOR_S]
        lately.sort(key=lambda it: (RANKS.index(it.last.identity), -it.last_s))
        found = [_warning(it) for it in lately[:WARNINGS_SHOWN]]
        if (more := len(lately) - WARNINGS_SHOWN) > 0:
            found.append(
                f"requests of {more} more senders were refused: see `marketfeed signals --refused`"
            )
        return found

    # --- inside ---------------------------------------------------------------------------------------

    def _wait(self, post: RefusedPost) -> None:
        key, sender = post.key(), post.sender()
        if key not in self._pending and self._kinds[sender] >= ALIKE_OF_SENDER:
            account = post.account if post.identity in ("shown", "claimed") else ""
            post = _as_one_of_many(post, account, post.address, MORE_KINDS)
            key = post.key()
        # Who has shown a password is not crowded out by others: accounts are few.
        full = len(self._pending) >= ALIKE_PENDING and post.identity != "shown"
        if key not in self._pending and full:
            post = _as_one_of_many(post, "", "", MORE_SENDERS)
            key = post.key()
        if (before := self._pending.get(key)) is None:
            self._pending[key] = post
            self._kinds[sender] += 1
            return
        self._pending[key] = msgspec.structs.replace(
            post,
            first_ms=min(before.first_ms, post.first_ms),
            last_ms=max(before.last_ms, post.last_ms),
            times=before.times + post.times,
        )

    def _sender(self, post: RefusedPost, now_s: float) -> _Sender:
        name = post.sender()
        sender = self._senders.get(name)
        if sender is None or now_s - sender.last_s >= WARN_FOR_S:
            self._senders[name] = sender = _Sender(post)
        sender.last, sender.last_s, sender.times = post, now_s, sender.times + 1
        self._senders.move_to_end(name)
        if len(self._senders) > SENDERS_KEPT:
            self._forget_one()
        return sender

    def _forget_one(self) -> None:
        """Forget the stranger that was heard of longest ago, or else whoever that is."""
        strangers = (name for name, it in self._senders.items() if it.last.identity != "shown")
        del self._senders[next(strangers, next(iter(self._senders)))]

    def _has_line(self, now_s: float) -> bool:
        if now_s - self._strangers_from_s >= LOG_EVERY_S:
            self._strangers_from_s, self._strangers = now_s, 0
        self._strangers += 1
        return self._strangers <= LINES_OF_STRANGERS


def _as_one_of_many(post: RefusedPost, account: str, address: str, sentence: str) -> RefusedPost:
    """The post as a row shows it that has many of different kinds."""
    return msgspec.structs.replace(
        post,
        account=account,
        identity=post.identity if address else "none",
        address=address,
        feeder="",
        request="",
        reason="more",
        sentence=sentence,
        digest=b"",
        body_bytes=None,
    )


def _warning(sender: _Sender) -> str:
    last, times = sender.last, sender.times
    since, at = _time(sender.since_ms), _time(last.last_ms)
    if times == 1:
        return f"{last.who()}: a request was refused at {at}: {last.why()}"
    return f"{last.who()}: {times} requests refused since {since}, the last at {at}: {last.why()}"


def _time(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%H:%M:%S} UTC"
