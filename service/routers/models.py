"""Models: their manifests, measurements and versions; and deleting those that users registered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from service import headers as request_headers, problems
from service.auth.permissions import reader, submitter
from service.dependencies import Tenant
from service.headers import IfNoneMatch
from service.openapi import examples
from service.pagination import Cursor, Limit, Page, link_next, paginate
from service.state.backend import TenantBackend
from touchstone.errors import LedgerUnavailable, ModelConflict
from touchstone.ledger.replies import VersionRef, WorkerHeartbeat
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Probe, RegistrationProbe
from touchstone.models.store import ZOO, ModelStore, find_model

router = APIRouter(tags=["models"])

Card = dict[str, Any]

_CARD = {
    "kind": "local",
    "id": "fashion-mnist-cnn",
    "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "architecture": "small-cnn",
    "input": {"channels": 1, "height": 28, "width": 28, "resize": None, "interpolation": "bilinear"},
    "classes": ["T-shirt/top", "Trouser"],
    "licence": "MIT",
    "probe": {
        "measured_at": "2026-11-22T09:29:00.120000Z",
        "device": "cpu",
        "torch": "2.13.0+cpu",
        "load_seconds": 0.004,
        "bytes": 1543656,
        "frozen": True,
        "rows": 64,
        "gradient_rate": 2997.7,
        "single_rate": 1128.0,
        "forward_rate": 6411.2,
        "batch_invariant": True,
        "logits_difference": 4.8e-7,
        "gradient_difference": 8.9e-8,
        "softmax": False,
    },
    "resident": ["gpu1-4711-9f86d081"],
    "versions": [
        {
            "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "registered_at": None,
        }
    ],
}


@dataclass(frozen=True)
class ModelView:
    """What workers and the ledger know of the models: probes by digest, live workers, versions."""

    probes: Mapping[str, Probe] = field(default_factory=dict)
    registration_probes: Mapping[str, RegistrationProbe] = field(default_factory=dict)
    workers: Sequence[WorkerHeartbeat] = ()
    versions: Mapping[str, Sequence[VersionRef]] = field(default_factory=dict)

    def card(self, manifest: Manifest) -> Card:
        """A model's JSON: its manifest, its probe, the workers that keep it loaded, and its versions."""
        return {
            **manifest.card(),
            "probe": self._merge_probes(manifest),
            "resident": [one.id for one in self.workers if self._keeps_loaded(one, manifest)],
            "versions": self._list_versions(manifest),
        }

    def _keeps_loaded(self, worker: WorkerHeartbeat, manifest: Manifest) -> bool:
        """Whether a worker keeps any version of the model loaded, not one of another tenant's."""
        digests = {manifest.digest, *(one.digest for one in self.versions.get(manifest.id, ()))}
        loaded = worker.info.get("resident_models", ())
        return any(one["id"] == manifest.id and one["digest"] in digests for one in loaded)

    def _list_versions(self, manifest: Manifest) -> list[dict[str, Any]]:
        known = self.versions.get(manifest.id, ())
        if not known:
            return [{"digest": manifest.digest, "registered_at": None}]
        return [{"digest": one.digest, "registered_at": _format_time(one)} for one in known]

    def _merge_probes(self, manifest: Manifest) -> dict[str, Any] | None:
        """What the last load measured, and what the registration found."""
        found = (self.registration_probes.get(manifest.id), self.probes.get(manifest.digest))
        known = [one.model_dump(mode="json") for one in found if one]
        return {name: value for part in known for name, value in part.items()} or None


def _format_time(version: VersionRef) -> str:
    return version.registered_at.isoformat().replace("+00:00", "Z")


def probe_of(ledger: TenantLedger, manifest: Manifest) -> Probe | None:
    """A model's measured speed; None while the ledger is unavailable."""
    try:
        return ledger.probes.read([manifest.digest]).get(manifest.digest)
    except LedgerUnavailable:
        return None


def _read_view(backend: TenantBackend, manifests: Sequence[Manifest]) -> ModelView:
    """What is known of these models; nothing while the ledger is unavailable."""
    ledger, store = backend.ledger, backend.models
    try:
        versions = ledger.versions.all()
        found = {one.id: store.registration_probe(one) for one in manifests if one.id in versions}
        examined = {name: one for name, one in found.items() if one}
        probes = ledger.probes.read([manifest.digest for manifest in manifests])
        return ModelView(probes, examined, ledger.workers.alive(), versions)
    except LedgerUnavailable:
        return ModelView()


def _list_manifests(store: ModelStore) -> Mapping[str, Manifest]:
    try:
        return store.manifests()
    except LedgerUnavailable:
        return ZOO.manifests()


def _count_letters(manifest: Manifest) -> int:
    return len(manifest.model_dump_json())


def build_response(
    backend: TenantBackend,
    manifest: Manifest,
    condition: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A version as JSON, or 304 where the client's condition matches its entity tag."""
    return _etag_response(_read_view(backend, [manifest]).card(manifest), condition, headers or {})


def _etag_response(content: Any, condition: str | None, headers: Mapping[str, str]) -> Response:
    body = json.dumps(content).encode()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    fields = {"ETag": tag, "Cache-Control": "no-cache", **headers}
    if request_headers.matches(condition, tag):
        return Response(status_code=304, headers=fields)
    return Response(body, headers=fields, media_type="application/json")


_UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has the current version."}}


@router.get(
    "/v1/models",
    dependencies=[reader],
    operation_id="list_models",
    summary="All models",
    response_model=Page[Card],
    responses={200: examples.page(_CARD), **_UNCHANGED, **problems.responses(422)},
)
def list_models(
    request: Request,
    backend: Tenant,
    limit: Limit = 200,
    cursor: Cursor = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Those that come with Touchstone first, then registered ones, each in its current version: identity,
    input, classes, accuracy, origin and licence. `probe` is what its registration and its last load measured
    (null before the first), `resident` names the workers that keep it loaded, `versions` lists what
    `id@digest` may name, the current one first.
    """
    page = paginate(_list_manifests(backend.models), limit, cursor, _count_letters)
    seen = _read_view(backend, page.items)
    cards = [seen.card(manifest) for manifest in page.items]
    response = _etag_response({"items": cards, "cursor": page.cursor}, if_none_match, {})
    link_next(request, response, page.cursor)
    return response


Id = Annotated[
    str,
    Path(
        alias="id",
        description="A model's id.",
        examples=["fashion-mnist-cnn"],
        json_schema_extra={"pattern": "^[a-z0-9][a-z0-9._-]{0,63}(@(sha256:)?[0-9a-f]{12,64})?$"},
    ),
]
Version = Annotated[
    str | None,
    Query(
        pattern="^(sha256:)?[0-9a-f]{12,64}$",
        description="The digest of a version, or at least twelve of its digits; left out, the current one.",
        examples=["9f86d081884c"],
    ),
]


@router.get(
    "/v1/models/{id}",
    dependencies=[reader],
    operation_id="get_model",
    summary="One model",
    response_model=Card,
    responses={200: examples.content(_CARD), **_UNCHANGED, **problems.responses(404, 422)},
)
def get_model(
    backend: Tenant, id_: Id, version: Version = None, if_none_match: IfNoneMatch = None
) -> Response:
    """Identity, input, classes, accuracy, origin and licence. `probe` is what its registration and its last
    load measured (null before the first), `resident` names the workers that keep it loaded, `versions` lists
    its versions, the current one first.
    """
    manifest = find_model(backend.models, _full_name(id_, version))
    return build_response(backend, manifest, if_none_match)


@router.delete(
    "/v1/models/{id}",
    dependencies=[submitter],
    operation_id="delete_model",
    summary="Delete a registered model",
    status_code=204,
    responses={204: {"description": "The model is deleted."}, **problems.responses(404, 409, 422)},
)
def delete_model(backend: Tenant, id_: Id, version: Version = None) -> Response:
    """All its versions, or only the one named: then the one before it becomes current. A model that a queued
    or running job names cannot be deleted; the results of ended jobs stay in any case. Models that come with
    Touchstone cannot be deleted.
    """
    name = _full_name(id_, version)
    if id_.partition("@")[0] in ZOO.manifests():
        raise ModelConflict(f"id: {id_[:64]} comes with Touchstone and cannot be deleted", field="id")
    manifest = find_model(backend.models, name)
    backend.ledger.versions.delete(manifest.id, manifest.digest if "@" in name else None)
    return Response(status_code=204)


def _full_name(model: str, version: str | None) -> str:
    return f"{model}@{version}" if version else model
