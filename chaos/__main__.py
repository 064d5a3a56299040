"""`python -m chaos`: run a campaign, print its table, and record it on demand."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import save
from chaos import campaign, disk, document, report
from chaos.checker import Breach, check
from chaos.faults import FAULTS


def main() -> int:
    """The exit code is 1 if the checker found a violation."""
    arguments = _parse_arguments()
    faults = [fault for fault in FAULTS if arguments.only in fault.name]
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"The journals and logs of this campaign are in {home}")
    with (
        disk.mount_small_disk(home / "blobs") as small,
        campaign.site(home, workers=arguments.workers, lease=arguments.lease, hang=arguments.hang) as site,
    ):
        campaign.run(site, faults, scale=arguments.scale, report=print)
        evidence, history = campaign.gather(site), campaign.history(home)
        breaches = check(evidence)
    rows = report.rows(evidence, history, breaches)
    print(document.campaign_table(row.record() for row in rows))
    for breach in breaches:
        print(f"{breach.kind}: {breach.of}: {breach.text}")
    if arguments.record:
        save(document.CAMPAIGN, {"small_disk": small, **_record(arguments, rows, breaches)})
    return 1 if breaches else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument(
        "--scale", type=float, default=3.0, help="multiplies how often each fault is injected; CI uses 1"
    )
    parser.add_argument("--only", default="", help="inject only faults whose names contain this")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--lease", type=float, default=5.0, help="TOUCHSTONE_LEASE of the workers")
    parser.add_argument("--hang", type=float, default=5.0, help="TOUCHSTONE_HANG of the workers")
    parser.add_argument("--record", action="store_true", help="write the results to benchmarks/results")
    return parser.parse_args()


def _record(arguments: argparse.Namespace, rows: list[report.Row], breaches: list[Breach]) -> dict[str, Any]:
    return {
        "asked": {name: getattr(arguments, name) for name in ("scale", "workers", "lease", "hang")},
        "breaches": len(breaches),
        "rows": [row.record() for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
