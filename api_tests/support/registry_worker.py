"""A worker in the process of a test, with ledger, blobs and registry of its own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch

from api_tests.support.linear_models import gray_images
from api_tests.support.own_models import (
    REGISTRATION_FIELDS,
    build_manifest,
    linear_onnx,
)
from touchstone.digests import digest_of
from touchstone.engine import Engine
from touchstone.evaluation.local import canonicalize
from touchstone.evaluation.run import run_job
from touchstone.images import encode
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job, ModelRef, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import ModelProbe
from touchstone.registration.examination import complete_manifest, probe_model
from touchstone.registration.examples import prepare_examples
from touchstone.registration.request import Registration
from touchstone.registration.submission import prepare, prepare_known
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.storage.model_store import RegisteredStore
from workers.lease_keeper import LeaseKeeper
from workers.runner import Runner


def pixels() -> Any:
    return (gray_images(1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def picture() -> bytes:
    return encode(pixels())


@cache
def probe_linear_model() -> ModelProbe:
    """The probe of the linear model, also used for others of its size."""
    data = linear_onnx()
    return probe_model(build_manifest(data), data, lambda _: None).probe


class RegistryWorker:
    """A worker in this process: ledger, blobs, registry, engine and runner of its own."""

    def __init__(self, settings: Settings) -> None:
        self.blobs = open_blobs(settings)
        self.ledger = Ledger(str(settings.redis_url), settings, self.blobs)
        self.versions = TenantLedger.of(self.ledger, LOCAL).versions
        self.registry = RegisteredStore(self.ledger, self.blobs)
        self.engine = Engine("cpu", store=self.registry)
        self.keeper = LeaseKeeper("w1", self.ledger, self.engine, settings, give_up=lambda _: None)
        answer = partial(run_job, engine=self.engine)
        self.runner = Runner(self.ledger, self.blobs, self.keeper, answer, settings, self.registry)
        self.keeper.start()

    def close(self) -> None:
        self.keeper.close()
        self.runner.trials.spare.stop()
        self.engine.stop()
        self.ledger.close()

    def add_version(self, data: bytes, **fields: Any) -> Manifest:
        """Register a file as if it had been tried."""
        self.blobs.put(data)
        manifest = complete_manifest(build_manifest(data, **fields), data)
        self.versions.register(manifest, probe_linear_model())
        return manifest

    def register(self, data: bytes, **fields: Any) -> str:
        """Accept a registration as the service would."""
        submission = prepare(Registration.parse({**REGISTRATION_FIELDS, **fields}), data, limit=2**20)
        self.blobs.put(data)
        return self.ledger.accept(submission)[0].id

    def register_with_examples(self, data: bytes, archive: bytes, fields: Mapping[str, Any]) -> str:
        """The same with examples in a zip."""
        registration = Registration.parse(fields)
        examples = prepare_examples(io.BytesIO(archive), registration.names, canonicalize)
        submission = prepare_known(registration, digest_of(data), "onnx", examples.ref)
        self.blobs.put_many([data, examples.content])
        return self.ledger.accept(submission)[0].id

    def accept(self, manifest: Manifest, kind: str = "attack", method: str = "pgd", **parameters: Any) -> str:
        file, image = canonicalize(picture())
        self.blobs.put(file)
        model = ModelRef(id=manifest.id, digest=manifest.digest)
        submission = Submission(kind=kind, method=method, model=model, image=image, parameters=parameters)
        return self.ledger.accept(submission)[0].id

    def run(self, job: str) -> Job:
        self.runner(job)
        return self.ledger.read(job)

    def result(self, job: str) -> dict[str, Any]:
        done = self.run(job)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        return done.result
