"""Models behind an address from their registration to the jobs that ask them."""

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
from api_tests.support.fake_service import Api, png, problem
from api_tests.support.remote_models import CLASSES, Model
from api_tests.support.wait import SECONDS, wait_until
from service.openapi import examples
from service.state.backend import at_once
from touchstone.check import check
from touchstone.engine import Engine, Ways
from touchstone.errors import AddressRefused, InvalidParameter, ModelConflict, UnknownModel
from touchstone.evaluation.local import canonical
from touchstone.evaluation.run import run
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job, ModelRef, Submission
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.models.measurements import Reached
from touchstone.net.outbound import Outgoing
from touchstone.registration.request import Registration
from touchstone.registration.submission import prepare_remote
from touchstone.settings import Settings, secret
from touchstone.storage.blobs import digest_of, open_blobs
from touchstone.storage.model_store import Registry
from workers.lease_keeper import Keeper
from workers.runner import Runner

OUTGOING = Outgoing("127.0.0.1")
REACHED = Reached(
    measured_at=datetime(2026, 1, 1, tzinfo=UTC),
    queries=5,
    query_seconds=0.01,
    deterministic=True,
    repeat_difference=0,
    batch_invariant=True,
    batch_difference=0,
    decisions_only=False,
)


def described(model: Model, **remote_fields: Any) -> Registration:
    said = {"url": model.url, "protocol": "json", "answers": "logits", **remote_models.BATCH, "batch": 64}
    return Registration.parse(
        {
            "id": "far-away",
            "classes": CLASSES,
            "input": {"height": 8, "width": 8, "interpolation": "bilinear"},
            "remote": {**said, **remote_fields},
        }
    )


class Bench:
    """A worker in this process, with a way out."""

    def __init__(self, settings: Settings) -> None:
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.blobs = open_blobs(settings)
        self.registry = Registry(self.ledger, self.blobs)
        ways = Ways(OUTGOING, self.ledger.spending, secret)
        self.engine = Engine("cpu", shelf=self.registry, ways=ways)
        keeper = Keeper("w1", self.ledger, self.engine, settings, give_up=lambda _: None)
        answer = partial(run, engine=self.engine)
        self.runner = Runner(self.ledger, self.blobs, keeper, answer, settings, self.registry)
        self.keeper = keeper
        keeper.start()

    def close(self) -> None:
        self.keeper.close()
        self.engine.stop()
        self.ledger.close()

    def go(self, submission: Submission, data: bytes) -> Job:
        self.blobs.put(data)
        job = self.ledger.accept(submission)[0].id
        self.runner(job)
        return self.ledger.read(job)

    def ask(self, kind: str, method: str, **parameters: Any) -> Job:
        card = self.registry.manifest("far-away")
        file, image = canonical(png(8, 8))
        model = ModelRef(id=card.id, digest=card.digest)
        submission = Submission(
            kind=kind,  # type: ignore[arg-type]
            method=method,
            model=model,
            image=image,
            parameters=parameters,
        )
        return self.go(submission, file)


@pytest.fixture
def model() -> Iterator[Model]:
    with remote_models.serving() as model:
        yield model


@pytest.fixture
def bench(settings: Settings) -> Iterator[Bench]:
    bench = Bench(settings)
    yield bench
    bench.close()


def test_from_the_registration_to_the_jobs(bench: Bench, model: Model) -> None:
    submission, told = prepare_remote(described(model, budget=3000), OUTGOING)
    assert submission.file == submission.model.digest == digest_of(told)
    done = bench.go(submission, told)
    assert done.status == "succeeded", done.error
    assert done.result is not None
    assert done.result["model"]["kind"] == "remote"
    assert done.result["probe"]["deterministic"] is True
    card = bench.registry.manifest("far-away")
    assert card.digest == submission.model.digest
    assert bench.registry.examined(card) == Reached.model_validate(done.result["probe"])

    seen = bench.ask("prediction", "predict", top=2)
    assert seen.status == "succeeded", seen.error
    proved = bench.ask("certificate", "smoothing", n=500, sigma=0.05)
    assert proved.result is not None
    job = json.loads(proved.model_dump_json())
    assert [one for one in check({**job, **job["submission"]}) if not one.agrees] == []
    queries = [(one.result or {})["queries"]["forward"] for one in (seen, proved)]
    assert sum(queries) + done.result["probe"]["queries"] == model.rows
    assert bench.ledger.spending.spent([card.digest])[card.digest] == model.rows


def test_what_cannot_be_reached_is_not_registered(bench: Bench, model: Model) -> None:
    submission, told = prepare_remote(described(model), OUTGOING)
    model.act = remote_models.saying(404)
    done = bench.go(submission, told)
    assert (done.status, done.error and done.error.code) == ("failed", "remote_answer")
    with pytest.raises(UnknownModel):
        bench.registry.manifest("far-away")


def test_an_attack_that_slipped_through_is_refused_by_the_worker(bench: Bench, model: Model) -> None:
    bench.go(*prepare_remote(described(model), OUTGOING))
    before = model.rows
    done = bench.ask("attack", "pgd")
    assert (done.status, done.error and done.error.code) == ("failed", "gradient_refused")
    assert model.rows == before


def test_a_version_is_what_its_manifest_says(model: Model) -> None:
    one, told = described(model).remote_manifest(LOCAL)
    assert described(model).remote_manifest(LOCAL) == (one, told)
    assert described(model, rate=5).remote_manifest(LOCAL)[0].digest != one.digest
    assert one.digest.encode() not in told


def test_descriptions_that_contradict_themselves(model: Model) -> None:
    both = described(model)
    with pytest.raises(InvalidParameter, match="either a file or behind an address"):
        both.manifest("sha256:" + "0" * 64, "onnx")
    without = both.model_copy(update={"remote": None})
    with pytest.raises(InvalidParameter, match="tell where"):
        without.remote_manifest(LOCAL)
    with pytest.raises(ModelConflict):
        prepare_remote(both.model_copy(update={"id": "fashion-mnist-cnn"}), OUTGOING)
    with pytest.raises(AddressRefused):
        prepare_remote(both, Outgoing())


@pytest.fixture
def registered(api: Api, model: Model) -> Iterator[Api]:
    card, _ = described(model, secret="ACME").remote_manifest(LOCAL)
    Holdings.of(api.ledger, LOCAL).versions.register(card, REACHED)
    yield api
    Holdings.of(api.ledger, LOCAL).versions.forget("far-away")


def test_gradients_are_refused_at_the_submission(registered: Api) -> None:
    answer = registered.submit(wait=None, model="far-away")
    told = problem(answer, 422, "gradient_refused", "model")
    assert "black-box" in told["detail"]
    cost = registered.client.get("/v1/attacks/pgd/cost", params={"model": "far-away"})
    problem(cost, 422, "gradient_refused", "model")


def test_a_card_tells_how_it_is_asked(registered: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", "swordfish")
    response = registered.client.get("/v1/models/far-away")
    card = response.json()
    assert (card["kind"], card["remote"]["secret"]) == ("remote", "ACME")
    assert card["probe"]["queries"] == 5
    assert "swordfish" not in response.text


def test_certificates_of_files_are_refused_at_the_submission(api: Api, model: Model) -> None:
    request = {"x": "$image_png_base64"}
    card, _ = described(model, request=request, answer="scores", batch=1).remote_manifest(LOCAL)
    Holdings.of(api.ledger, LOCAL).versions.register(card, REACHED)
    for path, fields in (("certificates/smoothing", {}), ("predictions", {"defence": "smoothing"})):
        files, data = {"image": ("a.png", png())}, {"model": "far-away", **fields}
        told = problem(
            api.client.post(f"/v1/{path}", files=files, data=data), 422, "invalid_parameter", "model"
        )
        assert "8-bit" in told["detail"]


def test_a_name_that_resolves_slowly_keeps_no_other_submission_waiting(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    go_on = threading.Event()

    def slowly(_: Outgoing, url: str) -> None:
        asked.append(url)
        go_on.wait(2 * SECONDS)

    monkeypatch.setattr(Outgoing, "check", slowly)
    post = partial(api.client.post, "/v1/models", json=examples.REMOTE)
    with ThreadPoolExecutor() as pool:
        registrations = [pool.submit(post) for _ in range(at_once())]
        try:
            wait_until(lambda: len(asked) == len(registrations))
            assert api.job()["status"] == "succeeded"
        finally:
            go_on.set()
        assert {one.result().status_code for one in registrations} == {202}
