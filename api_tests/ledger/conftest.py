"""Fixtures of the ledger."""

from __future__ import annotations

import pytest

from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job, Submission


@pytest.fixture
def job(ledger: Ledger, submission: Submission) -> Job:
    return ledger.accept(submission)[0]
