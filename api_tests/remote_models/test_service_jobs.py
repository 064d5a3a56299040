"""Remote models, from their registration to jobs on them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from api_tests.support import remote_models
from api_tests.support.fake_service import Api, assert_problem, png
from api_tests.support.remote_models import CLASSES, FakeRemoteModel
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from service.openapi import examples
from service.state.backend import check_concurrency
from touchstone.check import check
from touchstone.engine import Engine, RemoteAccess
from touchstone.errors import AddressRefused, InvalidParameter, ModelConflict, UnknownModel
from touchstone.evaluation.local import canonicalize
from touchstone.evaluation.run import run_job
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job, ModelRef, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.measurements import RemoteProbe
from touchstone.net.outbound import OutboundClient
from touchstone.registration.request import Registration
from touchstone.registration.submission import prepare_remote
from touchstone.settings import Settings, read_secret
from touchstone.storage.blobs import digest_of, open_blobs
from touchstone.storage.model_store import RegisteredStore
from workers.lease_keeper import LeaseKeeper
from workers.runner import Runner

OUTGOING = OutboundClient("127.0.0.1")
REMOTE_PROBE = RemoteProbe(
    measured_at=datetime(2026, 1, 1, tzinfo=UTC),
    queries=5,
    query_seconds=0.01,
    deterministic=True,
    repeat_difference=0,
    batch_invariant=True,
    batch_difference=0,
    decisions_only=False,
)


def make_registration(model: FakeRemoteModel, **remote_fields: Any) -> Registration:
    defaults = {
        "url": model.url,
        "protocol": "json",
        "answers": "logits",
        **remote_models.BATCH_TEMPLATE,
        "batch": 64,
    }
    return Registration.parse(
        {
            "id": "far-away",
            "classes": CLASSES,
            "input": {"height": 8, "width": 8, "interpolation": "bilinear"},
            "remote": {**defaults, **remote_fields},
        }
    )


class InProcessWorker:
    """A worker in this process that may query the loopback."""

    def __init__(self, settings: Settings) -> None:
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.blobs = open_blobs(settings)
        self.registry = RegisteredStore(self.ledger, self.blobs)
        remote_access = RemoteAccess(OUTGOING, self.ledger.query_budget, read_secret)
        self.engine = Engine("cpu", store=self.registry, remote_access=remote_access)
        keeper = LeaseKeeper("w1", self.ledger, self.engine, settings, give_up=lambda _: None)
        answer = partial(run_job, engine=self.engine)
        self.runner = Runner(self.ledger, self.blobs, keeper, answer, settings, self.registry)
        self.keeper = keeper
        keeper.start()

    def close(self) -> None:
        self.keeper.close()
        self.engine.stop()
        self.ledger.close()

    def run(self, submission: Submission, data: bytes) -> Job:
        self.blobs.put(data)
        job = self.ledger.accept(submission)[0].id
        self.runner(job)
        return self.ledger.read(job)

    def run_on_image(self, kind: str, method: str, tenant: str = LOCAL, **parameters: Any) -> Job:
        card = self.registry.of(tenant).manifest("far-away")
        file, image = canonicalize(png(8, 8))
        model = ModelRef(id=card.id, digest=card.digest)
        submission = Submission(
            kind=kind,  # type: ignore[arg-type]
            method=method,
            model=model,
            image=image,
            parameters=parameters,
            tenant=tenant,
        )
        return self.run(submission, file)


@pytest.fixture
def model() -> Iterator[FakeRemoteModel]:
    with remote_models.serve_model() as model:
        yield model


@pytest.fixture
def worker(settings: Settings) -> Iterator[InProcessWorker]:
    worker = InProcessWorker(settings)
    yield worker
    worker.close()


def test_registered_remote_model_serves_jobs_and_every_query_is_counted(
    worker: InProcessWorker, model: FakeRemoteModel
) -> None:
    submission, data = prepare_remote(make_registration(model, budget=3000), OUTGOING)
    assert submission.file == submission.model.digest == digest_of(data)
    done = worker.run(submission, data)
    assert done.status == "succeeded", done.error
    assert done.result is not None
    assert done.result["model"]["kind"] == "remote"
    assert done.result["probe"]["deterministic"] is True
    card = worker.registry.manifest("far-away")
    assert card.digest == submission.model.digest
    assert worker.registry.registration_probe(card) == RemoteProbe.model_validate(done.result["probe"])

    seen = worker.run_on_image("prediction", "predict", top=2)
    assert seen.status == "succeeded", seen.error
    proved = worker.run_on_image("certificate", "smoothing", n=500, sigma=0.05)
    assert proved.result is not None
    job = json.loads(proved.model_dump_json())
    assert [one for one in check({**job, **job["submission"]}) if not one.agrees] == []
    queries = [(one.result or {})["queries"]["forward"] for one in (seen, proved)]
    assert sum(queries) + done.result["probe"]["queries"] == model.rows
    assert worker.ledger.query_budget.read_spent([card.digest])[card.digest] == model.rows


def test_unreachable_remote_model_is_not_registered(worker: InProcessWorker, model: FakeRemoteModel) -> None:
    submission, data = prepare_remote(make_registration(model), OUTGOING)
    model.action = remote_models.reply_with(404)
    done = worker.run(submission, data)
    assert (done.status, done.error and done.error.code) == ("failed", "remote_answer")
    with pytest.raises(UnknownModel):
        worker.registry.manifest("far-away")


def test_secret_is_not_sent_for_a_tenant_that_may_not_use_it(
    worker: InProcessWorker, model: FakeRemoteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", "swordfish")
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_HOSTS", "127.0.0.1")
    submission, data = prepare_remote(make_registration(model, secret="ACME"), OUTGOING, "team-a")
    submission = submission.model_copy(update={"tenant": "team-a"})
    refused = worker.run(submission, data)
    assert (refused.status, refused.error and refused.error.code) == ("failed", "model_unusable")
    assert refused.error is not None
    assert "the secret ACME is not for the tenant team-a" in refused.error.detail
    assert model.requests == 0
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_TENANTS", "team-a")
    assert worker.run(submission, data).status == "succeeded"
    before = model.requests
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_TENANTS", "local")
    done = worker.run_on_image("prediction", "predict", tenant="team-a", top=2)
    assert (done.status, done.error and done.error.code) == ("failed", "model_unusable")
    assert model.requests == before


def test_worker_refuses_gradient_attack_on_remote_model(
    worker: InProcessWorker, model: FakeRemoteModel
) -> None:
    worker.run(*prepare_remote(make_registration(model), OUTGOING))
    before = model.rows
    done = worker.run_on_image("attack", "pgd")
    assert (done.status, done.error and done.error.code) == ("failed", "gradient_refused")
    assert model.rows == before


def test_remote_version_digest_depends_only_on_its_manifest(model: FakeRemoteModel) -> None:
    manifest, data = make_registration(model).build_remote_manifest(LOCAL)
    assert make_registration(model).build_remote_manifest(LOCAL) == (manifest, data)
    assert make_registration(model, rate=5).build_remote_manifest(LOCAL)[0].digest != manifest.digest
    assert manifest.digest.encode() not in data


def test_contradictory_remote_registrations_are_refused(model: FakeRemoteModel) -> None:
    both = make_registration(model)
    with pytest.raises(InvalidParameter, match="either a file or a remote model"):
        both.build_manifest("sha256:" + "0" * 64, "onnx")
    without = both.model_copy(update={"remote": None})
    with pytest.raises(InvalidParameter, match="give the address"):
        without.build_remote_manifest(LOCAL)
    with pytest.raises(ModelConflict):
        prepare_remote(both.model_copy(update={"id": "fashion-mnist-cnn"}), OUTGOING)
    with pytest.raises(AddressRefused):
        prepare_remote(both, OutboundClient())


@pytest.fixture
def registered(api: Api, model: FakeRemoteModel) -> Iterator[Api]:
    card, _ = make_registration(model, secret="ACME").build_remote_manifest(LOCAL)
    TenantLedger.of(api.ledger, LOCAL).versions.register(card, REMOTE_PROBE)
    yield api
    TenantLedger.of(api.ledger, LOCAL).versions.delete("far-away")


def test_gradient_attack_on_remote_model_is_refused_at_submission(registered: Api) -> None:
    answer = registered.submit(wait=None, model="far-away")
    problem = assert_problem(answer, 422, "gradient_refused", "model")
    assert "black-box" in problem["detail"]
    cost = registered.client.get("/v1/attacks/pgd/cost", params={"model": "far-away"})
    assert_problem(cost, 422, "gradient_refused", "model")


def test_remote_model_card_names_its_secret_but_does_not_show_it(
    registered: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", "swordfish")
    response = registered.client.get("/v1/models/far-away")
    card = response.json()
    assert (card["kind"], card["remote"]["secret"]) == ("remote", "ACME")
    assert card["probe"]["queries"] == 5
    assert "swordfish" not in response.text


def test_certificates_on_png_remote_model_are_refused_at_submission(api: Api, model: FakeRemoteModel) -> None:
    request = {"x": "$image_png_base64"}
    card, _ = make_registration(model, request=request, answer="scores", batch=1).build_remote_manifest(LOCAL)
    TenantLedger.of(api.ledger, LOCAL).versions.register(card, REMOTE_PROBE)
    for path, fields in (("certificates/smoothing", {}), ("predictions", {"defence": "smoothing"})):
        files, data = {"image": ("a.png", png())}, {"model": "far-away", **fields}
        problem = assert_problem(
            api.client.post(f"/v1/{path}", files=files, data=data), 422, "invalid_parameter", "model"
        )
        assert "8-bit" in problem["detail"]


def test_slow_host_name_lookup_does_not_delay_other_submissions(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    go_on = threading.Event()

    def slowly(_: OutboundClient, url: str) -> None:
        checked.append(url)
        go_on.wait(2 * TIMEOUT_SECONDS)

    monkeypatch.setattr(OutboundClient, "check", slowly)
    post = partial(api.client.post, "/v1/models", json=examples.REMOTE)
    with ThreadPoolExecutor() as pool:
        registrations = [pool.submit(post) for _ in range(check_concurrency())]
        try:
            wait_until(lambda: len(checked) == len(registrations))
            assert api.run_job()["status"] == "succeeded"
        finally:
            go_on.set()
        assert {one.result().status_code for one in registrations} == {202}
