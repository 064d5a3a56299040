"""What remote models are sent, and how their answers are read."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from api_tests.remote_models.queries import asked
from api_tests.support import remote_models
from api_tests.support.linear_models import greyish, linear_model
from api_tests.support.remote_models import CLASSES, Model, saying
from touchstone.engine import Logits, Ways
from touchstone.errors import (
    RemoteAnswer,
)
from touchstone.images import encode
from touchstone.ledger.ledger import Ledger
from touchstone.models.json_path import RowPath
from touchstone.models.manifest import Manifest
from touchstone.models.remote_manifest import Remote
from touchstone.settings import Settings

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


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
        {"answer": {}},
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
    said = {"url": "https://a.example", "protocol": "json", "answers": "logits", **remote_models.BATCH}
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
