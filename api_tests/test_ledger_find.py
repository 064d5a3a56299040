"""Finding jobs: filters, pages, cursors, and how long it takes among thousands."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from touchstone.errors import InvalidCursor
from touchstone.jobs.answers import Page
from touchstone.jobs.ledger import Ledger
from touchstone.jobs.record import ModelRef, Submission

METHODS = ("pgd", "fgsm", "square")
MODELS = ("digits", "fashion")


def variants(submission: Submission) -> itertools.cycle[Submission]:
    return itertools.cycle(
        submission.model_copy(update={"method": method, "model": ModelRef(id=model, digest="d")})
        for method, model in itertools.product(METHODS, MODELS)
    )


def fill(ledger: Ledger, submission: Submission, count: int) -> list[str]:
    """Accept many jobs; their ids from new to old."""
    jobs = [ledger.accept(kind)[0].id for kind, _ in zip(variants(submission), range(count), strict=False)]
    return jobs[::-1]


def every_page(ledger: Ledger, **filters: Any) -> list[Page]:
    pages = [ledger.find(**filters)]
    while pages[-1].cursor:
        pages.append(ledger.find(**filters, cursor=pages[-1].cursor))
    return pages


def ids(*pages: Page) -> list[str]:
    return [job.id for page in pages for job in page.jobs]


def test_pages_hold_every_job_once_newest_first(ledger: Ledger, submission: Submission) -> None:
    jobs = fill(ledger, submission, 25)
    pages = every_page(ledger, limit=10)
    assert [len(page.jobs) for page in pages] == [10, 10, 5]
    assert ids(*pages) == jobs


def test_a_full_last_page_has_no_cursor(ledger: Ledger, submission: Submission) -> None:
    fill(ledger, submission, 10)
    assert ledger.find(limit=10).cursor is None
    assert ledger.find(limit=9).cursor is not None


def test_an_empty_ledger_has_an_empty_page(ledger: Ledger) -> None:
    assert ledger.find() == Page((), None)
    assert ledger.find(status="failed", method="pgd") == Page((), None)


def test_filters_combine(ledger: Ledger, submission: Submission) -> None:
    jobs = fill(ledger, submission, 60)
    for name in jobs[:30]:
        ledger.cancel(name)
    pages = every_page(ledger, status="canceled", kind="attack", method="pgd", model="digits", limit=2)
    found = [job for page in pages for job in page.jobs]
    assert ids(*pages) == [
        name for name in jobs[:30] if name in ids(*every_page(ledger, method="pgd", model="digits"))
    ]
    assert len(found) == 5
    assert all(job.submission.method == "pgd" and job.status == "canceled" for job in found)
    assert ledger.find(method="unheard-of").jobs == ()
    assert ledger.find(kind="prediction").jobs == ()


def test_new_jobs_do_not_shift_later_pages(ledger: Ledger, submission: Submission) -> None:
    jobs = fill(ledger, submission, 20)
    first = ledger.find(limit=10)
    fill(ledger, submission, 5)
    assert ids(first, ledger.find(limit=10, cursor=first.cursor)) == jobs


def test_deleting_the_job_at_the_cursor_does_not_break_it(ledger: Ledger, submission: Submission) -> None:
    jobs = fill(ledger, submission, 20)
    first = ledger.find(limit=10)
    ledger.cancel(jobs[9])
    ledger.delete(jobs[9])
    assert ids(ledger.find(limit=10, cursor=first.cursor)) == jobs[10:]


def test_a_forged_or_foreign_cursor_is_refused(ledger: Ledger, submission: Submission) -> None:
    fill(ledger, submission, 20)
    cursor = ledger.find(limit=5).cursor
    assert cursor is not None
    flipped = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    for forged in (flipped, cursor[:-1], cursor + "A", "x", "ü", "%00", "A" * 10_000):
        with pytest.raises(InvalidCursor):
            ledger.find(limit=5, cursor=forged)
    with pytest.raises(InvalidCursor):
        ledger.find(method="pgd", limit=5, cursor=cursor)


def test_another_process_reads_the_cursor(ledger: Ledger, settings: Any, submission: Submission) -> None:
    jobs = fill(ledger, submission, 10)
    cursor = ledger.find(limit=5).cursor
    other = Ledger(settings.redis_url, settings)
    assert ids(other.find(limit=5, cursor=cursor)) == jobs[5:]
    other.close()


def test_a_rare_job_among_thousands_is_found_quickly(ledger: Ledger, submission: Submission) -> None:
    """Two large indexes whose overlap is one job, the oldest: the worst case of the walk."""
    rare, _ = ledger.accept(submission.model_copy(update={"method": "pgd"}))
    ledger.cancel(rare.id)
    plain = [submission.model_copy(update={"method": method}) for method in ("pgd", "fgsm")]
    for place in range(3000):
        job, _ = ledger.accept(plain[place % 2])
        if place % 2:
            ledger.cancel(job.id)
    begun = time.perf_counter()
    page = ledger.find(status="canceled", method="pgd", limit=1)
    assert ids(page) == [rare.id]
    assert ids(ledger.find(limit=50))
    assert time.perf_counter() - begun < 1


def test_a_walk_that_finds_nothing_ends_and_can_be_continued(
    ledger: Ledger, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("touchstone.jobs.ledger._LOOKS", 3)
    rare, _ = ledger.accept(submission)
    ledger.cancel(rare.id)
    for _ in range(100):
        ledger.accept(submission)
    for _ in range(100):
        ledger.cancel(ledger.accept(submission.model_copy(update={"method": "fgsm"}))[0].id)
    pages = every_page(ledger, status="canceled", method="pgd", limit=5)
    assert len(pages) > 1
    assert ids(*pages) == [rare.id]
