"""The models that users registered, as the ledger holds them: versions that never change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import redis
from pydantic import TypeAdapter

from touchstone.errors import ModelInUse, UnknownModel
from touchstone.ledger.codec import moment
from touchstone.ledger.connection import reachable
from touchstone.ledger.replies import Version, VersionRef
from touchstone.ledger.scripts import Scripts
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Shown
from touchstone.models.store import other_manifest

_SHOWN: TypeAdapter[Shown] = TypeAdapter(Shown)


class Versions:
    """A tenant's versions; each change is one script, as those of jobs are."""

    def __init__(self, client: redis.Redis, scripts: Scripts, tenant: str) -> None:
        self._client = client
        self._scripts = scripts
        self._tenant = tenant
        self._registry = f"ts:registry:{tenant}"

    def register(
        self, card: Manifest, examined: Shown, *, size: int = 0, claim: tuple[str, int] | None = None
    ) -> bool:
        """Keep a version, whose file has `size` bytes, for good, and make it its model's current one.

        One that is known stays as it is; `ModelConflict` where it is known with another manifest. False, and
        nothing is kept, where the claim of the job that tried it no longer holds, or that job was canceled.
        """
        told = card.model_dump_json(), examined.model_dump_json()
        known = self._scripts.run(
            "models/register", self._tenant, card.id, card.digest, *told, size, *(claim or ("", ""))
        )
        if known and Manifest.model_validate_json(known) != card:
            raise other_manifest(card.id)
        return bool(known)

    def all(self) -> dict[str, tuple[VersionRef, ...]]:
        """Every model's versions, the current one first."""
        with reachable():
            stored: Any = self._client.hgetall(self._registry)
        return {model: _refs(model, text) for model, text in sorted(stored.items())}

    def of(self, model: str) -> tuple[VersionRef, ...]:
        """One model's versions, the current one first; none where it was never registered."""
        with reachable():
            stored: Any = self._client.hget(self._registry, model)
        return _refs(model, stored) if stored else ()

    def read(self, refs: Sequence[VersionRef]) -> list[Version]:
        """These versions, asked for in one go; without those that were deleted meanwhile."""
        if not refs:
            return []
        with reachable(), self._client.pipeline(transaction=False) as pipe:
            for ref in refs:
                pipe.hmget(f"ts:version:{self._tenant}:{ref.id}:{ref.digest}", "card", "examined")
            answers = zip(refs, pipe.execute(), strict=True)
        return [_version(ref, card, examined) for ref, (card, examined) in answers if card]

    def forget(self, model: str, digest: str | None = None) -> None:
        """Delete a model or one version of it; the version before becomes the current one.

        `UnknownModel` where there is none, `ModelInUse` while a job that has not ended names it.
        """
        verdict, *rest = self._scripts.run("models/forget", self._tenant, model, digest or "")
        if verdict == "unknown":
            raise UnknownModel(f"no model {model[:64]!r} with this version is registered", field="model")
        if verdict != "ok":
            raise ModelInUse(
                f"the job {rest[0]} is {verdict} and names {model}; wait for its end, or cancel it",
                job=rest[0],
            )


def _refs(model: str, stored: str) -> tuple[VersionRef, ...]:
    return tuple(VersionRef(model, one["digest"], moment(one["at"])) for one in json.loads(stored))


def _version(ref: VersionRef, card: str, examined: str) -> Version:
    return Version(ref, Manifest.model_validate_json(card), _SHOWN.validate_json(examined))
