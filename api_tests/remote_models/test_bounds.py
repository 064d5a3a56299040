"""Limits of remote models: addresses, secrets, retries, budgets and rates."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import torch

import touchstone
from api_tests.remote_models.queries import query_logits
from api_tests.support import remote_models
from api_tests.support.linear_models import gray_images
from api_tests.support.remote_models import FakeRemoteModel, reply_with
from touchstone.engine import CrossEntropy, Engine, Goal, Gradient, RemoteAccess
from touchstone.errors import (
    AddressRefused,
    GradientRefused,
    ModelUnusable,
    QueryBudgetSpent,
    RemoteAnswer,
    RemoteUnavailable,
)
from touchstone.ledger.ledger import Ledger
from touchstone.net.outbound import OutboundClient, resolve
from touchstone.settings import Settings, check_secret_tenant, read_secret, to_environment

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


def test_remote_model_refuses_gradient_queries(remote_access: RemoteAccess, model: FakeRemoteModel) -> None:
    goal = Goal.of(torch.zeros(1, dtype=torch.long), targeted=False)
    with pytest.raises(GradientRefused, match="gives no gradients"):
        remote_access.oracle_for(model.manifest()).answer([Gradient(gray_images(1), CrossEntropy(goal))])
    assert model.requests == 0


def test_engine_without_remote_access_refuses_remote_models(model: FakeRemoteModel) -> None:
    engine = Engine("cpu")
    try:
        with pytest.raises(ModelUnusable, match="only a worker"):
            engine.remote_oracle(model.manifest())
    finally:
        engine.stop()


def test_private_address_is_refused_without_a_request(model: FakeRemoteModel, ledger: Ledger) -> None:
    oracle = RemoteAccess(OutboundClient(), ledger.query_budget, read_secret).oracle_for(model.manifest())
    with pytest.raises(AddressRefused, match="private or reserved"):
        query_logits(oracle, gray_images(1))
    assert model.requests == 0


def test_host_name_that_later_resolves_to_private_address_is_refused(
    model: FakeRemoteModel, ledger: Ledger
) -> None:
    turns = iter(["93.184.216.34", "127.0.0.1"])
    out = OutboundClient(resolver=lambda _host, port: resolve(next(turns), port))
    card = model.manifest(url=f"https://a.example:{model.port}/", retries=3)
    out.check(f"https://a.example:{model.port}/")
    with pytest.raises(AddressRefused):
        query_logits(RemoteAccess(out, ledger.query_budget, read_secret).oracle_for(card), gray_images(1))
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
def test_error_status_fails_without_retry_or_leaking_the_body(
    model: FakeRemoteModel, remote_access: RemoteAccess, status: int, failure: type[Exception]
) -> None:
    model.action = reply_with(status, b"swordfish", Location="http://127.0.0.1/")
    with pytest.raises(failure, match=str(status)) as caught:
        query_logits(remote_access.oracle_for(model.manifest(retries=3)), gray_images(1))
    assert model.requests == 1
    assert "swordfish" not in str(caught.value)


def test_busy_model_is_retried_after_its_retry_after(
    model: FakeRemoteModel, remote_access: RemoteAccess, ledger: Ledger
) -> None:
    card = model.manifest(retries=2)
    model.next_actions = [reply_with(429, Retry_After="1"), reply_with(503)]
    began = time.monotonic()
    assert query_logits(remote_access.oracle_for(card), gray_images(3)).shape == (3, 4)
    assert time.monotonic() - began > 1
    assert (model.requests, model.rows) == (3, 9)
    assert ledger.query_budget.read_spent([card.digest])[card.digest] == 9


def test_busy_model_fails_after_its_retries_or_on_long_retry_after(
    model: FakeRemoteModel, remote_access: RemoteAccess
) -> None:
    model.action = reply_with(503)
    with pytest.raises(RemoteUnavailable, match="503"):
        query_logits(remote_access.oracle_for(model.manifest(retries=1)), gray_images(1))
    assert model.requests == 2
    model.action = reply_with(429, Retry_After="86400")
    with pytest.raises(RemoteUnavailable) as caught:
        query_logits(remote_access.oracle_for(model.manifest(retries=3)), gray_images(1))
    assert caught.value.extra["retry_after"] == 86400
    assert model.requests == 3


def test_broken_connection_is_retried_and_timeout_is_not(
    model: FakeRemoteModel, remote_access: RemoteAccess
) -> None:
    model.next_actions = [remote_models.close_silently]
    query_logits(remote_access.oracle_for(model.manifest(retries=1)), gray_images(1))
    assert model.requests == 2
    model.next_actions = [remote_models.send_slowly]
    with pytest.raises(RemoteUnavailable, match="within"):
        query_logits(remote_access.oracle_for(model.manifest(retries=3, timeout=0.2)), gray_images(1))
    assert model.requests == 3


def test_secret_is_sent_only_to_its_allowed_hosts_and_never_shown(
    model: FakeRemoteModel,
    remote_access: RemoteAccess,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = model.manifest(secret="ACME")
    with pytest.raises(ModelUnusable, match="TOUCHSTONE_SECRET_ACME"):
        remote_access.oracle_for(card)
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", "swordfish")
    for hosts in ("", "a.example", "27.0.0.1"):
        monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_HOSTS", hosts)
        with pytest.raises(ModelUnusable, match=r"is not for 127\.0\.0\.1") as caught:
            remote_access.oracle_for(card)
        assert "swordfish" not in str(caught.value)
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_HOSTS", "a.example, 127.0.0.1")
    caplog.set_level("DEBUG")
    query_logits(remote_access.oracle_for(card), gray_images(1))
    query_logits(
        remote_access.oracle_for(model.manifest(secret="ACME", secret_header="X-Key: $secret")),
        gray_images(1),
    )
    assert [one.get("Authorization") for one in model.headers] == ["Bearer swordfish", None]
    assert model.headers[1]["X-Key"] == "swordfish"
    model.action = reply_with(401)
    with pytest.raises(RemoteAnswer) as refused:
        query_logits(remote_access.oracle_for(card), gray_images(1))
    shown = [json.dumps(card.card()), repr(card), caplog.text, str(refused.value), str(refused.value.extra)]
    assert not any("swordfish" in text for text in shown)


@pytest.mark.parametrize(
    ("tenants", "permitted"),
    [
        (None, {"local"}),
        ("", set()),
        ("team-a", {"team-a"}),
        ("local, team-b", {"local", "team-b"}),
        ("*", {"local", "team-a", "team-b"}),
    ],
)
def test_secret_is_for_its_tenants_only_and_by_default_for_local(
    monkeypatch: pytest.MonkeyPatch, tenants: str | None, permitted: set[str]
) -> None:
    if tenants is not None:
        monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_TENANTS", tenants)
    for tenant in ("local", "team-a", "team-b"):
        if tenant in permitted:
            check_secret_tenant("ACME", tenant)
            continue
        with pytest.raises(ModelUnusable, match=f"ACME is not for the tenant {tenant}.*ACME_TENANTS"):
            check_secret_tenant("ACME", tenant)


def test_list_of_tenants_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_TENANTS", "team-a")
    with pytest.raises(ModelUnusable, match="not for the tenant local"):
        check_secret_tenant("ACME_TENANTS", "local")


def test_touchstone_up_passes_on_secrets_but_not_other_touchstone_variables(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", "swordfish")
    monkeypatch.setenv("TOUCHSTONE_LEASE", "17")
    environment = to_environment(settings)
    assert environment["TOUCHSTONE_SECRET_ACME"] == "swordfish"
    assert environment["TOUCHSTONE_LEASE"] == "5.0"


def test_secret_with_control_characters_is_refused(
    model: FakeRemoteModel, remote_access: RemoteAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME", "sword\r\nfish: x")
    monkeypatch.setenv("TOUCHSTONE_SECRET_ACME_HOSTS", "127.0.0.1")
    with pytest.raises(ModelUnusable, match="printable") as caught:
        remote_access.oracle_for(model.manifest(secret="ACME"))
    assert "fish" not in str(caught.value)


def test_query_budget_is_shared_by_oracles_and_spent_exactly(
    model: FakeRemoteModel, remote_access: RemoteAccess, ledger: Ledger
) -> None:
    card = model.manifest(budget=20)
    query_logits(remote_access.oracle_for(card), gray_images(15))
    with pytest.raises(QueryBudgetSpent, match="15 were sent") as caught:
        query_logits(remote_access.oracle_for(card), gray_images(8))
    assert caught.value.extra == {"budget": 20, "spent": 15}
    query_logits(remote_access.oracle_for(card), gray_images(5))
    assert model.rows == 20 == ledger.query_budget.read_spent([card.digest])[card.digest]
    assert ledger.query_budget.read_spent(["sha256:other"]) == {"sha256:other": 0}


def test_repeated_budget_call_with_one_token_is_counted_once(ledger: Ledger) -> None:
    for _ in range(3):
        assert ledger.query_budget("m", 5, budget=7, rate=None, token="a") == 0
    with pytest.raises(QueryBudgetSpent):
        ledger.query_budget("m", 5, budget=7, rate=None, token="b")
    assert ledger.query_budget.read_spent(["m"]) == {"m": 5}


def test_concurrent_spending_does_not_exceed_the_query_budget(ledger: Ledger) -> None:
    refused = []

    def spend(number: int) -> None:
        try:
            ledger.query_budget("m", 1, budget=30, rate=None, token=str(number))
        except QueryBudgetSpent:
            refused.append(number)

    threads = [threading.Thread(target=spend, args=[number]) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(refused), ledger.query_budget.read_spent(["m"])["m"]) == (20, 30)


def test_remote_queries_keep_to_the_rate_limit(model: FakeRemoteModel, remote_access: RemoteAccess) -> None:
    card = model.manifest(rate=100, batch=4)
    began = time.monotonic()
    query_logits(remote_access.oracle_for(card), gray_images(48))
    query_logits(remote_access.oracle_for(card), gray_images(12))
    assert 0.4 <= time.monotonic() - began < 20
    assert model.rows == 60


def test_remote_query_waits_out_a_ledger_outage(model: FakeRemoteModel, remote_access: RemoteAccess) -> None:
    calls = []

    def shaky(*args: Any, **more: Any) -> float:
        calls.append(args)
        if len(calls) < 3:
            raise touchstone.errors.LedgerUnavailable("gone")
        return remote_access.spend(*args, **more)

    query_logits(
        RemoteAccess(remote_access.outgoing, shaky, read_secret).oracle_for(model.manifest()), gray_images(1)
    )
    assert (len(calls), model.rows) == (3, 1)
