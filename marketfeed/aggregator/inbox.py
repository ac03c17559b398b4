"""The inbox: takes signals, stores them in groups, decides. What it answers is on the disk.

One turn takes all signals that have come, counts them in the order of their receipt, decides what is due,
and commits votes, decisions and forwards in one transaction; only then are the signals answered. If the
commit fails, nothing of the turn has happened: the votes are built up again from the ledger, as at a start.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

import msgspec

from marketfeed.aggregator import passed, repeats
from marketfeed.aggregator.ballots import FORWARD, Counted, Decision, Rules, Vote
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import Answered, Forward, Receipt
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.mean import confidence_text
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.signals import Side, Signal
from marketfeed.aggregator.standing import Standing
from marketfeed.aggregator.votes import OPEN_AT_MOST, Votes
from marketfeed.aggregator.whitelists import Whitelists
from marketfeed.clock import wait_at_most
from marketfeed.counters import Trouble
from marketfeed.errors import JournalError, JournalWriteError

log = logging.getLogger(__name__)

LATER: Final = "a later version refuses it with 422"
"""What becomes of a signal whose field and tag contradict each other."""
MAX_PENDING: Final = 5_000
"""Signals that wait for a commit at most; more are refused (503), so that memory stays bounded."""
MAX_TURN: Final = 1_000
GATHER_S: Final = 0.001
"""For so long a turn waits for more signals, after one that had several: a commit for ten costs hardly more
than one for two (PostgreSQL's `commit_delay` and `commit_siblings`)."""
RETRY_S: Final = 0.5
MAX_KEPT_BODY: Final = 1_024
"""Bytes of a body that the ledger keeps; feeders' own have a few hundred."""
PROVE_EVERY_S: Final = 2.0
"""While the ledger takes no votes, it is asked so often (wall seconds) whether it would take one."""


def kept_body(raw: bytes) -> bytes:
    """What the ledger keeps of a body: the body as it came, or the SHA-256 of one beyond `MAX_KEPT_BODY`."""
    return raw if len(raw) <= MAX_KEPT_BODY else hashlib.sha256(raw).digest()


class Post(msgspec.Struct, frozen=True):
    """A signal as it was posted: by which account, from where; and of the body what the ledger keeps."""

    signal: Signal
    account: str
    address: str
    key: str | None
    kept_body: bytes


class Reply(msgspec.Struct, frozen=True):
    """The answer to the poster: `status` is an HTTP status, `text` the sentence."""

    status: int
    text: str


class _Waiting(NamedTuple):
    post: Post
    received_ms: int
    future: asyncio.Future[Reply]

    def reply(self, status: int, text: str) -> None:
        if not self.future.done():
            self.future.set_result(Reply(status, text))


class Desk:
    """One inbox. `now_ms` is driven by the monotonic clock; `on_forward` is called with every new forward."""

    def __init__(
        self,
        rules: Rules,
        ledger: LedgerThread,
        now_ms: Callable[[], int],
        counters: AggregatorCounters,
        on_forward: Callable[[Decision], None],
        whitelists: Whitelists | None = None,
    ) -> None:
        self.trouble = Trouble(
            log, "votes cannot be stored", "ledger takes votes again", logging.ERROR
        )
        """Why the ledger does not take votes, for `/health`."""
        self.turns = 0
        """Rises with every turn; `wake` makes one."""
        self._rules = rules
        self._ledger = ledger
        self._now_ms = now_ms
        self._counters = counters
        self._on_forward = on_forward
        self._standing = Standing(rules.cooldown_ms)
        self._whitelists = Whitelists() if whitelists is None else whitelists
        self._votes = Votes(rules, self._standing, self._whitelists)
        self._number = 1
        self._pending: list[_Waiting] = []
        self._woken = asyncio.Event()
        self._ending = False
        self._crowded = False
        """Whether the last turn had several signals: then there are most often more to come."""
        self._newest_ms = 0
        self._hold: tuple[int, str] | None = None
        self._trades: list[tuple[str, Side, int]] = []

    @property
    def pending(self) -> int:
        """Signals that wait for a commit."""
        return len(self._pending)

    @property
    def open_windows(self) -> int:
        """Windows that collect votes."""
        return self._votes.open_windows()

    async def post(self, post: Post) -> Reply:
        """Hand in a signal; returns when it is on the disk, or refused."""
        if self._ending or len(self._pending) >= MAX_PENDING:
            return Reply(503, "the aggregator is stopping" if self._ending else "too many signals")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending.append(_Waiting(post, self._time_ms(), future))
        self._woken.set()
        return await future

    # --- what the orders come to ----------------------------------------------------------------------

    def heard(self, forward: Forward) -> None:
        """Take in how a forward stands, as soon as its step has been committed, and not before."""
        self._standing.heard(forward, self._time_ms())

    def contested(self, forward: Forward) -> str | None:
        """Why a queued forward may not be sent any more; asked right before the commit of `sending`.

        A decision of the other side has passed since, whose window opened later, and less than a window
        apart: "short was decided since".
        """
        return self._votes.contested(forward.pair, forward.side, forward.window)

    def held(self, pair: str, window: int) -> bool:
        """Whether another order of this pair is `sending` or `unknown`, on either side, as far as heard."""
        return self._standing.held(pair, but_window=window)

    def merge_trades(self, trades: Iterable[tuple[str, Side, int]]) -> None:
        """Take in trades that bots have: (pair, side, when each opened, ms since the epoch by this clock).

        Each is a cool-down and a decision that passed, from when it opened. Those whose forwards the ledger
        holds need not be named: the forward says it better.
        """
        found = list(trades)
        self._trades += found
        self._take_trades(found, self._time_ms())

    def hold(self, until_ms: int, why: str) -> None:
        """Forward nothing until then (ms since the epoch by this clock), over a failed commit, too."""
        self._hold = (until_ms, why)
        self._standing.hold(until_ms, why)

    def wake(self) -> None:
        """Take a turn, also when there is nothing to do."""
        self._woken.set()

    def end(self) -> None:
        """Take no more signals, store those that have come, and return from `run`."""
        self._ending = True
        self._woken.set()

    async def open(self) -> None:
        """Build the votes up from the ledger. Raises JournalError."""
        now_ms, rules = self._time_ms(), self._rules
        stored = await self._ledger.call(
            lambda ledger: ledger.at_start(
                passed_ms=now_ms - passed.kept_ms(rules),
                counted_ms=now_ms - repeats.kept_ms(rules),
                cooled_ms=now_ms - rules.cooldown_ms,
            )
        )
        # From here on nothing is awaited: what has been committed since is heard of after it.
        self._number = stored.next_number
        self._standing = Standing.of(stored.forwards, rules.cooldown_ms, now_ms)
        self._votes = Votes(rules, self._standing, self._whitelists)
        for decision in stored.passed:
            self._votes.remember(decision, now_ms)
        for earlier in stored.counted:
            self._votes.remember_counted(earlier, now_ms)
        self._votes.restore(stored.undecided, now_ms)
        self._take_trades(self._trades, now_ms)
        if self._hold is not None:
            self._standing.hold(*self._hold)
        if stored.undecided:
            log.info(
                "windows rebuilt from the ledger windows=%d votes=%d",
                self._votes.open_windows(),
                len(stored.undecided),
            )

    async def run(self) -> None:
        """Work until `end`. Raises JournalWriteError when the ledger is damaged: nothing else ends it."""
        while not (self._ending and not self._pending):
            await self._wait()
            self.turns += 1
            taken, self._pending = self._pending[:MAX_TURN], self._pending[MAX_TURN:]
            self._crowded = len(taken) > 1
            try:
                await self._turn(taken)
                self.trouble.end()
            except JournalError as error:
                await self._failed(taken, error)

    def _take_trades(self, trades: Iterable[tuple[str, Side, int]], now_ms: int) -> None:
        for pair, side, opened_ms in trades:
            self._standing.merge_trade(pair, side, opened_ms, now_ms)
            self._votes.remember_trade(pair, side, min(opened_ms, now_ms))

    # --- a turn ---------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        due_ms = self._votes.next_due_ms()
        wait_s = None if due_ms is None else max(due_ms - self._time_ms(), 0) / 1000
        if self.trouble:
            wait_s = PROVE_EVERY_S if wait_s is None else min(wait_s, PROVE_EVERY_S)
        if not (self._pending or self._ending):
            await wait_at_most(wait_s, self._woken)
        if self._crowded and 0 < len(self._pending) < MAX_TURN and not self._ending:
            await asyncio.sleep(GATHER_S)
        # After the wait: who wakes it in the middle of a turn gets another one.
        self._woken.clear()

    async def _turn(self, taken: list[_Waiting]) -> None:
        keys = {(w.post.account, w.post.key) for w in taken if w.post.key is not None}
        known: dict[tuple[str, str], Answered] = (
            await self._ledger.call(lambda ledger: ledger.answered(keys)) if keys else {}
        )
        replies: list[tuple[_Waiting, int, str]] = []
        receipts: list[Receipt] = []
        decisions: list[Decision] = []
        for waiting in taken:
            post = waiting.post
            name = None if post.key is None else (post.account, post.key)
            if name is not None and (stored := known.get(name)) is not None:
                replies.append((waiting, *_repeated(stored, post)))
                continue
            decisions.extend(self._votes.due(waiting.received_ms))
            if self._votes.is_full(post.account, post.signal.pair, post.signal.side):
                text = f"account {post.account} has {OPEN_AT_MOST} windows open, as many as it may have"
                replies.append((waiting, 429, f"{text}: post {post.signal.pair} again later"))
                continue
            vote = Vote(
                self._number, waiting.received_ms, post.signal, post.signal.digest(), post.account
            )
            counted = self._votes.add(vote)
            self._number += 1
            answer = _sentence(post.signal, counted, waiting.received_ms)
            receipts.append(
                Receipt(
                    vote,
                    post.account,
                    post.address,
                    post.key,
                    post.kept_body,
                    counted.outcome,
                    counted.window,
                    answer,
                )
            )
            if name is not None:
                known[name] = Answered(post.kept_body, answer)
            replies.append((waiting, 200, answer))
        # After everything that was received before now.
        now_ms = self._time_ms() if not self._pending else self._pending[0].received_ms
        decisions.extend(self._votes.due(now_ms))
        if receipts or decisions:
            started_s = time.monotonic()
            record = partial(
                Ledger.record,
                receipts=receipts,
                decisions=decisions,
                now_ms=now_ms,
                cooldown_ms=self._rules.cooldown_ms,
                queued=self._queued(decisions),
                copies=self._rules.copies,
            )
            recorded = await self._ledger.call(record)
            self._counters.commits += 1
            self._counters.commit_s += time.monotonic() - started_s
            decisions = recorded.decisions
            for forward in recorded.forwards:
                self._follow(forward)
        elif self.trouble:
            # A turn that stored nothing proves nothing about the disk.
            await self._ledger.call(Ledger.prove_room)
        for decision in decisions:
            self._announce(decision)
        for receipt in receipts:
            signal = receipt.vote.signal
            self._counters.heard(signal.feeder, receipt.vote.received_ms)
            self._counters.signals[signal.feeder, receipt.outcome] += 1
            if signal.strength_text is not None:
                self._counters.strength_texts[signal.feeder] += 1
            if signal.contradictions:
                self._note_contradictions(signal)
        for waiting, status, text in replies:
            waiting.reply(status, text)

    async def _failed(self, taken: list[_Waiting], error: JournalError) -> None:
        self._counters.ledger_failures += 1
        self.trouble.met(error)
        for waiting in taken:
            waiting.reply(503, "the signal could not be stored, post it again")
        if isinstance(error, JournalWriteError) and error.damaged:
            raise error
        await asyncio.sleep(RETRY_S)
        try:
            await self.open()
        except JournalError as again:
            # Without the ledger nothing can be decided: the service starts anew.
            raise again from error

    def _queued(self, decisions: Iterable[Decision]) -> set[int]:
        """The windows whose orders have not been sent, as far as heard, and which these would replace."""
        return {
            window
            for decision in decisions
            if decision.outcome == FORWARD
            for window in self._standing.queued(decision.pair, decision.side)
        }

    def _follow(self, forward: Forward) -> None:
        """Take in a forward that a turn has made, or replaced."""
        self.heard(forward)
        if forward.state == "expired":
            self._counters.forwards[forward.side, "expired"] += 1
            log.warning(
                "forward expired window=%d pair=%s side=%s tag=%r why=%r",
                forward.window,
                forward.pair,
                forward.side,
                forward.tag,
                forward.answer,
            )

    def _note_contradictions(self, signal: Signal) -> None:
        for found in signal.contradictions:
            counted = self._counters.contradictions
            counted[signal.feeder, found.value] += 1
            # The first of a run: the others are counted, and in the ledger's answers.
            if counted[signal.feeder, found.value] == 1:
                log.warning(
                    "field and tag of a signal contradict each other feeder=%s pair=%s found=%r",
                    signal.feeder,
                    signal.pair,
                    found.words(),
                )

    def _announce(self, decision: Decision) -> None:
        self._counters.decisions[decision.side, decision.outcome] += 1
        self._whitelists.decided(decision)
        log.info(
            "decided outcome=%s window=%d pair=%s tag=%r feeders=%s reasons=%r",
            decision.outcome,
            decision.window,
            decision.pair,
            decision.tag,
            ",".join(decision.feeders),
            "; ".join(decision.reasons),
        )
        if decision.outcome == FORWARD:
            self._on_forward(decision)

    def _time_ms(self) -> int:
        self._newest_ms = max(self._newest_ms, self._now_ms())
        return self._newest_ms


def _repeated(stored: Answered, post: Post) -> tuple[int, str]:
    # Of older rows it is the digest that was stored.
    if stored.kept_body in (post.kept_body, hashlib.sha256(post.kept_body).digest()):
        return 200, stored.answer
    return 422, "this Idempotency-Key was used with another body"


def _sentence(signal: Signal, counted: Counted, received_ms: int) -> str:
    what = f"{signal.pair} {signal.side}"
    if counted.outcome == "duplicate":
        return f"repeated: this signal of feeder {signal.posted_as} for {what} counts once"
    closes_s = max(counted.closes_ms - received_ms, 0) / 1000
    text = (
        f"signal of feeder {signal.posted_as} for {what} counted, "
        f"conf={confidence_text(signal.confidence)}: "
        f"{counted.votes}/{counted.electorate_size} votes, decided in {closes_s:.1f} s"
    )
    if signal.contradictions:
        both = " and ".join(found.words() for found in signal.contradictions)
        text += f"; field and tag contradict each other ({both}): the field counts, {LATER}"
    return text
