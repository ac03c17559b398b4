"""The part of a ledger that holds forwards: how they stand, and their steps.

Those of the sides' bots stand in one table, and the copies for the meta bot in another. An older marketfeed
that goes on with the file looks at the first alone: to it, a copy would be one more order of its side, and
would hold the pair of a bot that knows nothing of it.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from marketfeed.aggregator.ledger_beginning import BegunFile
from marketfeed.aggregator.ledger_tables import (
    META,
    OPEN_STATES,
    STEPS,
    BotName,
    Forward,
    State,
    forwards_in,
    table_of,
)
from marketfeed.aggregator.standing import AT_WORK, COOLING
from marketfeed.errors import LedgerError
from marketfeed.schema import DAY_MS
from marketfeed.storage.database import Database

ANSWERED_BEFORE_MS: Final = 600_000
"""An order that was answered so long before another was sent has no trade that opened after that."""

_QUEUE: Final = """
INSERT INTO {table} (window, bot, state, changed, attempts, answer, seq)
VALUES (?, ?, 'queued', ?, 0, '', ?)"""


class PairAtWorkError(LedgerError):
    """Nothing may be sent for this pair yet: `forward`, as the ledger has it, is sending or unknown."""

    def __init__(self, forward: Forward) -> None:
        super().__init__(
            f"pair {forward.pair}: the order of window {forward.window} ({forward.side}) is {forward.state}"
        )
        self.forward = forward


class ForwardsFile(BegunFile):
    """See the module's docstring."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.keeps_copies = self._has(table_of(META))
        """A file that could not be grown, as on a full disk, has no place for copies."""

    def forwards(
        self, states: Sequence[State] = OPEN_STATES, bot: BotName | None = None
    ) -> list[Forward]:
        """The forwards in `states`, to the bot of any side or to this one, oldest first."""
        if bot == META and not self.keeps_copies:
            return []
        marks = ",".join("?" * len(states))
        rows = self.db.execute(
            f"{forwards_in(table_of(bot))} WHERE state IN ({marks}) ORDER BY decision.window",
            tuple(states),
        )
        return [Forward(*row) for row in rows if bot is None or row[1] == bot]

    def standing_since(self, since_ms: int, bot: BotName | None = None) -> list[Forward]:
        """The forwards in an open state, and of those that opened a trade, or may have, the newer ones."""
        if bot == META and not self.keeps_copies:
            return []
        states = ",".join(repr(state) for state in COOLING)
        rows = self.db.execute(
            f"{forwards_in(table_of(bot))} "
            f"WHERE state IN ({states}) AND changed >= ? ORDER BY decision.window",
            (since_ms,),
        )
        return [*self.forwards(bot=bot), *(Forward(*row) for row in rows)]

    def _copy(self, window: int, now_ms: int, numbers: Iterator[int]) -> None:
        """Within a transaction: have the meta bot get a decision as well. Nothing is looked at for it."""
        if self.keeps_copies:
            self.db.execute(
                _QUEUE.format(table=table_of(META)), (window, META, now_ms, next(numbers))
            )

    def _queue(self, window: int, bot: BotName, now_ms: int, numbers: Iterator[int]) -> Forward:
        """Within a transaction: have the bot of its side get a decision."""
        self.db.execute(_QUEUE.format(table=table_of(bot)), (window, bot, now_ms, next(numbers)))
        return self._forward(window, bot)

    def _forwards_of(self, windows: Iterable[int], bot: BotName | None = None) -> list[Forward]:
        found = []
        for window in windows:
            rows = self.db.execute(
                f"{forwards_in(table_of(bot))} WHERE forward.window = ?", (window,)
            )
            found += [Forward(*row) for row in rows]
        return found

    def _forward(self, window: int, bot: BotName) -> Forward:
        row = self.db.execute(
            f"{forwards_in(table_of(bot))} WHERE forward.window = ? AND bot = ?", (window, bot)
        ).fetchone()
        return Forward(*row)

    def sent_since(self, bot: BotName, decided_ms: int) -> list[Forward]:
        """The forwards that were sent to a bot, or may have been, of decisions since then, oldest first."""
        rows = self.db.execute(
            f"""{forwards_in(table_of(bot))}
                WHERE decided >= ? AND bot = ? AND sent IS NOT NULL ORDER BY decision.window""",
            (decided_ms, bot),
        )
        return [Forward(*row) for row in rows]

    def is_another_s(
        self, forward: Forward, trade_id: int, opened_by_ms: int, since_ms: int, *, added: bool
    ) -> bool:
        """Whether a trade of this pair, side and tag is another forward's than this one.

        It is that of the forward which opened it by its `trade_id`, sent within a day of it and not answered
        long before this one was sent: a bot with a fresh database counts anew. One that none has opened by
        its id (or an order `added` to a trade, which has no id) is that of the newest forward which had been
        sent when it opened, by `opened_by_ms`. This one's trade opened after `since_ms`.
        """
        (found,) = self.db.execute(
            f"""SELECT EXISTS(SELECT 1
                FROM {table_of(forward.bot)} AS forward JOIN decision ON decision.window = forward.window
                WHERE bot = :bot AND pair = :pair AND side = :side AND tag = :tag
                AND forward.window != :window AND (
                    state IN ('accepted', 'found') AND NOT :added AND abs(sent - :by) < :day
                        AND (state = 'found' OR answered >= :since)
                        AND trade_id = :trade_id
                    OR forward.window > :window AND sent <= :by AND (state IN ('sending', 'unknown', 'lost')
                        OR :added AND state IN ('accepted', 'found'))))""",
            {
                "bot": forward.bot,
                "pair": forward.pair,
                "side": forward.side,
                "tag": forward.tag,
                "window": forward.window,
                "trade_id": trade_id,
                "by": opened_by_ms,
                "added": added,
                "day": DAY_MS,
                "since": since_ms - ANSWERED_BEFORE_MS,
            },
        ).fetchone()
        return bool(found)

    def step(
        self,
        window: int,
        bot: BotName,
        state: State,
        now_ms: int,
        answer: str = "",
        status: int | None = None,
        trade_id: int | None = None,
    ) -> Forward:
        """Take a forward to `state`, durably; returns it as it stands then.

        `trade_id` is the trade that it has opened. Raises LedgerError when it is not in a state from which
        that may be entered: a second POST is prevented here, whatever its caller believes. So is one beside
        another of its pair, on either side: PairAtWorkError, and it may be tried again. From `sending`,
        `queued` and `expired` are for callers that know that nothing has left this host, and `queued` also
        for those who have the bot's own word that it has opened nothing.
        """
        seq = self._next_seq
        with self._transaction():
            if state == "sending":
                self._require_free(window, bot)
            forward = self._enter(window, bot, state, now_ms, seq, answer, status, trade_id)
            self._save_seq(seq + 1)
        self._next_seq = seq + 1
        if state == "sending":
            self.leave_mark()
        return forward

    def end_queued(
        self, below_window: int, now_ms: int, words: str, bot: BotName | None = None
    ) -> list[Forward]:
        """Have all that is queued of windows below one expire, durably; returns them as they stand then.

        Those to the bots of the sides, or to this bot.
        """
        queued = [it for it in self.forwards(("queued",), bot) if it.window < below_window]
        if not queued:
            return []
        numbers = itertools.count(self._next_seq)
        with self._transaction():
            ended = [
                self._enter(it.window, it.bot, "expired", now_ms, next(numbers), words)
                for it in queued
            ]
            self._save_seq(seq := next(numbers))
        self._next_seq = seq
        return ended

    def _require_free(self, window: int, bot: BotName) -> None:
        """Within a transaction: raise PairAtWorkError while another order of its pair is at work."""
        # The two bots of the sides are one account's matter; what the meta bot has is its own.
        lane: BotName | None = META if bot == META else None
        pairs = {forward.pair for forward in self._forwards_of([window], lane)}
        for other in self.forwards(AT_WORK, lane):
            if other.pair in pairs and (other.window, other.bot) != (window, bot):
                raise PairAtWorkError(other)

    def _enter(
        self,
        window: int,
        bot: BotName,
        state: State,
        now_ms: int,
        seq: int,
        answer: str = "",
        status: int | None = None,
        trade_id: int | None = None,
    ) -> Forward:
        """The same, within a transaction."""
        allowed = STEPS[state]
        origins = ",".join(repr(origin) for origin in allowed)
        values = {"window": window, "bot": bot, "state": state, "now": now_ms, "answer": answer}
        changed = self.db.execute(
            f"""UPDATE {table_of(bot)} SET state = :state, changed = :now, seq = :seq,
                    answer = :answer, status = :status, trade_id = :trade_id,
                    attempts = attempts + (:state = 'sending'),
                    sent = CASE WHEN :state = 'sending' THEN :now
                                WHEN :state NOT IN ('queued', 'expired') THEN sent END,
                    answered = CASE WHEN :state IN ('accepted', 'refused', 'found') THEN :now END
                WHERE window = :window AND bot = :bot AND state IN ({origins})""",
            values | {"status": status, "trade_id": trade_id, "seq": seq},
        ).rowcount
        if changed != 1:
            raise LedgerError(
                f"forward of window {window} to bot {bot}: not {' or '.join(allowed)}, "
                f"so it cannot be {state}"
            )
        return self._forward(window, bot)

    @property
    def _no_copy_of_it(self) -> str:
        """The condition that a decision has no copy any more."""
        known = f"SELECT window FROM {table_of(META)}"
        return f"AND window NOT IN ({known})" if self.keeps_copies else ""

    def _delete_copies(self, oldest_ms: int, below_seq: int, at_once: int) -> int:
        """Within a transaction: delete copies as retention says, and those whose decision is gone.

        Decisions are deleted without their copies by an older marketfeed that went on with the file.
        """
        if not self.keeps_copies:
            return 0
        open_states = ",".join(repr(state) for state in OPEN_STATES)
        return self.db.execute(
            f"""DELETE FROM {table_of(META)} WHERE window IN (
                    SELECT copy.window FROM {table_of(META)} AS copy
                    LEFT JOIN decision ON decision.window = copy.window
                    WHERE decision.window IS NULL
                       OR decided < ? AND copy.seq < ? AND state NOT IN ({open_states})
                    LIMIT {at_once})""",
            (oldest_ms, below_seq),
        ).rowcount
