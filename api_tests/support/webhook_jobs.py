"""Jobs that end, those who are to be told of it, and what became of telling them."""

from __future__ import annotations

from typing import Any

from api_tests.support.wait import wait_until
from api_tests.support.webhook_receiver import Receiver
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job, Problem, Submission
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.deliveries import Delivery
from touchstone.ledger.webhooks.endpoints import JOB_EVENTS, Endpoint

SECRET = signatures.new_secret()


def listening(ledger: Ledger, receiver: Receiver, *events: Any, tenant: str = LOCAL) -> Endpoint:
    return Holdings.of(ledger, tenant).endpoints.add(
        receiver.url, events or JOB_EVENTS, description="", secret=SECRET
    )


def ended(ledger: Ledger, submission: Submission, status: Any = "succeeded") -> Job:
    job = ledger.accept(submission)[0]
    claimed = ledger.claim(job.id, "w1")
    assert claimed is not None
    error = Problem(code="out_of_memory", detail="No.") if status == "failed" else None
    assert ledger.finish(job.id, claimed.claims, status=status, result={"x": 1}, error=error)
    return ledger.read(job.id)


def settled(ledger: Ledger, job: str | None = None, count: int = 1) -> list[Delivery]:
    """All deliveries, once so many are no longer pending."""

    def look() -> list[Delivery]:
        found, _ = Holdings.of(ledger, LOCAL).deliveries.find(job=job)
        return found if sum(one.status != "pending" for one in found) >= count else []

    return wait_until(look)
