"""Records with one entry per image: indexing selects rows, so early stopping is `rows[open]`."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import Field, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from touchstone.lazy import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class RowIndex:
    """Positions of rows that are known on the host, so that no device has to be waited for; uploaded once."""

    def __init__(self, positions: Iterable[int]) -> None:
        self.positions = list(positions)
        self._uploaded: dict[Any, Tensor] = {}

    @classmethod
    def where(cls, flags: Iterable[bool]) -> RowIndex:
        """The rows whose flag is set."""
        return cls(position for position, flag in enumerate(flags) if flag)

    def __len__(self) -> int:
        return len(self.positions)

    def on(self, device: Any) -> Tensor:
        """The positions (n,), int64, on a device."""
        if device not in self._uploaded:
            host = torch.tensor(self.positions, dtype=torch.long)
            self._uploaded[device] = _upload(host, device)
        return self._uploaded[device]


def select_rows(values: Tensor, index: Tensor | slice | RowIndex) -> Tensor:
    """The rows of a tensor that a boolean mask, an index vector, an index of the host or a slice selects."""
    return values[index.on(values.device) if isinstance(index, RowIndex) else index]


class Rows:
    """What the frozen dataclasses of the engine share: their tensor and `Rows` fields have one entry per row.

    Fields of any other type belong to the whole record and are kept unchanged. This module loads
    without torch, so that an attack can declare records of its own.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def _selectable(self) -> dict[str, Any]:
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return {name: value for name, value in values if isinstance(value, torch.Tensor | Rows)}

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the record and of the records in it."""
        for value in self._selectable().values():
            yield from value.tensors() if isinstance(value, Rows) else [value]

    def __len__(self) -> int:
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return len(next(value for value in values if isinstance(value, torch.Tensor | Rows)))

    def __getitem__(self, index: Tensor | slice | RowIndex) -> Self:
        """The rows that a boolean mask, an index vector or a slice selects."""
        chosen = {
            name: value[index] if isinstance(value, Rows) else select_rows(value, index)
            for name, value in self._selectable().items()
        }
        return replace(self, **chosen)

    @property
    def kind(self) -> Hashable:
        """What two records must have in common to be joined: everything that is not per row."""
        return (type(self), *map(_kind_of, (getattr(self, name) for name in self.__dataclass_fields__)))

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

    def replace_rows(self, index: RowIndex, part: Self) -> Self:
        """This record with the rows of `part` at the positions of `index`."""
        if len(index) == len(self):
            return part if index.positions == list(range(len(self))) else part[_invert(index)]
        theirs = part._selectable()
        changed = {
            name: value.replace_rows(index, theirs[name])
            if isinstance(value, Rows)
            else value.index_copy(0, index.on(value.device), theirs[name])
            for name, value in self._selectable().items()
        }
        return replace(self, **changed)


class Loop(Rows):
    """Rows that repeat a step until each is done; what a row comes to depends on itself alone.

    So rows of many jobs can stand in one record, join it and leave it at any step. The queries of a step are
    about all rows in order, or name theirs in `of_rows`. `left` counts the steps that each row has left; a
    step takes one from each, and all from a row that is done.
    """

    if TYPE_CHECKING:

        @property
        def left(self) -> HostNumbers:
            """A field of every loop."""

    @property
    def running(self) -> list[bool]:
        """Which rows are not done."""
        running: list[bool] = (self.left.values > 0).tolist()
        return running

    def step(self) -> Generator[Any, Any, Self]:
        """One step of every row: a plan, which yields queries and is sent their answers."""
        raise NotImplementedError

    def successes(self) -> tuple[Tensor, Tensor]:
        """The best points so far (B, C, H, W), and a rank of each that meets the goal, -∞ for others (B,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class HostNumbers(Rows):
    """Whole numbers, one per row, that are known on the host: counters that decide what a step does."""

    values: NDArray[np.int64]

    @classmethod
    def of(cls, values: Iterable[int]) -> HostNumbers:
        """These numbers."""
        return cls(np.fromiter(values, np.int64))

    @classmethod
    def full(cls, rows: int, value: int) -> HostNumbers:
        """The same number for every row."""
        return cls(np.full(rows, value))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor | slice | RowIndex) -> HostNumbers:
        if isinstance(index, RowIndex):
            return HostNumbers(self.values[index.positions])
        return HostNumbers(self.values[index if isinstance(index, slice) else index.cpu().numpy()])

    @property
    def kind(self) -> Hashable:
        """All can be joined."""
        return HostNumbers

    @classmethod
    def cat(cls, parts: Sequence[HostNumbers]) -> HostNumbers:
        """All numbers in order."""
        return cls(np.concatenate([part.values for part in parts]))

    def replace_rows(self, index: RowIndex, part: HostNumbers) -> HostNumbers:
        """These numbers with those of `part` at the positions of `index`."""
        values = self.values.copy()
        values[index.positions] = part.values
        return HostNumbers(values)

    def add(self, number: int, index: RowIndex | None = None) -> HostNumbers:
        """These numbers, more by `number` for each time that a row is in the index, or once for all rows."""
        if index is None:
            return HostNumbers(self.values + number)
        values = self.values.copy()
        np.add.at(values, index.positions, number)
        return HostNumbers(values)

    def where_not(self, flags: Sequence[bool]) -> HostNumbers:
        """These numbers, 0 where a flag is set."""
        return HostNumbers(np.where(flags, 0, self.values))


def to_host(*flags: Tensor) -> list[list[bool]]:
    """Flags (B,) of rows as lists, by one transfer: the only place where a step waits for its device."""
    lists: list[list[bool]] = torch.stack(flags).tolist()
    return lists


def reads_at_once(values: Tensor) -> bool:
    """Whether to look at a value is cheap: on the host it is, any other device would be waited for."""
    return values.device.type == "cpu"


def _invert(index: RowIndex) -> RowIndex:
    places = {position: place for place, position in enumerate(index.positions)}
    return RowIndex(places[position] for position in range(len(index)))


def _kind_of(value: Any) -> Hashable:
    if isinstance(value, Rows):
        return value.kind
    if isinstance(value, torch.Tensor):
        return (value.shape[1:], value.dtype)
    owner = getattr(value, "__self__", None)  # methods are equal only where their objects are the same one
    return value if owner is None else (value.__func__, owner)


def per_row(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers that are known on the host, one per row, as a vector (B,) of the device and type of `like`."""
    return _upload(torch.tensor(values, dtype=like.dtype), like.device)


def _upload(host: Tensor, device: Any) -> Tensor:
    """A tensor of the host on a device, without waiting for it."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def column(values: Tensor, like: Tensor) -> Tensor:
    """A vector of one number per row, shaped to be broadcast over `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))
