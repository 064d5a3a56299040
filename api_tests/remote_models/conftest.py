"""A model behind an address, and the ways to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api_tests.remote_models.queries import Shelf
from api_tests.support import remote_models
from api_tests.support.remote_models import Model
from touchstone.engine import Engine, Ways
from touchstone.ledger.ledger import Ledger
from touchstone.net.outbound import Outgoing
from touchstone.settings import secret

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


@pytest.fixture
def model() -> Iterator[Model]:
    with remote_models.serving() as model:
        yield model


@pytest.fixture
def ways(ledger: Ledger) -> Ways:
    return Ways(Outgoing("127.0.0.1"), ledger.spending, secret)


@pytest.fixture
def engine(ways: Ways) -> Iterator[Engine]:
    engine = Engine("cpu", shelf=Shelf(), ways=ways)  # type: ignore[arg-type]
    yield engine
    engine.stop()
