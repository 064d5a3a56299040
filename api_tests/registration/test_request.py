"""What a user says of a model: each field with its bounds, and what the manifest makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import touchstone
from api_tests.support.linear_models import gray_images
from api_tests.support.own_models import (
    REGISTRATION_FIELDS,
    build_manifest,
    linear_net,
    linear_onnx,
    linear_safetensors,
)
from touchstone.errors import InvalidModel, InvalidParameter, ModelConflict, ModelTooLarge
from touchstone.registration.request import MAX_CLASSES, Registration
from touchstone.registration.submission import prepare

LIMIT = 2**20


def test_omitted_manifest_fields_get_defaults() -> None:
    data = linear_onnx()
    manifest = build_manifest(data)
    assert (manifest.id, manifest.architecture, manifest.weights.file) == ("lin", "onnx", "model.onnx")
    assert (manifest.mean, manifest.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (manifest.input.layout, manifest.input.channels, manifest.kind) == ("nchw", 3, "local")
    assert (manifest.softmax, manifest.parameters, manifest.licence) == ("none", 0, "not stated")
    safe = build_manifest(linear_safetensors(), architecture="small-cnn")
    assert (safe.architecture, safe.weights.file) == ("small-cnn", "model.safetensors")


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 255.0), (-2.0, 6.0)])
def test_input_range_becomes_mean_and_std(ends: tuple[float, float]) -> None:
    manifest = build_manifest(linear_onnx(), range=ends)
    black, white = ((pixel - manifest.mean[0]) / manifest.std[0] for pixel in (0.0, 1.0))
    assert (black, white) == pytest.approx(ends)


def test_remote_model_that_takes_files_gets_them_as_rgb() -> None:
    remote = {"url": "https://m.example", "request": {"image": "$image_png_base64"}, "answer": "$"}
    spec = {"height": 8, "width": 8, "channel_order": "bgr"}
    fields = {
        **REGISTRATION_FIELDS,
        "input": spec,
        "remote": {**remote, "protocol": "json", "answers": "logits"},
    }
    with pytest.raises(InvalidParameter, match="PNG files are RGB") as refused:
        Registration.parse(fields).build_remote_manifest("one")
    assert refused.value.field == "input.channel_order"


def test_labels_text_is_read_as_one_class_per_line() -> None:
    fields = {name: value for name, value in REGISTRATION_FIELDS.items() if name != "classes"}
    one = Registration.parse({**fields, "labels": " cat \r\ndog\n\n"})
    assert one.names == ("cat", "dog")
    assert one.build_manifest("sha256:" + "0" * 64, "onnx").classes == ("cat", "dog")


def test_duplicate_class_names_can_be_selected_only_by_index() -> None:
    manifest = build_manifest(linear_onnx(), classes=["crane", "crane"])
    assert manifest.resolve_label("1") == 1
    with pytest.raises(touchstone.errors.UnknownLabel, match="2 classes of lin are named 'crane'"):
        manifest.resolve_label("crane")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no id": ({"id": None}, "id"),
    "id of capitals": ({"id": "Lin"}, "id"),
    "id of a path": ({"id": "../lin"}, "id"),
    "id with a version": ({"id": "lin@1"}, "id"),
    "id too long": ({"id": "a" * 65}, "id"),
    "one class": ({"classes": ["cat"]}, "classes"),
    "classes that are numbers": ({"classes": [1, 2]}, "classes.0"),
    "an empty name": ({"classes": ["cat", " "]}, "classes.1"),
    "a long name": ({"classes": ["cat", "x" * 201]}, "classes.1"),
    "a name with a line's end": ({"classes": ["cat", "d\nog"]}, "classes.1"),
    "too many": ({"classes": ["a"] * (MAX_CLASSES + 1)}, "classes"),
    "too many letters": ({"classes": ["a" * 200] * 20_000}, "classes"),
    "both": ({"labels": "cat\ndog"}, "classes"),
    "neither": ({"classes": None}, "classes"),
    "one label": ({"classes": None, "labels": "cat"}, "labels"),
    "an empty line": ({"classes": None, "labels": "cat\n\ndog"}, "labels"),
    "no input": ({"input": None}, "input"),
    "no height": ({"input": {"width": 8}}, "input.height"),
    "no pixels": ({"input": {"width": 8, "height": 0}}, "input.height"),
    "too many pixels": ({"input": {"width": 8, "height": 4097}}, "input.height"),
    "two channels": ({"input": {"width": 8, "height": 8, "channels": 2}}, "input.channels"),
    "an order of one channel": (
        {"input": {"width": 8, "height": 8, "channels": 1, "channel_order": "bgr"}},
        "input.channel_order",
    ),
    "another layout": ({"input": {"width": 8, "height": 8, "layout": "chwn"}}, "input.layout"),
    "mean alone": ({"mean": [0, 0, 0]}, "std"),
    "mean of one": ({"mean": [0], "std": [1]}, "mean"),
    "std of one": ({"mean": [0, 0, 0], "std": [1]}, "std"),
    "no std": ({"mean": [0, 0, 0], "std": [1, 0, 1]}, "std.1"),
    "mean that is none": ({"mean": [0, 0, float("nan")], "std": [1, 1, 1]}, "mean.2"),
    "range and mean": ({"mean": [0, 0, 0], "std": [1, 1, 1], "range": [0, 1]}, "range"),
    "range of one": ({"range": [1]}, "range"),
    "range upside down": ({"range": [1, 0]}, "range"),
    "range of nothing": ({"range": [1, 1]}, "range"),
    "a field that there is not": ({"dropout": 1}, "dropout"),
}


@pytest.mark.parametrize("fault", BAD)
def test_invalid_registration_field_is_named_in_the_error(fault: str) -> None:
    changes, field = BAD[fault]
    fields = {name: value for name, value in {**REGISTRATION_FIELDS, **changes}.items() if value is not None}
    for form in (fields, json.dumps(fields), json.dumps(fields).encode()):
        with pytest.raises(InvalidParameter) as refused:
            Registration.parse(form)
        assert (refused.value.field or "").split(".")[: field.count(".") + 1] == field.split(".")
        assert len(refused.value.detail) < 500


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, b"\xff"])
def test_registration_that_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidParameter):
        Registration.parse(text)


def test_architecture_is_required_for_safetensors_and_refused_for_onnx() -> None:
    with pytest.raises(InvalidParameter, match="leave this out"):
        build_manifest(linear_onnx(), architecture="small-cnn")
    for architecture in (None, "onnx"):
        with pytest.raises(InvalidParameter, match="name an architecture"):
            build_manifest(linear_safetensors(), architecture=architecture)


def test_prepare_turns_registration_into_file_job_or_refuses_it() -> None:
    data, registration = linear_onnx(), Registration.parse(REGISTRATION_FIELDS)
    submission = prepare(registration, data, limit=LIMIT)
    assert (submission.kind, submission.method, submission.image) == ("registration", "probe", None)
    assert submission.file == submission.source == submission.model.digest
    assert submission.parameters["classes"] == ["cat", "dog"]
    with pytest.raises(ModelTooLarge):
        prepare(registration, data, limit=10)
    with pytest.raises(InvalidModel):
        prepare(registration, b"nonsense", limit=LIMIT)
    zoo = registration.model_copy(update={"id": "fashion-mnist-cnn"})
    with pytest.raises(ModelConflict, match="comes with Touchstone"):
        prepare(zoo, data, limit=LIMIT)


def test_load_reads_model_file_with_manifest_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear_onnx(end="Exp"))
    (tmp_path / "model.json").write_text(json.dumps(REGISTRATION_FIELDS))
    x = gray_images(4)
    expected = linear_net()(x).softmax(1)
    for manifest in (REGISTRATION_FIELDS, tmp_path / "model.json"):
        model = touchstone.load(tmp_path / "model.onnx", manifest=manifest, device="cpu")
        assert model.manifest is not None
        assert (model.classes, model.manifest.softmax) == (("cat", "dog"), "inverted")
        assert torch.allclose(model.oracle.module(x).softmax(1), expected, atol=1e-5)
    found = touchstone.attack(model, x, method="pgd", norm="linf", eps="16/255", steps=5)
    assert found.success.all()
    (tmp_path / "model.onnx").write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidModel, match="pickle"):
        touchstone.load(tmp_path / "model.onnx", manifest=REGISTRATION_FIELDS)
