"""Fixtures of registered models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from api_tests.support.registry_worker import RegistryWorker
from touchstone.settings import Settings


@pytest.fixture
def make_worker(settings: Settings) -> Iterator[Callable[..., RegistryWorker]]:
    made: list[RegistryWorker] = []

    def make(**changes: Any) -> RegistryWorker:
        made.append(RegistryWorker(settings.model_copy(update=changes)))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def worker(make_worker: Callable[..., RegistryWorker]) -> RegistryWorker:
    return make_worker()
