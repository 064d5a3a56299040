"""A model behind an address, and the ways to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import remote
from remote import Model

from remote_models.asking import Shelf
from touchstone.engine import Engine, Ways
from touchstone.jobs.ledger import Ledger
from touchstone.outgoing import Outgoing
from touchstone.settings import secret

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


@pytest.fixture
def model() -> Iterator[Model]:
    with remote.serving() as model:
        yield model


@pytest.fixture
def ways(ledger: Ledger) -> Ways:
    return Ways(Outgoing("127.0.0.1"), ledger.spending, secret)


@pytest.fixture
def engine(ways: Ways) -> Iterator[Engine]:
    engine = Engine("cpu", shelf=Shelf(), ways=ways)  # type: ignore[arg-type]
    yield engine
    engine.stop()
