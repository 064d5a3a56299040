"""Records with one entry per image: indexing selects rows, so early stopping is `rows[open]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from touchstone.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Rows:
    """What the frozen dataclasses of the engine share: their tensor and `Rows` fields have one entry per row.

    Fields of any other type belong to the whole record and are kept unchanged. This module loads
    without torch, so that an attack can declare records of its own.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def _selectable(self) -> dict[str, Any]:
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return {name: value for name, value in values if isinstance(value, torch.Tensor | Rows)}

    def __len__(self) -> int:
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return len(next(value for value in values if isinstance(value, torch.Tensor | Rows)))

    def __getitem__(self, index: Tensor | slice) -> Self:
        """The rows that a boolean mask, an index vector or a slice selects."""
        return replace(self, **{name: value[index] for name, value in self._selectable().items()})

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All rows of the parts in order; what is not per row comes from the first."""
        if len(parts) == 1:
            return parts[0]
        joined = {
            name: torch.cat([getattr(part, name) for part in parts])
            if isinstance(value, torch.Tensor)
            else type(value).cat([getattr(part, name) for part in parts])
            for name, value in parts[0]._selectable().items()
        }
        return replace(parts[0], **joined)


def column(values: Tensor, like: Tensor) -> Tensor:
    """A vector of one number per row, shaped to be broadcast over `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))
