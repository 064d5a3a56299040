"""Registrations: a user's model is tried in a process of its own, away from the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from touchstone.evaluation.run import Finished
from touchstone.ledger.records import Progress, Submission, Timings
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Examined
from touchstone.registration.messages import STEPS
from touchstone.registration.trial import Trial
from touchstone.settings import Settings
from workers.claimed_job import Cancelable
from workers.fair_lock import Turns


@dataclass(frozen=True)
class Tried:
    """A model that can be used: its card, what was found out about it, and how long that took."""

    card: Manifest
    examined: Examined
    seconds: float

    def finished(self) -> Finished:
        """What the job leaves."""
        result = {"model": self.card.card(), "probe": self.examined.model_dump(mode="json")}
        return Finished(result, {}, Timings(compute=self.seconds))


@dataclass(frozen=True)
class Trials:
    """Tries models, one after the other, because each may take much of the machine's memory; tenants that
    wait take turns.
    """

    turns: Turns = field(default_factory=Turns)

    def __call__(
        self,
        submission: Submission,
        read: Callable[[], bytes],
        settings: Settings,
        *,
        started: Callable[[Cancelable], None],
        report: Callable[[Progress, dict[str, float]], None],
    ) -> Tried:
        """Blocks; raises the failures of `Trial.run`. The file is not read before its turn."""

        def begun(step: int) -> None:
            report(Progress(done=step, total=len(STEPS)), {})

        began = time.perf_counter()
        card = Manifest.model_validate(submission.parameters)
        trial = Trial(card, seconds=settings.probe_seconds, memory=settings.probe_memory)
        started(trial)
        with self.turns.stand_in_line(submission.tenant) as turn:
            findings = trial.run(read, begun, turn)
        report(Progress(done=len(STEPS), total=len(STEPS)), {})
        return Tried(findings.completed(card), findings.examined, time.perf_counter() - began)
