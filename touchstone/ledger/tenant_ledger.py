"""The ledger as one tenant sees it, without what belongs to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from touchstone.errors import UnknownJob, UnreadableJob
from touchstone.ledger.model_versions import ModelVersions
from touchstone.ledger.probes import Probes
from touchstone.ledger.quotas import NO_USAGE, QuotaUsage
from touchstone.ledger.records import Job, JobKind, Status, Submission
from touchstone.ledger.replies import Cancellation, Event, JobPage, QueueState
from touchstone.ledger.search import Filters, Finder
from touchstone.ledger.webhooks.deliveries import Deliveries
from touchstone.ledger.webhooks.endpoints import Endpoints
from touchstone.ledger.workers import Workers

if TYPE_CHECKING:
    from touchstone.ledger.ledger import Ledger


@dataclass(frozen=True)
class TenantLedger:
    """Jobs and registered models of one tenant; a job of another raises `UnknownJob`.

    The owner of a job never changes, so it can be checked before anything is done with the job.
    """

    tenant: str
    versions: ModelVersions
    endpoints: Endpoints
    deliveries: Deliveries
    workers: Workers
    """Those of all tenants, as are `probes`."""
    probes: Probes
    _ledger: Ledger
    _finder: Finder

    @classmethod
    def of(cls, ledger: Ledger, tenant: str) -> TenantLedger:
        """The ledger as this tenant sees it."""
        client, scripts, finder = ledger.client, ledger.scripts, ledger.finder
        return cls(
            tenant,
            ModelVersions(client, scripts, ledger.large_values, tenant),
            Endpoints(client, scripts, tenant),
            Deliveries(client, scripts, finder, tenant),
            ledger.workers,
            ledger.probes,
            ledger,
            finder,
        )

    def accept(
        self,
        submission: Submission,
        *,
        idempotency: tuple[str, str] | None = None,
        usage: QuotaUsage = NO_USAGE,
    ) -> tuple[Job, bool]:
        """See `Ledger.accept`; this tenant becomes the owner."""
        return self._ledger.accept(self._with_tenant(submission), idempotency=idempotency, usage=usage)

    def check(
        self,
        submission: Submission,
        *,
        idempotency: tuple[str, str] | None = None,
        usage: QuotaUsage = NO_USAGE,
    ) -> None:
        """See `Ledger.check`."""
        self._ledger.check(self._with_tenant(submission), idempotency=idempotency, usage=usage)

    def check_storage(self, size: int) -> None:
        """See `Quotas.check_storage`."""
        self._ledger.quotas.check_storage(self.tenant, size)

    def storage(self) -> tuple[int, int | None]:
        """Bytes that jobs and models hold, and the quota of them."""
        quotas = self._ledger.quotas
        return quotas.stored_bytes(self.tenant), quotas.of(self.tenant).storage

    def _with_tenant(self, submission: Submission) -> Submission:
        return submission.model_copy(update={"tenant": self.tenant})

    def read(self, job: str) -> Job:
        """The job in its present state."""
        try:
            found = self._ledger.read(job)
        except UnreadableJob:
            self._check_owner(job)
            raise
        if found.submission.tenant != self.tenant:
            raise UnknownJob.for_id(job)
        return found

    def find(
        self,
        *,
        status: Status | None = None,
        kind: JobKind | None = None,
        method: str | None = None,
        model: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """Jobs that match every filter, newest first; those accepted at `since` are included, at `until` not.

        A page of a filter with few matches may end early, with a cursor to continue: no call reads more than
        ten thousand jobs.
        """
        filters = Filters(self.tenant, status, kind, method, model, since, until)
        return self._finder.find(filters, limit, cursor)

    def cancel(self, job: str) -> Job:
        """See `Ledger.cancel`."""
        return self._ledger.cancel(self._check_owner(job))

    def cancel_all(self, jobs: Sequence[str]) -> list[Cancellation]:
        """See `Ledger.cancel_all`."""
        tenants = self._ledger.tenants(jobs)
        own = [job for job in jobs if tenants.get(job) == self.tenant]
        answers = {answer.id: answer for answer in self._ledger.cancel_all(own)}
        return [answers.get(job) or Cancellation(job, None, UnknownJob.for_id(job)) for job in jobs]

    def delete(self, job: str) -> None:
        """See `Ledger.delete`."""
        self._ledger.delete(self._check_owner(job))

    def events(self, job: str, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        """See `Ledger.events`."""
        return self._ledger.events(self._check_owner(job), after=after, limit=limit)

    def count_ahead(self, job: str) -> int:
        """See `Ledger.count_ahead`."""
        return self._ledger.count_ahead(self._check_owner(job))

    def count_by_status(self) -> dict[Status, int]:
        """How many jobs there are in each status."""
        return self._ledger.count_by_status(self.tenant)

    def queue(self) -> QueueState:
        """How many jobs wait, and for how long."""
        return self._ledger.queue(self.tenant)

    def _check_owner(self, job: str) -> str:
        if self._ledger.tenants([job]).get(job) != self.tenant:
            raise UnknownJob.for_id(job)
        return job
