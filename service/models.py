"""The models that can be tried: what their manifests tell of them, and what their last load measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from service import examples, problems
from service.backend import backend_of
from service.pages import Cursor, Limit, Page, cut, link_next
from touchstone.errors import LedgerUnavailable
from touchstone.jobs.answers import Worker
from touchstone.jobs.ledger import Ledger
from touchstone.models.manifest import Manifest
from touchstone.models.measured import Probe, Shown
from touchstone.models.shelf import ZOO, Shelf, find

router = APIRouter(tags=["models"])

Card = dict[str, Any]

_CARD = {
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
}


@dataclass(frozen=True)
class Seen:
    """What workers have shown of the models: probes by digest, and who is alive."""

    probes: Mapping[str, Probe] = field(default_factory=dict)
    examined: Mapping[str, Shown] = field(default_factory=dict)
    workers: Sequence[Worker] = ()

    def card(self, manifest: Manifest) -> Card:
        """A model as answers show it: its manifest, its probe, and the workers that keep it loaded."""
        return {
            **manifest.card(),
            "probe": self._probe(manifest),
            "resident": [
                one.id for one in self.workers if manifest.id in one.info.get("resident_models", ())
            ],
        }

    def _probe(self, manifest: Manifest) -> dict[str, Any] | None:
        """What the last load measured, beside what was found out at the registration."""
        found = (self.examined.get(manifest.id), self.probes.get(manifest.digest))
        known = [one.model_dump(mode="json") for one in found if one]
        return {name: value for part in known for name, value in part.items()} or None


def probe_of(ledger: Ledger, manifest: Manifest) -> Probe | None:
    """What is known of a model's speed; nothing while the ledger is out of reach."""
    try:
        return ledger.probes([manifest.digest]).get(manifest.digest)
    except LedgerUnavailable:
        return None


def _seen(request: Request, manifests: Sequence[Manifest]) -> Seen:
    """The zoo's cards are told without the ledger, too."""
    ledger, shelf = backend_of(request).ledger, backend_of(request).models
    try:
        found = {manifest.id: shelf.examined(manifest) for manifest in manifests}
        examined = {name: one for name, one in found.items() if one}
        probes = ledger.probes([manifest.digest for manifest in manifests])
        return Seen(probes, examined, ledger.workers())
    except LedgerUnavailable:
        return Seen()


def _all(shelf: Shelf) -> Mapping[str, Manifest]:
    try:
        return shelf.manifests()
    except LedgerUnavailable:
        return ZOO.manifests()


@router.get(
    "/v1/models",
    operation_id="list_models",
    summary="All models",
    responses={200: examples.page(_CARD), **problems.responses(422)},
)
def list_models(
    request: Request, response: Response, limit: Limit = 200, cursor: Cursor = None
) -> Page[Card]:
    """Identity, input, classes, accuracy, origin and licence of each; `probe` is what its last load measured
    (null before the first), `resident` names the workers that keep it loaded.
    """
    page = cut(_all(backend_of(request).models), limit, cursor)
    seen = _seen(request, page.items)
    link_next(request, response, page.cursor)
    return Page(items=[seen.card(manifest) for manifest in page.items], cursor=page.cursor)


@router.get(
    "/v1/models/{id}",
    operation_id="get_model",
    summary="One model",
    responses={200: examples.content(_CARD), **problems.responses(404)},
)
def get_model(
    request: Request,
    id_: Annotated[
        str,
        Path(
            alias="id",
            description="A model's id.",
            examples=["fashion-mnist-cnn"],
            json_schema_extra={"pattern": "^[a-z0-9][a-z0-9._-]{0,63}(@(sha256:)?[0-9a-f]{12,64})?$"},
        ),
    ],
) -> Card:
    """Identity, input, classes, accuracy, origin and licence; `probe` is what its last load measured (null
    before the first), `resident` names the workers that keep it loaded.
    """
    manifest = find(backend_of(request).models, id_)
    return _seen(request, [manifest]).card(manifest)
