"""A model behind an address, and the ways to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api_tests.remote_models.queries import Shelf
from api_tests.support import remote_models
from api_tests.support.remote_models import FakeRemoteModel
from touchstone.engine import Engine, RemoteAccess
from touchstone.ledger.ledger import Ledger
from touchstone.net.outbound import OutboundClient
from touchstone.settings import read_secret

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


@pytest.fixture
def model() -> Iterator[FakeRemoteModel]:
    with remote_models.serve_model() as model:
        yield model


@pytest.fixture
def ways(ledger: Ledger) -> RemoteAccess:
    return RemoteAccess(OutboundClient("127.0.0.1"), ledger.query_budget, read_secret)


@pytest.fixture
def engine(ways: RemoteAccess) -> Iterator[Engine]:
    engine = Engine("cpu", store=Shelf(), remote_access=ways)  # type: ignore[arg-type]
    yield engine
    engine.stop()
