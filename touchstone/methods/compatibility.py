"""What may be asked of which model."""

from __future__ import annotations

from typing import TypeVar

from touchstone.errors import GradientRefused, InvalidParameter
from touchstone.methods import Attack, Method
from touchstone.methods.prediction import Predict
from touchstone.models.manifest import Manifest
from touchstone.models.store import Shelf, find

M = TypeVar("M", bound=Method)
MOST_SURROGATES = 4


def check_fit(asked: Method | Predict, card: Manifest) -> None:
    """Raise GradientRefused or InvalidParameter where the model cannot answer what would be asked."""
    if card.remote is None:
        return
    if isinstance(asked, Method) and asked.info.knowledge == "white-box":
        raise GradientRefused(
            f"{card.id} is a remote model, which tells no gradients, and {asked.info.name} follows them: "
            "take a black-box method, or register the model's file",
            field="model",
        )
    if _needs_noise(asked) and not card.takes_noise:
        raise InvalidParameter(
            f"model: {card.id} is sent 8-bit files, in which noise would be rounded and clipped, so nothing "
            "could be proved; register it with a request that holds $tensor",
            field="model",
        )


def resolved(asked: M, card: Manifest, shelf: Shelf) -> M:
    """The same method with what it left open decided, the models that it is to be crafted on among it.

    Raises InvalidParameter or UnknownModel where it cannot be crafted on what it names.
    """
    asked = asked.model_copy(update=asked.decided(len(card.classes)))
    named = getattr(asked, "surrogate", None)
    if named is None:
        return asked
    if not named:
        return asked.model_copy(update={"surrogate": _others(card, shelf)})
    for name in named:
        if not _serves(find(shelf, name), card):
            raise InvalidParameter(
                f"surrogate: {name} cannot stand in for {card.id}: it is remote, or has other classes",
                field="surrogate",
            )
    return asked


def _others(card: Manifest, shelf: Shelf) -> tuple[str, ...]:
    others = [
        other.id for other in shelf.manifests().values() if other.id != card.id and _serves(other, card)
    ]
    if not others:
        raise InvalidParameter(
            f"surrogate: there is no other model with the classes of {card.id}; register one",
            field="surrogate",
        )
    return tuple(others[:MOST_SURROGATES])


def _serves(other: Manifest, card: Manifest) -> bool:
    return other.remote is None and other.classes == card.classes


def _needs_noise(asked: Method | Predict) -> bool:
    if isinstance(asked, Predict):
        return asked.defence is not None
    return not isinstance(asked, Attack)
