"""Which models are loaded: the least recently used leaves when memory runs short."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass
class _Resident(Generic[T]):
    value: T | None = None
    size: int = 0
    users: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)


class Residency(Generic[K, T]):
    """Things loaded on demand and kept while a budget of bytes allows.

    `load` returns a thing and its size. Nothing in use is evicted, so the budget may be exceeded for as long
    as jobs need more; different things load side by side, one thing is loaded once.
    """

    def __init__(self, budget: int, load: Callable[[K], tuple[T, int]]) -> None:
        self._budget = budget
        self._load = load
        self._lock = threading.Lock()
        self._residents: OrderedDict[K, _Resident[T]] = OrderedDict()

    @contextmanager
    def hold(self, key: K) -> Iterator[T]:
        """The thing of this key, kept loaded while the context lasts."""
        resident = self._enter(key)
        try:
            yield self._value(key, resident)
        finally:
            self._exit(resident)

    def resident(self) -> dict[K, int]:
        """Sizes of what is loaded, in bytes, least recently used first."""
        with self._lock:
            return {key: one.size for key, one in self._residents.items() if one.value is not None}

    def _enter(self, key: K) -> _Resident[T]:
        with self._lock:
            resident = self._residents.setdefault(key, _Resident())
            self._residents.move_to_end(key)
            resident.users += 1
            return resident

    def _exit(self, resident: _Resident[T]) -> None:
        with self._lock:
            resident.users -= 1
            self._evict()

    def _value(self, key: K, resident: _Resident[T]) -> T:
        with resident.loading:
            if resident.value is None:
                resident.value, resident.size = self._load(key)
        with self._lock:
            self._evict()
        return resident.value

    def _evict(self) -> None:
        held = sum(one.size for one in self._residents.values())
        for key, one in list(self._residents.items()):
            if held <= self._budget:
                return
            if one.users == 0:
                held -= one.size
                del self._residents[key]
