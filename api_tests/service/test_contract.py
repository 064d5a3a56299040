"""Every row of the HTTP contract, over a real socket."""

import asyncio
import base64
import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from PIL import Image
from starlette.requests import Request

from api_tests.support.fake_service import (
    Api,
    FakeJob,
    data_url,
    fail,
    gradient_image,
    png,
    sample_manifest,
    succeed,
)
from api_tests.support.wait import TIMEOUT_SECONDS
from service.headers import read_wait_seconds, wants_png
from service.routers import events
from service.state import job_waiters
from touchstone.methods import catalogue

JOB_KEYS = [
    *(
        "id",
        "kind",
        "method",
        "status",
        "created_at",
        "started_at",
        "finished_at",
        "attempts",
        "model",
        "image",
    ),
    *("parameters", "seed", "execution", "progress", "result", "error", "timings", "links"),
]


def test_submission_without_wait_is_202_with_a_queued_job(api: Api) -> None:
    with api.worker.pause():
        response = api.submit(wait=None)
        job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert response.headers["retry-after"] == "1"
    assert "preference-applied" not in response.headers
    assert job["status"] == "queued"
    assert job["result"] is job["error"] is job["finished_at"] is None


def test_submission_with_wait_returns_the_finished_job(api: Api) -> None:
    response = api.submit(eps="8/255", steps=3, norm="Linf", seed=5)
    job = response.json()
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait"
    assert [key for key in job if key in JOB_KEYS] == JOB_KEYS
    assert job["status"] == "succeeded"
    assert job["kind"] == "attack"
    assert job["seed"] == 5
    assert job["parameters"]["eps"] == 8 / 255
    assert job["parameters"]["norm"] == "linf"
    assert set(job["parameters"]) == set(catalogue()["pgd"].model_fields)
    assert job["parameters"]["step_size"] == 2.5 * (8 / 255) / job["parameters"]["steps"]
    assert job["model"] == {"id": sample_manifest().id, "digest": sample_manifest().digest}
    assert (job["image"]["width"], job["image"]["height"]) == (9, 8)
    assert job["progress"] == {"done": 1, "total": 2}
    assert set(job["timings"]) == {"queued", "prepare", "compute", "write"}
    assert set(job["links"]["artifacts"]) == {"original.png", "adversarial.png", "adversarial.npy"}
    assert all(link.startswith("/v1/jobs/") for link in job["links"]["artifacts"].values())


def test_job_times_are_rfc_3339_in_utc(api: Api) -> None:
    job = api.run_job()
    for name in ("created_at", "started_at", "finished_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job[name])
        datetime.fromisoformat(job[name])


def test_submission_is_202_when_its_wait_runs_out(api: Api) -> None:
    with api.worker.pause():
        began = time.monotonic()
        response = api.submit(wait=1)
        assert 0.9 < time.monotonic() - began < 20
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait"


def request_with_header(name: bytes, value: str) -> Request:
    return Request({"type": "http", "headers": [(name, value.encode("latin-1"))]})


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [("wait=0", 0), ("wait=59", 59), ("wait=61", 60), (f"wait={'9' * 5000}", 60), ("wait=²", None)],
)
def test_preferred_wait_is_capped_at_sixty_seconds(prefer: str, seconds: int | None) -> None:
    assert asyncio.run(read_wait_seconds(request_with_header(b"prefer", prefer))) == seconds


@pytest.mark.parametrize("weight", ["high", "", "nan", "-1", "0", "²"])
def test_invalid_quality_value_in_accept_is_ignored(weight: str) -> None:
    assert not wants_png(request_with_header(b"accept", f"image/png;q={weight}"))


@pytest.mark.parametrize(
    "prefer", ["wait=soon", "wait=-1", "wait", "wait=1.5", ";;,=", "respond-async", 'wait="']
)
def test_malformed_prefer_header_is_ignored(api: Api, prefer: str) -> None:
    response = api.submit(wait=None, headers={"Prefer": prefer})
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


@pytest.mark.parametrize(
    "prefer", ['wait="9"', "respond-async, WAIT = 9", "wait=9; because=I said", "wait=99999999999"]
)
def test_prefer_header_is_read_in_every_form_of_the_rfc(api: Api, prefer: str) -> None:
    assert api.submit(wait=None, headers={"Prefer": prefer}).status_code == 200


def test_json_submission_equals_form_submission(api: Api) -> None:
    form = api.submit(eps="8/255", steps=3, seed=1).json()
    for image in (data_url(png()), base64.b64encode(png()).decode()):
        body = {"image": image, "model": sample_manifest().id, "eps": 8 / 255, "steps": 3, "seed": 1}
        response = api.client.post("/v1/attacks/pgd", json=body, headers={"Prefer": "wait=10"})
        assert response.status_code == 200
        assert response.json()["parameters"] == form["parameters"]
        assert response.json()["image"] == form["image"]


def test_accept_png_returns_the_adversarial_image(api: Api) -> None:
    response = api.submit(headers={"Accept": "image/png"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    path = re.fullmatch(r'<(/v1/jobs/[^>]+)>; rel="describedby"', response.headers["link"])
    assert path
    assert api.client.get(path[1]).json()["status"] == "succeeded"
    assert Image.open(io.BytesIO(response.content)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/png;q=0.5, application/json", "application/json"),
        ("application/json;q=0.2, image/png", "image/png"),
        ("image/*", "image/png"),
        ("*/*", "application/json"),
        ("image/png;q=0", "application/json"),
        ("image/png;q=x", "application/json"),
        (",;;q,", "application/json"),
    ],
)
def test_accept_header_chooses_between_job_and_image(api: Api, accept: str, media_type: str) -> None:
    assert api.submit(headers={"Accept": accept}).headers["content-type"] == media_type


def test_accept_png_without_wait_returns_the_job(api: Api) -> None:
    response = api.submit(wait=None, headers={"Accept": "image/png"})
    assert (response.status_code, response.headers["content-type"]) == (202, "application/json")


def test_accept_png_for_a_failed_job_returns_a_problem(api: Api) -> None:
    with api.worker.with_behavior(fail):
        response = api.submit(headers={"Accept": "image/png"})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "non_finite_output"
    assert problem["row"] == 0
    job = api.client.get(problem["job"]).json()
    assert job["status"] == "failed"
    assert job["error"] == {"code": "non_finite_output", "detail": "the model answered NaN", "row": 0}


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_method_accepts_a_submission_with_defaults(api: Api, name: str) -> None:
    kind = catalogue()[name].kind
    job = api.run_job(path=f"/v1/{kind}s/{name}")
    assert (job["kind"], job["method"]) == (kind, name)


def test_prediction_is_a_job_and_never_returns_an_image(api: Api) -> None:
    job = api.run_job(path="/v1/predictions")
    assert (job["kind"], job["method"], job["parameters"]) == ("prediction", "predict", {"top": 5})
    assert api.run_job(path="/v1/predictions", top=2)["parameters"] == {"top": 2}
    # No image comes of a prediction, whatever the client would like.
    assert (
        api.submit("/v1/predictions", headers={"Accept": "image/png"}).headers["content-type"]
        == "application/json"
    )


def test_classes_are_given_by_index_or_name(api: Api) -> None:
    name = sample_manifest().classes[3]
    assert api.run_job(label="2", target=name.upper())["target"] == 3
    job = api.run_job(label=name)
    assert job["label"] == 3
    assert "target" not in job


def test_job_keeps_execution_and_deadline(api: Api) -> None:
    job = api.run_job(execution="deterministic", deadline=12.5)
    assert (job["execution"], job["deadline"]) == ("deterministic", 12.5)


def test_job_lists_the_image_conversions(api: Api) -> None:
    job = api.run_job(image=png(mode="LA"))
    assert job["image"]["conversions"] == ["transparency of LA laid over white"]


@pytest.mark.parametrize("kind", ["attack", "certificate"])
def test_method_cards_are_listed_and_shown_alike(api: Api, kind: str) -> None:
    page = api.client.get(f"/v1/{kind}s").json()
    assert [card["name"] for card in page["items"]] == sorted(catalogue(kind))
    assert page["cursor"] is None
    for card in page["items"]:
        assert api.client.get(f"/v1/{kind}s/{card['name']}").json() == card
        assert {"description", "paper", "schema", "example", "knowledge", "targeted"} <= set(card)


@pytest.mark.parametrize("path", ["/v1/attacks", "/v1/models", "/v1/jobs"])
def test_every_list_is_paged_by_limit_and_cursor(api: Api, path: str) -> None:
    if path == "/v1/jobs":
        for _ in range(3):
            api.run_job()
    whole = api.client.get(path, params={"limit": 3}).json()["items"]
    found, next_page = [], f"{path}?limit=1"
    while next_page and len(found) < len(whole):
        response = api.client.get(next_page)
        page = response.json()
        assert len(page["items"]) == 1
        found += page["items"]
        link = response.headers.get("link", "")
        assert bool(link) == bool(page["cursor"])
        next_page = link.partition(">")[0].removeprefix("<")
        assert not link or link.endswith('; rel="next"')
    assert found == whole


def test_model_cards_are_listed_and_shown_alike(api: Api) -> None:
    for model in api.client.get("/v1/models").json()["items"]:
        assert {
            "id",
            "digest",
            "architecture",
            "input",
            "classes",
            "accuracy",
            "provenance",
            "licence",
        } <= set(model)
        assert api.client.get(f"/v1/models/{model['id']}").json() == model


def test_concurrent_requests_with_one_idempotency_key_make_one_job(api: Api) -> None:
    image, key = png(), "key-of-fifty"

    def post(_: int) -> str:
        response = api.submit(wait=None, image=image, headers={"Idempotency-Key": key})
        assert response.status_code == 202
        return str(response.json()["id"])

    with ThreadPoolExecutor(25) as pool:
        assert len(set(pool.map(post, range(50)))) == 1


def test_form_and_json_with_one_idempotency_key_make_one_job(api: Api) -> None:
    headers = {"Idempotency-Key": "written", "Prefer": "wait=10"}
    form = api.submit(eps="8/255", headers=headers).json()
    body = {"image": data_url(png()), "model": sample_manifest().id, "eps": 8 / 255}
    assert api.client.post("/v1/attacks/pgd", json=body, headers=headers).json()["id"] == form["id"]


@pytest.mark.parametrize(
    "other",
    [{"eps": "4/255"}, {"seed": 2}, {"image": png(10, 10)}, {"path": "/v1/attacks/fgsm"}, {"label": 1}],
)
def test_idempotency_key_with_another_request_is_422(api: Api, other: dict[str, object]) -> None:
    headers = {"Idempotency-Key": f"mismatch-{'-'.join(other)}"}
    assert api.submit(headers=headers).status_code == 200
    response = api.submit(headers=headers, **other)
    assert (response.status_code, response.json()["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "a\tb", "é"])
def test_idempotency_key_that_is_not_visible_ascii_is_422(api: Api, key: str) -> None:
    response = api.submit(headers={"Idempotency-Key": key.encode()})
    assert (response.status_code, response.json()["field"]) == (422, "Idempotency-Key")


def test_images_in_all_modes_reach_the_worker_as_grayscale_or_rgb(api: Api) -> None:
    for mode, channels in (("L", 1), ("RGB", 3), ("P", 3), ("1", 1)):
        job = api.run_job(image=png(mode=mode))
        original = api.client.get(job["links"]["artifacts"]["original.png"]).content
        image = Image.open(io.BytesIO(original))
        assert len(image.getbands()) == channels
        assert image.size == gradient_image().size


def test_waiters_are_woken_by_messages_before_they_recheck(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_waiters, "RECHECK_SECONDS", 10 * TIMEOUT_SECONDS)
    monkeypatch.setattr(events, "RECHECK_SECONDS", 10 * TIMEOUT_SECONDS)
    go_on = threading.Event()

    def slowly(work: FakeJob) -> None:
        go_on.wait(TIMEOUT_SECONDS)
        succeed(work)

    def wait() -> object:
        return api.submit(wait=50).json()["status"]

    def follow(path: str) -> object:
        return api.client.get(path).text.rpartition("event: ")[2].split()[0]

    with api.worker.with_behavior(slowly), ThreadPoolExecutor() as pool:
        waiter = pool.submit(wait)
        stream = pool.submit(follow, api.submit(wait=None).json()["links"]["events"])
        time.sleep(0.3)
        began = time.monotonic()
        go_on.set()
        assert (waiter.result(), stream.result()) == ("succeeded", "completed")
    assert time.monotonic() - began < 20


def test_waiters_recheck_when_no_message_comes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_waiters.JobWaiters, "_wake", lambda *_: None)
    began = time.monotonic()
    assert api.submit(wait=50).json()["status"] == "succeeded"
    assert time.monotonic() - began < 20
    with api.worker.pause():
        path = api.submit(wait=None).json()["links"]["events"]
        with ThreadPoolExecutor() as pool:
            stream = pool.submit(api.client.get, path)
            time.sleep(0.2)
            api.worker._resumed.set()
            assert "completed" in stream.result().text
