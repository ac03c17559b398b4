"""What lets queries pass side by side, and a fork alone.

SQLite keeps locks and shared memory per process: a child that inherited open connections would trust locks
that it does not hold. So a fork waits for the queries of other threads, and holds new ones up.

A signal handler runs in the middle of what its thread does. What it asks passes though a fork waits, as the
fork waits for that thread; a fork that it makes does not wait for the very query that it has interrupted.
"""

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """Shared by queries (`passing`), exclusive for a fork (`shut`, then `open` or `renew`)."""

    def __init__(self) -> None:
        # Reentrant: a handler may interrupt its thread while that holds it, and leaves all as it was.
        self._changed = threading.Condition(threading.RLock())
        self._inside: dict[int, int] = {}
        self._forker: int | None = None
        self._forks = 0

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Within it no other thread forks."""
        me = threading.get_ident()
        with self._changed:
            while self._forker not in (None, me) and me not in self._inside:
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                    if self._forker is not None:
                        self._changed.notify_all()

    def shut(self) -> None:
        """Wait until no other thread is inside, and let none in."""
        me = threading.get_ident()
        with self._changed:
            while self._forker not in (None, me):
                if me in self._inside:
                    # The other fork waits for the query that this one has interrupted: both may go on.
                    break
                self._changed.wait()
            self._forker = me
            self._forks += 1
            while any(thread != me for thread in self._inside):
                self._changed.wait()

    def open(self) -> None:
        """Let others in again, after the fork, in the parent."""
        with self._changed:
            self._forks -= 1
            if not self._forks:
                self._forker = None
            self._changed.notify_all()

    def renew(self) -> None:
        """As `open`, in the child, in which no other thread is: one of them may have held the lock."""
        self._changed = threading.Condition(threading.RLock())
        self._forks, self._forker = 0, None
