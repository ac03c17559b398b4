"""What systemd is notified of (sd_notify): ready, alive, how it fares, stopping.

Alive means proven: the watchdog is fed when the caller's `prove` has returned, so when the event loop has
turned, what the caller watches has turned, and its store has answered. A hung loop, task, thread or disk
is not fed for and restarted by systemd. Trouble elsewhere (the exchange, InfluxDB) shows in `/health` and
in the status line, and restarts nothing.

A store that *refuses* a heartbeat (disk full, file locked) has answered: what waits in memory would be
lost by a restart, which mends neither. It is fed for, once the service was ready; before that the service
is not ready, and the time for its start is extended.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Self

import sdnotify

from marketfeed.errors import MarketfeedError

log = logging.getLogger(__name__)

BEAT_EVERY_S: Final = 5.0
"""Wall seconds between two beats, unless a watchdog asks for more."""
BEATS_TO_A_WATCHDOG: Final = 6
"""A locked file takes 5 s to be refused, for each call that waits: beats must have time to be late."""
RETRY_S: Final = 1.0
"""Wall seconds until a start that the store has refused is tried again."""
EXTEND_S: Final = 60.0
"""What is asked for then: far more than until the next attempt."""
STATUS_CHARS: Final = 400


def extend_start() -> None:
    """Ask systemd for time: a file is about to be taken to another schema version, or recovered."""
    if os.environ.get("NOTIFY_SOCKET"):
        notifier = sdnotify.SystemdNotifier()
        notifier.notify(f"EXTEND_TIMEOUT_USEC={EXTEND_S * 1e6:.0f}")
        if notifier.socket is not None:
            notifier.socket.close()


@contextlib.asynccontextmanager
async def extending_start(seconds: float) -> AsyncIterator[None]:
    """Ask systemd for time until it is left, for so many wall seconds at most; not at all for 0."""

    async def extend() -> None:
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            extend_start()
            await asyncio.sleep(EXTEND_S / 3)

    extending = asyncio.create_task(extend(), name="extend")
    try:
        yield
    finally:
        extending.cancel()
        await asyncio.gather(extending, return_exceptions=True)


class SystemdNotifier:
    """Keeps systemd informed from entering to leaving. An async context manager; without systemd, nothing.

    `prove` returns "" when everything has turned since it was asked last and the store has committed a
    heartbeat, or the name of what has not turned. It raises a MarketfeedError when the store refuses,
    and does not return while something hangs. `describe` is one line for people: no secret in it.
    STOPPING is sent as soon as `stop` is set. READY is sent after the first proof.
    """

    def __init__(
        self, prove: Callable[[], Awaitable[str]], describe: Callable[[], str], stop: asyncio.Event
    ) -> None:
        self._prove = prove
        self._describe = describe
        self._stop = stop
        self._ready = False
        self._watchdog_s = _watchdog_s()
        self._notifier: sdnotify.SystemdNotifier | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if os.environ.get("NOTIFY_SOCKET"):
            self._notifier = sdnotify.SystemdNotifier()
            if self._notifier.socket is None:
                log.warning("NOTIFY_SOCKET cannot be reached: systemd is not notified")
            else:
                # A systemd that does not read must not hold us up; what it misses comes again.
                self._notifier.socket.setblocking(False)
                self._task = asyncio.create_task(self._notify(), name="notify")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()

    async def _notify(self) -> None:
        beating = asyncio.create_task(self._beat(), name="beat")
        stopping = asyncio.create_task(self._stop.wait(), name="stopping")
        try:
            await asyncio.wait((beating, stopping), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                self._send("STOPPING=1", status="stopping")
            else:
                log.critical("watchdog not fed any more", exc_info=beating.exception())
        finally:
            for task in (beating, stopping):
                task.cancel()
            await asyncio.gather(beating, stopping, return_exceptions=True)

    async def _beat(self) -> None:
        every_s = BEAT_EVERY_S
        if self._watchdog_s is not None:
            every_s = min(every_s, self._watchdog_s / BEATS_TO_A_WATCHDOG)
        while True:
            wait_s = every_s
            try:
                stuck = await self._prove()
            except MarketfeedError as error:
                if self._ready:
                    self._send("WATCHDOG=1")
                else:
                    self._send(f"EXTEND_TIMEOUT_USEC={EXTEND_S * 1e6:.0f}", status=str(error))
                    wait_s = RETRY_S
            else:
                if stuck:
                    log.error("watchdog not fed: something has not turned what=%r", stuck)
                elif self._ready:
                    self._send("WATCHDOG=1")
                else:
                    self._ready = True
                    self._send("READY=1", "WATCHDOG=1")
                    log.info("ready")
            await asyncio.sleep(wait_s)

    def _send(self, *states: str, status: str | None = None) -> None:
        text = " ".join((self._describe() if status is None else status).split())
        # Pairs have Chinese names; sdnotify knows Latin-1 alone, and systemd UTF-8.
        text = text[:STATUS_CHARS].encode("ascii", "backslashreplace").decode()
        if self._notifier is not None:
            # It swallows whatever goes wrong: the next beat sends it again.
            self._notifier.notify("\n".join((*states, f"STATUS={text}")))


def _watchdog_s() -> float | None:
    """How often systemd expects a notification of this very process (wall seconds), or None."""
    named = os.environ.get("WATCHDOG_PID")
    if named and named != str(os.getpid()):
        return None
    try:
        wanted_s = int(os.environ.get("WATCHDOG_USEC", "")) / 1e6
    except ValueError:
        return None
    return wanted_s if wanted_s > 0 else None
