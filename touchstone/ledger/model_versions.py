"""The models that users registered, as the ledger holds them: versions that never change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import redis
from pydantic import TypeAdapter

from touchstone.errors import ModelInUse, UnknownModel
from touchstone.ledger.codec import decode_time
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.replies import ModelVersion, VersionRef
from touchstone.ledger.scripts import Scripts
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RegistrationProbe
from touchstone.models.store import manifest_conflict

_PROBE_ADAPTER: TypeAdapter[RegistrationProbe] = TypeAdapter(RegistrationProbe)


class ModelVersions:
    """The versions of a tenant's models; each change is one script, as for jobs."""

    def __init__(self, client: redis.Redis, scripts: Scripts, tenant: str) -> None:
        self._client = client
        self._scripts = scripts
        self._tenant = tenant
        self._registry_key = f"ts:registry:{tenant}"

    def register(
        self,
        manifest: Manifest,
        probe: RegistrationProbe,
        *,
        size: int = 0,
        claim: tuple[str, int] | None = None,
    ) -> bool:
        """Store a version, whose file has `size` bytes, and make it the current one of its model.

        A known version stays as it is; `ModelConflict` where it is known with another manifest. False, and
        nothing is stored, where the claim of the job that tried it is no longer valid or that job was
        canceled.
        """
        record = manifest.model_dump_json(), probe.model_dump_json()
        known = self._scripts.run(
            "models/register", self._tenant, manifest.id, manifest.digest, *record, size, *(claim or ("", ""))
        )
        if known and Manifest.model_validate_json(known) != manifest:
            raise manifest_conflict(manifest.id)
        return bool(known)

    def all(self) -> dict[str, tuple[VersionRef, ...]]:
        """Every model's versions, the current one first."""
        with map_redis_errors():
            stored: Any = self._client.hgetall(self._registry_key)
        return {model: _decode_refs(model, text) for model, text in sorted(stored.items())}

    def of(self, model: str) -> tuple[VersionRef, ...]:
        """One model's versions, the current one first; none where it was never registered."""
        with map_redis_errors():
            stored: Any = self._client.hget(self._registry_key, model)
        return _decode_refs(model, stored) if stored else ()

    def read(self, refs: Sequence[VersionRef]) -> list[ModelVersion]:
        """These versions, read in one round trip; without those that were deleted meanwhile."""
        if not refs:
            return []
        with map_redis_errors(), self._client.pipeline(transaction=False) as pipe:
            for ref in refs:
                pipe.hmget(f"ts:version:{self._tenant}:{ref.id}:{ref.digest}", "card", "examined")
            answers = zip(refs, pipe.execute(), strict=True)
        return [_decode_version(ref, manifest, probe) for ref, (manifest, probe) in answers if manifest]

    def delete(self, model: str, digest: str | None = None) -> None:
        """Delete a model or one version of it; the previous version becomes the current one.

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


def _decode_refs(model: str, stored: str) -> tuple[VersionRef, ...]:
    return tuple(VersionRef(model, one["digest"], decode_time(one["at"])) for one in json.loads(stored))


def _decode_version(ref: VersionRef, manifest: str, probe: str) -> ModelVersion:
    return ModelVersion(ref, Manifest.model_validate_json(manifest), _PROBE_ADAPTER.validate_json(probe))
