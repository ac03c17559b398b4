"""The plain way to take signals: aiohttp.web, Basic against a cached hash, a transaction for each signal."""

import asyncio
import sqlite3
import sys
import time
from contextlib import closing

import msgspec
import uvloop
from aiohttp import web

from marketfeed.aggregator.auth import Caller, Doorkeeper
from marketfeed.settings.aggregator import Account
from tests.bench import jobs


class _Body(msgspec.Struct):
    pair: str
    side: str
    enter_tag: str


async def _serve(job: jobs.PlainJob, db: sqlite3.Connection) -> None:
    doorkeeper = Doorkeeper([Account(username=job.username, hash=job.hashed)], time.monotonic)

    async def enter(request: web.Request) -> web.Response:
        caller = await doorkeeper.who(request.headers.get("Authorization"), request.remote or "?")
        if not isinstance(caller, Caller):
            return web.json_response({"detail": "Unauthorized"}, status=401)
        body = msgspec.json.decode(await request.read(), type=_Body)
        # A transaction of its own: SQLite commits it before this returns.
        db.execute(
            "INSERT INTO signal (received, account, pair, side, tag) VALUES (?, ?, ?, ?, ?)",
            (time.time_ns() // 1_000_000, caller.username, body.pair, body.side, body.enter_tag),
        )
        return web.Response(body=b'{"status":"counted"}', content_type="application/json")

    application = web.Application()
    application.router.add_post("/api/v1/forceenter", enter)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    jobs.send(jobs.Listening(runner.addresses[0][1]))
    await asyncio.to_thread(sys.stdin.buffer.read)
    await runner.cleanup()
    doorkeeper.close()


def _main() -> None:
    job = jobs.take(jobs.PlainJob)
    with closing(sqlite3.connect(job.path, isolation_level=None)) as db:
        # As the ledger is opened (marketfeed/storage/database.py).
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(
            "CREATE TABLE signal(id INTEGER PRIMARY KEY, received INTEGER NOT NULL, "
            "account TEXT NOT NULL, pair TEXT NOT NULL, side TEXT NOT NULL, tag TEXT NOT NULL)"
        )
        uvloop.run(_serve(job, db))


if __name__ == "__main__":
    _main()
