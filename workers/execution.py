"""What a worker runs for a claimed job: the job on the engine, or a model's trial and registration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from touchstone.errors import JobCanceled
from touchstone.evaluation.certificate_result import pool_key
from touchstone.evaluation.run import JobOutcome
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Progress, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RegistrationProbe, RemoteProbe
from touchstone.models.store import ModelStore
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs
from workers.claimed_job import Cancelable, ClaimedJob
from workers.retries import Retries
from workers.trials import Trials


class RunJob(Protocol):
    """Runs one job to its end; `touchstone.evaluation.run.run_job` bound to an engine is one."""

    def __call__(
        self,
        submission: Submission,
        png: bytes,
        *,
        deadline: float | None,
        started: Callable[[Cancelable], None],
        report: Callable[[Progress, dict[str, float]], None],
        prior: dict[str, Any] | None,
    ) -> JobOutcome:
        """Blocks; raises `Failure`."""


@dataclass(frozen=True)
class Execution:
    """Runs claimed jobs: from the claim to what the job leaves, before anything of that is stored."""

    ledger: Ledger
    blobs: Blobs
    run: RunJob
    settings: Settings
    store: ModelStore
    trials: Trials
    retry: Retries

    def __call__(self, claimed: ClaimedJob) -> JobOutcome:
        """Blocks; raises the failures of the job."""
        registers = claimed.job.submission.kind == "registration"
        return self._run_registration(claimed) if registers else self._run_pooled(claimed)

    def _run_pooled(self, claimed: ClaimedJob) -> JobOutcome:
        """Run the job, starting from the counts of earlier jobs with the same question, and store its counts
        for the next.
        """
        submission = claimed.job.submission
        pool = pool_key(submission, self.store)
        if pool is None:
            return self._run(claimed, submission, None)
        known = self.retry(lambda: self.ledger.count_pools.read(pool, submission.seed))
        outcome = self._run(claimed, submission.model_copy(update={"seed": known.seed}), known.counts)
        if counts := outcome.counts:
            self.retry(lambda: self.ledger.count_pools.extend(pool, counts))
        return outcome

    def _run_registration(self, claimed: ClaimedJob) -> JobOutcome:
        """Try a model, and register it unless the job was stopped meanwhile."""
        submission = claimed.job.submission
        manifest = Manifest.model_validate(submission.parameters)
        if manifest.kind == "remote":
            return self._run_remote_registration(claimed, manifest)
        outcome = self.trials(
            submission, self.blobs.get, self.settings, started=claimed.add_task, report=claimed.report
        )
        self._register(claimed, outcome.manifest, outcome.probe, size=self.blobs.size(submission.source))
        self.retry(lambda: self.ledger.probes.store(outcome.manifest.digest, outcome.probe))
        return outcome.job_outcome()

    def _run_remote_registration(self, claimed: ClaimedJob, manifest: Manifest) -> JobOutcome:
        """The same for a remote model, which the engine queries."""
        outcome = self._run(claimed, claimed.job.submission, None)
        self._register(claimed, manifest, RemoteProbe.model_validate(outcome.result["probe"]))
        return outcome

    def _register(
        self, claimed: ClaimedJob, manifest: Manifest, probe: RegistrationProbe, *, size: int = 0
    ) -> None:
        versions = TenantLedger.of(self.ledger, claimed.job.submission.tenant).versions
        claim = claimed.job.id, claimed.job.claims
        if claimed.stop_reason or not self.retry(
            lambda: versions.register(manifest, probe, size=size, claim=claim)
        ):
            raise JobCanceled("the job was canceled")

    def _run(self, claimed: ClaimedJob, submission: Submission, prior: dict[str, Any] | None) -> JobOutcome:
        return self.run(
            submission,
            self.blobs.get(submission.source),
            deadline=submission.deadline or self.settings.deadline,
            started=claimed.add_task,
            report=claimed.report,
            prior=prior,
        )
