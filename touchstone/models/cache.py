"""Loaded models: the least recently used is evicted when memory runs short."""

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
class _CacheEntry(Generic[T]):
    value: T | None = None
    size: int = 0
    users: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)


class ModelCache(Generic[K, T]):
    """Values loaded on demand and kept within a budget of bytes.

    `load` returns a value and its size. A value in use is never evicted, so the budget may be exceeded while
    jobs need more. Different values load concurrently, each one once.
    """

    def __init__(self, budget: int, load: Callable[[K], tuple[T, int]]) -> None:
        self._budget = budget
        self._load = load
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, _CacheEntry[T]] = OrderedDict()

    @contextmanager
    def acquire(self, key: K) -> Iterator[T]:
        """The value of this key, kept loaded within the context."""
        entry = self._pin(key)
        try:
            yield self._load_once(key, entry)
        finally:
            self._unpin(entry)

    def loaded_sizes(self) -> dict[K, int]:
        """Sizes of what is loaded, in bytes, least recently used first."""
        with self._lock:
            return {key: one.size for key, one in self._entries.items() if one.value is not None}

    def _pin(self, key: K) -> _CacheEntry[T]:
        with self._lock:
            entry = self._entries.setdefault(key, _CacheEntry())
            self._entries.move_to_end(key)
            entry.users += 1
            return entry

    def _unpin(self, entry: _CacheEntry[T]) -> None:
        with self._lock:
            entry.users -= 1
            self._evict()

    def _load_once(self, key: K, entry: _CacheEntry[T]) -> T:
        with entry.loading:
            if entry.value is None:
                entry.value, entry.size = self._load(key)
        with self._lock:
            self._evict()
        return entry.value

    def _evict(self) -> None:
        total = sum(one.size for one in self._entries.values())
        for key, one in list(self._entries.items()):
            if total <= self._budget:
                return
            if one.users == 0:
                total -= one.size
                del self._entries[key]
