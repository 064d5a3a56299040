"""A user's model through the whole service: registered over HTTP, attacked, certified, deleted."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from onnx import helper
from PIL import Image
from torch import Tensor, nn

from api_tests.support.fake_service import assert_problem
from api_tests.support.linear_models import exact_distances
from api_tests.support.own_models import REGISTRATION_FIELDS, linear_net, linear_onnx, onnx_file
from touchstone.models import zoo
from touchstone.settings import Settings
from touchstone.supervisor.up import run_service
from touchstone.training.datasets import fashion_mnist_sample

CNN = zoo.find_manifest("fashion-mnist-cnn")
SEED = 3


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a service as `touchstone up` starts it."""
    settings = Settings(home=tmp_path_factory.mktemp("own"), port=0, redis_url=None)
    with (
        run_service(settings, lambda _line: None) as url,
        httpx2.Client(base_url=url, timeout=90, headers={"Prefer": "wait=60"}) as client,
    ):
        yield client


def register(client: httpx2.Client, data: bytes, **fields: Any) -> dict[str, Any]:
    """The job of a registration, once it has ended."""
    parts = {"file": ("model", data), "manifest": ("m.json", json.dumps({**REGISTRATION_FIELDS, **fields}))}
    response = client.post("/v1/models", files=parts)
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def run(client: httpx2.Client, method: str, image: bytes, **fields: Any) -> dict[str, Any]:
    """A job that has succeeded."""
    response = client.post(f"/v1/{method}", files={"image": ("a.png", image)}, data=fields)
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    assert job["status"] == "succeeded", job["error"]
    return job


@pytest.fixture(scope="module")
def linear(client: httpx2.Client) -> dict[str, Any]:
    """A linear model that is registered."""
    return register(client, linear_onnx(seed=SEED), id="linear")


def image_between_levels() -> Tensor:
    """An image (1, C, H, W) whose L∞ distance to the other class lies between 5 and 6 gray levels."""
    weight = linear_net(seed=SEED)[1].weight.detach()  # type: ignore[index]
    away = torch.sign(weight[0] - weight[1]).reshape(1, 3, 8, 8)
    levels = torch.full((1, 3, 8, 8), 5.0)
    levels[..., ::2] = 6
    return (128 + away * levels) / 255


def exact_distance(norm: str, model: nn.Module | None = None) -> float:
    return float(exact_distances(model or linear_net(seed=SEED), image_between_levels(), norm)[0])


def linear_png() -> bytes:
    return png((image_between_levels()[0].permute(1, 2, 0) * 255).round())


def test_registration_result_and_model_card_show_the_probe(
    client: httpx2.Client, linear: dict[str, Any]
) -> None:
    assert (linear["status"], linear["progress"]) == ("succeeded", {"done": 5, "total": 5})
    card = client.get("/v1/models/linear").json()
    assert linear["result"]["model"].items() <= card.items()
    assert card["parameters"] == 2 * (192 + 1)
    probe = card["probe"]
    assert all(probe[name] for name in ("gradient_agrees", "deterministic", "batch_invariant"))
    assert probe["forward_ms"] > 0


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_attack_succeeds_only_above_the_exact_distance(
    client: httpx2.Client, linear: dict[str, Any], attack: str
) -> None:
    assert linear["model"]["id"] == "linear"
    assert 5.2 < 255 * exact_distance("linf") < 5.8
    results = [
        run(client, f"attacks/{attack}", linear_png(), model="linear", norm="linf", eps=f"{levels}/255")[
            "result"
        ]
        for levels in (5, 6)
    ]
    assert [result["success"] for result in results] == [False, True]
    assert 5 / 255 < results[1]["perturbation"]["linf"] <= 6 / 255 + 1e-9


def test_certified_radius_comes_close_to_the_exact_radius(
    client: httpx2.Client, linear: dict[str, Any]
) -> None:
    fields = {"model": f"linear@{linear['model']['digest']}", "sigma": 0.25, "n": 10_000, "rule": "fixed"}
    result = run(client, "certificates/smoothing", linear_png(), **fields)["result"]
    assert 0.85 * exact_distance("l2") < result["radius"] <= exact_distance("l2")
    assert result["digests"]["model"] == linear["model"]["digest"]


def test_registered_zoo_weights_give_the_same_results_as_the_zoo_model(client: httpx2.Client) -> None:
    fields = CNN.model_dump(mode="json", include={"input", "mean", "std", "architecture", "classes"})
    job = register(client, zoo.read_weights(CNN), id="own-cnn", **fields)
    assert job["status"] == "succeeded", job["error"]
    image = png(fashion_mnist_sample().images[1])
    how = {"eps": "16/255", "steps": 5, "execution": "deterministic"}
    own, zoos = (run(client, "attacks/pgd", image, model=model, **how) for model in ("own-cnn", CNN.id))
    assert own["result"]["original"] == zoos["result"]["original"]
    files = [client.get(job["links"]["artifacts"]["adversarial.png"]).content for job in (own, zoos)]
    assert files[0] == files[1]


def test_model_deletion_is_refused_until_its_jobs_have_ended(client: httpx2.Client) -> None:
    job = register(client, linear_onnx(seed=9), id="busy")
    assert job["status"] == "succeeded"
    fields = {
        "model": "busy",
        "norm": "linf",
        "eps": "1/255",
        "steps": 5_000,
        "restarts": 7,
        "early_stop": "false",
    }
    image = {"image": ("a.png", linear_png())}
    response = client.post("/v1/attacks/pgd", files=image, data=fields, headers={"Prefer": ""})
    assert response.status_code == 202, response.text
    long = response.json()
    path = long["links"]["self"]
    while (status := client.get(path, headers={"Prefer": ""}).json()["status"]) == "queued":
        time.sleep(0.05)
    assert status == "running"
    assert assert_problem(client.delete("/v1/models/busy"), 409, "model_in_use")["job"] == long["id"]
    assert client.post(long["links"]["cancel"]).status_code == 202
    assert client.get(path).json()["status"] == "canceled"
    assert client.delete("/v1/models/busy").status_code == 204
    refused = client.post("/v1/attacks/fgsm", files=image, data={"model": "busy"})
    assert_problem(refused, 404, "unknown_model", "model")


def test_hostile_models_fail_their_job_and_are_not_registered(client: httpx2.Client) -> None:
    string = [helper.make_node("StringNormalizer", ["x"], ["y"])]
    nan = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1),
    ]
    broken = {"w": np.full((2, 192), np.nan, np.float32), "b": np.zeros(2, np.float32)}
    for data, code in (
        (onnx_file(string, {}, "y"), "unsupported_operator"),
        (onnx_file(nan, broken, "y"), "invalid_model"),
    ):
        job = register(client, data, id="hostile")
        assert (job["status"], job["error"]["code"]) == ("failed", code), job
        assert_problem(client.get("/v1/models/hostile"), 404, "unknown_model", "model")
    buffer = io.BytesIO()
    torch.save(linear_net(), buffer)
    parts = {
        "file": ("model.onnx", buffer.getvalue()),
        "manifest": ("m.json", json.dumps(REGISTRATION_FIELDS)),
    }
    assert_problem(client.post("/v1/models", files=parts), 422, "invalid_model", "file")
