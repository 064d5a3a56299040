"""What may be asked of which model."""

from __future__ import annotations

from touchstone.errors import GradientRefused, InvalidParameter
from touchstone.methods import Attack, Method
from touchstone.models.manifest import Manifest
from touchstone.models.shelf import Shelf, find
from touchstone.predicting import Predict


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


def check_surrogates(asked: Method, card: Manifest, shelf: Shelf) -> None:
    """Raise InvalidParameter or UnknownModel where an attack cannot be crafted on what it names."""
    named = getattr(asked, "surrogate", None)
    if named is None:
        return
    if not named:
        raise InvalidParameter("surrogate: name at least one model to craft on", field="surrogate")
    for name in named:
        other = find(shelf, name)
        if other.remote is not None:
            raise InvalidParameter(f"surrogate: {name} is remote and tells no gradients", field="surrogate")
        if other.classes != card.classes:
            raise InvalidParameter(
                f"surrogate: {name} and {card.id} do not have the same classes", field="surrogate"
            )


def _needs_noise(asked: Method | Predict) -> bool:
    if isinstance(asked, Predict):
        return asked.defence is not None
    return not isinstance(asked, Attack)
