"""When others may be sent behind an order of which nobody knows what became. Pure; times are monotonic s.

The bot may still be at it, and looks at its limits before it queues for the lock that its loop takes in
every turn. So it gets no other order until it has answered looks for a while without a break, and within
that its loop has turned twice: whoever waited for the lock has had it. After a second such order in a row
nothing else is sent: what ails the bot, or what stands before it, ails every order.
"""

from typing import Final

PURE = True

TURNS: Final = 2


class Release:
    """What is known of one bot since an order's outcome was unknown. `settle_s`: so long it must answer."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._in_doubt = False
        self._in_a_row = 0
        self._answered_since_s: float | None = None
        self._last_turn: str | None = None
        self._turned = 0

    @property
    def in_doubt(self) -> bool:
        """Whether the bot may still be at an order of which nobody knows what became."""
        return self._in_doubt

    def holds(self, unknown: int) -> bool:
        """Whether nothing else may be sent, with so many orders whose outcome is unknown and not given up."""
        return self._in_doubt or (unknown > 0 and self._in_a_row > 1)

    # --- what happens -----------------------------------------------------------------------------------

    def unknown(self) -> None:
        """An order was sent, and nobody knows what became of it."""
        self._in_a_row += 1
        self.doubt()

    def doubt(self) -> None:
        """The bot may still be at an order: of a run before this one, of which nobody knows how it ended."""
        self._in_doubt = True
        self._begin()

    def own_word(self) -> None:
        """The bot gave a word of its own on an order."""
        self._in_a_row = 0

    def found(self, unknown: int) -> None:
        """An order was found in the bot; `unknown` are left."""
        self._in_a_row = 0
        if not unknown:
            self._in_doubt = False

    def unanswered(self) -> None:
        """A look was not answered."""
        self._begin()

    def answered(self, now_s: float, last_turn: str | None, unknown: int) -> None:
        """A look was answered, and `last_turn` is when its loop last ended a turn: "" never.

        None: it does not say. Then only orders that are given up are taken to be over.
        """
        if self._answered_since_s is None:
            self._answered_since_s, self._last_turn = now_s, last_turn
        if last_turn is not None and last_turn != self._last_turn:
            # Later or, by a clock that was set, earlier: a turn has ended. After a start it has ended none,
            # and by the first that is told after nothing was, none is known to have.
            self._turned += int(bool(last_turn) and self._last_turn is not None)
            self._last_turn = last_turn
        turned = self._turned >= TURNS or (last_turn is None and not unknown)
        if turned and now_s - self._answered_since_s >= self._settle_s:
            self._in_doubt = False

    def _begin(self) -> None:
        self._answered_since_s, self._last_turn, self._turned = None, None, 0
