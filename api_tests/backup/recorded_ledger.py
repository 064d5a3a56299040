"""Writes a small ledger and its blobs below a home, with whatever version of `touchstone` is imported.

`api_tests/backup/schema_0` was made from commit b453d73, which has no schemas, in a checkout of its own:

    PYTHONPATH=CHECKOUT python api_tests/backup/recorded_ledger.py HOME
    touchstone backup api_tests/backup/schema_0 --home HOME
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from touchstone.ledger.api_keys import KeyRequest
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.quotas import Quota
from touchstone.ledger.records import Artifact, ImageRef, JobFailure, ModelRef, Progress, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models import zoo
from touchstone.models.measurements import ModelProbe
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs, open_blobs
from touchstone.supervisor import valkey

OLD_WORKER = "worker-of-schema-0"
PNG = b"an image"
WEIGHTS = b"weights"
ADVERSARIAL = b"an adversarial image"


def write(ledger: Ledger, blobs: Blobs) -> None:
    """Jobs in every state, a model, a key, a quota, and a webhook with a delivery that waits."""
    model = next(iter(zoo.manifests().values()))
    submission = Submission(
        kind="attack",
        method="pgd",
        model=ModelRef(id=model.id, digest=model.digest),
        image=ImageRef(digest=blobs.put(PNG), width=8, height=8, channels=1),
        parameters={"norm": "linf", "eps": 8 / 255, "steps": 1},
    )
    local = TenantLedger.of(ledger, "local")
    local.endpoints.add("https://a.example/hook", ("job.succeeded",), description="", secret="s" * 32)

    first, _ = ledger.accept(submission, idempotency=("key", "digest"))
    claimed = ledger.claim(first.id, OLD_WORKER)
    assert claimed
    ledger.report(first.id, claimed.claims, Progress(done=1, total=1), {"loss": 0.5})
    file = Artifact(digest=blobs.put(ADVERSARIAL), media_type="image/png", size=len(ADVERSARIAL))
    ledger.finish(
        first.id,
        claimed.claims,
        status="succeeded",
        result={"outcome": "success"},
        artifacts={"adversarial.png": file},
    )
    failed, _ = ledger.accept(submission)
    claimed = ledger.claim(failed.id, OLD_WORKER)
    assert claimed
    problem = JobFailure(code="non_finite_output", detail="the model answered NaN")
    ledger.finish(failed.id, claimed.claims, status="failed", error=problem)
    canceled, _ = ledger.accept(submission)
    ledger.cancel(canceled.id)
    for _ in range(3):
        running, _ = ledger.accept(submission)
        assert ledger.claim(running.id, OLD_WORKER)
    ledger.accept(submission)
    ledger.accept(submission.model_copy(update={"tenant": "other"}))

    own = model.model_copy(update={"id": "mine", "digest": blobs.put(WEIGHTS)})
    local.versions.register(own, _probe(), size=len(WEIGHTS))
    ledger.keys.create(KeyRequest(name="first", scope="admin"))
    ledger.quotas.set("other", Quota(waiting=7))


def _probe() -> ModelProbe:
    return ModelProbe(
        measured_at=datetime(2026, 11, 30, tzinfo=UTC),
        device="cpu",
        torch="2.13.0",
        load_seconds=0.1,
        bytes=1544,
        frozen=True,
        rows=64,
        gradient_rate=4000.0,
        single_rate=2000.0,
        forward_rate=9000.0,
        batch_invariant=True,
        logits_difference=0.0,
        gradient_difference=0.0,
        softmax=False,
        deterministic=True,
        forward_ms=0.1,
        gradient_ms=0.2,
        row_bytes=4096,
        gradient_error=1e-4,
        gradient_tolerance=0.05,
        gradient_agrees=True,
    )


def main(home: Path) -> None:
    """Write below this home."""
    settings = Settings(home=home)
    server = valkey.start(home)
    ledger = Ledger(server.url, settings)
    try:
        write(ledger, open_blobs(settings))
    finally:
        ledger.close()
        server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
