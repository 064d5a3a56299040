"""The checker of the fault campaign finds each planted violation, and none in sound evidence."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chaos import document
from chaos.checker import Evidence, check
from chaos.faults import Fault
from chaos.journal import Claim, ClientEvent, FaultStrike, Journal, ReceivedMessage, WorkerLoss, read
from chaos.receiver import OTHERS, OWN, Receiver
from chaos.report import History, max_lost_share, rows, spread
from touchstone.ledger.records import Artifact, Job, JobFailure, Submission
from touchstone.ledger.replies import Event
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.deliveries import DeliveryRecord

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64
LOST = JobFailure(code="worker_lost", detail="all 3 workers that tried the job died or hung")


def events(*data: dict[str, Any]) -> list[Event]:
    kinds = {"done": "progress", "claim": "metric", "completed": "completed"}
    return [
        Event(f"{index}-0", next((kind for key, kind in kinds.items() if key in one), "status"), one)  # type: ignore[arg-type]
        for index, one in enumerate(data)
    ]


def running(attempts: int) -> dict[str, Any]:
    return {"status": "running", "attempts": attempts, "cancel_requested": False}


TWO_ATTEMPTS = (running(1), {"done": 1}, {"claim": 1}, running(2), {"done": 1}, {"claim": 2}, {"done": 2})
URL = f"http://127.0.0.1:9000{OWN}"
DELIVERY = DeliveryRecord(
    id="msg_1",
    type="job.succeeded",
    status="delivered",
    tenant="local",
    endpoint=None,
    url=URL,
    job="job-1",
    created_at=NOW,
    due_at=None,
    attempts=(),
)
RECEIVED = ReceivedMessage("msg_1", OWN, "job.succeeded", "job-1", at=NOW.timestamp() + 1)
ENDING = ({"status": "succeeded"}, {"completed": True})


@pytest.fixture
def evidence(submission: Submission) -> Evidence:
    """The evidence of one job that succeeded at its second attempt."""
    job = Job(
        id="job-1",
        version=9,
        status="succeeded",
        submission=submission.model_copy(update={"seed": 1, "webhook": URL}),
        created_at=NOW,
        finished_at=NOW,
        attempts=2,
        claims=2,
        result={"claim": 2},
        artifacts={"adversarial.png": Artifact(digest=DIGEST, media_type="image/png", size=3)},
    )
    entries = [
        ClientEvent("attempted", "key-1", "fire"),
        ClientEvent("answered", "key-1", "fire", ""),
        ClientEvent("answered", "key-1", "fire", "503"),
        ClientEvent("answered", "key-1", "fire", "202", "job-1"),
        ClientEvent("ended", "key-1", "fire", "succeeded", "job-1"),
    ]
    return Evidence(
        entries,
        {"job-1": job},
        {"job-1": events(*TWO_ATTEMPTS, *ENDING)},
        DIGEST.__eq__,
        deliveries=[DELIVERY],
        messages=[RECEIVED, replace(RECEIVED, at=RECEIVED.at + 1)],
    )


def with_job(evidence: Evidence, **fields: Any) -> Evidence:
    return replace(evidence, jobs={"job-1": evidence.jobs["job-1"].model_copy(update=fields)})


def with_events(evidence: Evidence, *data: dict[str, Any]) -> Evidence:
    return replace(evidence, events={"job-1": events(*data)})


def with_entries(evidence: Evidence, *more: ClientEvent) -> Evidence:
    return replace(evidence, entries=[*evidence.entries, *more])


def with_delivery(evidence: Evidence, **fields: Any) -> Evidence:
    return replace(evidence, deliveries=[DELIVERY.model_copy(update=fields)])


def with_received(evidence: Evidence, **fields: Any) -> Evidence:
    return replace(evidence, messages=[*evidence.messages, replace(RECEIVED, **fields)])


def with_duplicate_job(evidence: Evidence) -> Evidence:
    """One request became two jobs, of which the client saw one."""
    other = evidence.jobs["job-1"].model_copy(update={"id": "job-2"})
    return replace(
        evidence,
        jobs={**evidence.jobs, "job-2": other},
        events=dict.fromkeys(("job-1", "job-2"), evidence.events["job-1"]),
        deliveries=[DELIVERY, DELIVERY.model_copy(update={"job": "job-2"})],
    )


def without_webhook(evidence: Evidence) -> Evidence:
    submission = evidence.jobs["job-1"].submission.model_copy(update={"webhook": None})
    return with_job(replace(evidence, deliveries=[]), submission=submission)


def test_checker_finds_no_breach_in_sound_evidence(evidence: Evidence) -> None:
    assert check(evidence) == []


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("lost", lambda e: replace(e, jobs={})),
        ("lost", lambda e: with_entries(e, ClientEvent("answered", "key-2", "fire", "202", "job-2"))),
        ("duplicated", with_duplicate_job),
        ("duplicated", lambda e: with_entries(e, ClientEvent("answered", "key-1", "fire", "202", "job-2"))),
        ("unfinished", lambda e: with_job(e, status="running")),
        ("ended twice", lambda e: with_entries(e, ClientEvent("ended", "key-1", "fire", "failed", "job-1"))),
        ("ended twice", lambda e: with_events(e, *TWO_ATTEMPTS, *ENDING, *ENDING)),
        ("ended twice", lambda e: with_events(e, *TWO_ATTEMPTS, *ENDING, running(3))),
        ("ended twice", lambda e: with_events(e, *TWO_ATTEMPTS)),
        ("innocent failed", lambda e: with_job(e, status="failed", error=LOST)),
        ("backwards", lambda e: with_events(e, running(1), {"done": 2}, {"done": 1}, *ENDING)),
        ("artifact", lambda e: replace(e, is_intact=lambda _: False)),
        ("artifact", lambda e: with_job(e, artifacts={})),
        ("stale", lambda e: with_job(e, result={"claim": 1})),
        ("stale", lambda e: with_events(e, running(2), {"claim": 2}, {"claim": 1}, *ENDING)),
        ("broken", lambda e: with_entries(e, ClientEvent("answered", "key-2", "fire", "500"))),
        (
            "broken",
            lambda e: with_job(e, status="failed", error=JobFailure(code="internal_error", detail="?")),
        ),
        ("undelivered", lambda e: replace(e, deliveries=[])),
        ("undelivered", lambda e: replace(e, deliveries=[DELIVERY, DELIVERY])),
        ("undelivered", lambda e: replace(e, messages=[])),
        ("undelivered", lambda e: with_delivery(e, status="failed")),
        ("undelivered", lambda e: with_delivery(e, status="pending")),
        ("misdelivered", lambda e: with_delivery(e, id="msg_2")),
        ("misdelivered", lambda e: with_received(e, message="msg_2")),
        ("misdelivered", lambda e: with_received(e, genuine=False)),
        ("misdelivered", lambda e: with_received(e, job="job-2")),
        ("misdelivered", lambda e: with_received(e, path=OTHERS)),
        ("misdelivered", lambda e: with_received(e, kind="job.failed")),
        ("misdelivered", lambda e: with_received(e, at=NOW.timestamp() - 0.01)),
        ("misdelivered", without_webhook),
    ],
)
def test_checker_finds_each_planted_breach(
    evidence: Evidence, kind: str, plant: Callable[[Evidence], Evidence]
) -> None:
    assert kind in {breach.kind for breach in check(plant(evidence))}


def test_checker_accepts_progress_that_restarts_with_an_attempt(evidence: Evidence) -> None:
    assert check(with_events(evidence, running(1), {"done": 9}, running(2), {"done": 1}, *ENDING)) == []


def test_checker_accepts_a_delivery_that_is_still_due(evidence: Evidence) -> None:
    assert check(with_delivery(replace(evidence, messages=[]), status="pending", due_at=NOW)) == []


def test_receiver_distinguishes_genuine_messages_from_forged_ones(tmp_path: Path) -> None:
    receiver = Receiver(Journal(tmp_path / "received.jsonl"))
    receiver.secret = signatures.new_secret()
    body = json.dumps({"type": "job.failed", "data": {"id": "job-1"}}).encode()
    for secret in (receiver.secret, signatures.new_secret()):
        headers = signatures.build_headers("msg_1", round(time.time()), body, [secret])
        assert httpx2.post(receiver.url(), content=body, headers=headers).status_code in (204, 500)
    receiver.close()
    good, bad = read(tmp_path / "received.jsonl", ReceivedMessage)
    assert (good.message, good.path, good.kind, good.job, good.genuine) == (
        "msg_1",
        OWN,
        "job.failed",
        "job-1",
        True,
    )
    assert (bad.genuine, bad.job) == (False, "")


def test_report_counts_outcomes_and_times_recoveries(evidence: Evidence) -> None:
    again = Fault("fire", 1, lambda _: None, "claimed again")
    history = History(
        [FaultStrike("fire", 10, 11)],
        [WorkerLoss(pid=7, at=10.5)],
        [Claim("job-1", 1, 7, 10.0), Claim("job-1", 2, 8, 12.0), Claim("job-3", 1, 9, 11.25)],
    )
    one, total = rows(evidence, history, [], [again])
    assert (one.strikes, one.attempted, one.accepted, one.succeeded, one.lost) == (1, 1, 1, 1, 0)
    assert (one.to_tell, one.told) == (1, 1)
    assert one.recoveries == (1.5,)
    assert (total.fault, total.recoveries) == ("all", one.recoveries)
    assert rows(evidence, history, [], [replace(again, recovery="next claim")])[0].recoveries == (0.25,)
    line = "| fire | 1 | 1 | 1 | 1 | 0 | 0 | 0 | 0 | 95.00 % | 0 | 1 | 1 | 1 | 1.500 | 1.500 | 1.500 |"
    assert line in document.campaign_table([one.record()])


def test_report_counts_a_lost_job(evidence: Evidence) -> None:
    evidence = replace(evidence, jobs={}, events={})
    fire = Fault("fire", 1, lambda _: None)
    [row, _] = rows(evidence, History([FaultStrike("fire", 1, 2)], [], []), check(evidence), [fire])
    assert (row.accepted, row.succeeded, row.lost) == (1, 0, 1)


def test_upper_bound_on_losses_follows_the_rule_of_three() -> None:
    assert max_lost_share(0, 1000) == pytest.approx(3 / 1000, rel=0.01)
    assert max_lost_share(0, 0) == 1
    assert max_lost_share(10, 10) == 1
    assert spread([]) == ()
    assert spread([2.0]) == (2.0, 2.0, 2.0)


def test_document_matches_the_recorded_campaign() -> None:
    text = document.DOCUMENT.read_text()
    assert document.update_tables(text) == text, "run `python -m chaos.document`"
    assert "python -m chaos.promises" in text
