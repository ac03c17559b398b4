"""What `marketfeed status` shows of a journal's check, and of what was set aside."""

from datetime import UTC, datetime

from marketfeed.collector.status_report import JournalReport


def of_journal(journal: JournalReport) -> list[tuple[str, str]]:
    """Rows of the table of facts: name and value."""
    rows: list[tuple[str, str]] = []
    if journal.check is not None:
        check = journal.check
        last = "never ended yet"
        if check.ended_ms is not None:
            last = f"ended {datetime.fromtimestamp(check.ended_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
        under_way = f"{check.done:.0%} done, the last " if check.state == "checking" else ""
        found = f", {len(check.unreadable)} ranges cannot be read" if check.unreadable else ""
        rows.append(("check of the journal", f"{under_way}{last}{found}"))
    for one in journal.aside:
        state = one.state
        if state == "drained":
            state = "taken over, may be deleted" + (" if what is lost may be" if one.lost else "")
        text = (
            f"{one.path} ({one.bytes:,} bytes): {state}; {one.candles:,} candles and {one.rows:,} other rows "
            f"taken, {one.lost:,} places could not be read"
        )
        named = f" ({'; '.join(one.lost_places)})" if one.lost_places else ""
        rows.append(("set aside", f"{text}{named}: {one.trouble}" if one.trouble else text + named))
    return rows
