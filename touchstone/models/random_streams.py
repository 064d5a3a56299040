"""Random numbers in networks that answer at random: what a row draws depends on its key alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain, count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, ...]
"""Of a row: whatever tells it apart from other rows and from itself in other queries."""

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]

_UNKEYED = 2**63
_unkeyed_rows = count()
_keys: ContextVar[Iterator[Key] | None] = ContextVar("_keys", default=None)
_streams: ContextVar[RowStreams | None] = ContextVar("_streams", default=None)


class RowStreams:
    """The streams (Philox) of the rows of one call of a network, which runs on `device`; each moves on with
    every draw.
    """

    def __init__(self, keys: Sequence[Key], device: Any = "cpu") -> None:
        self.device = device
        self._rows = [_open_stream(key) for key in keys]
        self._shared = _open_stream((*keys[0], len(keys)))

    def draw(self, shape: Sequence[int], draw: Draw) -> NDArray[Any]:
        """Numbers of this shape; where its first side is not the number of rows, all rows share them."""
        shape = tuple(shape)
        if not shape or shape[0] != len(self._rows):
            return np.asarray(draw(self._shared, shape))
        return np.stack([np.asarray(draw(stream, shape[1:])) for stream in self._rows])


@contextmanager
def keyed_rows(keys: Iterable[Key]) -> Iterator[None]:
    """Within this, networks take the keys of their rows from here, in order."""
    token = _keys.set(iter(keys))
    try:
        yield
    finally:
        _keys.reset(token)


@contextmanager
def open_streams(rows: int, padding: int = 0, device: Any = "cpu") -> Iterator[None]:
    """The streams of a network's next rows; rows without a key, or that only fill a batch, get new ones."""
    given = islice(_keys.get() or iter(()), rows)
    unkeyed = ((_UNKEYED, number) for number in _unkeyed_rows)
    keys = list(islice(chain(given, unkeyed), rows + padding))
    token = _streams.set(RowStreams(keys, device))
    try:
        yield
    finally:
        _streams.reset(token)


def current_streams() -> RowStreams:
    """The streams of the rows that a network is computing."""
    streams = _streams.get()
    if streams is None:
        raise RuntimeError("no rows are being computed: use open_streams")
    return streams


def _open_stream(key: Key) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
