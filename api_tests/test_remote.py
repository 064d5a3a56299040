"""Models behind an address: what they are sent, how they are read, and what they may not do to anybody."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import remote
import torch
from linear import greyish, linear_model
from PIL import Image
from pydantic import ValidationError
from remote import CLASSES, Model, saying

import touchstone
from touchstone import up
from touchstone.engine import Batcher, CrossEntropy, Engine, Goal, Gradient, Logits, RemoteOracle, Task, Ways
from touchstone.engine.reaching import QUERIES, reached
from touchstone.errors import (
    AddressRefused,
    Canceled,
    DeadlineExceeded,
    Failure,
    GradientRefused,
    InvalidParameter,
    ModelUnusable,
    QueryBudgetSpent,
    RemoteAnswer,
    RemoteUnavailable,
    WorkerStopping,
)
from touchstone.images import encode
from touchstone.jobs.ledger import Ledger
from touchstone.jobs.record import ImageRef, ModelRef, Submission
from touchstone.models.manifest import Manifest
from touchstone.models.paths import RowPath
from touchstone.models.remote import Remote
from touchstone.outgoing import Outgoing, resolve
from touchstone.run import Finished, run
from touchstone.settings import Settings, secret

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


class Shelf:
    """Has whatever it is asked for."""

    def __init__(self, *cards: Manifest) -> None:
        self.cards = {card.digest: card for card in cards}

    def manifest(self, _model: str, digest: str) -> Manifest:
        return self.cards[digest]


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


def asked(oracle: RemoteOracle, x: torch.Tensor) -> torch.Tensor:
    [answer] = oracle.answer([Logits(x)])
    if isinstance(answer, Exception):
        raise answer
    return answer.logits


def job(engine: Engine, card: Manifest, image: Any, *, kind: str = "certificate", **more: Any) -> Finished:
    """Run a job on an image (C, H, W) in [0,1]."""
    engine.shelf.cards[card.digest] = card  # type: ignore[attr-defined]
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    method = more.pop("method", "smoothing" if kind == "certificate" else "predict")
    calls = {name: more.pop(name) for name in ("deadline", "started", "report") if name in more}
    submission = Submission(
        kind=kind,  # type: ignore[arg-type]
        method=method,
        model=ModelRef(id=card.id, digest=card.digest),
        image=ImageRef(digest="sha256:" + "1" * 64, width=8, height=8, channels=3),
        parameters=more,
    )
    return run(submission, encode(pixels), engine, **calls)


# What is sent, and how answers are read.

ROWS = {"request": {"instances": {"$rows": "$tensor"}}}
EACH = [
    {},
    {"layout": "nhwc"},
    {"protocol": "oip", "oip": {"model": "m"}},
    {"protocol": "oip", "oip": {"model": "m", "version": "3", "output": "z", "binary": True}},
    {"protocol": "oip", "oip": {"model": "m", "binary": True}, "layout": "nhwc", "batch": 3},
    {**ROWS, "batch": 2},
    {**ROWS, "layout": "nhwc", "parallel": 1, "batch": 1},
]


@pytest.mark.parametrize("how", EACH)
def test_tensors_arrive_as_they_are(model: Model, ways: Ways, ledger: Ledger, how: dict[str, Any]) -> None:
    x = torch.rand(11, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    card = model.card(**how)
    oracle = ways.to(card)
    found = asked(oracle, x)
    assert torch.allclose(found, linear_model(classes=4)(x), atol=1e-5)
    assert model.rows == 11
    assert model.requests == -(-11 // oracle.remote.batch_rows)
    assert ledger.spending.spent([card.digest]) == {card.digest: 11}
    assert len(model.connections) <= oracle.remote.parallel
    oracle.rest()


def test_normalisation_is_done_here(model: Model, ways: Ways) -> None:
    card = model.card().model_copy(update={"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)})
    x = greyish(2)
    seen = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    assert torch.allclose(asked(ways.to(card), x), linear_model(classes=4)(seen), atol=1e-4)


def test_files_arrive_at_the_uploads_size_and_in_8_bits(model: Model, ways: Ways) -> None:
    x = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    oracle = ways.to(model.card(**PNG))
    asked(oracle, x)
    seen = [json.loads(body)["image"].partition(",")[2] for body in model.bodies]
    with Image.open(io.BytesIO(base64.b64decode(seen[0]))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (20, 30, 3)
    arrived = {base64.b64decode(one) for one in seen}
    assert arrived == {encode((one * 255).round().byte().permute(1, 2, 0).numpy()) for one in x}


def test_files_of_many_sizes_share_a_request(model: Model, ways: Ways) -> None:
    card = model.card(request={"instances": {"$rows": {"b64": "$image_png_base64"}}}, batch=4)
    answers = ways.to(card).answer([Logits(torch.rand(1, 3, 20, 30)), Logits(torch.rand(2, 1, 9, 8))])
    assert [len(answer) for answer in answers if not isinstance(answer, Exception)] == [1, 2]
    assert (model.requests, model.rows) == (1, 3)


def named(z: Any) -> Any:
    return [dict(zip(CLASSES, row, strict=True)) for row in z.tolist()]


def test_probabilities_become_their_logarithms(model: Model, ways: Ways) -> None:
    x = greyish(5)
    for shape in (lambda z: model.probabilities(z).tolist(), lambda z: named(model.probabilities(z))):
        model.shape = shape
        logits = asked(ways.to(model.card(answers="probabilities")), x)
        expected = linear_model(classes=4)(x).softmax(1)
        assert torch.allclose(logits.softmax(1), expected, atol=1e-5)


def test_a_probability_of_nothing_stays_finite(model: Model, ways: Ways) -> None:
    model.shape = lambda z: [[1.0, 0.0, 0.0, 0.0]] * len(z)
    assert bool(asked(ways.to(model.card(answers="probabilities")), greyish(1)).isfinite().all())


@pytest.mark.parametrize(
    "entry",
    [
        lambda label, p: {"label": CLASSES[label], "score": p, "more": 1},
        lambda label, p: [label, p],
        lambda label, p: {"score": p, "label": str(label)},
    ],
)
def test_the_likeliest_classes_leave_the_rest_to_the_others(model: Model, ways: Ways, entry: Any) -> None:
    model.shape = lambda z: [[entry(2, 0.5), entry(1, 0.3)]] * len(z)
    shares = asked(ways.to(model.card(answers="top-k")), greyish(1)).softmax(1)
    assert torch.allclose(shares, torch.tensor([[0.1, 0.3, 0.5, 0.1]]), atol=1e-6)


def test_the_rest_never_outweighs_what_is_told(model: Model, ways: Ways) -> None:
    model.shape = lambda z: [{"cow": 0.2}] * len(z)
    logits = asked(ways.to(model.card(answers="top-k")), greyish(1))
    assert bool((logits <= logits[0, 2]).all())


def test_labels_alone_are_decisions(model: Model, ways: Ways) -> None:
    x = greyish(6)
    expected = linear_model(classes=4)(x).argmax(1)
    for shape in (lambda z: z.argmax(1).tolist(), lambda z: [CLASSES[one] for one in z.argmax(1)]):
        model.shape = shape
        assert torch.equal(asked(ways.to(model.card(answers="labels")), x).argmax(1), expected)


def test_one_row_needs_no_list_of_rows(model: Model, ways: Ways) -> None:
    card = model.card(**ROWS, answer="$.predictions[0]", batch=1)
    assert asked(ways.to(card), greyish(3)).shape == (3, 4)


WRONG: list[tuple[str, Any]] = [
    ("logits", lambda z: z[:, :3].tolist()),
    ("logits", lambda z: z.tolist()[:-1]),
    ("logits", lambda z: [[float("nan")] * 4] * len(z)),
    ("logits", lambda z: [[1e39, 0, 0, 0]] * len(z)),
    ("logits", lambda z: [[10**400, 0, 0, 0]] * len(z)),
    ("logits", lambda z: [["1", "2", "3", "4"]] * len(z)),
    ("logits", lambda z: [[True, False, False, False]] * len(z)),
    ("logits", lambda z: "abcd"),
    ("logits", lambda z: ["abcd"] * len(z)),
    ("logits", lambda z: None),
    ("logits", lambda z: [{"ant": 1, "bee": 2, "cow": 3}] * len(z)),
    ("logits", lambda z: [{"ant": 1, "bee": 2, "cow": 3, "eel": 4}] * len(z)),
    ("probabilities", lambda z: z.tolist()),
    ("probabilities", lambda z: [[0.2, 0.2, 0.2, 0.2]] * len(z)),
    ("probabilities", lambda z: [[1.2, -0.2, 0, 0]] * len(z)),
    ("top-k", lambda z: [[["ant", 0.9], ["bee", 0.9]]] * len(z)),
    ("top-k", lambda z: [[["eel", 0.9]]] * len(z)),
    ("top-k", lambda z: [[["ant"]]] * len(z)),
    ("top-k", lambda z: [[]] * len(z)),
    ("top-k", lambda z: [7] * len(z)),
    ("labels", lambda z: ["eel"] * len(z)),
    ("labels", lambda z: [4] * len(z)),
    ("labels", lambda z: [1.0] * len(z)),
]


@pytest.mark.parametrize(("answers", "shape"), WRONG)
def test_what_was_not_declared_is_refused(model: Model, ways: Ways, answers: str, shape: Any) -> None:
    model.shape = shape
    with pytest.raises(RemoteAnswer):
        asked(ways.to(model.card(answers=answers)), greyish(2))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b"9" * 5000, b"\xff", b"{}", b'{"predictions": {}}']
)
def test_what_cannot_be_read_is_refused(model: Model, ways: Ways, body: bytes) -> None:
    model.act = saying(200, body)
    with pytest.raises(RemoteAnswer):
        asked(ways.to(model.card()), greyish(1))


@pytest.mark.parametrize(
    "value", [[], {"outputs": 7}, {"outputs": []}, {"outputs": [{"name": "output", "data": [1] * 7}]}]
)
def test_a_tensor_that_is_not_there_is_refused(model: Model, ways: Ways, value: Any) -> None:
    model.act = saying(200, value)
    with pytest.raises(RemoteAnswer):
        asked(ways.to(model.card(protocol="oip", oip={"model": "m"})), greyish(2))


def test_a_huge_answer_is_refused(model: Model, ways: Ways) -> None:
    model.act = saying(200, b" " * 2_000_000)
    with pytest.raises(RemoteAnswer, match="more than"):
        asked(ways.to(model.card()), greyish(1))


@pytest.mark.parametrize("text", ["a[*].b[0].c-d[*]", "$", "$.a", "[*]", "$[2].x"])
def test_paths_are_read(text: str) -> None:
    path = RowPath.parse(text)
    assert RowPath.parse(str(path)) == path


@pytest.mark.parametrize("text", ["a b", "a..b", "[-1]", "[x]", "a[", "$$", "a[**]", "."])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no step"):
        RowPath.parse(text)


def test_paths_lead_to_rows() -> None:
    value = {"r": [{"c": [{"p": 1}, {"p": 2}]}, {"c": [{"p": 3}]}]}
    assert RowPath.parse("r[*].c[*].p").rows(value) == [[1, 2], [3]]
    assert RowPath.parse("r[0].c[1]").rows(value) == [{"p": 2}]
    for wrong in ("x", "r[*].x", "r[5]", "r.c", "[*]"):
        with pytest.raises(LookupError):
            RowPath.parse(wrong).rows(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"request": None},
        {"request": {"x": 1}},
        {"request": ["$tensor", "$tensor"]},
        {"request": ["$tensor", "$image_png_base64"]},
        {"request": {"$rows": {"$rows": "$tensor"}}},
        {"request": {"x": "$image_png_base64"}, "batch": 2},
        {"answer": "predictions", "batch": 2},
        {"answer": "a b"},
        {"answer": None},
        {"oip": {"model": "m"}},
        {"protocol": "oip"},
        {"protocol": "oip", "oip": {"model": "../m"}, "request": None, "answer": None},
        {"secret_header": "Authorization: Bearer"},
        {"secret_header": "Host: $secret"},
        {"secret_header": "X: $secret\r\nY: z"},
        {"secret": "lower"},
        {"secret": "A_HOSTS"},
        {"retries": 4},
        {"budget": 0},
        {
            "protocol": "oip",
            "oip": {"model": "m"},
            "request": None,
            "answer": None,
            "url": "https://a.example?b",
        },
        {"rate": 0},
        {"batch": 257},
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any]) -> None:
    said = {"url": "https://a.example", "protocol": "json", "answers": "logits", **remote.BATCH}
    Remote(**said)
    with pytest.raises(ValidationError):
        Remote(**{**said, **fields})


def test_requests_that_would_fill_the_memory_are_refused(model: Model) -> None:
    card = model.card()
    wide = card.input.model_copy(update={"height": 1024, "width": 1024})
    said = {**card.model_dump(), "input": wide}
    with pytest.raises(ValidationError, match="smaller batch"):
        Manifest.model_validate(said)
    Manifest.model_validate({**said, "remote": {**said["remote"], "batch": 5}})
    files = {"request": {"x": {"$rows": "$image_png_base64"}}, "batch": 17}
    with pytest.raises(ValidationError, match="at most 16 files"):
        Manifest.model_validate({**said, "remote": {**said["remote"], **files}})


def test_settings_that_cannot_be_read_are_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOUCHSTONE_OUTGOING_ALLOW", "10.0.0.1/8")
    with pytest.raises(ValidationError, match=r"10\.0\.0\.1/8"):
        Settings()


def test_a_template_has_a_depth() -> None:
    deep: Any = "$tensor"
    for _ in range(30):
        deep = [deep]
    with pytest.raises(ValidationError, match="too deeply"):
        Remote(url="https://a.example", protocol="json", answers="logits", request=deep, answer="$")


# What it may not do.


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
    model.plan = [remote.hang_up]
    asked(ways.to(model.card(retries=1)), greyish(1))
    assert model.requests == 2
    model.plan = [remote.drip]
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


# Budgets and rates.


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
    assert 0.4 <= time.monotonic() - began < 2
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


# On an engine.


def clear(model: Model) -> tuple[torch.Tensor, float]:
    """An image far from the line between two classes, made the only ones, and how far."""
    model.bias[2:] -= 1000
    images = greyish(100)
    z, (one, two) = model.logits(images.double().numpy()), model.weight[:2]
    far = np.abs(z[:, 0] - z[:, 1]) / np.linalg.norm(one - two)
    return images[int(far.argmax())], float(far.max())


def test_a_linear_model_is_certified_as_far_as_theory_says(
    engine: Engine, model: Model, ledger: Ledger
) -> None:
    card = model.card(parallel=4, batch=64)
    image, margin = clear(model)
    finished = job(engine, card, image, sigma=margin, n=2000, rule="fixed")
    result = finished.result
    assert 0.85 * margin < result["radius"] < 1.05 * margin
    assert result["predicted_class"]["label"] == int(model.logits(image[None].numpy()).argmax())
    assert result["queries"] == {"forward": model.rows, "backward": 0}
    assert ledger.spending.spent([card.digest])[card.digest] == model.rows == 2000 + 100 + 33
    assert result["eval_mode_checked"] is None
    assert result["sampling"]["batch_size"] == 64
    assert result["digests"]["model"] == card.digest


@pytest.mark.parametrize("fields", [{"method": "pixeldp", "n": 400}, {"n": 300, "rule": "e_process"}])
def test_every_certificate_runs(engine: Engine, model: Model, fields: dict[str, Any]) -> None:
    model.shape = lambda z: z.argmax(1).tolist()
    image, margin = clear(model)
    finished = job(engine, model.card(answers="labels", batch=64), image, sigma=margin / 2, **fields)
    assert finished.result["sampling"]["n_used"] == fields["n"]
    assert not finished.result["abstained"]


def test_predictions_of_files_and_of_tensors_agree(engine: Engine, model: Model) -> None:
    image = greyish(1)[0]
    tensors = job(engine, model.card(), image, kind="prediction").result
    files = job(engine, model.card(**PNG), image, kind="prediction").result
    assert tensors["original"]["label"] == files["original"]["label"]
    assert tensors["original"]["confidence"] == pytest.approx(files["original"]["confidence"], abs=1e-5)
    assert (files["queries"], model.rows) == ({"forward": 1, "backward": 0}, 2)


def test_noise_in_files_proves_nothing(engine: Engine, model: Model) -> None:
    card = model.card(**PNG)
    with pytest.raises(InvalidParameter, match="8-bit files"):
        job(engine, card, greyish(1)[0], n=100)
    with pytest.raises(InvalidParameter, match="8-bit files"):
        job(engine, card, greyish(1)[0], kind="prediction", defence="smoothing")
    with pytest.raises(GradientRefused, match="pgd"):
        job(engine, card, greyish(1)[0], kind="attack", method="pgd")
    assert model.rows == 0


def test_the_end_of_the_budget_leaves_what_is_proved(engine: Engine, model: Model) -> None:
    image, margin = clear(model)
    finished = job(engine, model.card(budget=900), image, sigma=margin, n=100_000, rule="e_process")
    assert finished.result["stopped_by"] == "query_budget_spent"
    assert 700 < finished.result["sampling"]["n_used"] <= 900 - 133
    assert finished.result["radius"] > 0
    assert model.rows <= 900


def test_and_fails_a_prediction(engine: Engine, model: Model) -> None:
    card = model.card(budget=1)
    job(engine, card, greyish(1)[0], kind="prediction")
    with pytest.raises(QueryBudgetSpent, match="1 were sent"):
        job(engine, card, greyish(1)[0], kind="prediction")
    assert model.rows == 1


class Started:
    """Notes a job's tasks, as the worker's keeper does."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self.some = threading.Event()

    def __call__(self, task: Any) -> None:
        self.tasks.append(task)
        self.some.set()


def in_background(call: Any) -> tuple[threading.Thread, list[Any]]:
    ended: list[Any] = []

    def work() -> None:
        try:
            ended.append(call())
        except Failure as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, ended


def until(look: Any) -> None:
    end = time.monotonic() + 5
    while not look():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_cancel_is_heard_while_the_model_hangs(engine: Engine, model: Model) -> None:
    model.act = remote.hang
    started = [Started(), Started(), Started()]
    threads = []
    for one in started:
        threads.append(
            in_background(
                lambda one=one: job(engine, model.card(), greyish(1)[0], kind="prediction", started=one)
            )
        )
        until(lambda: model.requests >= 1)
    asked_before = model.requests
    for one, (thread, ended) in reversed(list(zip(started, threads, strict=True))):
        one.some.wait(5)
        began = time.monotonic()
        one.tasks[0].cancel()
        thread.join(5)
        assert time.monotonic() - began < 0.5
        assert isinstance(ended[0], Canceled)
    assert model.requests == asked_before == 1


def test_a_cancel_is_heard_while_a_rate_is_waited_for(engine: Engine, model: Model, ledger: Ledger) -> None:
    card = model.card(rate=1, batch=4)
    started = Started()
    thread, ended = in_background(lambda: job(engine, card, greyish(1)[0], n=1000, started=started))
    until(lambda: model.rows)
    time.sleep(0.1)
    began = time.monotonic()
    started.tasks[0].cancel()
    thread.join(5)
    assert time.monotonic() - began < 0.5
    assert isinstance(ended[0], Canceled)
    assert model.rows == ledger.spending.spent([card.digest])[card.digest]


def test_a_deadline_is_kept_while_the_model_hangs(engine: Engine, model: Model) -> None:
    model.act = remote.hang
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        job(engine, model.card(), greyish(1)[0], kind="prediction", deadline=0.3)
    assert time.monotonic() - began < 1


def test_others_go_on_and_the_engine_does_not_seem_to_hang(engine: Engine, model: Model) -> None:
    model.act = remote.hang
    started = Started()
    thread, ended = in_background(
        lambda: job(engine, model.card(), greyish(1)[0], kind="prediction", started=started)
    )
    until(lambda: model.requests)
    assert not engine.busy
    local = touchstone.wrap(linear_model(classes=4)).oracle
    pixels = (greyish(1)[0] * 255).byte().permute(1, 2, 0).numpy()
    for _ in range(20):
        engine.start(touchstone.engine.look_at(pixels, local), local).result()
    until(lambda: engine.steps == 20)
    assert engine.figures()["queries"]["forward"] == 20
    with remote.serving() as other:
        job(engine, other.card(), greyish(1)[0], kind="prediction")
    assert not ended
    started.tasks[0].cancel()
    thread.join(5)
    assert isinstance(ended[0], Canceled)
    assert engine.figures()["remote_models"]["far-away"]["queries"]["forward"] <= 1


def test_a_stop_is_heard_while_the_model_hangs(ways: Ways, model: Model) -> None:
    engine = Engine("cpu", shelf=Shelf(), ways=ways)  # type: ignore[arg-type]
    model.act = remote.hang
    thread, ended = in_background(lambda: job(engine, model.card(), greyish(1)[0], kind="prediction"))
    until(lambda: model.requests)
    began = time.monotonic()
    engine.stop()
    thread.join(5)
    assert time.monotonic() - began < 1
    assert isinstance(ended[0], WorkerStopping)


def test_jobs_share_requests_and_one_fault_is_one_jobs(ways: Ways, model: Model) -> None:
    """A row that the model chokes on fails its own job, whether it spoils the row or the whole request."""
    dark = torch.zeros(1, 3, 8, 8)
    oracle = ways.to(model.card(parallel=1))
    model.shape = lambda z: [
        [float("nan")] * 4 if np.allclose(row, model.bias) else row.tolist() for row in z
    ]
    assert faults(oracle, dark) == [True, False, False]
    assert model.requests == 1

    def choke(handler: remote.Handler) -> None:
        x = np.array(json.loads(model.bodies[-1])["instances"])
        spoiled = any(not one.any() for one in x)
        handler.reply(400 if spoiled else 200, {"predictions": model.logits(x).tolist()})

    model.act = choke
    assert faults(oracle, dark) == [True, False, False]
    assert model.requests == 2 + 3


def faults(oracle: RemoteOracle, dark: torch.Tensor) -> list[bool]:
    """Of three tasks that share a pass, which fail."""
    ended: dict[int, Any] = {}
    batcher = Batcher()
    for number, x in enumerate([dark, greyish(1), greyish(2)]):
        task = Task(touchstone.engine.look(x, saved=False), oracle)
        task.done = lambda result, error, number=number: ended.update({number: error})  # type: ignore[misc]
        batcher.add(task)
    batcher.step()
    return [isinstance(ended[number], RemoteAnswer) for number in range(3)]


def test_an_idle_lane_ends_its_thread_and_starts_again(
    engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touchstone.engine.thread, "IDLE_SECONDS", 0.1)

    def threads() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name.startswith("remote ")]

    for _ in range(2):
        job(engine, model.card(), greyish(1)[0], kind="prediction")
        assert threads() == ["remote far-away"]
        until(lambda: not threads())
    assert len(model.connections) == 2


# At registration.


def reach(engine: Engine, card: Manifest) -> Any:
    return engine.start(reached(card), engine.remote(card)).result()


def test_a_handful_of_questions_tells_what_it_is(engine: Engine, model: Model, ledger: Ledger) -> None:
    card = model.card()
    found = reach(engine, card)
    assert (found.deterministic, found.batch_invariant, found.decisions_only) == (True, True, False)
    assert 0 < found.query_seconds < 1
    assert found.queries == QUERIES == model.rows == ledger.spending.spent([card.digest])[card.digest]


def test_what_wavers_and_what_minds_its_neighbours_is_found(engine: Engine, model: Model) -> None:
    model.shape = lambda z: (z + model.requests / 10).tolist()
    assert not reach(engine, model.card()).deterministic
    model.shape = lambda z: (z - z.mean(0) * (len(z) > 1)).tolist()
    found = reach(engine, model.card(batch=4))
    assert (found.deterministic, found.batch_invariant) == (True, False)


def test_what_is_not_as_declared_is_not_registered(engine: Engine, model: Model) -> None:
    model.shape = lambda z: z[:, :2].tolist()
    with pytest.raises(RemoteAnswer, match="4 numbers, not 2"):
        reach(engine, model.card())
    model.shape = lambda z: z.tolist()
    with pytest.raises(QueryBudgetSpent):
        reach(engine, model.card(budget=3))
