"""Health, readiness, metrics, documentation, and what every answer carries."""

import re

from api_tests.support.fake_service import Api


def test_readiness_needs_a_worker_and_liveness_does_not(api: Api) -> None:
    assert api.client.get("/healthz").json() == {"status": "alive"}
    response = api.client.get("/readyz")
    assert (response.status_code, response.json()["missing"]) == (503, ["worker"])
    assert response.json()["code"] == "not_ready"
    api.ledger.workers.heartbeat("w1", {"running": 0})
    assert api.client.get("/readyz").json() == {"status": "ready", "workers": 1}
    api.ledger.workers.remove("w1")


LOADED = [{"id": "m", "digest": f"sha256:{number}", "bytes": 9} for number in range(2)]


def test_metrics_show_queue_workers_batches_and_requests(api: Api) -> None:
    api.run_job()
    histogram = {"buckets": {"1": 3, "8": 5, "16": 6}, "sum": 30, "count": 7}
    info = {"batch_rows": histogram, "queries": {"forward": 30, "backward": 20}, "resident_models": LOADED}
    api.ledger.workers.heartbeat("w1", info)
    text = api.client.get("/metrics").text
    api.ledger.workers.remove("w1")
    for line in (
        "touchstone_ledger_up 1.0",
        "touchstone_queue_depth 0.0",
        "touchstone_workers 1.0",
        'touchstone_batch_rows_bucket{le="8",worker="w1"} 5.0',
        'touchstone_batch_rows_bucket{le="+Inf",worker="w1"} 7.0',
        'touchstone_batch_rows_sum{worker="w1"} 30.0',
        'touchstone_queries_total{pass="backward",worker="w1"} 20.0',
        'touchstone_resident_models{model="registered",worker="w1"} 2.0',
    ):
        assert line in text
    assert re.search(r'touchstone_jobs\{status="succeeded"\} [1-9]', text)
    assert re.search(
        r'request_seconds_count\{method="POST",route="/v1/attacks/pgd",status="200"\} [1-9]', text
    )


def test_docs_page_loads_files_of_this_service_only(api: Api) -> None:
    page = api.client.get("/docs")
    assert (
        page.headers["content-security-policy"].count("'unsafe-inline'") == 1
    )  # for styles, not for scripts
    assert "<script>" not in page.text
    for path in re.findall(r'(?:src|href)="(?!data:,")([^"]+)"', page.text):
        assert path.startswith("/")
        assert api.client.get(path).status_code == 200


def test_openapi_is_compressed_when_the_client_accepts_gzip(api: Api) -> None:
    plain, packed = (
        api.client.get("/openapi.json", headers={"Accept-Encoding": encoding})
        for encoding in ("identity", "gzip")
    )
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.json() == packed.json()
    assert "/v1/attacks/pgd" in plain.json()["paths"]


def test_every_answer_has_security_headers_and_a_request_id(api: Api) -> None:
    for path in ("/healthz", "/v1/jobs", "/nothing", "/docs"):
        headers = api.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert re.fullmatch("[0-9a-f-]+", headers["x-request-id"])
    assert api.client.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert api.client.get("/healthz", headers={"X-Request-Id": "<mine>"}).headers["x-request-id"] != "<mine>"
