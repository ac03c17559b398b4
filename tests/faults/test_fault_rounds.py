"""The campaign `fault_rounds.py` in short, faster than real time; and that it finds what it is for."""

from collections import Counter
from pathlib import Path

import pytest
import round_run
from fault_rounds import Campaign, campaign
from lanes import Progress
from round_faults import ENDED_BY, KINDS, ROUND_S, draw_kinds, lead_s, plan
from round_run import RoundOptions, run_round, symbols

SEED = 1
PAIRS = 4


@pytest.mark.long(40)
def test_a_round_of_faults_is_never_well_beside_a_missing_candle(tmp_path: Path) -> None:
    asked = Campaign(1, 40.0, 5.0, PAIRS, SEED, 1, tmp_path, ["kill", "mute", "half-open"])
    (found,), broken = campaign(asked, Progress(1))
    assert broken == []
    assert found.complaints() == []
    assert len(found.faults) >= 2
    assert found.seconds["well"] > 0


@pytest.mark.long(28)
def test_a_collector_that_is_well_beside_a_missing_pair_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected, left_out = round_run.choose_pairs(2)
    write_config = round_run.write_config
    monkeypatch.setattr(round_run, "HEAL_S", 3.0)
    monkeypatch.setattr(
        round_run,
        "write_config",
        lambda *given, exchange: write_config(*given, exchange=exchange | {"pairs": [collected]}),
    )
    found = run_round(RoundOptions(1, tmp_path, round_s=20.0, speed=10.0, pairs=2), [])
    assert found.well_while_missing > 0
    assert found.whole_after_s is None
    assert any(name.startswith(f"missing by REST: {left_out}") for name in found.wrong)
    assert not any(collected in name for name in found.wrong)


def test_every_fault_comes_as_often_and_two_or_three_are_at_once() -> None:
    drawn = draw_kinds(SEED, 40, KINDS)
    assert {len(kinds) for kinds in drawn} == {2, 3}
    assert all(len(set(kinds)) == len(kinds) for kinds in drawn)
    often = Counter(kind for kinds in drawn for kind in kinds)
    assert set(often) == set(KINDS)
    assert max(often.values()) - min(often.values()) <= 2
    for number, kinds in enumerate(drawn):
        planned = plan(kinds, f"{SEED}-{number}", ROUND_S, 1.0, symbols(PAIRS), ["1m"])
        assert sorted(one.kind for one in planned) == sorted(kinds)
        begun_s = lead_s(kinds, ROUND_S)
        assert all(one.at_s + one.for_s <= begun_s + ENDED_BY * ROUND_S for one in planned)
        # What lags comes when the others begin.
        assert all(one.at_s + one.for_s > begun_s for one in planned)
