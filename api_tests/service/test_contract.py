"""Every row of the HTTP contract, over a real socket."""

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

from api_tests.support.fake_service import Api, Work, data_url, fail, picture, png, some_model, succeed
from api_tests.support.wait import SECONDS
from service.headers import wait_seconds, wants_png
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


def test_a_submission_is_accepted_before_it_is_done(api: Api) -> None:
    with api.worker.resting():
        response = api.submit(wait=None)
        job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert response.headers["retry-after"] == "1"
    assert "preference-applied" not in response.headers
    assert job["status"] == "queued"
    assert job["result"] is job["error"] is job["finished_at"] is None


def test_waiting_gives_the_finished_job(api: Api) -> None:
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
    assert job["model"] == {"id": some_model().id, "digest": some_model().digest}
    assert (job["image"]["width"], job["image"]["height"]) == (9, 8)
    assert job["progress"] == {"done": 1, "total": 2}
    assert set(job["timings"]) == {"queued", "prepare", "compute", "write"}
    assert set(job["links"]["artifacts"]) == {"original.png", "adversarial.png", "adversarial.npy"}
    assert all(link.startswith("/v1/jobs/") for link in job["links"]["artifacts"].values())


def test_times_are_rfc_3339_in_utc(api: Api) -> None:
    job = api.job()
    for name in ("created_at", "started_at", "finished_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job[name])
        datetime.fromisoformat(job[name])


def test_a_wait_that_runs_out_gives_202(api: Api) -> None:
    with api.worker.resting():
        began = time.monotonic()
        response = api.submit(wait=1)
        assert 0.9 < time.monotonic() - began < 20
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait"


def asking(name: bytes, value: str) -> Request:
    return Request({"type": "http", "headers": [(name, value.encode("latin-1"))]})


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [("wait=0", 0), ("wait=59", 59), ("wait=61", 60), (f"wait={'9' * 5000}", 60), ("wait=²", None)],
)
def test_nobody_waits_for_longer_than_a_minute(prefer: str, seconds: int | None) -> None:
    assert wait_seconds(asking(b"prefer", prefer)) == seconds


@pytest.mark.parametrize("weight", ["high", "", "nan", "-1", "0", "²"])
def test_a_weight_that_is_none_is_no_wish(weight: str) -> None:
    assert not wants_png(asking(b"accept", f"image/png;q={weight}"))


@pytest.mark.parametrize(
    "prefer", ["wait=soon", "wait=-1", "wait", "wait=1.5", ";;,=", "respond-async", 'wait="']
)
def test_a_malformed_preference_is_ignored(api: Api, prefer: str) -> None:
    response = api.submit(wait=None, headers={"Prefer": prefer})
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


@pytest.mark.parametrize(
    "prefer", ['wait="9"', "respond-async, WAIT = 9", "wait=9; because=I said", "wait=99999999999"]
)
def test_a_preference_may_be_written_in_every_form_of_the_rfc(api: Api, prefer: str) -> None:
    assert api.submit(wait=None, headers={"Prefer": prefer}).status_code == 200


def test_json_is_the_same_as_a_form(api: Api) -> None:
    form = api.submit(eps="8/255", steps=3, seed=1).json()
    for image in (data_url(png()), base64.b64encode(png()).decode()):
        body = {"image": image, "model": some_model().id, "eps": 8 / 255, "steps": 3, "seed": 1}
        response = api.client.post("/v1/attacks/pgd", json=body, headers={"Prefer": "wait=10"})
        assert response.status_code == 200
        assert response.json()["parameters"] == form["parameters"]
        assert response.json()["image"] == form["image"]


def test_the_image_itself_can_be_the_answer(api: Api) -> None:
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
def test_accept_chooses_between_job_and_image(api: Api, accept: str, media_type: str) -> None:
    assert api.submit(headers={"Accept": accept}).headers["content-type"] == media_type


def test_without_waiting_there_is_no_image_yet(api: Api) -> None:
    response = api.submit(wait=None, headers={"Accept": "image/png"})
    assert (response.status_code, response.headers["content-type"]) == (202, "application/json")


def test_a_failed_job_is_a_problem_to_who_wants_the_image(api: Api) -> None:
    with api.worker.doing(fail):
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
def test_every_method_takes_a_submission_with_its_defaults(api: Api, name: str) -> None:
    kind = catalogue()[name].kind
    job = api.job(path=f"/v1/{kind}s/{name}")
    assert (job["kind"], job["method"]) == (kind, name)


def test_a_prediction_is_a_job_too(api: Api) -> None:
    job = api.job(path="/v1/predictions")
    assert (job["kind"], job["method"], job["parameters"]) == ("prediction", "predict", {"top": 5})
    assert api.job(path="/v1/predictions", top=2)["parameters"] == {"top": 2}
    # No image comes of a prediction, whatever the client would like.
    assert (
        api.submit("/v1/predictions", headers={"Accept": "image/png"}).headers["content-type"]
        == "application/json"
    )


def test_classes_go_by_index_or_name(api: Api) -> None:
    name = some_model().classes[3]
    assert api.job(label="2", target=name.upper())["target"] == 3
    job = api.job(label=name)
    assert job["label"] == 3
    assert "target" not in job


def test_execution_and_deadline_are_kept(api: Api) -> None:
    job = api.job(execution="deterministic", deadline=12.5)
    assert (job["execution"], job["deadline"]) == ("deterministic", 12.5)


def test_conversions_are_said(api: Api) -> None:
    job = api.job(image=png(mode="LA"))
    assert job["image"]["conversions"] == ["transparency of LA laid over white"]


@pytest.mark.parametrize("kind", ["attack", "certificate"])
def test_cards(api: Api, kind: str) -> None:
    page = api.client.get(f"/v1/{kind}s").json()
    assert [card["name"] for card in page["items"]] == sorted(catalogue(kind))
    assert page["cursor"] is None
    for card in page["items"]:
        assert api.client.get(f"/v1/{kind}s/{card['name']}").json() == card
        assert {"description", "paper", "schema", "example", "knowledge", "targeted"} <= set(card)


@pytest.mark.parametrize("path", ["/v1/attacks", "/v1/models", "/v1/jobs"])
def test_every_list_has_limit_and_cursor(api: Api, path: str) -> None:
    if path == "/v1/jobs":
        for _ in range(3):
            api.job()
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


def test_models(api: Api) -> None:
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


def test_one_key_is_one_job(api: Api) -> None:
    image, key = png(), "key-of-fifty"

    def post(_: int) -> str:
        response = api.submit(wait=None, image=image, headers={"Idempotency-Key": key})
        assert response.status_code == 202
        return str(response.json()["id"])

    with ThreadPoolExecutor(25) as pool:
        assert len(set(pool.map(post, range(50)))) == 1


def test_one_key_is_one_job_however_the_request_is_written(api: Api) -> None:
    headers = {"Idempotency-Key": "written", "Prefer": "wait=10"}
    form = api.submit(eps="8/255", headers=headers).json()
    body = {"image": data_url(png()), "model": some_model().id, "eps": 8 / 255}
    assert api.client.post("/v1/attacks/pgd", json=body, headers=headers).json()["id"] == form["id"]


@pytest.mark.parametrize(
    "other",
    [{"eps": "4/255"}, {"seed": 2}, {"image": png(10, 10)}, {"path": "/v1/attacks/fgsm"}, {"label": 1}],
)
def test_one_key_with_another_request_is_refused(api: Api, other: dict[str, object]) -> None:
    headers = {"Idempotency-Key": f"mismatch-{'-'.join(other)}"}
    assert api.submit(headers=headers).status_code == 200
    response = api.submit(headers=headers, **other)
    assert (response.status_code, response.json()["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "a\tb", "é"])
def test_a_key_has_visible_ascii_only(api: Api, key: str) -> None:
    response = api.submit(headers={"Idempotency-Key": key.encode()})
    assert (response.status_code, response.json()["field"]) == (422, "Idempotency-Key")


def test_pictures_in_different_modes_reach_the_worker_as_grey_or_rgb(api: Api) -> None:
    for mode, channels in (("L", 1), ("RGB", 3), ("P", 3), ("1", 1)):
        job = api.job(image=png(mode=mode))
        original = api.client.get(job["links"]["artifacts"]["original.png"]).content
        image = Image.open(io.BytesIO(original))
        assert len(image.getbands()) == channels
        assert image.size == picture().size


def test_waiters_are_woken_rather_than_looking(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_waiters, "RECHECK_SECONDS", 10 * SECONDS)
    monkeypatch.setattr(events, "RECHECK_SECONDS", 10 * SECONDS)
    go_on = threading.Event()

    def slowly(work: Work) -> None:
        go_on.wait(SECONDS)
        succeed(work)

    def wait() -> object:
        return api.submit(wait=50).json()["status"]

    def follow(path: str) -> object:
        return api.client.get(path).text.rpartition("event: ")[2].split()[0]

    with api.worker.doing(slowly), ThreadPoolExecutor() as pool:
        waiter = pool.submit(wait)
        stream = pool.submit(follow, api.submit(wait=None).json()["links"]["events"])
        time.sleep(0.3)
        began = time.monotonic()
        go_on.set()
        assert (waiter.result(), stream.result()) == ("succeeded", "completed")
    assert time.monotonic() - began < 20


def test_waiters_look_for_themselves_where_no_message_comes(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_waiters.Waiting, "_tell", lambda *_: None)
    began = time.monotonic()
    assert api.submit(wait=50).json()["status"] == "succeeded"
    assert time.monotonic() - began < 20
    with api.worker.resting():
        path = api.submit(wait=None).json()["links"]["events"]
        with ThreadPoolExecutor() as pool:
            stream = pool.submit(api.client.get, path)
            time.sleep(0.2)
            api.worker._free.set()
            assert "completed" in stream.result().text
