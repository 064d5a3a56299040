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

from api_tests.remote_models.queries import query_logits
from api_tests.support import remote_models
from api_tests.support.linear_models import gray_images, linear_model
from api_tests.support.remote_models import CLASSES, FakeRemoteModel, reply_with
from touchstone.engine import Logits, RemoteAccess
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
REMOTE_FIELDS = [
    {},
    {"layout": "nhwc"},
    {"protocol": "oip", "oip": {"model": "m"}},
    {"protocol": "oip", "oip": {"model": "m", "version": "3", "output": "z", "binary": True}},
    {"protocol": "oip", "oip": {"model": "m", "binary": True}, "layout": "nhwc", "batch": 3},
    {**ROWS, "batch": 2},
    {**ROWS, "layout": "nhwc", "parallel": 1, "batch": 1},
]


@pytest.mark.parametrize("how", REMOTE_FIELDS)
def test_tensors_reach_the_remote_model_unchanged(
    model: FakeRemoteModel, remote_access: RemoteAccess, ledger: Ledger, how: dict[str, Any]
) -> None:
    x = torch.rand(11, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    card = model.manifest(**how)
    oracle = remote_access.oracle_for(card)
    found = query_logits(oracle, x)
    assert torch.allclose(found, linear_model(classes=4)(x), atol=1e-5)
    assert model.rows == 11
    assert model.requests == -(-11 // oracle.remote.batch_rows)
    assert ledger.query_budget.read_spent([card.digest]) == {card.digest: 11}
    assert len(model.connections) <= oracle.remote.parallel
    oracle.close_idle()


def test_inputs_are_normalized_before_they_are_sent(
    model: FakeRemoteModel, remote_access: RemoteAccess
) -> None:
    card = model.manifest().model_copy(update={"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)})
    x = gray_images(2)
    seen = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    assert torch.allclose(
        query_logits(remote_access.oracle_for(card), x), linear_model(classes=4)(seen), atol=1e-4
    )
    bgr = model.manifest()
    bgr = bgr.model_copy(update={"input": bgr.input.model_copy(update={"channel_order": "bgr"})})
    expected = linear_model(classes=4)(x[:, [2, 1, 0]])
    assert torch.allclose(query_logits(remote_access.oracle_for(bgr), x), expected, atol=1e-4)


def test_png_requests_carry_8_bit_images_at_upload_size(
    model: FakeRemoteModel, remote_access: RemoteAccess
) -> None:
    x = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    oracle = remote_access.oracle_for(model.manifest(**PNG))
    query_logits(oracle, x)
    seen = [json.loads(body)["image"].partition(",")[2] for body in model.bodies]
    with Image.open(io.BytesIO(base64.b64decode(seen[0]))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (20, 30, 3)
    arrived = {base64.b64decode(one) for one in seen}
    assert arrived == {encode((one * 255).round().byte().permute(1, 2, 0).numpy()) for one in x}


def test_images_of_different_sizes_share_a_request(
    model: FakeRemoteModel, remote_access: RemoteAccess
) -> None:
    card = model.manifest(request={"instances": {"$rows": {"b64": "$image_png_base64"}}}, batch=4)
    answers = remote_access.oracle_for(card).answer(
        [Logits(torch.rand(1, 3, 20, 30)), Logits(torch.rand(2, 1, 9, 8))]
    )
    assert [len(answer) for answer in answers if not isinstance(answer, Exception)] == [1, 2]
    assert (model.requests, model.rows) == (1, 3)


def name_scores(z: Any) -> Any:
    return [dict(zip(CLASSES, row, strict=True)) for row in z.tolist()]


def test_probability_answers_become_log_probabilities(
    model: FakeRemoteModel, remote_access: RemoteAccess
) -> None:
    x = gray_images(5)
    for shape in (lambda z: model.probabilities(z).tolist(), lambda z: name_scores(model.probabilities(z))):
        model.encode_logits = shape
        logits = query_logits(remote_access.oracle_for(model.manifest(answers="probabilities")), x)
        expected = linear_model(classes=4)(x).softmax(1)
        assert torch.allclose(logits.softmax(1), expected, atol=1e-5)


def test_zero_probability_gives_finite_logits(model: FakeRemoteModel, remote_access: RemoteAccess) -> None:
    model.encode_logits = lambda z: [[1.0, 0.0, 0.0, 0.0]] * len(z)
    assert bool(
        query_logits(remote_access.oracle_for(model.manifest(answers="probabilities")), gray_images(1))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(
    "entry",
    [
        lambda label, p: {"label": CLASSES[label], "score": p, "more": 1},
        lambda label, p: [label, p],
        lambda label, p: {"score": p, "label": str(label)},
    ],
)
def test_top_k_answer_spreads_remaining_probability_over_other_classes(
    model: FakeRemoteModel, remote_access: RemoteAccess, entry: Any
) -> None:
    model.encode_logits = lambda z: [[entry(2, 0.5), entry(1, 0.3)]] * len(z)
    shares = query_logits(remote_access.oracle_for(model.manifest(answers="top-k")), gray_images(1)).softmax(
        1
    )
    assert torch.allclose(shares, torch.tensor([[0.1, 0.3, 0.5, 0.1]]), atol=1e-6)


def test_top_k_remainder_never_exceeds_the_listed_classes(
    model: FakeRemoteModel, remote_access: RemoteAccess
) -> None:
    model.encode_logits = lambda z: [{"cow": 0.2}] * len(z)
    logits = query_logits(remote_access.oracle_for(model.manifest(answers="top-k")), gray_images(1))
    assert bool((logits <= logits[0, 2]).all())


def test_label_only_answers_give_the_predicted_class(
    model: FakeRemoteModel, remote_access: RemoteAccess
) -> None:
    x = gray_images(6)
    expected = linear_model(classes=4)(x).argmax(1)
    for shape in (lambda z: z.argmax(1).tolist(), lambda z: [CLASSES[one] for one in z.argmax(1)]):
        model.encode_logits = shape
        assert torch.equal(
            query_logits(remote_access.oracle_for(model.manifest(answers="labels")), x).argmax(1), expected
        )


def test_batch_of_one_accepts_an_answer_without_a_list_of_rows(
    model: FakeRemoteModel, remote_access: RemoteAccess
) -> None:
    card = model.manifest(**ROWS, answer="$.predictions[0]", batch=1)
    assert query_logits(remote_access.oracle_for(card), gray_images(3)).shape == (3, 4)


UNDECLARED_ANSWERS: list[tuple[str, Any]] = [
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


@pytest.mark.parametrize(("answers", "shape"), UNDECLARED_ANSWERS)
def test_answer_that_differs_from_the_declared_form_is_refused(
    model: FakeRemoteModel, remote_access: RemoteAccess, answers: str, shape: Any
) -> None:
    model.encode_logits = shape
    with pytest.raises(RemoteAnswer):
        query_logits(remote_access.oracle_for(model.manifest(answers=answers)), gray_images(2))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b"9" * 5000, b"\xff", b"{}", b'{"predictions": {}}']
)
def test_malformed_answer_body_is_refused(
    model: FakeRemoteModel, remote_access: RemoteAccess, body: bytes
) -> None:
    model.action = reply_with(200, body)
    with pytest.raises(RemoteAnswer):
        query_logits(remote_access.oracle_for(model.manifest()), gray_images(1))


@pytest.mark.parametrize(
    "value", [[], {"outputs": 7}, {"outputs": []}, {"outputs": [{"name": "output", "data": [1] * 7}]}]
)
def test_oip_answer_without_the_output_tensor_is_refused(
    model: FakeRemoteModel, remote_access: RemoteAccess, value: Any
) -> None:
    model.action = reply_with(200, value)
    with pytest.raises(RemoteAnswer):
        query_logits(
            remote_access.oracle_for(model.manifest(protocol="oip", oip={"model": "m"})), gray_images(2)
        )


def test_oversized_answer_is_refused(model: FakeRemoteModel, remote_access: RemoteAccess) -> None:
    model.action = reply_with(200, b" " * 2_000_000)
    with pytest.raises(RemoteAnswer, match="more than"):
        query_logits(remote_access.oracle_for(model.manifest()), gray_images(1))


@pytest.mark.parametrize("text", ["a[*].b[0].c-d[*]", "$", "$.a", "[*]", "$[2].x"])
def test_row_path_survives_parsing_and_formatting(text: str) -> None:
    path = RowPath.parse(text)
    assert RowPath.parse(str(path)) == path


@pytest.mark.parametrize("text", ["a b", "a..b", "[-1]", "[x]", "a[", "$$", "a[**]", "."])
def test_invalid_row_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a step"):
        RowPath.parse(text)


def test_row_path_selects_rows() -> None:
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
def test_inconsistent_or_out_of_range_remote_fields_are_refused(fields: dict[str, Any]) -> None:
    valid = {
        "url": "https://a.example",
        "protocol": "json",
        "answers": "logits",
        **remote_models.BATCH_TEMPLATE,
    }
    Remote(**valid)
    with pytest.raises(ValidationError):
        Remote(**{**valid, **fields})


def test_batch_too_large_for_memory_is_refused(model: FakeRemoteModel) -> None:
    card = model.manifest()
    wide = card.input.model_copy(update={"height": 1024, "width": 1024})
    fields = {**card.model_dump(), "input": wide}
    with pytest.raises(ValidationError, match="smaller batch"):
        Manifest.model_validate(fields)
    Manifest.model_validate({**fields, "remote": {**fields["remote"], "batch": 5}})
    files = {"request": {"x": {"$rows": "$image_png_base64"}}, "batch": 17}
    with pytest.raises(ValidationError, match="at most 16 files"):
        Manifest.model_validate({**fields, "remote": {**fields["remote"], **files}})


def test_invalid_outgoing_network_setting_fails_when_settings_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOUCHSTONE_OUTGOING_ALLOW", "10.0.0.1/8")
    with pytest.raises(ValidationError, match=r"10\.0\.0\.1/8"):
        Settings()


def test_too_deeply_nested_request_template_is_refused() -> None:
    deep: Any = "$tensor"
    for _ in range(30):
        deep = [deep]
    with pytest.raises(ValidationError, match="too deeply"):
        Remote(url="https://a.example", protocol="json", answers="logits", request=deep, answer="$")
