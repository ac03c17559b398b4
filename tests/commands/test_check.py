"""What `check` reports of settings alone."""

from pathlib import Path
from typing import Any

import pytest

from marketfeed.binance.archive import TERMS
from marketfeed.commands.check import check_history, check_journal
from marketfeed.journal.journal import Journal
from marketfeed.settings.model import Settings

NONE_YET = ", if the journal has none of it"


def found(pairs: int = 164, **sections: dict[str, Any]) -> list[tuple[str, str]]:
    findings = check_history(Settings.model_validate(sections), pairs)
    assert {finding.subject for finding in findings} <= {"history"}
    return [(finding.verdict, finding.text) for finding in findings]


def test_how_long_the_shipped_settings_history_takes() -> None:
    """30 days of 3m are a weight of 58 a pair (facts of the exchange), and so on."""
    assert found() == [
        ("good", "3m: 30 days of 164 pairs by REST are 4,756 requests of weight 9,512: 8.8 min"),
        ("good", "5m: 30 days of 164 pairs by REST are 2,952 requests of weight 5,904: 5.5 min"),
        ("good", "15m: 30 days of 164 pairs by REST are 984 requests of weight 1,968: 1.8 min"),
        ("good", "1h: 30 days of 164 pairs by REST are 328 requests of weight 656: 0.6 min"),
        ("good", "mark_1h: 30 days of 164 pairs by REST are 328 requests of weight 656: 0.6 min"),
        ("good", f"all of them: weight 18,696, 17.3 min at 1,080 of weight a minute{NONE_YET}"),
    ]


def test_what_is_left_over_weighs_less_and_retention_ends_history() -> None:
    (first, _, last) = found(
        2,
        exchange={"timeframes": ["1d"]},
        history={"days": 600, "weight_per_minute": 10},
        journal={"retention": {"candles": "550d"}},
    )
    assert first == ("good", "1d: 550 days of 2 pairs by REST are 4 requests of weight 6: 0.7 min")
    assert last[1].startswith("all of them: weight 114, 12.7 min at 9 of weight a minute")


def test_with_the_archive_its_terms_are_a_warning() -> None:
    assert found(exchange={"archive": True}) == [("warning", f"exchange.archive is true; {TERMS}")]


@pytest.mark.parametrize(("pairs", "days"), [(0, 30), (164, 0)])
def test_where_nothing_is_to_be_filled_nothing_is_printed(pairs: int, days: int) -> None:
    assert found(pairs, history={"days": days}) == []


def test_every_page_of_a_journal_is_looked_at_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    settings = Settings.model_validate({"journal": {"path": str(path)}})
    # There is none yet.
    assert len(check_journal(settings, whole=True)) == 2
    with Journal.open(path) as journal:
        journal.save_document("a", b"text", 1)
        (root,) = journal.db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'gap_seq'"
        ).fetchone()
        assert check_journal(settings, whole=True)[2].text.startswith(
            f"{path}: every page is in order"
        )
    assert check_journal(settings, whole=True)[2].verdict == "good"
    assert len(check_journal(settings)) == 2
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 100)
    # Nothing that a start reads is bad.
    assert [one.verdict for one in check_journal(settings)] == ["good", "good"]
    bad = check_journal(settings, whole=True)[2]
    assert bad.verdict == "bad"
    assert bad.text.startswith(f"{path}: damage: ")


def test_the_room_that_set_aside_ones_take_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    settings = Settings.model_validate({"journal": {"path": str(path)}})
    Journal.open(path).close()
    assert "set aside" not in check_journal(settings)[1].text
    (tmp_path / "journal.db.corrupt-1").write_bytes(b"x" * 1_000)
    (tmp_path / "journal.db.corrupt-1-wal").write_bytes(b"x" * 234)
    assert check_journal(settings)[1].text.endswith(
        ", and 1,234 more lie in damaged ones that were set aside"
    )
