"""Models come when they are asked for and leave when memory runs short, the least recently used first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from api_tests.support.wait import TIMEOUT_SECONDS
from touchstone.models.cache import ModelCache


def build_cache(budget: int, loads: list[str]) -> ModelCache[str, str]:
    def load(key: str) -> tuple[str, int]:
        loads.append(key)
        return key.upper(), 10

    return ModelCache(budget, load)


def acquire_each(models: ModelCache[str, str], *keys: str) -> None:
    for key in keys:
        with models.acquire(key) as value:
            assert value == key.upper()


def test_models_stay_cached_within_the_memory_budget() -> None:
    loads: list[str] = []
    models = build_cache(30, loads)
    acquire_each(models, "a", "b", "c", "a", "b", "c")
    assert loads == ["a", "b", "c"]
    assert models.loaded_sizes() == {"a": 10, "b": 10, "c": 10}


def test_least_recently_used_model_is_evicted() -> None:
    loads: list[str] = []
    models = build_cache(20, loads)
    acquire_each(models, "a", "b", "a", "c")
    assert list(models.loaded_sizes()) == ["a", "c"]
    acquire_each(models, "b")
    assert loads == ["a", "b", "c", "b"]


def test_models_in_use_are_kept_even_over_budget() -> None:
    models = build_cache(10, [])
    with models.acquire("a"), models.acquire("b"):
        assert list(models.loaded_sizes()) == ["a", "b"]
    assert len(models.loaded_sizes()) == 1


def test_concurrent_threads_load_a_model_once() -> None:
    loads: list[str] = []
    gate = threading.Event()

    def load(key: str) -> tuple[str, int]:
        gate.wait(TIMEOUT_SECONDS)
        loads.append(key)
        return key, 1

    models: ModelCache[str, str] = ModelCache(100, load)

    def use(_: int) -> str:
        with models.acquire("a") as value:
            return value

    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(use, range(8))
        gate.set()
        assert list(asked) == ["a"] * 8
    assert loads == ["a"]


def test_failed_load_is_retried() -> None:
    tries: list[str] = []

    def load(key: str) -> tuple[str, int]:
        tries.append(key)
        if len(tries) == 1:
            raise OSError("no such file")
        return key, 1

    models: ModelCache[str, str] = ModelCache(100, load)
    with pytest.raises(OSError, match="no such file"), models.acquire("a"):
        pass
    with models.acquire("a") as value:
        assert value == "a"
    assert tries == ["a", "a"]
