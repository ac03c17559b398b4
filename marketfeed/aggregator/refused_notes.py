"""Refused posts as they come: counted, logged, warned of, and stored soon."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.refused_posts import RefusedPost, RefusedPosts
from marketfeed.errors import JournalError

log = logging.getLogger(__name__)

STORE_EVERY_S: Final = 1.0
STORE_SELDOM_S: Final = 15.0
"""Wall seconds between two commits: doubled while posts are refused all the time, so that a flood costs the
signals beside it next to none."""


class RefusedNotes:
    """Notes the refused posts of one run. `accounts` are the names of those that there are."""

    def __init__(
        self, ledger: LedgerThread, now_ms: Callable[[], int], accounts: Iterable[str]
    ) -> None:
        self.stored = 0
        """Rises whenever some have been stored."""
        self.now_ms = now_ms
        self._ledger = ledger
        self._posts = RefusedPosts(accounts)
        self._come = asyncio.Event()

    def by_account(self) -> dict[str, dict[str, int]]:
        """How many since the start, by account and status: see `RefusedPosts.counts`."""
        found: dict[str, dict[str, int]] = {}
        for (account, status), count in self._posts.counts.items():
            found.setdefault(account, {})[status] = count
        return found

    def warnings(self) -> list[str]:
        """The senders whose posts were refused of late."""
        return self._posts.warnings(time.monotonic())

    def refuse(self, post: RefusedPost) -> None:
        """Take note of a refused post."""
        if times := self._posts.add(post, time.monotonic()):
            log.warning(
                "post refused account=%r identity=%s address=%s feeder=%s request=%r status=%d "
                "times=%d why=%r",
                post.account,
                post.identity,
                post.address,
                post.feeder or "?",
                post.request,
                post.status,
                times,
                post.sentence,
            )
        self._come.set()

    async def run(self) -> None:
        """Store what has come, until cancelled. Nothing rests on it: what a full disk refuses waits."""
        pause_s = STORE_EVERY_S
        while True:
            if not self._come.is_set():
                pause_s = STORE_EVERY_S
            await self._come.wait()
            self._come.clear()
            if not await self.store():
                self._come.set()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, STORE_SELDOM_S)

    async def store(self) -> bool:
        """Store what has come; whether that is done. What could not be stored waits, within bounds."""
        posts = self._posts.take()
        if not posts:
            return True
        try:
            await self._ledger.call(partial(Ledger.note_refused, posts=posts))
        except JournalError as error:
            log.debug("refused posts not stored, trying again error=%r", str(error))
            self._posts.put_back(posts)
            return False
        self.stored += 1
        return True
