"""The short form of the fault campaign: no fault loses an accepted job."""

from __future__ import annotations

import pytest

from chaos import campaign, document, report
from chaos.checker import check
from chaos.faults import FAULTS


@pytest.mark.timeout(1200)
def test_no_accepted_job_is_lost_whatever_fails(tmp_path_factory: pytest.TempPathFactory) -> None:
    with campaign.site(tmp_path_factory.mktemp("c")) as site:
        campaign.run(site, FAULTS, report=print)
        evidence, history = campaign.gather(site), campaign.history(site.home)
        if breaches := check(evidence):
            print(*campaign.tracebacks(site.home), sep="\n")
    rows = {row.fault: row for row in report.rows(evidence, history, breaches)}
    print(document.campaign_table(row.record() for row in rows.values()))
    assert breaches == []
    assert sum(row.strikes for name, row in rows.items() if name.startswith("worker killed")) >= 100
    assert rows["ledger killed"].strikes >= 20
    assert set(rows) == {*(fault.name for fault in FAULTS), "all"}
    assert rows["all"].accepted > 100
    assert rows["all"].told == rows["all"].to_tell > 30
    assert report.spread(rows["all"].recoveries)[0] < 10
