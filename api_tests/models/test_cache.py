"""Models come when they are asked for and leave when memory runs short, the least recently used first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from api_tests.support.wait import SECONDS
from touchstone.models.cache import Residency


def residency(budget: int, loads: list[str]) -> Residency[str, str]:
    def load(key: str) -> tuple[str, int]:
        loads.append(key)
        return key.upper(), 10

    return Residency(budget, load)


def visit(models: Residency[str, str], *keys: str) -> None:
    for key in keys:
        with models.hold(key) as value:
            assert value == key.upper()


def test_several_stay_while_the_budget_allows() -> None:
    loads: list[str] = []
    models = residency(30, loads)
    visit(models, "a", "b", "c", "a", "b", "c")
    assert loads == ["a", "b", "c"]
    assert models.resident() == {"a": 10, "b": 10, "c": 10}


def test_the_least_recently_used_leaves() -> None:
    loads: list[str] = []
    models = residency(20, loads)
    visit(models, "a", "b", "a", "c")
    assert list(models.resident()) == ["a", "c"]
    visit(models, "b")
    assert loads == ["a", "b", "c", "b"]


def test_what_is_in_use_stays_though_the_budget_is_exceeded() -> None:
    models = residency(10, [])
    with models.hold("a"), models.hold("b"):
        assert list(models.resident()) == ["a", "b"]
    assert len(models.resident()) == 1


def test_many_threads_load_a_model_once() -> None:
    loads: list[str] = []
    gate = threading.Event()

    def load(key: str) -> tuple[str, int]:
        gate.wait(SECONDS)
        loads.append(key)
        return key, 1

    models: Residency[str, str] = Residency(100, load)

    def use(_: int) -> str:
        with models.hold("a") as value:
            return value

    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(use, range(8))
        gate.set()
        assert list(asked) == ["a"] * 8
    assert loads == ["a"]


def test_a_model_that_cannot_be_loaded_is_tried_again() -> None:
    tries: list[str] = []

    def load(key: str) -> tuple[str, int]:
        tries.append(key)
        if len(tries) == 1:
            raise OSError("no such file")
        return key, 1

    models: Residency[str, str] = Residency(100, load)
    with pytest.raises(OSError, match="no such file"), models.hold("a"):
        pass
    with models.hold("a") as value:
        assert value == "a"
    assert tries == ["a", "a"]
