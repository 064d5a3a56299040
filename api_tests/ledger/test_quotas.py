"""What one tenant may use: jobs that wait, passes a day, requests a minute."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from typer.testing import CliRunner

from api_tests.ledger.test_ledger import claim
from api_tests.support.fake_service import Api, problem, serving
from api_tests.support.wait import wait_until
from touchstone import errors
from touchstone.cli import app
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.quotas import Allowance, Allowances, Needs, Rate, Standing
from touchstone.ledger.records import LOCAL, Submission
from touchstone.settings import Settings

USUAL = Allowance(waiting=10_000, requests=6_000, submissions=3_000, storage=2**35)


@pytest.fixture
def theirs(submission: Submission) -> Submission:
    """The submission of somebody with a key."""
    return submission.model_copy(update={"tenant": "them"})


@pytest.fixture
def allowances(ledger: Ledger) -> Allowances:
    return ledger.allowances


def test_usual_bounds_are_those_of_the_settings_and_none_without_keys(allowances: Allowances) -> None:
    assert allowances.of("them") == USUAL
    assert allowances.of(LOCAL) == Allowance()


def test_an_allowance_of_ones_own_goes_before_and_can_be_taken_back(
    settings: Settings, allowances: Allowances
) -> None:
    elsewhere = Ledger(str(settings.redis_url), settings)
    elsewhere.allowances.set("them", Allowance(waiting=3))
    assert allowances.of("them") == Allowance(waiting=3)
    assert allowances.all() == {"them": Allowance(waiting=3)}
    elsewhere.allowances.set("them", None)
    assert elsewhere.allowances.of("them").waiting == 10_000
    assert allowances.all() == {}
    wait_until(lambda: allowances.of("them").waiting != 3)
    elsewhere.close()


def test_as_many_jobs_of_a_tenant_wait_as_may_and_no_others_are_refused(
    ledger: Ledger, submission: Submission, theirs: Submission
) -> None:
    ledger.allowances.set("them", Allowance(waiting=2))
    first, _ = ledger.accept(theirs, idempotency=("key", "digest"))
    second, _ = ledger.accept(theirs)
    with pytest.raises(errors.TenantQueueFull) as refused:
        ledger.accept(theirs)
    assert refused.value.extra["retry_after"] >= 1
    assert ledger.accept(submission)[1], "another tenant's"
    assert ledger.accept(theirs, idempotency=("key", "digest"))[0].id == first.id
    ledger.cancel(second.id)
    assert ledger.accept(theirs)[1]


def spent(server: redis.Redis) -> int:
    [day] = server.keys("ts:passes:*") or [None]
    return int(server.hget(day, "them") or 0) if day else 0


def test_a_budget_of_passes_is_spent_until_the_day_ends(
    ledger: Ledger, theirs: Submission, server: redis.Redis
) -> None:
    ledger.allowances.set("them", Allowance(passes=100))
    ledger.accept(theirs, needs=Needs(passes=60))
    with pytest.raises(errors.BudgetSpent) as refused:
        ledger.accept(theirs, needs=Needs(passes=41))
    assert 0 < refused.value.extra["retry_after"] <= 86_400
    ledger.accept(theirs, needs=Needs(passes=40))
    assert spent(server) == 100
    [today] = server.keys("ts:passes:*")
    assert 86_400 < server.ttl(today) <= 2 * 86_400
    yesterday = f"ts:passes:{int(today.rpartition(':')[2]) - 1}"
    server.rename(today, yesterday)
    assert ledger.accept(theirs, needs=Needs(passes=100))[1], "another day"


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_what_was_never_begun_is_given_back_and_nothing_else(
    ledger: Ledger, theirs: Submission, server: redis.Redis, way: str
) -> None:
    ledger.allowances.set("them", Allowance(passes=100))
    begun, waiting = (ledger.accept(theirs, needs=Needs(passes=30))[0] for _ in range(2))
    ledger.release(begun.id, claim(ledger, begun).claims)
    for job in (waiting, begun):
        getattr(ledger, way)(job.id)
    assert spent(server) == 30


def test_nothing_is_given_back_for_a_day_that_is_forgotten(
    ledger: Ledger, theirs: Submission, server: redis.Redis
) -> None:
    ledger.allowances.set("them", Allowance(passes=100))
    job, _ = ledger.accept(theirs, needs=Needs(passes=30))
    server.delete(*server.keys("ts:passes:*"))
    ledger.cancel(job.id)
    assert server.keys("ts:passes:*") == []


def take(allowances: Allowances, rate: Rate) -> Standing:
    standing = allowances.take("them", rate)
    assert standing is not None
    return standing


def test_a_bucket_holds_a_minutes_worth_and_fills_evenly(allowances: Allowances) -> None:
    allowances.set("them", Allowance(requests=3000, submissions=2))
    first, second, third = (take(allowances, "submissions") for _ in range(3))
    assert [one.granted for one in (first, second, third)] == [True, True, False]
    assert [one.left for one in (first, second, third)] == [1, 0, 0]
    assert 10 < first.seconds <= 30
    assert 40 < second.seconds <= 60
    assert 10 < third.seconds <= 30, "the next one comes in half a minute"
    assert take(allowances, "requests").left == 2999, "another bucket"
    assert allowances.take(LOCAL, "requests") is None


def test_a_bucket_that_was_emptied_is_filled_again(allowances: Allowances, server: redis.Redis) -> None:
    allowances.set("them", Allowance(requests=600))
    second, micro = server.time()
    server.set("ts:rate:requests:them", (second + 61) * 10**6 + micro)
    empty = take(allowances, "requests")
    assert not empty.granted
    assert 0 < empty.seconds <= 1.1
    time.sleep(empty.seconds)
    assert take(allowances, "requests").granted
    assert 0 < server.ttl("ts:rate:requests:them") <= 60, "one that is full is forgotten"


@pytest.fixture
def own(settings: Settings) -> Iterator[Api]:
    with serving(settings) as api:
        yield api


def test_requests_that_come_too_fast_are_refused_and_every_answer_says_how_it_stands(own: Api) -> None:
    assert "RateLimit" not in own.client.get("/v1/jobs").headers
    own.ledger.allowances.set(LOCAL, Allowance(requests=3, submissions=1))
    answers = [own.client.get(path) for path in ("/v1/jobs", "/v1/jobs/none", "/v1/models", "/v1/jobs")]
    assert [answer.status_code for answer in answers] == [200, 404, 200, 429]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"requests";q=3;w=60'}
    stands = [re.fullmatch(r'"requests";r=(\d);t=(\d+)', one.headers["RateLimit"]) for one in answers]
    for match, left, seconds in zip(stands, (2, 1, 0, 0), (20, 40, 60, 20), strict=True):
        assert match
        assert int(match[1]) == left
        assert seconds - 10 < int(match[2]) <= seconds, "less what passed since the first request"
    refused = problem(answers[-1], 429, "rate_limited")
    assert stands[-1]
    assert answers[-1].headers["Retry-After"] == stands[-1][2]
    assert refused["limit"] == 3
    assert own.submit().headers["RateLimit"] == '"submissions";r=0;t=60'
    problem(own.submit(), 429, "rate_limited")
    assert own.client.get("/healthz").status_code == 200, "nobody's"


def test_a_full_share_and_a_spent_budget_are_told_with_when_to_come_back(own: Api) -> None:
    own.ledger.allowances.set(LOCAL, Allowance(passes=400))
    assert own.submit(steps="40", early_stop="false").status_code == 200
    refused = own.submit(steps="100")
    assert problem(refused, 429, "budget_spent")["retry_after"] == int(refused.headers["Retry-After"])
    own.ledger.allowances.set(LOCAL, Allowance(waiting=0))
    problem(own.submit(), 429, "tenant_queue_full")


def test_without_a_ledger_nothing_is_counted(own: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise errors.LedgerUnavailable("gone")

    monkeypatch.setattr(Allowances, "take", unreachable)
    assert own.client.get("/v1/attacks").status_code == 200


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


def test_the_command_line_sets_and_lists_allowances(run: Run, allowances: Allowances) -> None:
    assert "10,000" in run("list")
    run("set", "them", "--waiting", "7", "--requests", "none")
    assert allowances.all() == {"them": Allowance(waiting=7, submissions=3_000, storage=2**35)}
    assert "them" in run("set", "them", "--passes", "1000")
    assert allowances.all()["them"] == Allowance(waiting=7, passes=1000, submissions=3_000, storage=2**35)
    assert "them" not in run("reset", "them")


@pytest.mark.parametrize(("flag", "value"), [("--waiting", "-1"), ("--requests", "0"), ("--passes", "1e9")])
def test_an_allowance_that_is_no_number_is_refused(run: Run, flag: str, value: str) -> None:
    with pytest.raises(errors.InvalidParameter, match=flag):
        run("set", "them", flag, value)
