"""The models that users registered, as the ledger holds them: versions that never change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import redis
from pydantic import TypeAdapter

from touchstone.errors import ModelInUse, UnknownArtifact, UnknownModel
from touchstone.ledger import codec
from touchstone.ledger.codec import decode_time
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.large_values import LargeValues, decode_reference, encode_reference
from touchstone.ledger.replies import ModelVersion, VersionRef
from touchstone.ledger.scripts import Scripts
from touchstone.logs import get_logger
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RegistrationProbe
from touchstone.models.store import manifest_conflict

_log = get_logger("ledger")
_PROBE_ADAPTER: TypeAdapter[RegistrationProbe] = TypeAdapter(RegistrationProbe)


class ModelVersions:
    """The versions of a tenant's models; each change is one script, and a large manifest is a blob."""

    def __init__(self, client: redis.Redis, scripts: Scripts, large_values: LargeValues, tenant: str) -> None:
        self._client = client
        self._scripts = scripts
        self._large_values = large_values
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
        canceled. Raises `StorageFull` where there is no space for a large manifest.
        """
        text = manifest.model_dump_json()
        large = self._large_values.put(text)
        card = "" if large else text, encode_reference(large)
        known = self._scripts.run(
            "models/register",
            *(self._tenant, manifest.id, manifest.digest),
            *card,
            probe.model_dump_json(),
            size,
            *(claim or ("", "")),
        )
        if known and tuple(known) != card and self._decode_manifest(*known)[0] != manifest:
            raise manifest_conflict(manifest.id)
        return bool(known)

    def all(self) -> dict[str, tuple[VersionRef, ...]]:
        """Every model's versions, the current one first."""
        with map_redis_errors():
            stored: Any = self._client.hgetall(self._registry_key)
        found = ((model, (model, text)) for model, text in sorted(stored.items()))
        return dict(codec.decode_each("model", lambda one: (one[0], _decode_refs(*one)), found))

    def of(self, model: str) -> tuple[VersionRef, ...]:
        """One model's versions, the current one first; none where it was never registered."""
        with map_redis_errors():
            stored: Any = self._client.hget(self._registry_key, model)
        return _decode_refs(model, stored) if stored else ()

    def read(self, refs: Sequence[VersionRef]) -> list[ModelVersion]:
        """These versions, read in one round trip; without those that were deleted, or lost their manifest."""
        if not refs:
            return []
        with map_redis_errors(), self._client.pipeline(transaction=False) as pipe:
            for ref in refs:
                pipe.hmget(
                    f"ts:version:{self._tenant}:{ref.id}:{ref.digest}", "card", "card_blob", "examined"
                )
            answers = zip(refs, pipe.execute(), strict=True)
        found = ((ref.id, (ref, *stored)) for ref, stored in answers if stored[-1])
        versions = codec.decode_each("model", lambda stored: self._decode_version(*stored), found)
        return [version for version in versions if version]

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

    def _decode_version(
        self, ref: VersionRef, card: str | None, card_blob: str | None, probe: str
    ) -> ModelVersion | None:
        try:
            manifest, size = self._decode_manifest(card, card_blob)
        except UnknownArtifact as missing:
            _log.warning("a model's manifest is missing", model=ref.id, reason=missing.detail)
            return None
        return ModelVersion(ref, manifest, _PROBE_ADAPTER.validate_json(probe), size + len(probe))

    def _decode_manifest(self, card: str | None, card_blob: str | None) -> tuple[Manifest, int]:
        """A manifest, without fields of newer versions, and its bytes as JSON; `UnknownArtifact` where it is
        large and its blob is missing.
        """
        text = card or self._large_values.get(decode_reference(card_blob or ""))
        return Manifest.model_validate_json(text, extra="ignore"), len(text)


def _decode_refs(model: str, stored: str) -> tuple[VersionRef, ...]:
    return tuple(VersionRef(model, one["digest"], decode_time(one["at"])) for one in json.loads(stored))
