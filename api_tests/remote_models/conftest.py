"""A remote model, and the access to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api_tests.remote_models.queries import FakeStore
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
def remote_access(ledger: Ledger) -> RemoteAccess:
    return RemoteAccess(OutboundClient("127.0.0.1"), ledger.query_budget, read_secret)


@pytest.fixture
def engine(remote_access: RemoteAccess) -> Iterator[Engine]:
    engine = Engine("cpu", store=FakeStore(), remote_access=remote_access)  # type: ignore[arg-type]
    yield engine
    engine.stop()
