"""What a campaign found, fault by fault."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any

from scipy.stats import beta

from chaos.checker import Breach, Evidence
from chaos.faults import FAULTS, Fault
from chaos.journal import Claim, FaultStrike, WorkerLoss

COUNTS = (
    "strikes",
    "attempted",
    "accepted",
    "succeeded",
    "failed",
    "canceled",
    "innocent_failed",
    "lost",
    "duplicated",
    "to_tell",
    "told",
)
"""The counts of a row."""


@dataclass(frozen=True)
class History:
    """The injected faults, the lost workers, and the claims."""

    strikes: Sequence[FaultStrike]
    losses: Sequence[WorkerLoss]
    claims: Sequence[Claim]

    def fault_at(self, at: float) -> str:
        """The last fault that began before this time."""
        return max((strike for strike in self.strikes if strike.at <= at), key=lambda strike: strike.at).fault


@dataclass(frozen=True)
class Row:
    """One fault: the outcomes of requests that began during it, and the recovery times."""

    fault: str
    strikes: int
    attempted: int
    accepted: int
    succeeded: int
    failed: int
    canceled: int
    innocent_failed: int
    lost: int
    duplicated: int
    to_tell: int
    told: int
    recoveries: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """The row as it is recorded."""
        times = dict(zip(("p50", "p99", "max"), spread(self.recoveries), strict=False))
        bound = max_lost_share(self.lost, self.accepted)
        return {**asdict(self), "recoveries": len(self.recoveries), "lost_at_most": bound, **times}


def max_lost_share(lost: int, accepted: int) -> float:
    """The upper bound of the share of lost jobs, with 95 % confidence (Clopper & Pearson 1934, one-sided)."""
    return 1.0 if lost >= accepted else float(beta.ppf(0.95, lost + 1, accepted - lost))


def spread(seconds: Sequence[float]) -> tuple[float, ...]:
    """Median, 99th percentile and maximum; empty for no values."""
    if not seconds:
        return ()
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    return cuts[49], cuts[98], max(seconds)


def rows(
    evidence: Evidence, history: History, breaches: Iterable[Breach], faults: Sequence[Fault] = FAULTS
) -> list[Row]:
    """A row for each injected fault, in the order of `faults`, and one for all."""
    injected = [fault for fault in faults if any(strike.fault == fault.name for strike in history.strikes)]
    broken = list(breaches)
    rows = [_row(fault, evidence, history, broken) for fault in injected]
    return [*rows, _sum(rows)]


def _row(fault: Fault, evidence: Evidence, history: History, breaches: Sequence[Breach]) -> Row:
    keys = {one.key for one in evidence.entries if one.what == "attempted" and one.fault == fault.name}
    jobs = {job for job, key in evidence.accepted_jobs().items() if key in keys}
    ends = Counter(evidence.jobs[job].status for job in jobs & evidence.jobs.keys())
    to_tell = {job for job in jobs & evidence.jobs.keys() if evidence.jobs[job].submission.webhook}
    of = Counter(breach.kind for breach in breaches if breach.of in jobs or breach.of in keys)
    return Row(
        fault.name,
        len([strike for strike in history.strikes if strike.fault == fault.name]),
        len(keys),
        len(jobs),
        ends["succeeded"],
        ends["failed"],
        ends["canceled"],
        of["innocent failed"],
        of["lost"] + of["unfinished"],
        of["duplicated"],
        len(to_tell),
        len(to_tell & {one.job for one in evidence.messages if one.genuine}),
        tuple(_recoveries(fault, history)),
    )


def _sum(rows: Sequence[Row]) -> Row:
    totals = {name: sum(getattr(row, name) for row in rows) for name in COUNTS}
    return Row("all", **totals, recoveries=tuple(seconds for row in rows for seconds in row.recoveries))


def _recoveries(fault: Fault, history: History) -> Iterator[float]:
    again = fault.recovery == "claimed again"
    yield from _reclaim_times(fault, history) if again else _next_claims(fault, history)


def _next_claims(fault: Fault, history: History) -> Iterator[float]:
    """From the end of each injection to the next claim of any job."""
    claims = sorted(claim.at for claim in history.claims)
    for strike in history.strikes:
        index = bisect_right(claims, strike.over)
        if strike.fault == fault.name and index < len(claims):
            yield claims[index] - strike.over


def _reclaim_times(fault: Fault, history: History) -> Iterator[float]:
    """From the loss of each worker to the next claim of each of its jobs."""
    claims = {(claim.job, claim.claim): claim for claim in history.claims}
    lost = {loss.pid: loss.at for loss in reversed(history.losses) if history.fault_at(loss.at) == fault.name}
    for (job, number), claim in claims.items():
        after = claims.get((job, number + 1))
        if claim.pid in lost and after and after.at > lost[claim.pid]:
            yield after.at - lost[claim.pid]
