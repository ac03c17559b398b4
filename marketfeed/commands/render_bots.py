"""How the bots' records are shown to people."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.console import Console, RenderableType
from rich.table import Table

from marketfeed.bots.books import Kept
from marketfeed.bots.importing import ImportDone
from marketfeed.bots.verify import Verified

SHOWN: Final = 20
"""So many differences of a bot are shown; --json has all."""


def trade_plain(kept: Kept) -> dict[str, Any]:
    """A trade as --json prints it."""
    values = msgspec.structs.asdict(kept.trade)
    return {
        "bot": kept.bot,
        "from": kept.origin,
        **values,
        "position_profit": kept.trade.position_profit,
        "duration_s": kept.trade.duration_s,
    }


def show_trades(kept: Sequence[Kept], *, title: bool = False) -> None:
    """Print trades, one a line."""
    console = Console(soft_wrap=True, highlight=False)
    if title:
        console.print(
            f"{'closed (UTC)':<19}  {'bot':<8} {'side':<5} {'pair':<22} {'profit':>9}  reason, tag",
            style="bold",
        )
    for one in kept:
        trade = one.trade
        closed = datetime.fromtimestamp(trade.closed_ms / 1000, UTC)
        mark = "" if one.origin == "bot" else f" [{one.origin}]"
        console.print(
            f"{closed:%Y-%m-%d %H:%M:%S}  {one.bot:<8} {trade.side:<5} {trade.pair:<22} "
            f"{trade.position_profit:>+9.4%}  {trade.exit_reason}{mark} {trade.enter_tag}",
            markup=False,
        )


def verified_parts(found: Sequence[Verified]) -> Iterable[RenderableType]:
    """What was compared, as a table, and the first differences."""
    table = Table("bot", "in the bot", "in the books", "in InfluxDB", "before", "imported", "")
    for one in found:
        influx = "-" if one.in_influxdb is None else f"{one.in_influxdb:,}"
        counts = (f"{n:,}" for n in (one.before, one.imported))
        state = "equal" if one.equal else f"{len(one.differences):,} differences"
        table.add_row(one.bot, f"{one.in_bot:,}", f"{one.in_books:,}", influx, *counts, state)
    yield table
    for one in found:
        for words in one.differences[:SHOWN]:
            yield f"{one.bot}: {words}"
        if (more := len(one.differences) - SHOWN) > 0:
            yield f"{one.bot}: and {more:,} more, see --json"


def import_parts(found: Sequence[ImportDone]) -> Iterable[RenderableType]:
    """What became of foreign points, as a table, and why the others were refused."""
    table = Table("bot", "foreign points", "with a partner", "in another zone", "imported", "new")
    for one in found:
        counts = (one.points, one.partners, one.other_zone, one.trades, one.new)
        table.add_row(one.bot, *(f"{count:,}" for count in counts))
    yield table
    for one in found:
        for words, count in one.refused.items():
            yield f"{one.bot}: {count:,} refused: {words}"
