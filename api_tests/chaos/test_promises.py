"""The promised limits, measured on the whole service; `python -m chaos.promises` measures them at length, on
a machine with no other load.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos import campaign, promises
from chaos.promises import Measurement
from chaos.proxy import Mode
from chaos.report import spread
from chaos.site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with campaign.site(tmp_path_factory.mktemp("c"), workers=2, concurrency=96) as site:
        yield site


def is_within_limit(measured: Measurement) -> bool:
    """The promise is for the 99th percentile; under the load of other tests the median is compared."""
    return measured.limit is not None and spread(measured.seconds)[0] < measured.limit


def test_fifty_requests_with_one_idempotency_key_make_one_job(site: Site) -> None:
    assert promises.count_jobs_of_one_key(site, 50) == 1


def test_canceled_job_stops_querying_its_model_in_time(site: Site) -> None:
    measured = promises.measure_cancel(site, 10)
    assert len(measured.seconds) == 10
    assert is_within_limit(measured), measured


@pytest.mark.parametrize("mode", [Mode.STALL, Mode.ONE_WAY])
def test_requests_fail_soon_when_the_ledger_is_cut_off(site: Site, mode: Mode) -> None:
    at_once = promises.measure_cut_off(site, Mode.RESET, rounds=1)[0]
    answers, loop, thread = promises.measure_cut_off(site, mode, rounds=1)
    busy = spread(at_once.seconds)[0]  # on a busy machine requests that need not wait are slow, too
    assert answers.limit is not None
    assert spread(answers.seconds)[0] < answers.limit + busy, (answers, at_once)
    busy = 3 * spread(thread.seconds)[0]  # on a busy machine an idle thread is late, too
    assert is_within_limit(loop) or spread(loop.seconds)[0] < busy, (loop, thread)
