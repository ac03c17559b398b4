"""Who is calling: HTTP Basic against hashed passwords, compared in constant time, limited after failures.

A password is hashed by scrypt (RFC 7914), which is slow on purpose: what was right or wrong once is
remembered by a keyed digest, so that a feeder's next post costs a microsecond. Who failed too often is
refused without looking: an account at an address, and all names that are none together. A guesser does not
lock out the feeders behind the same address (a proxy, NAT): credentials that have been right from there pass,
and of an account that is refused two passwords a second are looked at all the same, one that comes for the
first time and one that has come before. Guesses come once, feeders come again.
"""

import asyncio
import difflib
import hashlib
import hmac
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec

from marketfeed.service.guard import basic_credentials
from marketfeed.settings.addresses import network_of
from marketfeed.settings.aggregator import Account

K = TypeVar("K")
V = TypeVar("V")

FAILURES: Final = 20
WITHIN_S: Final = 60.0
"""After FAILURES wrong passwords within this time there are no more until the oldest is older."""
TURN_S: Final = 1.0
SEEN_KEPT: Final = 10_000
"""Passwords of refused accounts that are known when they come again."""
ALIKE: Final = 0.75
MAX_ALIKE: Final = 64
"""Characters of a name that is compared with those of accounts."""
ADDRESSES_KEPT: Final = 10_000
KNOWN_KEPT: Final = 1_000
HASHING_AT_MOST: Final = 50
"""Passwords that wait for being hashed; more are refused for the moment."""
_N, _R, _P = 2**14, 8, 1
_SALT_BYTES: Final = 16


class Caller(msgspec.Struct, frozen=True):
    """An account that has shown its password; `feeder` is the one that it posts for, None: for all."""

    username: str
    feeder: str | None


class Named(NamedTuple):
    """The name that a caller tried, and what it may be.

    `known`: it is an account's. `alike`: it is none, but is spelled like one. `swapped`: the password is an
    account's name. `alone`: there is no password, so that the name may be one.
    """

    name: bytes
    known: bool
    alike: bool
    swapped: bool
    alone: bool


Denied = Literal["wrong", "limited", "busy"]


def hash_password(password: str) -> str:
    """The hash of a password as settings hold it: `scrypt$n$r$p$salt$hash`."""
    salt = os.urandom(_SALT_BYTES)
    return (
        f"scrypt${_N}${_R}${_P}${salt.hex()}${_scrypt(password.encode(), salt, _N, _R, _P).hex()}"
    )


def _scrypt(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        password, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r * p + 2**20, dklen=32
    )


def _matches(password: bytes, hashed: str) -> bool:
    _, n, r, p, salt, digest = hashed.split("$")
    found = _scrypt(password, bytes.fromhex(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, bytes.fromhex(digest))


class Limiter:
    """Counts failures by address (IPv6: by /64) and name; None: names that are none. `now_s` is monotonic."""

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, bytes | None], deque[float]] = OrderedDict()

    def wait_s(self, address: str, now_s: float, name: bytes | None = None) -> float:
        """For how long the name is refused at the address; 0: it may try."""
        times = self._failures.get((network_of(address), name))
        if times is None or len(times) < FAILURES:
            return 0.0
        return max(times[0] + WITHIN_S - now_s, 0.0)

    def fail(self, address: str, now_s: float, name: bytes | None = None) -> None:
        """Count a failure. Beyond ADDRESSES_KEPT those that failed longest ago are forgotten."""
        key = (network_of(address), name)
        times = self._failures.get(key, deque(maxlen=FAILURES))
        times.append(now_s)
        _remember(self._failures, key, times, ADDRESSES_KEPT)

    def limited(self, now_s: float) -> int:
        """How many are refused now."""
        return sum(
            1
            for times in self._failures.values()
            if len(times) == FAILURES and times[0] + WITHIN_S > now_s
        )


class Doorkeeper:
    """Identifies the caller by the Authorization header. `elapsed_s` is monotonic."""

    def __init__(self, accounts: Sequence[Account], elapsed_s: Callable[[], float]) -> None:
        self._accounts = {account.username.encode(): account for account in accounts}
        self._elapsed_s = elapsed_s
        self._limiter = Limiter()
        self._secret = os.urandom(32)
        # An unknown name takes as long as a known one.
        self._nobody = hash_password(os.urandom(16).hex())
        self._right: OrderedDict[bytes, Caller] = OrderedDict()
        self._let_in: OrderedDict[bytes, Caller] = OrderedDict()
        """What was right from which address, by the header as it came."""
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._turns_s: dict[tuple[bytes, bool], float] = {}
        self._hashing: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrypt")

    def close(self) -> None:
        """Let the hashing thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def limited(self) -> int:
        """How many accounts at an address, and addresses for other names, are refused now."""
        return self._limiter.limited(self._elapsed_s())

    def wait_s(self, authorization: str | None, address: str) -> float:
        """In how long it is worth to try again, for who was answered `limited` or `busy`."""
        credentials = basic_credentials(authorization)
        if credentials is not None and credentials[0] in self._accounts:
            return TURN_S
        return self._limiter.wait_s(address, self._elapsed_s())

    def named_in(self, authorization: str | None) -> Named | None:
        """The name in a header, whether its password is right or not; None: there is none."""
        credentials = basic_credentials(authorization)
        if credentials is None:
            return None
        name, password = credentials
        known = name in self._accounts
        return Named(
            name,
            known,
            not known and self._is_alike(name),
            not known and password in self._accounts,
            not password,
        )

    def _is_alike(self, name: bytes) -> bool:
        """Whether a name is probably a misspelled account's: three quarters of both are the same."""
        text = name[: 2 * MAX_ALIKE].decode(errors="replace").lower()
        if len(text) > MAX_ALIKE:
            return False
        names = (account.username.lower() for account in self._accounts.values())
        return bool(difflib.get_close_matches(text, names, 1, ALIKE))

    async def who(self, authorization: str | None, address: str) -> Caller | Denied:
        """Who sends this header from this address."""
        # The way of nearly all posts, and the same answer as below.
        shown = self._digest(
            address.encode(), (authorization or "").encode(errors="backslashreplace")
        )
        if (known := self._let_in.get(shown)) is not None:
            self._let_in.move_to_end(shown)
            return known
        credentials, now_s = basic_credentials(authorization), self._elapsed_s()
        if credentials is None:
            # No password was tried: that is no sign of a guesser.
            limited = self._limiter.wait_s(address, now_s) > 0
            return "limited" if authorization and limited else "wrong"
        name, password = credentials
        seal = self._digest(name, password)
        if seal in self._wrong:
            # A feeder that does not have the new password yet is no guesser.
            return "wrong"
        account = name if name in self._accounts else None
        caller = self._right.get(seal)
        limited = self._limiter.wait_s(address, now_s, account) > 0
        if limited and (account is None or not self._has_turn(account, seal, now_s)):
            return "limited"
        if caller is None:
            task = self._hashing.get(seal)
            if task is None:
                if len(self._hashing) >= HASHING_AT_MOST:
                    return "busy"
                # Counted before it is known: guesses side by side must not all slip through.
                self._limiter.fail(address, now_s, account)
                task = asyncio.create_task(self._check(name, password, seal))
                self._hashing[seal] = task
            caller = await asyncio.shield(task)
        if caller is None:
            return "wrong"
        _remember(self._let_in, shown, caller, KNOWN_KEPT)
        return caller

    def _digest(self, first: bytes, second: bytes) -> bytes:
        """What two texts are known by: keyed, so that nobody can tell from a lookup's time what is known."""
        text = len(first).to_bytes(4) + first + second
        return hashlib.blake2b(text, digest_size=32, key=self._secret).digest()

    def _has_turn(self, account: bytes, seal: bytes, now_s: float) -> bool:
        """Whether a password of an account that is refused is looked at all the same."""
        turn = (account, seal in self._seen)
        _remember(self._seen, seal, None, SEEN_KEPT)
        if now_s < self._turns_s.get(turn, -TURN_S) + TURN_S:
            return False
        self._turns_s[turn] = now_s
        return True

    async def _check(self, name: bytes, password: bytes, seal: bytes) -> Caller | None:
        try:
            account = self._accounts.get(name)
            hashed = self._nobody if account is None else account.hash
            loop = asyncio.get_running_loop()
            right = await loop.run_in_executor(self._thread, _matches, password, hashed)
            if account is None or not right:
                _remember(self._wrong, seal, None, KNOWN_KEPT)
                return None
            caller = Caller(account.username, account.feeder)
            _remember(self._right, seal, caller, KNOWN_KEPT)
            return caller
        finally:
            del self._hashing[seal]


def _remember(kept: OrderedDict[K, V], key: K, value: V, at_most: int) -> None:
    """Keep what is newest: beyond `at_most` the oldest is forgotten."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > at_most:
        kept.popitem(last=False)
