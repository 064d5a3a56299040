"""Quotas and rate limits of one tenant: waiting jobs, passes a day, requests a minute."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
import redis
from typer.testing import CliRunner

from api_tests.ledger.test_ledger import claim
from api_tests.support.fake_service import Api, assert_problem
from api_tests.support.wait import wait_until
from touchstone import errors
from touchstone.cli import app
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.quotas import Quota, Quotas, QuotaUsage, Rate, RateLimitResult
from touchstone.ledger.records import LOCAL, Submission
from touchstone.settings import Settings

DEFAULT_QUOTA = Quota(waiting=10_000, requests=6_000, submissions=3_000, storage=2**35)


@pytest.fixture
def tenant_submission(submission: Submission) -> Submission:
    """The submission of a tenant with a key."""
    return submission.model_copy(update={"tenant": "them"})


@pytest.fixture
def quotas(ledger: Ledger) -> Quotas:
    return ledger.quotas


def test_default_quota_follows_the_settings_and_is_unlimited_without_keys(quotas: Quotas) -> None:
    assert quotas.of("them") == DEFAULT_QUOTA
    assert quotas.of(LOCAL) == Quota()


def test_tenant_quota_overrides_the_default_and_can_be_reset(settings: Settings, quotas: Quotas) -> None:
    elsewhere = Ledger(str(settings.redis_url), settings)
    elsewhere.quotas.set("them", Quota(waiting=3))
    assert quotas.of("them") == Quota(waiting=3)
    assert quotas.all() == {"them": Quota(waiting=3)}
    elsewhere.quotas.set("them", None)
    assert elsewhere.quotas.of("them").waiting == 10_000
    assert quotas.all() == {}
    wait_until(lambda: quotas.of("them").waiting != 3)
    elsewhere.close()


def test_jobs_over_the_queue_quota_of_a_tenant_are_refused_and_no_others(
    ledger: Ledger, submission: Submission, tenant_submission: Submission
) -> None:
    ledger.quotas.set("them", Quota(waiting=2))
    first, _ = ledger.accept(tenant_submission, idempotency=("key", "digest"))
    second, _ = ledger.accept(tenant_submission)
    with pytest.raises(errors.TenantQueueFull) as refused:
        ledger.accept(tenant_submission)
    assert refused.value.extra["retry_after"] >= 1
    assert ledger.accept(submission)[1], "another tenant's"
    assert ledger.accept(tenant_submission, idempotency=("key", "digest"))[0].id == first.id
    ledger.cancel(second.id)
    assert ledger.accept(tenant_submission)[1]


def count_spent_passes(server: redis.Redis) -> int:
    [day] = server.keys("ts:passes:*") or [None]
    return int(server.hget(day, "them") or 0) if day else 0


def test_daily_budget_of_passes_is_enforced_until_the_day_ends(
    ledger: Ledger, tenant_submission: Submission, server: redis.Redis
) -> None:
    ledger.quotas.set("them", Quota(passes=100))
    ledger.accept(tenant_submission, usage=QuotaUsage(passes=60))
    with pytest.raises(errors.BudgetSpent) as refused:
        ledger.accept(tenant_submission, usage=QuotaUsage(passes=41))
    assert 0 < refused.value.extra["retry_after"] <= 86_400
    ledger.accept(tenant_submission, usage=QuotaUsage(passes=40))
    assert count_spent_passes(server) == 100
    [today] = server.keys("ts:passes:*")
    assert 86_400 < server.ttl(today) <= 2 * 86_400
    yesterday = f"ts:passes:{int(today.rpartition(':')[2]) - 1}"
    server.rename(today, yesterday)
    assert ledger.accept(tenant_submission, usage=QuotaUsage(passes=100))[1], "another day"


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_passes_of_jobs_that_never_started_are_refunded_and_no_others(
    ledger: Ledger, tenant_submission: Submission, server: redis.Redis, way: str
) -> None:
    ledger.quotas.set("them", Quota(passes=100))
    started, waiting = (ledger.accept(tenant_submission, usage=QuotaUsage(passes=30))[0] for _ in range(2))
    ledger.release(started.id, claim(ledger, started).claims)
    for job in (waiting, started):
        getattr(ledger, way)(job.id)
    assert count_spent_passes(server) == 30


def test_no_passes_are_refunded_for_an_expired_day(
    ledger: Ledger, tenant_submission: Submission, server: redis.Redis
) -> None:
    ledger.quotas.set("them", Quota(passes=100))
    job, _ = ledger.accept(tenant_submission, usage=QuotaUsage(passes=30))
    server.delete(*server.keys("ts:passes:*"))
    ledger.cancel(job.id)
    assert server.keys("ts:passes:*") == []


def take(quotas: Quotas, rate: Rate) -> RateLimitResult:
    result = quotas.take("them", rate)
    assert result is not None
    return result


def test_rate_limit_allows_a_minutes_requests_and_refills_evenly(quotas: Quotas) -> None:
    quotas.set("them", Quota(requests=3000, submissions=2))
    first, second, third = (take(quotas, "submissions") for _ in range(3))
    assert [one.granted for one in (first, second, third)] == [True, True, False]
    assert [one.remaining for one in (first, second, third)] == [1, 0, 0]
    assert 10 < first.reset_seconds <= 30
    assert 40 < second.reset_seconds <= 60
    assert 10 < third.reset_seconds <= 30, "the next one comes in half a minute"
    assert take(quotas, "requests").remaining == 2999, "another bucket"
    assert quotas.take(LOCAL, "requests") is None


def test_exhausted_rate_limit_allows_requests_again_after_its_wait(
    quotas: Quotas, server: redis.Redis
) -> None:
    quotas.set("them", Quota(requests=600))
    second, micro = server.time()
    server.set("ts:rate:requests:them", (second + 60) * 10**6 + micro)
    empty = take(quotas, "requests")
    assert not empty.granted
    assert 0 < empty.reset_seconds <= 1.1
    time.sleep(empty.reset_seconds)
    assert take(quotas, "requests").granted
    assert 0 < server.ttl("ts:rate:requests:them") <= 60, "a full bucket expires"


@pytest.fixture
def fresh_api(api: Api, valkey: str) -> Api:
    """The service over an empty ledger, without quotas."""
    api.ledger.quotas.set(LOCAL, None)
    return api


def test_requests_over_the_rate_limit_answer_429_and_all_show_the_limit(fresh_api: Api) -> None:
    assert "RateLimit" not in fresh_api.client.get("/v1/jobs").headers
    fresh_api.ledger.quotas.set(LOCAL, Quota(requests=3, submissions=1))
    answers = [fresh_api.client.get(path) for path in ("/v1/jobs", "/v1/jobs/none", "/v1/models", "/v1/jobs")]
    assert [answer.status_code for answer in answers] == [200, 404, 200, 429]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"requests";q=3;w=60'}
    limits = [re.fullmatch(r'"requests";r=(\d);t=(\d+)', one.headers["RateLimit"]) for one in answers]
    for match, left, seconds in zip(limits, (2, 1, 0, 0), (20, 40, 60, 20), strict=True):
        assert match
        assert int(match[1]) == left
        assert seconds - 10 < int(match[2]) <= seconds, "less what passed since the first request"
    refused = assert_problem(answers[-1], 429, "rate_limited")
    assert limits[-1]
    assert answers[-1].headers["Retry-After"] == limits[-1][2]
    assert refused["limit"] == 3
    assert fresh_api.submit().headers["RateLimit"] == '"submissions";r=0;t=60'
    assert_problem(fresh_api.submit(), 429, "rate_limited")
    assert fresh_api.client.get("/healthz").status_code == 200, "of no tenant"


def test_spent_budget_and_full_tenant_queue_answer_429(fresh_api: Api) -> None:
    fresh_api.ledger.quotas.set(LOCAL, Quota(passes=400))
    assert fresh_api.submit(steps="40", early_stop="false").status_code == 200
    refused = fresh_api.submit(steps="100")
    assert assert_problem(refused, 429, "budget_spent")["retry_after"] == int(refused.headers["Retry-After"])
    fresh_api.ledger.quotas.set(LOCAL, Quota(waiting=0))
    assert_problem(fresh_api.submit(), 429, "tenant_queue_full")


def test_requests_are_not_rate_limited_while_the_ledger_is_unavailable(
    fresh_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise errors.LedgerUnavailable("gone")

    monkeypatch.setattr(Quotas, "take", unreachable)
    assert fresh_api.client.get("/v1/attacks").status_code == 200


Run = Callable[..., str]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TOUCHSTONE_REDIS_URL", str(settings.redis_url))
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words: str) -> str:
        done = CliRunner().invoke(app.app, ["tenants", *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_tenants_command_sets_lists_and_resets_quotas(run: Run, quotas: Quotas) -> None:
    assert "10,000" in run("list")
    run("set", "them", "--waiting", "7", "--requests", "none")
    assert quotas.all() == {"them": Quota(waiting=7, submissions=3_000, storage=2**35)}
    assert "them" in run("set", "them", "--passes", "1000")
    assert quotas.all()["them"] == Quota(waiting=7, passes=1000, submissions=3_000, storage=2**35)
    assert "them" not in run("reset", "them")


@pytest.mark.parametrize(("flag", "value"), [("--waiting", "-1"), ("--requests", "0"), ("--passes", "1e9")])
def test_tenants_command_refuses_an_invalid_quota(run: Run, flag: str, value: str) -> None:
    with pytest.raises(errors.InvalidParameter, match=flag):
        run("set", "them", flag, value)
