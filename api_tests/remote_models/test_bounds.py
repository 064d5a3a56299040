"""What remote models may not do to anybody, and what they may cost."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import torch

import touchstone
from api_tests.remote_models.queries import asked
from api_tests.support import remote_models
from api_tests.support.linear_models import greyish
from api_tests.support.remote_models import Model, saying
from touchstone.engine import CrossEntropy, Engine, Goal, Gradient, Ways
from touchstone.errors import (
    AddressRefused,
    GradientRefused,
    ModelUnusable,
    QueryBudgetSpent,
    RemoteAnswer,
    RemoteUnavailable,
)
from touchstone.ledger.ledger import Ledger
from touchstone.net.outbound import Outgoing, resolve
from touchstone.settings import Settings, secret
from touchstone.supervisor import up

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


def test_gradients_are_refused(ways: Ways, model: Model) -> None:
    goal = Goal.of(torch.zeros(1, dtype=torch.long), targeted=False)
    with pytest.raises(GradientRefused, match="tells no gradients"):
        ways.to(model.card()).answer([Gradient(greyish(1), CrossEntropy(goal))])
    assert model.requests == 0


def test_without_a_way_out_nothing_is_asked(model: Model) -> None:
    engine = Engine("cpu")
    try:
        with pytest.raises(ModelUnusable, match="only a worker"):
            engine.remote(model.card())
    finally:
        engine.stop()


def test_private_addresses_are_not_asked(model: Model, ledger: Ledger) -> None:
    oracle = Ways(Outgoing(), ledger.spending, secret).to(model.card())
    with pytest.raises(AddressRefused, match="private or reserved"):
        asked(oracle, greyish(1))
    assert model.requests == 0


def test_a_name_that_turns_private_is_not_asked(model: Model, ledger: Ledger) -> None:
    turns = iter(["93.184.216.34", "127.0.0.1"])
    out = Outgoing(find=lambda _host, port: resolve(next(turns), port))
    card = model.card(url=f"https://a.example:{model.port}/", retries=3)
    out.check(f"https://a.example:{model.port}/")
    with pytest.raises(AddressRefused):
        asked(Ways(out, ledger.spending, secret).to(card), greyish(1))
    assert model.requests == 0


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (301, RemoteAnswer),
        (400, RemoteAnswer),
        (401, RemoteAnswer),
        (404, RemoteAnswer),
        (500, RemoteUnavailable),
    ],
)
def test_statuses_that_are_no_answers(
    model: Model, ways: Ways, status: int, failure: type[Exception]
) -> None:
    model.act = saying(status, b"swordfish", Location="http://127.0.0.1/")
    with pytest.raises(failure, match=str(status)) as caught:
        asked(ways.to(model.card(retries=3)), greyish(1))
    assert model.requests == 1
    assert "swordfish" not in str(caught.value)


def test_one_that_is_busy_is_asked_again_when_it_says(model: Model, ways: Ways, ledger: Ledger) -> None:
    card = model.card(retries=2)
    model.plan = [saying(429, Retry_After="1"), saying(503)]
    began = time.monotonic()
    assert asked(ways.to(card), greyish(3)).shape == (3, 4)
    assert time.monotonic() - began > 1
    assert (model.requests, model.rows) == (3, 9)
    assert ledger.spending.spent([card.digest])[card.digest] == 9


def test_but_not_for_ever(model: Model, ways: Ways) -> None:
    model.act = saying(503)
    with pytest.raises(RemoteUnavailable, match="503"):
        asked(ways.to(model.card(retries=1)), greyish(1))
    assert model.requests == 2
    model.act = saying(429, Retry_After="86400")
    with pytest.raises(RemoteUnavailable) as caught:
        asked(ways.to(model.card(retries=3)), greyish(1))
    assert caught.value.extra["retry_after"] == 86400
    assert model.requests == 3


def test_a_broken_connection_is_tried_again_and_a_slow_answer_is_not(model: Model, ways: Ways) -> None:
    model.plan = [remote_models.hang_up]
    asked(ways.to(model.card(retries=1)), greyish(1))
    assert model.requests == 2
    model.plan = [remote_models.drip]
    with pytest.raises(RemoteUnavailable, match="within"):
        asked(ways.to(model.card(retries=3, timeout=0.2)), greyish(1))
    assert model.requests == 3


def test_secrets_go_to_their_host_and_nowhere_else(
    model: Model, ways: Ways, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = model.card(secret="ACME")
    with pytest.raises(ModelUnusable, match="TOUCHSTONE_SECRET_ACME"):
        ways.to(card)
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", "swordfish")
    for hosts in ("", "a.example", "27.0.0.1"):
        monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_HOSTS", hosts)
        with pytest.raises(ModelUnusable, match=r"is not for 127\.0\.0\.1") as caught:
            ways.to(card)
        assert "swordfish" not in str(caught.value)
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_HOSTS", "a.example, 127.0.0.1")
    caplog.set_level("DEBUG")
    asked(ways.to(card), greyish(1))
    asked(ways.to(model.card(secret="ACME", secret_header="X-Key: $secret")), greyish(1))
    assert [one.get("Authorization") for one in model.headers] == ["Bearer swordfish", None]
    assert model.headers[1]["X-Key"] == "swordfish"
    model.act = saying(401)
    with pytest.raises(RemoteAnswer) as refused:
        asked(ways.to(card), greyish(1))
    shown = [json.dumps(card.card()), repr(card), caplog.text, str(refused.value), str(refused.value.extra)]
    assert not any("swordfish" in text for text in shown)


def test_a_start_of_all_hands_secrets_on_and_no_other_setting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", "swordfish")
    monkeypatch.setenv("TOUCHSTONE_LEASE", "17")
    environment = up._environment(settings)
    assert environment["TOUCHSTONE_SECRET_ACME"] == "swordfish"
    assert environment["TOUCHSTONE_LEASE"] == "5.0"


def test_a_secret_that_no_header_can_carry(model: Model, ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", "sword\r\nfish: x")
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_HOSTS", "127.0.0.1")
    with pytest.raises(ModelUnusable, match="printable") as caught:
        ways.to(model.card(secret="ACME"))
    assert "fish" not in str(caught.value)


def test_a_budget_holds_over_oracles_and_is_spent_exactly(model: Model, ways: Ways, ledger: Ledger) -> None:
    card = model.card(budget=20)
    asked(ways.to(card), greyish(15))
    with pytest.raises(QueryBudgetSpent, match="15 were sent") as caught:
        asked(ways.to(card), greyish(8))
    assert caught.value.extra == {"budget": 20, "spent": 15}
    asked(ways.to(card), greyish(5))
    assert model.rows == 20 == ledger.spending.spent([card.digest])[card.digest]
    assert ledger.spending.spent(["sha256:other"]) == {"sha256:other": 0}


def test_a_call_of_the_ledger_repeated_is_one(ledger: Ledger) -> None:
    for _ in range(3):
        assert ledger.spending("m", 5, budget=7, rate=None, token="a") == 0
    with pytest.raises(QueryBudgetSpent):
        ledger.spending("m", 5, budget=7, rate=None, token="b")
    assert ledger.spending.spent(["m"]) == {"m": 5}


def test_many_spend_no_more_than_there_is(ledger: Ledger) -> None:
    refused = []

    def spend(number: int) -> None:
        try:
            ledger.spending("m", 1, budget=30, rate=None, token=str(number))
        except QueryBudgetSpent:
            refused.append(number)

    threads = [threading.Thread(target=spend, args=[number]) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(refused), ledger.spending.spent(["m"])["m"]) == (20, 30)


def test_a_rate_is_kept(model: Model, ways: Ways) -> None:
    card = model.card(rate=100, batch=4)
    began = time.monotonic()
    asked(ways.to(card), greyish(48))
    asked(ways.to(card), greyish(12))
    assert 0.4 <= time.monotonic() - began < 20
    assert model.rows == 60


def test_an_outage_of_the_ledger_is_waited_for(model: Model, ways: Ways) -> None:
    calls = []

    def shaky(*args: Any, **more: Any) -> float:
        calls.append(args)
        if len(calls) < 3:
            raise touchstone.errors.LedgerUnavailable("gone")
        return ways.spend(*args, **more)

    asked(Ways(ways.outgoing, shaky, secret).to(model.card()), greyish(1))
    assert (len(calls), model.rows) == (3, 1)
