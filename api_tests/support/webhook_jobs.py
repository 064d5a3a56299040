"""Jobs that end, endpoints for their webhooks, and the deliveries."""

from __future__ import annotations

from typing import Any

from api_tests.support.wait import wait_until
from api_tests.support.webhook_receiver import Receiver
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job, JobFailure, Submission
from touchstone.ledger.scripts import script_source
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.deliveries import DeliveryRecord
from touchstone.ledger.webhooks.endpoints import JOB_EVENTS, WebhookEndpoint

SECRET = signatures.new_secret()


def add_endpoint(ledger: Ledger, receiver: Receiver, *events: Any, tenant: str = LOCAL) -> WebhookEndpoint:
    return TenantLedger.of(ledger, tenant).endpoints.add(
        receiver.url, events or JOB_EVENTS, description="", secret=SECRET
    )


def finish_job(ledger: Ledger, submission: Submission, status: Any = "succeeded") -> Job:
    job = ledger.accept(submission)[0]
    claimed = ledger.claim(job.id, "w1")
    assert claimed is not None
    error = JobFailure(code="out_of_memory", detail="No.") if status == "failed" else None
    assert ledger.finish(job.id, claimed.claims, status=status, result={"x": 1}, error=error)
    return ledger.read(job.id)


def write_pings(ledger: Ledger, tenant: str, urls: str, count: int) -> None:
    """Write due pings of a tenant to so many URLs, with their numbers for %d, in one step."""
    library = script_source("webhooks/withdraw").rpartition("local tenant, id")[0]
    write = """
        local tenant, urls, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
        for i = 1, count do
          deliver('msg_' .. tenant .. i, tenant, '', string.format(urls, i), PING, '', now() - count + i)
        end
    """
    ledger.client.eval(library + write, 0, tenant, urls, count)


def wait_for_deliveries(ledger: Ledger, job: str | None = None, count: int = 1) -> list[DeliveryRecord]:
    """Wait until so many deliveries are no longer pending; returns all."""

    def find_settled() -> list[DeliveryRecord]:
        found, _ = TenantLedger.of(ledger, LOCAL).deliveries.find(job=job)
        return found if sum(one.status != "pending" for one in found) >= count else []

    return wait_until(find_settled)
