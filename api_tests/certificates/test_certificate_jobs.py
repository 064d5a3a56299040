"""Certificates from the request to the proof: the service, a real worker and a real model."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from scipy import stats

from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from service.app import create_app
from service.http.server import Server
from touchstone.check import check
from touchstone.settings import Settings
from touchstone.supervisor import valkey as embedded_valkey
from touchstone.training.datasets import fashion_mnist_sample

MODEL = "fashion-mnist-cnn"
TERMINAL = ("succeeded", "failed", "canceled")
TROUSERS, PULLOVER = 1, 2
"""Images that the model recognizes under noise: the second under less of it."""


def photo(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(fashion_mnist_sample().images[index]).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class LiveService:
    """A service with a worker that computes."""

    client: httpx2.Client

    def submit(
        self, method: str = "smoothing", index: int = TROUSERS, *, wait: int = 50, **fields: Any
    ) -> Any:
        path = "/v1/predictions" if method == "predict" else f"/v1/certificates/{method}"
        return self.client.post(
            path,
            files={"image": ("a.png", photo(index))},
            data={"model": MODEL, **{name: str(value) for name, value in fields.items()}},
            headers={"Prefer": f"wait={wait}"},
        )

    def job(self, *args: Any, **fields: Any) -> dict[str, Any]:
        """A job that has succeeded, with a result that holds."""
        return self.assert_succeeded(self.submit(*args, **fields))

    def assert_succeeded(self, response: Any) -> dict[str, Any]:
        assert response.status_code == 200, response.text
        job: dict[str, Any] = response.json()
        assert job["status"] == "succeeded", job
        if job["kind"] == "certificate":
            assert [finding for finding in check(job) if not finding.agrees] == []
        return job

    def continue_job(self, job: dict[str, Any], **fields: Any) -> Any:
        path = f"/v1/jobs/{job['id']}/continue"
        return self.client.post(path, json=fields, headers={"Prefer": "wait=50"})

    def wait_for_job(
        self, job: str, *, statuses: tuple[str, ...] = TERMINAL, done: int = 0
    ) -> dict[str, Any]:

        def look() -> dict[str, Any]:
            found: dict[str, Any] = self.client.get(f"/v1/jobs/{job}").json()
            return found if found["status"] in statuses and found["progress"]["done"] >= done else {}

        return wait_until(look)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    home = tmp_path_factory.mktemp("c")
    valkey = embedded_valkey.start(home)
    settings = Settings(home=home, redis_url=valkey.url, cost_limit=2_000_000)
    server = Server(create_app(settings), settings)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    worker = start_worker(home, valkey.url)
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx2.Client(base_url=url, timeout=100) as client:
            yield LiveService(client)
    finally:
        worker.terminate()
        worker.wait(TIMEOUT_SECONDS)
        server.should_exit = True
        thread.join()
        valkey.stop()


def start_worker(home: Path, url: str) -> subprocess.Popen[bytes]:
    known = {"TOUCHSTONE_HOME": str(home), "TOUCHSTONE_REDIS_URL": url, "OMP_NUM_THREADS": "1"}
    with (home / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "workers"], env={**os.environ, **known}, stdout=log, stderr=log
        )


def test_smoothing_job_certifies_a_radius_with_every_field(site: LiveService) -> None:
    job = site.job(sigma=0.12, n=3_000)
    result = job["result"]
    assert (result["method"], result["guarantee"], result["norm"]) == ("smoothing", "statistical", "l2")
    assert result["predicted_class"] == {"label": TROUSERS, "name": "Trouser"}
    assert result["radius"] > 0.12
    assert result["abstained"] is False
    assert '"Trouser"' in result["statement"]
    [stated] = re.findall(r"distance (\S+) of", result["statement"])
    assert 0 <= result["radius"] - float(stated) < 1e-4, (
        "the stated radius is never larger than the proved one"
    )
    sampling = result["sampling"]
    lower = stats.beta.ppf(
        sampling["alpha"] / len(sampling["looks"]), sampling["nA"], sampling["n_used"] - sampling["nA"] + 1
    )
    assert sampling["sigma"] * stats.norm.ppf(lower) == pytest.approx(result["radius"])
    assert result["digests"]["model"] == job["model"]["digest"]
    assert result["digests"]["image"] == job["image"]["digest"]
    assert job["links"]["artifacts"] == {"original.png": f"/v1/jobs/{job['id']}/artifacts/original.png"}


def test_target_radius_is_certified_or_refuted_early(site: LiveService) -> None:
    near = site.job(sigma=0.12, target_radius=0.05)["result"]
    assert (near["decision"], near["stopped_by"]) == ("certified", "certified")
    assert near["radius"] >= 0.05
    assert near["sampling"]["n_used"] < 3_000
    far = site.job(sigma=0.12, target_radius=0.3, index=PULLOVER)["result"]
    assert (far["decision"], far["stopped_by"]) == ("refuted", "refuted")
    assert far["radius"] < 0.3


@pytest.mark.parametrize(("noise", "norm"), [("gaussian", "l2"), ("laplace", "l1")])
def test_pixeldp_job_certifies_in_the_norm_of_its_noise(site: LiveService, noise: str, norm: str) -> None:
    result = site.job("pixeldp", sigma=0.1, noise=noise)["result"]
    assert (result["norm"], result["abstained"]) == (norm, False)
    assert 0 < result["radius"] < 0.4


@pytest.mark.parametrize("rule", ["group_sequential", "e_process"])
def test_certificate_past_its_deadline_returns_the_radius_proved_so_far(site: LiveService, rule: str) -> None:
    site.job(sigma=0.12, n=100, rule="fixed")  # the model is loaded from here on
    job = site.job(sigma=0.11, n=1_000_000, rule=rule, deadline=3)
    result = job["result"]
    assert result["stopped_by"] == "deadline_exceeded"
    assert 100 <= result["sampling"]["n_used"] < 1_000_000
    assert result["radius"] > 0


def test_canceled_certificate_keeps_its_radius_and_can_be_continued(site: LiveService) -> None:
    running = site.submit(sigma=0.13, n=1_000_000, rule="e_process", wait=1).json()
    site.wait_for_job(running["id"], statuses=("running",), done=600)
    assert site.continue_job(running, n=100).status_code == 409
    assert site.client.post(f"/v1/jobs/{running['id']}/cancel").status_code == 202
    job = site.wait_for_job(running["id"])
    assert (job["status"], job["result"]["stopped_by"]) == ("canceled", "canceled")
    assert all(finding.agrees for finding in check(job))
    counted = job["result"]["sampling"]["n_used"]
    assert counted >= 100
    more = site.assert_succeeded(site.continue_job(job, n=500))
    assert more["continues"] == job["id"]
    assert more["parameters"]["n"] == counted + 500
    assert more["result"]["sampling"]["n_used"] == counted + 500
    assert more["result"]["sampling"]["pooled"] == counted


def test_equal_certificates_share_samples_whatever_the_seed(site: LiveService) -> None:
    first = site.job(sigma=0.14, n=1_000, rule="e_process", seed=1)
    assert first["result"]["sampling"]["pooled"] == 0
    second = site.job(sigma=0.14, n=1_500, rule="e_process", seed=2)
    sampling = second["result"]["sampling"]
    assert (sampling["pooled"], sampling["n_used"], sampling["seed"]) == (1_000, 1_500, 1)
    assert second["result"]["queries"]["forward"] == 500
    less = site.job(sigma=0.14, n=200, rule="e_process", seed=3)["result"]
    assert (less["queries"]["forward"], less["sampling"]["n_used"]) == (0, 1_500)
    whole = site.job(sigma=0.14, n=1_500, rule="fixed", seed=1)["result"]["sampling"]
    assert whole["nA"] == sampling["nA"], "the samples are those that one run would have drawn"


def test_concurrent_certificates_count_no_sample_twice(site: LiveService) -> None:
    def one(seed: int) -> dict[str, Any]:
        return site.job(sigma=0.15, n=1_200, rule="e_process", seed=seed)["result"]["sampling"]  # type: ignore[no-any-return]

    with ThreadPoolExecutor(3) as pool:
        several = list(pool.map(one, (5, 6, 7)))
    assert {(each["n_used"], each["nA"], each["seed"]) for each in several} == {
        (1_200, several[0]["nA"], several[0]["seed"])
    }
    again = site.job(sigma=0.15, n=1_300, rule="e_process", seed=8)["result"]["sampling"]
    assert (again["pooled"], again["n_used"]) == (1_200, 1_300)


def test_certificate_can_be_continued_with_another_target_radius(site: LiveService) -> None:
    job = site.job(sigma=0.16, n=300, rule="e_process", target_radius=0.3)
    assert job["result"]["decision"] == "undecided"
    more = site.assert_succeeded(site.continue_job(job, n=5_000, target_radius=0.06))
    assert (more["result"]["decision"], more["parameters"]["target_radius"]) == ("certified", 0.06)
    form = site.client.post(
        f"/v1/jobs/{more['id']}/continue", files={"n": (None, "50")}, headers={"Prefer": "wait=50"}
    )
    assert site.assert_succeeded(form)["parameters"]["target_radius"] == 0.06


def test_refused_continuation_explains_why(site: LiveService) -> None:
    planned = site.job(n=100)
    refused = site.continue_job(planned, n=100).json()
    assert (refused["status"], refused["code"]) == (409, "job_conflict")
    assert "rule=e_process" in refused["detail"]
    assert "rule=e_process" in site.continue_job(site.job("pixeldp", n=300), n=100).json()["detail"]
    assert "only a certificate" in site.continue_job(site.job("predict"), n=100).json()["detail"]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({}, "invalid_parameter", "n"),
        ({"n": 0}, "invalid_parameter", "n"),
        ({"n": 10_000_000}, "cost_too_high", None),
        ({"n": 10, "sigma": 1}, "invalid_parameter", "sigma"),
        ({"n": 10, "target_radius": 0}, "invalid_parameter", "target_radius"),
    ],
)
def test_invalid_continuation_fields_are_refused(
    site: LiveService, fields: dict[str, Any], code: str, field: str | None
) -> None:
    job = site.job(sigma=0.17, n=100, rule="e_process")
    refused = site.continue_job(job, **fields).json()
    assert (refused["status"], refused["code"], refused.get("field")) == (422, code, field)


@pytest.mark.parametrize(
    ("method", "fields", "code", "field"),
    [
        ("smoothing", {"sigma": 0}, "invalid_parameter", "sigma"),
        ("smoothing", {"sigma": -1}, "invalid_parameter", "sigma"),
        ("smoothing", {"sigma": "nan"}, "invalid_parameter", "sigma"),
        ("smoothing", {"alpha": 0}, "invalid_parameter", "alpha"),
        ("smoothing", {"alpha": 0.5}, "invalid_parameter", "alpha"),
        ("smoothing", {"n": 3_000_000}, "cost_too_high", None),
        ("smoothing", {"label": 1}, "invalid_parameter", "label"),
        ("smoothing", {"target": 1}, "invalid_parameter", "target"),
        ("pixeldp", {"sigma": 0}, "invalid_parameter", "sigma"),
        ("pixeldp", {"n": 299}, "invalid_parameter", "n"),
        ("pixeldp", {"noise": "pink"}, "invalid_parameter", "noise"),
        ("predict", {"defence": "hope"}, "invalid_parameter", "defence"),
        ("predict", {"sigma": 0.1}, "invalid_parameter", "sigma"),
        ("predict", {"defence": "smoothing", "n": 3_000_000}, "cost_too_high", None),
    ],
)
def test_invalid_certificate_and_prediction_fields_are_refused(
    site: LiveService, method: str, fields: dict[str, Any], code: str, field: str | None
) -> None:
    refused = site.submit(method, **fields).json()
    assert (refused["status"], refused["code"], refused.get("field")) == (422, code, field)
    if code == "cost_too_high":
        assert refused["cost"]["total"] >= 3_000_000 > refused["limit"]


def test_rerun_of_a_pooled_certificate_draws_again_and_agrees(site: LiveService) -> None:
    job = site.job(sigma=0.18, n=400, rule="e_process")
    again = site.assert_succeeded(
        site.client.post(f"/v1/jobs/{job['id']}/rerun", headers={"Prefer": "wait=50"})
    )
    assert again["result"]["rerun"] == {"of": job["id"], "agrees": True}
    assert again["result"]["queries"] == job["result"]["queries"]


def test_smoothed_prediction_is_decided_by_a_vote(site: LiveService) -> None:
    plain = site.job("predict")
    assert plain["parameters"] == {"top": 5}
    assert set(plain["result"]) == {"original", "queries"}
    job = site.job("predict", defence="smoothing", sigma=0.12, n=500)
    smoothed = job["result"]["smoothed"]
    assert job["result"]["original"] == plain["result"]["original"]
    assert (smoothed["label"], smoothed["name"], smoothed["abstained"]) == (TROUSERS, "Trouser", False)
    assert (smoothed["n"], smoothed["sigma"], smoothed["alpha"]) == (500, 0.12, 0.001)
    votes = [one["count"] for one in smoothed["counts_top5"]]
    expected = stats.binomtest(votes[0], sum([*votes, 0][:2])).pvalue
    assert smoothed["p_value"] == pytest.approx(expected)


def test_smoothed_prediction_abstains_on_a_close_vote(site: LiveService) -> None:
    smoothed = site.job("predict", defence="smoothing", sigma=0.12, n=3, alpha=0.1)["result"]["smoothed"]
    assert (smoothed["label"], smoothed["name"], smoothed["abstained"]) == (None, None, True)
    assert smoothed["p_value"] == pytest.approx(0.25)


def test_model_operations_and_cost_show_what_the_worker_measured(site: LiveService) -> None:
    job = site.job(sigma=0.12, n=1_000, rule="fixed")

    def resident_model() -> dict[str, Any]:
        shown: dict[str, Any] = site.client.get(f"/v1/models/{MODEL}").json()
        return shown if shown["resident"] else {}

    model = wait_until(resident_model)  # the worker's next report lists the model
    [worker] = site.client.get("/v1/operations").json()["workers"]
    assert model["resident"] == [worker["id"]]
    assert worker["models"] == [{"id": MODEL, "bytes": model["probe"]["bytes"]}]
    assert worker["queries"]["forward"] >= worker["batch_rows"]["sum"] > 0
    asked = {"model": MODEL, "n": 1_000}
    cost = site.client.get("/v1/certificates/smoothing/cost", params=asked).json()
    assert cost["seconds"] == pytest.approx(cost["forward"] / model["probe"]["forward_rate"])
    events = site.client.get(job["links"]["events"], headers={"Accept": "text/event-stream"}).text
    last = json.loads(re.findall(r"event: metric\r?\n(?:.*\n)*?data: (.*)", events)[-1])
    sampling = job["result"]["sampling"]
    assert (last["n"], last["hits"], last["lower"]) == (1_000, sampling["nA"], sampling["pA_lower"])
