"""Which methods can run on which models."""

from __future__ import annotations

from typing import TypeVar

from touchstone.errors import GradientRefused, InvalidParameter
from touchstone.methods import Attack, Method
from touchstone.methods.prediction import Predict
from touchstone.models.manifest import Manifest
from touchstone.models.store import ModelStore, find_model, list_manifests

M = TypeVar("M", bound=Method)
MAX_SURROGATES = 4

_WITHOUT_GRADIENTS = {
    "remote": ("remote model, which gives no gradients,", "register the model's file"),
    "quantized": (
        "quantized model, whose rounding leaves no gradients,",
        "register the network before its quantization, or with input.straight_through",
    ),
}


def check_compatible(method: Method | Predict, manifest: Manifest) -> None:
    """Raise GradientRefused or InvalidParameter where the model cannot answer the method's queries."""
    if manifest.randomized and _needs_noise(method):
        raise InvalidParameter(
            f"model: {manifest.id} answers at random, and what counts votes under noise needs answers that "
            "are the same in every batch",
            field="model",
        )
    if isinstance(method, Method) and method.info.knowledge == "white-box" and not _gives_gradients(manifest):
        what, instead = _WITHOUT_GRADIENTS["quantized" if manifest.remote is None else "remote"]
        raise GradientRefused(
            f"{manifest.id} is a {what} and {method.info.name} needs them: use a black-box method, "
            f"or {instead}",
            field="model",
        )
    if _needs_noise(method) and not manifest.takes_noise:
        raise InvalidParameter(
            f"model: {manifest.id} takes 8-bit files, in which noise would be rounded and clipped, so "
            "nothing could be proved; register it with a request that contains $tensor",
            field="model",
        )


def check_target(label: int | None, target: int | None, *, field: str = "target", of: str = "") -> None:
    """Raise InvalidParameter where the class to reach is the one that the image is said to have."""
    if target is not None and label == target:
        raise InvalidParameter(
            f"{field}: the target{of} is the same class as its label; choose another one to reach",
            field=field,
        )


def resolve_parameters(method: M, manifest: Manifest, store: ModelStore) -> M:
    """The same method with its defaults resolved, the surrogates of a transfer attack among them.

    Raises InvalidParameter or UnknownModel where a named surrogate cannot be used.
    """
    method = method.model_copy(update=method.resolve_defaults(len(manifest.classes)))
    named = getattr(method, "surrogate", None)
    if named is None:
        return method
    if not named:
        return method.model_copy(update={"surrogate": _find_surrogates(manifest, store)})
    for name in named:
        if not _is_usable_surrogate(find_model(store, name), manifest):
            raise InvalidParameter(
                f"surrogate: {name} cannot stand in for {manifest.id}: it gives no gradients, or has other "
                "classes",
                field="surrogate",
            )
    return method


def _find_surrogates(manifest: Manifest, store: ModelStore) -> tuple[str, ...]:
    others = [
        other.id
        for other in list_manifests(store)
        if other.id != manifest.id and _is_usable_surrogate(other, manifest)
    ]
    if not others:
        raise InvalidParameter(
            f"surrogate: there is no other model with the classes of {manifest.id}; register one",
            field="surrogate",
        )
    return tuple(others[:MAX_SURROGATES])


def _is_usable_surrogate(other: Manifest, manifest: Manifest) -> bool:
    return _gives_gradients(other) and other.classes == manifest.classes


def _gives_gradients(manifest: Manifest) -> bool:
    return manifest.remote is None and manifest.gradients != "none"


def _needs_noise(method: Method | Predict) -> bool:
    if isinstance(method, Predict):
        return method.defence is not None
    return not isinstance(method, Attack)
