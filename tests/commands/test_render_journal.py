"""What `marketfeed status` says of the journal's check, and of what was set aside."""

from marketfeed.collector.checking import CheckReport
from marketfeed.collector.status_report import JournalReport
from marketfeed.commands.render_journal import of_journal
from marketfeed.history.aside_report import AsideReport

ENDED_MS = 1_790_000_160_000


def journal(check: CheckReport | None, *aside: AsideReport) -> JournalReport:
    return JournalReport(
        "journal.db", "", 1, 1, 1, 1, 1, 1, {}, 1, 1, 1, None, check=check, aside=list(aside)
    )


def test_how_the_check_stands() -> None:
    assert of_journal(journal(None)) == []
    for check, text in [
        (CheckReport("waiting", 0.0, None, []), "never ended yet"),
        (CheckReport("checking", 0.42, None, []), "42% done, the last never ended yet"),
        (
            CheckReport("waiting", 0.0, ENDED_MS, ["BTC 1m"]),
            "ended 2026-09-21 14:16 UTC, 1 ranges cannot be read",
        ),
    ]:
        assert of_journal(journal(check)) == [("check of the journal", text)]


def test_what_was_taken_over_may_be_deleted() -> None:
    drained = AsideReport("/a", 1_234, "drained", 5_000, 6, 1, "")
    waits = AsideReport("/b", 1, "reading", 0, 0, 0, "no room for more")
    (name, first), (_, second) = of_journal(journal(None, drained, waits))
    assert name == "set aside"
    assert first.startswith(
        "/a (1,234 bytes): taken over, may be deleted if what is lost may be; 5,000 candles and 6 other"
    )
    assert first.endswith("1 places could not be read")
    assert second.startswith("/b (1 bytes): reading; 0 candles")
    assert second.endswith(": no room for more")
