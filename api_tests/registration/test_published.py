"""What is published with weights is read: configurations, packages; what is stated wins, and contradictions
are said.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import touchstone
from api_tests.support.library_stubs import install_torchvision, linear
from api_tests.support.own_models import REGISTRATION_FIELDS, linear_safetensors, write_timm_stub
from touchstone.errors import InvalidParameter
from touchstone.models.manifest import Manifest
from touchstone.registration.published import packages, packages_process
from touchstone.registration.published.beside import default_id
from touchstone.registration.published.classifier_config import read_config
from touchstone.registration.published.image_processors import read_preprocessor
from touchstone.registration.request import Registration

DIGEST = "sha256:" + "0" * 64
NORMAL = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "resample": 3}
VIT: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "id2label": {"0": "cat", "1": "dog", "2": "cow"},
    "image_size": 224,
    "num_channels": 3,
    "hidden_size": 8,
    "transformers_version": "5",
}
TIMM: dict[str, Any] = {
    "architecture": "linear",
    "num_classes": 2,
    "label_names": ["n1", "n2"],
    "label_descriptions": {"n1": "cat", "n2": "dog"},
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "license": "mit",
    },
}


def describe(**fields: Any) -> Manifest:
    return Registration.parse({"id": "net", **fields}).build_manifest(DIGEST, "safetensors")


SIZES: dict[str, tuple[dict[str, Any], tuple[int, Any]]] = {
    "scaled": ({"size": {"height": 224, "width": 224}}, (224, None)),
    "scaled, as one number": ({"size": 224, "feature_extractor_type": "ViTFeatureExtractor"}, (224, None)),
    "scaled, then cropped": (
        {"size": 256, "do_center_crop": True, "crop_size": 224, "image_processor_type": "DeiTImageProcessor"},
        (224, (256, 256)),
    ),
    "shortest edge": (
        {
            "size": {"shortest_edge": 256},
            "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224},
        },
        (224, 256),
    ),
    "shortest edge, as one number": (
        {
            "size": 256,
            "do_center_crop": True,
            "crop_size": 224,
            "feature_extractor_type": "BitProcessor",
        },
        (224, 256),
    ),
    "share of the crop": (
        {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor"},
        (224, 256),
    ),
    "large ConvNext": (
        {"size": {"shortest_edge": 384}, "crop_pct": 0.9, "image_processor_type": "ConvNextImageProcessor"},
        (384, None),
    ),
    "LeViT": (
        {
            "size": {"shortest_edge": 224},
            "do_center_crop": True,
            "crop_size": 224,
            "image_processor_type": "LevitImageProcessor",
        },
        (224, 256),
    ),
    "PoolFormer": (
        {
            "size": {"shortest_edge": 224},
            "crop_pct": 0.9,
            "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224},
            "image_processor_type": "PoolFormerImageProcessor",
        },
        (224, 248),
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_size_of_an_image_processor_is_read(name: str) -> None:
    config, (size, resize) = SIZES[name]
    spec = describe(config=VIT | {"image_size": size}, preprocessor_config={**config, **NORMAL}).input
    assert (spec.height, spec.width, spec.resize, spec.interpolation) == (size, size, resize, "bicubic")
    assert spec.crop_rounding == ("even" if resize is None else "down")


@pytest.mark.parametrize(
    "rescale",
    [
        {},
        {"rescale_factor": 1 / 255},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
    ],
)
def test_rescale_and_normalization_become_mean_and_std(rescale: dict[str, Any]) -> None:
    manifest = describe(config=VIT, preprocessor_config={"size": 224, **NORMAL, **rescale})
    for channel, mean, std in zip(range(3), NORMAL["image_mean"], NORMAL["image_std"], strict=True):
        for level in (0, 100, 255):
            value = (
                level * rescale.get("rescale_factor", 1 / 255) if rescale.get("do_rescale", True) else level
            )
            value -= bool(rescale.get("rescale_offset"))
            right = (value - mean) / std if rescale.get("do_normalize", True) else value
            found = (level / 255 - manifest.mean[channel]) / manifest.std[channel]
            assert found == pytest.approx(right, rel=1e-9, abs=1e-9)


def test_flipped_channels_are_the_order_blue_green_red() -> None:
    manifest = describe(
        config=VIT, preprocessor_config={"size": 224, **NORMAL, "do_flip_channel_order": True}
    )
    assert manifest.input.channel_order == "bgr"
    assert manifest.mean == (0.3, 0.4, 0.5)


UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "padding": ({"do_pad": True}, "padding"),
    "no resize": ({"do_resize": False}, "do_resize"),
    "nearest": ({"resample": 0}, "resample 0"),
    "longest edge": ({"size": {"longest_edge": 9}}, "longest_edge"),
    "no crop": ({"size": {"shortest_edge": 9}}, "not cropped"),
    "no size": ({"size": None}, "size must be"),
    "huge": ({"size": 10**9}, "1 to 4096"),
    "text": ({"size": {"height": "9", "width": 9}}, "1 to 4096"),
    "no mean": ({"image_mean": None}, "image_mean must be a number"),
    "NaN": ({"image_mean": [float("nan")] * 3}, "image_mean must be a number"),
    "many": ({"image_std": [1.0] * 9}, "for each channel"),
    "no factor": ({"rescale_factor": 0}, "rescale_factor"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_preprocessing_that_cannot_be_reproduced_is_refused(name: str) -> None:
    changes, words = UNREADABLE[name]
    with pytest.raises(InvalidParameter, match=words) as refused:
        read_preprocessor({"size": 224, **NORMAL, **changes})
    assert refused.value.field == "preprocessor_config"


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "code": ({"auto_map": {"AutoModel": "theirs.Net"}}, "never run"),
    "unknown type": ({"model_type": "gpt2", "architectures": None}, "no classifier"),
    "no type": ({"model_type": {}, "architectures": None}, "no classifier"),
    "class of another type": ({"architectures": ["SwinForImageClassification"]}, "no classifier"),
    "any class": ({"architectures": ["os.system"]}, "no classifier"),
    "quantized": ({"quantization_config": {"bits": 4}}, "float32"),
    "huge number": ({"hidden_size": 10**12}, "at most 1,000,000"),
    "long list": ({"depths": [1] * 101}, "at most 1,000,000"),
    "long text": ({"hidden_act": "g" * 101}, "at most 1,000,000"),
    "many fields": ({str(i): 1 for i in range(400)}, "at most 300"),
    "gap in the classes": ({"id2label": {"0": "cat", "2": "dog"}}, "without a gap"),
    "classes as a list": ({"id2label": ["cat", "dog"]}, "id2label"),
    "size": ({"image_size": -1}, "image_size"),
    "arguments of timm": (TIMM | {"model_args": {"checkpoint_path": "/etc/x"}}, "checkpoint_path"),
    "arguments as text": (TIMM | {"model_args": "x"}, "must be an object"),
    "classes of timm": (TIMM | {"num_classes": 3}, "num_classes is 3"),
    "crop of timm": (TIMM | {"pretrained_cfg": {**TIMM["pretrained_cfg"], "crop_pct": 0}}, "crop_pct"),
    "shape of timm": (TIMM | {"pretrained_cfg": {"input_size": [4, 1, 1]}}, "input_size"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_or_foreign_config_is_refused(name: str) -> None:
    changes, words = HOSTILE[name]
    with pytest.raises(InvalidParameter, match=words) as refused:
        read_config({**VIT, **changes})
    assert refused.value.field == "config"


def test_config_and_preprocessor_of_transformers_give_the_whole_manifest() -> None:
    manifest = describe(config=VIT, preprocessor_config={"size": 224, **NORMAL})
    assert manifest.architecture == "transformers/ViTForImageClassification"
    assert manifest.config == {"image_size": 224, "num_channels": 3, "hidden_size": 8}
    assert manifest.classes == ("cat", "dog", "cow")
    assert manifest.sources["classes"] == "config.json"
    assert manifest.sources["mean"] == "preprocessor_config.json"
    assert Manifest.model_validate(json.loads(manifest.model_dump_json())) == manifest
    with pytest.raises(InvalidParameter, match=r"send preprocessor_config.json too"):
        describe(config=VIT)
    with pytest.raises(InvalidParameter, match=r"the config.json of a network"):
        describe(
            architecture="transformers/ViTForImageClassification",
            config=None,
            preprocessor_config={"size": 224, **NORMAL},
            classes=["cat", "dog"],
        )


def test_config_of_timm_gives_the_whole_manifest() -> None:
    manifest = describe(config=TIMM)
    assert (manifest.architecture, manifest.classes) == ("timm/linear", ("cat", "dog"))
    assert (manifest.input.resize, manifest.input.interpolation) == (248, "bicubic")
    assert (manifest.mean, manifest.licence) == ((0.1, 0.2, 0.3), "mit")
    squash = {**TIMM["pretrained_cfg"], "crop_mode": "squash"}
    assert describe(config=TIMM | {"pretrained_cfg": squash}).input.resize == (248, 248)
    flat = {name: one for name, one in TIMM.items() if name != "pretrained_cfg"} | TIMM["pretrained_cfg"]
    assert describe(config=flat) == manifest, "as versions of timm before 0.9 wrote it"


def test_what_is_stated_wins_and_the_contradiction_is_said() -> None:
    manifest = describe(
        config=VIT,
        preprocessor_config={"size": 224, **NORMAL},
        mean=[0, 0, 0],
        std=NORMAL["image_std"],
        classes=["a", "b", "c"],
        input={"interpolation": "bilinear"},
    )
    assert (manifest.mean, manifest.classes) == ((0, 0, 0), ("a", "b", "c"))
    assert manifest.input.interpolation == "bilinear"
    said = "the request; preprocessor_config.json says "
    assert manifest.sources["mean"] == f"{said}[0.5, 0.4, 0.3]"
    assert manifest.sources["input.interpolation"] == f"{said}'bicubic'"
    assert "std" not in manifest.sources
    assert (
        describe(architecture="small-cnn", input={"height": 8, "width": 8}, classes=["a", "b"]).sources == {}
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"architecture": "timm/resnet18"}, "architecture"),
        ({"classes": ["a", "b"]}, "classes"),
        ({"input": {"height": 384, "width": 384}}, "input.resize"),
    ],
)
def test_statements_of_another_network_are_refused(fields: dict[str, Any], field: str) -> None:
    crop = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224, **NORMAL}
    with pytest.raises(InvalidParameter) as refused:
        describe(config=VIT, preprocessor_config=crop, **fields)
    assert refused.value.field == field


def test_published_names_of_classes_are_checked_like_stated_ones() -> None:
    for names in (["cat", 3], ["cat", "d\nog"], ["cat"]):
        with pytest.raises(InvalidParameter) as refused:
            describe(config=TIMM | {"label_names": names, "num_classes": len(names)})
        assert refused.value.field == "classes"


def test_package_publishes_what_is_not_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    install_torchvision(monkeypatch)
    monkeypatch.setattr(packages, "_ask", lambda name: packages_process.read_torchvision(name.split("/")[1]))
    manifest = describe(architecture="torchvision/linear")
    assert (manifest.input.height, manifest.input.resize, manifest.input.interpolation) == (8, 10, "bilinear")
    assert (manifest.mean, manifest.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert manifest.classes == ("cat", "dog")
    assert manifest.sources["mean"].startswith("torchvision 0")
    stated = describe(architecture="torchvision/linear", input={"height": 9, "width": 9})
    assert (stated.input.resize, stated.mean, stated.classes) == (None, (0, 0, 0), ("cat", "dog"))


def test_package_is_asked_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(*_: Any, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("python", 1)

    def answer(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess((), 0, b'{"source": "timm", "values": {}}')

    monkeypatch.setattr(packages.subprocess, "run", time_out)
    with pytest.raises(InvalidParameter, match="the process that reads it failed"):
        packages.read_packaged("timm/asked-again")
    monkeypatch.setattr(packages.subprocess, "run", answer)
    assert packages.read_packaged("timm/asked-again").source == "timm"


def test_missing_package_is_named_where_its_metadata_is_needed() -> None:
    with pytest.raises(
        InvalidParameter, match=r"touchstone-robustness\[torchvision\].*State input"
    ) as refused:
        describe(architecture="torchvision/linear")
    assert refused.value.field == "architecture"


def test_load_finds_the_configurations_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(write_timm_stub(tmp_path)))
    folder = tmp_path / "My Net"
    folder.mkdir()
    torch.manual_seed(0)
    net = linear(2)
    (folder / "model.safetensors").write_bytes(save(net.state_dict()))
    published = {**TIMM["pretrained_cfg"], "input_size": [3, 8, 8], "crop_pct": 1}
    (folder / "config.json").write_text(json.dumps(TIMM | {"pretrained_cfg": published}))
    model = touchstone.load(folder / "model.safetensors", device="cpu")
    assert model.manifest is not None
    assert (model.manifest.id, model.classes) == ("my-net", ("cat", "dog"))
    x = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(published[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    found = model.oracle.module(model.oracle.preprocessing.apply(x))
    torch.testing.assert_close(found, net((x - mean) / std))
    (folder / "config.json").write_text("[]")
    with pytest.raises(InvalidParameter, match="no JSON object"):
        touchstone.load(folder / "model.safetensors")
    assert default_id(Path("a/X y.v2.onnx")) == "x-y.v2"


def test_configurations_are_parts_of_the_form(api: Any) -> None:
    def send(**parts: Any) -> Any:
        files = {"file": ("model.safetensors", linear_safetensors()), **parts}
        fields = {"manifest": json.dumps({"id": "configured"})}
        return api.client.post("/v1/models", files=files, data=fields, headers={"Prefer": "wait=10"})

    config = ("config.json", json.dumps(VIT | {"id2label": {"0": "cat", "1": "dog"}}))
    preprocessor = ("preprocessor_config.json", json.dumps({"size": 224, **NORMAL}))
    job = send(config=config, preprocessor_config=preprocessor).json()
    assert job["status"] == "succeeded"
    card = api.client.get("/v1/models/configured").json()
    assert card["architecture"] == "transformers/ViTForImageClassification"
    assert card["sources"]["input.height"] == "preprocessor_config.json"
    for parts, field in (
        ({"config": ("c", "{")}, "config"),
        ({"config": config, "preprocessor_config": ("p", '{"size": []}')}, "preprocessor_config"),
    ):
        refused = send(**parts)
        assert (refused.status_code, refused.json()["field"]) == (422, field)
    twice = {"manifest": json.dumps({**REGISTRATION_FIELDS, "config": VIT})}
    files = {"file": ("m", linear_safetensors()), "config": config}
    assert api.client.post("/v1/models", files=files, data=twice).json()["field"] == "config"
