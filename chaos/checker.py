"""Goes over what a campaign left behind and tells every broken promise about accepted jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chaos.book import ClientEvent, ReceivedMessage
from chaos.processes import CLAIM
from touchstone.errors import Failure, WorkerLost
from touchstone.ledger.records import TERMINAL, Job
from touchstone.ledger.replies import Event
from touchstone.ledger.webhooks.deliveries import DeliveryRecord

Kind = Literal[
    "lost",
    "duplicated",
    "unfinished",
    "ended twice",
    "attempts",
    "backwards",
    "artifact",
    "stale",
    "broken",
    "untold",
    "mistold",
]
_ACCEPTED = ("200", "202")
_ALLOWED = (*_ACCEPTED, "", "429", "503", "507")
"""What a client may be told of a valid request while things fail; or nothing at all."""


@dataclass(frozen=True)
class Evidence:
    """Books, jobs, their events and deliveries as they stood in the end, and whether a blob is there with its
    content.
    """

    entries: Sequence[ClientEvent]
    jobs: Mapping[str, Job]
    events: Mapping[str, Sequence[Event]]
    is_intact: Callable[[str], bool]
    max_attempts: int = 3
    deliveries: Sequence[DeliveryRecord] = ()
    messages: Sequence[ReceivedMessage] = ()

    def accepted_jobs(self) -> dict[str, str]:
        """The key of each job that a client was told of."""
        return {entry.job: entry.key for entry in self.entries if _accepts(entry)}


@dataclass(frozen=True)
class Breach:
    """A promise that was broken, and of which job or key."""

    kind: Kind
    of: str
    text: str


def _accepts(entry: ClientEvent) -> bool:
    return entry.what == "answered" and entry.status in _ACCEPTED


def check(evidence: Evidence) -> list[Breach]:
    """Every breach; none is what the service promises."""
    found = [*_answers(evidence), *_lost(evidence), *_duplicates(evidence), *_ends_as_seen(evidence)]
    found += [*_strange_messages(evidence)]
    for job in evidence.jobs.values():
        found += _check_job(job, evidence)
    return found


def _answers(evidence: Evidence) -> Iterator[Breach]:
    for entry in evidence.entries:
        if entry.what == "answered" and entry.status not in _ALLOWED:
            yield Breach("broken", entry.key, f"a valid request was answered with {entry.status}")


def _lost(evidence: Evidence) -> Iterator[Breach]:
    for job, key in evidence.accepted_jobs().items():
        if job not in evidence.jobs:
            yield Breach("lost", job, f"the ledger does not know it, but {key} was answered with it")


def _duplicates(evidence: Evidence) -> Iterator[Breach]:
    told: dict[str, set[str]] = defaultdict(set)
    for job, key in evidence.accepted_jobs().items():
        told[key].add(job)
    for one in evidence.jobs.values():
        told[_key_of(one)].add(one.id)
    for key, jobs in told.items():
        if len(jobs) > 1:
            yield Breach("duplicated", key, f"it became {len(jobs)} jobs: {', '.join(sorted(jobs))}")


def _key_of(job: Job) -> str:
    """The client gives each request a seed of its own."""
    return f"key-{job.submission.seed}"


def _ends_as_seen(evidence: Evidence) -> Iterator[Breach]:
    for entry in evidence.entries:
        job = evidence.jobs.get(entry.job)
        if entry.what == "ended" and job and job.status != entry.status:
            text = f"a client saw it {entry.status}, and now it is {job.status}"
            yield Breach("ended twice", job.id, text)


def _check_job(job: Job, evidence: Evidence) -> Iterator[Breach]:
    events = evidence.events.get(job.id, ())
    if job.status not in TERMINAL:
        yield Breach("unfinished", job.id, f"it is still {job.status}")
    elif [event.type for event in events].count("completed") != 1 or events[-1].type != "completed":
        yield Breach("ended twice", job.id, "its events do not end with the one that says so")
    if job.attempts > evidence.max_attempts:
        yield Breach("attempts", job.id, f"it was tried {job.attempts} times")
    yield from _backwards(job, events)
    yield from _stale(job, events)
    yield from _artifacts(job, evidence)
    yield from _reason(job, evidence)
    yield from _messages(job, evidence)


def _backwards(job: Job, events: Sequence[Event]) -> Iterator[Breach]:
    done = 0
    for event in events:
        if event.type == "status":
            done = 0
        elif event.type == "progress":
            if event.data["done"] < done:
                yield Breach("backwards", job.id, f"progress went from {done} to {event.data['done']}")
            done = event.data["done"]


def _stale(job: Job, events: Sequence[Event]) -> Iterator[Breach]:
    """A claim that wrote after a later one, or whose result stands although a later one was given."""
    latest = 0
    for event in events:
        if event.type == "metric" and CLAIM in event.data:
            if event.data[CLAIM] < latest:
                yield Breach("stale", job.id, f"claim {event.data[CLAIM]:g} reported after {latest:g}")
            latest = max(latest, event.data[CLAIM])
    result: Mapping[str, Any] = job.result or {}
    if result.get(CLAIM, job.claims) != job.claims:
        text = f"the result is that of claim {result[CLAIM]}, but claim {job.claims} held the job"
        yield Breach("stale", job.id, text)


def _artifacts(job: Job, evidence: Evidence) -> Iterator[Breach]:
    if job.status == "succeeded" and not job.artifacts:
        yield Breach("artifact", job.id, "it succeeded and left nothing")
    for name, artifact in job.artifacts.items():
        if not evidence.is_intact(artifact.digest):
            yield Breach("artifact", job.id, f"{name} is missing or not what its digest says")


def _reason(job: Job, evidence: Evidence) -> Iterator[Breach]:
    code = job.error.code if job.error else None
    if job.status == "failed" and code in (None, Failure.code):
        yield Breach("broken", job.id, f"it failed for no reason that a user could act on: {code}")
    if code == WorkerLost.code and job.attempts < evidence.max_attempts:
        yield Breach("attempts", job.id, f"it was given up after {job.attempts} attempts")


def _strange_messages(evidence: Evidence) -> Iterator[Breach]:
    for one in evidence.messages:
        if not one.genuine:
            yield Breach("mistold", one.message, f"{one.path} got it without a good signature")
        elif one.job not in evidence.jobs:
            yield Breach("mistold", one.message, f"it tells of {one.job}, which nobody knows")


def _messages(job: Job, evidence: Evidence) -> Iterator[Breach]:
    """Who wanted to hear of the job's end is told at least once, always under one name; nobody else is."""
    deliveries = [one for one in evidence.deliveries if one.job == job.id]
    heard = [one for one in evidence.messages if one.job == job.id and one.genuine]
    wanted = int(job.submission.webhook is not None and job.status in TERMINAL)
    if len(deliveries) != wanted:
        yield Breach("untold", job.id, f"there are {len(deliveries)} deliveries of its end, not {wanted}")
    for delivery in deliveries:
        if delivery.status == "failed":
            yield Breach("untold", job.id, f"after {len(delivery.attempts)} attempts nobody will be told")
        elif delivery.status == "pending" and delivery.due_at is None:
            yield Breach("untold", job.id, "nobody will try again, though nobody was told")
        elif delivery.status == "delivered" and not heard:
            yield Breach("untold", job.id, "what counts as delivered was never heard")
    names = {delivery.id for delivery in deliveries}
    yield from (Breach("mistold", job.id, text) for one in heard if (text := _find_mistake(job, one, names)))


def _find_mistake(job: Job, message: ReceivedMessage, names: Collection[str]) -> str | None:
    if not (job.submission.webhook or "").endswith(message.path):
        return f"{message.path} was told of it, and had not asked"
    if message.message not in names:
        return f"it was told as {message.message}, and its delivery is {', '.join(names)}"
    if message.kind != f"job.{job.status}":
        return f"a receiver heard {message.kind}, and it is {job.status}"
    if job.finished_at is None or message.at < job.finished_at.timestamp():
        return "a receiver heard of its end before it ended"
    return None
