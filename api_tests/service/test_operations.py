"""What the dashboard asks besides jobs: how the service does, what a job would cost, images to try."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from api_tests.support.fake_service import MODEL_PROBE, Api, assert_problem, sample_manifest
from touchstone.methods import Method, catalogue, find, total_cost, total_footprint
from touchstone.models import zoo
from touchstone.models.measurements import Probe
from touchstone.settings import Settings
from touchstone.training.datasets import fashion_mnist_sample

ROOT = Path(__file__).parents[2]
HISTOGRAM = {"buckets": {"1": 3, "+Inf": 7}, "sum": 60.5, "count": 7}
INFO = {
    "host": "gpu1",
    "pid": 47,
    "device": "cuda:0",
    "running": 2,
    "batch_rows": HISTOGRAM,
    "step_seconds": HISTOGRAM,
    "queries": {"forward": 60, "backward": 40},
    "resident_models": [
        {"id": sample_manifest().id, "digest": sample_manifest().digest, "bytes": 1_000},
        {"id": sample_manifest().id, "digest": "sha256:0", "bytes": 7},
    ],
}
PROBE = Probe.model_validate(
    MODEL_PROBE.model_dump(include=set(Probe.model_fields))
    | {"bytes": 1_000, "gradient_rate": 3_000, "single_rate": 100, "forward_rate": 5_000}
)
COST_PATHS = [
    *((f"/v1/{method.kind}s/{name}", method) for name, method in catalogue().items()),
    ("/v1/predictions", None),
]


@contextmanager
def beat_worker(api: Api, info: dict[str, Any]) -> Iterator[None]:
    api.ledger.workers.heartbeat("w1", info)
    yield
    api.ledger.workers.remove("w1")


@pytest.fixture(scope="module", autouse=True)
def stored_probe(api: Api) -> None:
    api.ledger.probes.store(sample_manifest().digest, PROBE)


def test_operations_show_queue_jobs_and_workers(api: Api) -> None:
    api.run_job()
    with beat_worker(api, INFO), api.worker.pause():
        waiting = api.submit(wait=None).json()["id"]
        found = api.client.get("/v1/operations").json()
    api.client.get(f"/v1/jobs/{waiting}", headers={"Prefer": "wait=10"})
    [shown] = found["workers"]
    assert found["queue"]["depth"] == found["jobs"]["queued"] == 1
    assert 0 <= found["queue"]["age"] < 10
    assert found["jobs"]["succeeded"] >= 1
    assert set(found["jobs"]) == {"queued", "running", "succeeded", "failed", "canceled"}
    assert datetime.fromisoformat(shown.pop("seen_at")).tzinfo is not None
    models = [{"id": sample_manifest().id, "bytes": 1_000}]  # that of another tenant is not shown
    told = {name: value for name, value in INFO.items() if name != "resident_models"}
    assert shown == {"id": "w1", **told, "models": models, "serves": None}


def test_worker_without_reported_info_is_shown_with_defaults(api: Api) -> None:
    with beat_worker(api, {}):
        [shown] = api.client.get("/v1/operations").json()["workers"]
    assert (shown["device"], shown["running"], shown["models"]) == (None, 0, [])
    assert shown["batch_rows"] == {"buckets": {}, "sum": 0, "count": 0}


def test_models_show_their_probe_and_the_workers_that_loaded_them(api: Api) -> None:
    with beat_worker(api, INFO):
        models = api.client.get("/v1/models").json()["items"]
        assert models == [api.client.get(f"/v1/models/{model['id']}").json() for model in models]
    assert [model["resident"] for model in models if model["id"] != sample_manifest().id] == [[]] * 4
    [known] = [model for model in models if model["probe"]]
    assert (known["id"], known["resident"]) == (sample_manifest().id, ["w1"])
    assert known["probe"] == PROBE.model_dump(mode="json")
    assert api.client.get(f"/v1/models/{sample_manifest().id}").json()["resident"] == []


def expected_cost(method: type[Method] | None) -> int:
    return total_cost(method()).total if method else 1


@pytest.mark.parametrize(("path", "method"), COST_PATHS)
def test_cost_route_returns_calls_and_estimated_seconds(
    api: Api, path: str, method: type[Method] | None
) -> None:
    found = api.client.get(f"{path}/cost").json()
    assert found["total"] == found["forward"] + found["backward"] == expected_cost(method)
    assert (found["limit"], found["seconds"]) == (Settings().cost_limit, None)
    timed = api.client.get(f"{path}/cost", params={"model": sample_manifest().id}).json()
    assert timed["seconds"] > 0


def test_cost_counts_attacks_by_row_and_certificates_by_full_batches(api: Api) -> None:
    model = sample_manifest().id
    attack = api.client.get("/v1/attacks/pgd/cost", params={"steps": 10, "model": model}).json()
    assert (attack["forward"], attack["backward"]) == (32, 20)
    assert attack["seconds"] == pytest.approx((20 + 12 / 3) / 100)
    asked = {"n": 9_860, "n0": 100, "model": model}
    certificate = api.client.get("/v1/certificates/smoothing/cost", params=asked).json()
    assert certificate["seconds"] == pytest.approx(2)
    vote = api.client.get("/v1/predictions/cost", params={"defence": "smoothing", "n": 460, "model": model})
    assert (vote.json()["total"], vote.json()["seconds"]) == (500, pytest.approx(0.1))
    unmeasured = list(zoo.manifests())[-1]
    assert api.client.get("/v1/attacks/pgd/cost", params={"model": unmeasured}).json()["seconds"] is None


def test_cost_of_an_image_of_this_size_shows_its_memory(api: Api) -> None:
    sized = {"width": 400, "height": 200}
    alone = api.client.get("/v1/attacks/pgd/cost", params=sized).json()
    own = total_footprint(find("pgd")())
    assert (alone["rows"], alone["memory"]) == (own.rows(240_000), own.bytes(240_000, side=400))
    assert (alone["memory_limit"], alone["upload_factor"]) == (Settings().job_memory, None)
    known = api.client.get("/v1/attacks/pgd/cost", params={**sized, "model": sample_manifest().id}).json()
    assert known["upload_factor"] == pytest.approx(400 * 200 / 28**2)
    unsized = api.client.get("/v1/attacks/pgd/cost", params={"width": 400}).json()
    assert (unsized["rows"], unsized["memory"]) == (None, None)
    assert_problem(
        api.client.get("/v1/attacks/pgd/cost", params={"width": 4}), 422, "invalid_parameter", "width"
    )


def test_cost_is_returned_even_above_the_limit(api: Api) -> None:
    found = api.client.get("/v1/attacks/pgd/cost?steps=10000&restarts=1000").json()
    assert found["total"] > found["limit"]


@pytest.mark.parametrize(("path", "method"), COST_PATHS)
def test_cost_with_invalid_fields_is_refused_like_the_submission(
    api: Api, path: str, method: type[Method] | None
) -> None:
    kind = method.kind if method else "prediction"
    bad = {"attack": {"defence": "prayer"}, "certificate": {"sigma": "-1"}, "prediction": {"top": "0"}}[kind]
    fields = {"model": sample_manifest().id, **bad}
    asked, submitted = api.client.get(f"{path}/cost", params=fields), api.submit(path, **fields)
    told, refused = (
        assert_problem(one, 422, "invalid_parameter", next(iter(bad))) for one in (asked, submitted)
    )
    assert (told["detail"], told.get("errors")) == (refused["detail"], refused.get("errors"))


@pytest.mark.parametrize(
    ("path", "status", "code", "field"),
    [
        ("/v1/attacks/pgd/cost?stepps=3", 422, "invalid_parameter", "stepps"),
        ("/v1/attacks/pgd/cost?steps=3&steps=4", 422, "invalid_parameter", "steps"),
        ("/v1/attacks/pgd/cost?model=", 422, "invalid_parameter", "model"),
        ("/v1/attacks/pgd/cost?model=nothing", 404, "unknown_model", "model"),
        ("/v1/attacks/nothing/cost", 404, "unknown_method", "method"),
        ("/v1/attacks/smoothing/cost", 404, "unknown_method", "method"),
        ("/v1/predictions/cost?top=11&model=fashion-mnist-cnn", 422, "invalid_parameter", "top"),
        ("/v1/predictions/cost?n=5", 422, "invalid_parameter", "n"),
    ],
)
def test_invalid_cost_request_is_refused(api: Api, path: str, status: int, code: str, field: str) -> None:
    told = assert_problem(api.client.get(path), status, code, field)
    if field == "stepps":
        assert 'did you mean "steps"?' in told["detail"]


def test_sample_images_match_their_list_entries(api: Api) -> None:
    samples = api.client.get("/samples").json()["items"]
    assert len({sample["name"] for sample in samples}) == len(samples) == 10
    for sample in samples:
        response = api.client.get(sample["href"])
        with Image.open(io.BytesIO(response.content)) as image:
            assert image.size == (sample["width"], sample["height"])
            assert response.headers["content-type"] == Image.MIME[image.format or ""]
            assert (image.mode == "L") == (sample["channels"] == 1)
        assert "max-age" in response.headers["cache-control"]
        assert sample["licence"].startswith(("CC0", "public domain", "MIT"))
        etag = {"If-None-Match": response.headers["etag"]}
        assert api.client.get(sample["href"], headers=etag).status_code == 304
        small = api.client.get(sample["thumbnail"])
        assert small.headers["content-type"] == "image/webp"
        assert max(Image.open(io.BytesIO(small.content)).size) <= 96
        assert len(small.content) < 5_000
    assert api.client.get("/samples/nothing.png").json()["code"] == "not_found"
    assert api.client.get("/samples/README.md").status_code == 404


def test_fashion_samples_match_their_labels(api: Api) -> None:
    clothes = [one for one in api.client.get("/samples").json()["items"] if one["label"] is not None]
    classes = zoo.find_manifest("fashion-mnist-cnn").classes
    assert len(clothes) == 5
    for sample in clothes:
        with Image.open(io.BytesIO(api.client.get(sample["href"]).content)) as image:
            assert image.tobytes() == fashion_mnist_sample().images[sample["label"]].tobytes()
        assert classes[sample["label"]] == sample["title"]


def test_sample_photos_are_in_the_package_with_their_license() -> None:
    folder = ROOT / "touchstone/photos"
    assert (ROOT / "examples/photos").resolve() == folder
    assert "CC0" in (folder / "README.md").read_text()


def test_sample_image_is_accepted_as_a_submission(api: Api) -> None:
    image = api.client.get("/samples/horse.png").content
    assert api.run_job(image=image)["image"]["conversions"]


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ({"knowledge": "black-box"}, lambda card: card["access"] != "gradients"),
        ({"access": "gradients"}, lambda card: card["knowledge"] == "white-box"),
        ({"norm": "Linf"}, lambda card: "linf" in card["norms"]),
        ({"targeted": "false"}, lambda card: not card["targeted"]),
        ({"budget": "fixed", "norm": "l1"}, lambda card: card["budget"] == "fixed" and "l1" in card["norms"]),
    ],
)
def test_attacks_are_filtered_by_access_norm_target_and_budget(
    api: Api, query: dict[str, str], fits: Any
) -> None:
    every = api.client.get("/v1/attacks").json()["items"]
    listed = api.client.get("/v1/attacks", params=query).json()["items"]
    assert [card["name"] for card in listed] == [card["name"] for card in every if fits(card)]


def test_invalid_attack_filter_is_422(api: Api) -> None:
    assert_problem(api.client.get("/v1/attacks", params={"norm": "l7"}), 422, "invalid_parameter", "norm")
