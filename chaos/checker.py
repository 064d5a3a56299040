"""Finds every violation of a guarantee in the evidence of a campaign."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chaos.journal import ClientEvent, ReceivedMessage
from chaos.processes import CLAIM
from chaos.traps import is_poison
from touchstone.errors import Failure, WorkerLost
from touchstone.ledger.records import TERMINAL, Job
from touchstone.ledger.replies import Event
from touchstone.ledger.webhooks.deliveries import DeliveryRecord

Kind = Literal[
    "lost",
    "duplicated",
    "unfinished",
    "ended twice",
    "innocent failed",
    "backwards",
    "artifact",
    "stale",
    "broken",
    "undelivered",
    "misdelivered",
]
_ACCEPTED = ("200", "202")
_ALLOWED = (*_ACCEPTED, "", "429", "503", "507")
"""Statuses that a valid request may get during faults; empty if no response came."""


@dataclass(frozen=True)
class Evidence:
    """What clients saw; the jobs, their events and deliveries after the campaign; and whether a blob is
    intact.
    """

    entries: Sequence[ClientEvent]
    jobs: Mapping[str, Job]
    events: Mapping[str, Sequence[Event]]
    is_intact: Callable[[str], bool]
    deliveries: Sequence[DeliveryRecord] = ()
    messages: Sequence[ReceivedMessage] = ()

    def accepted_jobs(self) -> dict[str, str]:
        """The key of each job whose acceptance a client saw."""
        return {entry.job: entry.key for entry in self.entries if _accepts(entry)}


@dataclass(frozen=True)
class Breach:
    """A violation of a guarantee, and the job or key that it concerns."""

    kind: Kind
    of: str
    text: str


def _accepts(entry: ClientEvent) -> bool:
    return entry.what == "answered" and entry.status in _ACCEPTED


def check(evidence: Evidence) -> list[Breach]:
    """Every violation; the service promises that there is none."""
    found = [
        *_find_bad_responses(evidence),
        *_find_lost(evidence),
        *_find_duplicates(evidence),
        *_find_changed_ends(evidence),
    ]
    found += [*_find_unknown_messages(evidence)]
    for job in evidence.jobs.values():
        found += _check_job(job, evidence)
    return found


def _find_bad_responses(evidence: Evidence) -> Iterator[Breach]:
    for entry in evidence.entries:
        if entry.what == "answered" and entry.status not in _ALLOWED:
            yield Breach("broken", entry.key, f"a valid request was answered with {entry.status}")


def _find_lost(evidence: Evidence) -> Iterator[Breach]:
    for job, key in evidence.accepted_jobs().items():
        if job not in evidence.jobs:
            yield Breach("lost", job, f"it is not in the ledger, but was the response to {key}")


def _find_duplicates(evidence: Evidence) -> Iterator[Breach]:
    jobs_of: dict[str, set[str]] = defaultdict(set)
    for job, key in evidence.accepted_jobs().items():
        jobs_of[key].add(job)
    for one in evidence.jobs.values():
        jobs_of[_key_of(one)].add(one.id)
    for key, jobs in jobs_of.items():
        if len(jobs) > 1:
            yield Breach("duplicated", key, f"it became {len(jobs)} jobs: {', '.join(sorted(jobs))}")


def _key_of(job: Job) -> str:
    """Each request of a client has its own seed."""
    return f"key-{job.submission.seed}"


def _find_changed_ends(evidence: Evidence) -> Iterator[Breach]:
    for entry in evidence.entries:
        job = evidence.jobs.get(entry.job)
        if entry.what == "ended" and job and job.status != entry.status:
            text = f"a client saw it {entry.status}, but it is {job.status}"
            yield Breach("ended twice", job.id, text)


def _check_job(job: Job, evidence: Evidence) -> Iterator[Breach]:
    events = evidence.events.get(job.id, ())
    if job.status not in TERMINAL:
        yield Breach("unfinished", job.id, f"it is still {job.status}")
    elif [event.type for event in events].count("completed") != 1 or events[-1].type != "completed":
        yield Breach("ended twice", job.id, "its last event is not its only `completed`")
    yield from _find_backward_progress(job, events)
    yield from _find_stale_writes(job, events)
    yield from _find_broken_artifacts(job, evidence)
    yield from _find_unexplained_failure(job)
    yield from _find_message_mistakes(job, evidence)


def _find_backward_progress(job: Job, events: Sequence[Event]) -> Iterator[Breach]:
    done = 0
    for event in events:
        if event.type == "status":
            done = 0
        elif event.type == "progress":
            if event.data["done"] < done:
                yield Breach("backwards", job.id, f"progress went from {done} to {event.data['done']}")
            done = event.data["done"]


def _find_stale_writes(job: Job, events: Sequence[Event]) -> Iterator[Breach]:
    """A claim that wrote after a later one, or whose result stands although a later one was given."""
    latest = 0
    for event in events:
        if event.type == "metric" and CLAIM in event.data:
            if event.data[CLAIM] < latest:
                yield Breach("stale", job.id, f"claim {event.data[CLAIM]:g} reported after {latest:g}")
            latest = max(latest, event.data[CLAIM])
    result: Mapping[str, Any] = job.result or {}
    if result.get(CLAIM, job.claims) != job.claims:
        text = f"the result is from claim {result[CLAIM]}, but the last claim is {job.claims}"
        yield Breach("stale", job.id, text)


def _find_broken_artifacts(job: Job, evidence: Evidence) -> Iterator[Breach]:
    if job.status == "succeeded" and not job.artifacts:
        yield Breach("artifact", job.id, "it succeeded without files")
    for name, artifact in job.artifacts.items():
        if not evidence.is_intact(artifact.digest):
            yield Breach("artifact", job.id, f"{name} is missing or does not match its digest")


def _find_unexplained_failure(job: Job) -> Iterator[Breach]:
    code = job.error.code if job.error else None
    if job.status == "failed" and code in (None, Failure.code):
        yield Breach("broken", job.id, f"it failed without a reason that a user can act on: {code}")
    if code == WorkerLost.code and not is_poison(job.submission.seed):
        yield Breach("innocent failed", job.id, f"it failed after {job.strikes} losses alone")


def _find_unknown_messages(evidence: Evidence) -> Iterator[Breach]:
    for one in evidence.messages:
        if not one.genuine:
            yield Breach("misdelivered", one.message, f"{one.path} received it without a valid signature")
        elif one.job not in evidence.jobs:
            yield Breach("misdelivered", one.message, f"it is about {one.job}, which does not exist")


def _find_message_mistakes(job: Job, evidence: Evidence) -> Iterator[Breach]:
    """The end of a job is delivered to its webhook at least once, always with one id, and to no other
    receiver.
    """
    deliveries = [one for one in evidence.deliveries if one.job == job.id]
    received = [one for one in evidence.messages if one.job == job.id and one.genuine]
    wanted = int(job.submission.webhook is not None and job.status in TERMINAL)
    if len(deliveries) != wanted:
        yield Breach(
            "undelivered", job.id, f"there are {len(deliveries)} deliveries of its end, not {wanted}"
        )
    for delivery in deliveries:
        if delivery.status == "failed":
            yield Breach(
                "undelivered", job.id, f"its delivery failed after {len(delivery.attempts)} attempts"
            )
        elif delivery.status == "pending" and delivery.due_at is None:
            yield Breach("undelivered", job.id, "its pending delivery is never due")
        elif delivery.status == "delivered" and not received:
            yield Breach("undelivered", job.id, "its delivery counts as delivered but was not received")
    ids = {delivery.id for delivery in deliveries}
    yield from (
        Breach("misdelivered", job.id, text) for one in received if (text := _find_mistake(job, one, ids))
    )


def _find_mistake(job: Job, message: ReceivedMessage, ids: Collection[str]) -> str | None:
    if not (job.submission.webhook or "").endswith(message.path):
        return f"{message.path} received it without being its webhook"
    if message.message not in ids:
        return f"it was received as {message.message}, but its delivery is {', '.join(ids)}"
    if message.kind != f"job.{job.status}":
        return f"a receiver got {message.kind}, but it is {job.status}"
    if job.finished_at is None or message.at < job.finished_at.timestamp():
        return "a receiver got its end before it ended"
    return None
