"""How a clean batch becomes a training batch: one small object for each way of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from torch import Generator, Tensor, nn

from touchstone.errors import InvalidParameter


class Recipe(Protocol):
    """What tells one way of training from another; everything else is `training.train`'s.

    `name` is in the command line and on the card; `text` says on the card what was done to the images.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - said above

    @property
    def text(self) -> str: ...  # noqa: D102

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: Generator) -> Tensor:
        """The images to train on in place of `x`.

        `net` maps images (B, C, H, W) in [0,1] to logits and is in training mode; all randomness comes from
        `noise`.
        """
        ...


@dataclass(frozen=True)
class Standard:
    """Training on the images as they are."""

    name: str = "standard"
    text: str = "clean images"

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: Generator) -> Tensor:  # noqa: ARG002
        """The images themselves."""
        return x


RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in (Standard(),)})


def recipe(name: str) -> Recipe:
    """The recipe of this name; InvalidParameter names those that exist."""
    if name not in RECIPES:
        raise InvalidParameter(
            f"recipe: there is none named {name[:60]!r}; there are: {', '.join(RECIPES)}", field="recipe"
        )
    return RECIPES[name]
