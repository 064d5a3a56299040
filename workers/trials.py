"""Registrations: a user's model is tried in a separate process, away from the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from touchstone.evaluation.run import JobOutcome
from touchstone.ledger.records import Progress, Submission, Timings
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import ModelProbe
from touchstone.registration.messages import list_steps
from touchstone.registration.trial import Trial
from touchstone.settings import Settings
from workers.claimed_job import Cancelable
from workers.fair_lock import FairLock
from workers.spare_child import SpareChild


@dataclass(frozen=True)
class TrialOutcome:
    """A usable model: its manifest, its probe, and how long the trial took."""

    manifest: Manifest
    probe: ModelProbe
    seconds: float

    def job_outcome(self) -> JobOutcome:
        """The outcome of the job."""
        result = {"model": self.manifest.card(), "probe": self.probe.model_dump(mode="json")}
        return JobOutcome(result, {}, Timings(compute=self.seconds))


@dataclass(frozen=True)
class Trials:
    """Tries models one after the other, because each may take much of the machine's memory; waiting tenants
    take turns. After each, a process waits for the next.
    """

    lock: FairLock = field(default_factory=FairLock)
    spare: SpareChild = field(default_factory=SpareChild)

    def __call__(
        self,
        submission: Submission,
        read: Callable[[str], bytes],
        settings: Settings,
        *,
        started: Callable[[Cancelable], None],
        report: Callable[[Progress, dict[str, float]], None],
    ) -> TrialOutcome:
        """Blocks; raises the failures of `touchstone.registration.trial.Trial.run`. The files are read, by
        their digests, at its turn only.
        """
        examples = submission.examples
        total = len(list_steps(examples=examples is not None))

        def report_step(step: int) -> None:
            report(Progress(done=step, total=total), {})

        began = time.perf_counter()
        manifest = Manifest.model_validate(submission.parameters)
        trial = Trial(
            manifest, seconds=settings.probe_seconds, memory=settings.probe_memory, examples=examples
        )
        started(trial)
        with self.lock.wait_in_line(submission.tenant) as ticket:
            findings = trial.run(
                partial(read, submission.source),
                report_step,
                ticket,
                read_examples=partial(read, examples.digest) if examples else bytes,
                start=self.spare.take,
            )
        self.spare.prepare()
        report(Progress(done=total, total=total), {})
        return TrialOutcome(findings.complete_manifest(manifest), findings.probe, time.perf_counter() - began)
