"""A job's files over HTTP: whole, in part, cached, and never under a hostile name."""

import hashlib

import pytest

from api_tests.support.fake_service import Api


@pytest.fixture(scope="module")
def job(api: Api) -> dict[str, str]:
    return dict(api.run_job()["links"]["artifacts"])


def test_artifact_is_sent_whole_and_immutably_cached(api: Api, job: dict[str, str]) -> None:
    for name, path in job.items():
        response = api.client.get(path)
        digest = hashlib.sha256(response.content).hexdigest()
        assert response.status_code == 200
        assert response.headers["etag"] == f'"sha256:{digest}"'
        assert int(response.headers["content-length"]) == len(response.content)
        assert "immutable" in response.headers["cache-control"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["accept-ranges"] == "bytes"
        assert response.headers["content-disposition"].endswith(f'{name}"')
        kind = "image/png" if name.endswith(".png") else "application/octet-stream"
        assert response.headers["content-type"] == kind


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, None),
        ("bytes=-7", -7, None),
        ("bytes=5-999999999", 5, None),
        ("bytes=-999999999", 0, None),
        ("bytes=1048570-2097160", 1048570, 2097161),
    ],
)
def test_byte_range_returns_206_with_that_part(
    api: Api, job: dict[str, str], asked: str, start: int, stop: int | None
) -> None:
    path = job["adversarial.npy"]
    whole = api.client.get(path).content
    response = api.client.get(path, headers={"Range": asked})
    expected = whole[start:stop]
    first = len(whole) + start if start < 0 else start
    assert response.status_code == 206
    assert response.content == expected
    assert response.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(whole)}"
    assert int(response.headers["content-length"]) == len(expected)


@pytest.mark.parametrize(
    "asked",
    [
        *(
            "bytes=0-1,5-6",
            "bytes=",
            "bytes=-",
            "bytes=x-y",
            "bytes=5-2",
            "lines=0-1",
            "bytes=0-0" + ",0-0" * 10_000,
        ),
        "bytes=" + "9" * 5000 + "-",
    ],
    ids=lambda asked: asked[:20],
)
def test_malformed_or_multiple_ranges_return_the_whole_file(
    api: Api, job: dict[str, str], asked: str
) -> None:
    path = job["adversarial.png"]
    response = api.client.get(path, headers={"Range": asked})
    assert response.status_code == 200
    assert response.content == api.client.get(path).content


@pytest.mark.parametrize("asked", ["bytes=999999999-", "bytes=-0", "bytes=3000006-3000010"])
def test_range_outside_the_file_is_416(api: Api, job: dict[str, str], asked: str) -> None:
    response = api.client.get(job["adversarial.npy"], headers={"Range": asked})
    assert (response.status_code, response.json()["code"]) == (416, "range_not_satisfiable")
    assert response.headers["content-range"] == "bytes */3000006"


def test_range_is_ignored_when_if_range_does_not_match(api: Api, job: dict[str, str]) -> None:
    path = job["adversarial.png"]
    etag = api.client.get(path).headers["etag"]
    for condition, status in ((etag, 206), ('"sha256:other"', 200), ("Sun, 06 Nov 1994 08:49:37 GMT", 200)):
        response = api.client.get(path, headers={"Range": "bytes=0-3", "If-Range": condition})
        assert response.status_code == status


def test_artifact_with_matching_etag_is_304(api: Api, job: dict[str, str]) -> None:
    path = job["adversarial.png"]
    etag = api.client.get(path).headers["etag"]
    for condition in (etag, f"W/{etag}", "*", f'"x", {etag}'):
        response = api.client.get(path, headers={"If-None-Match": condition})
        assert (response.status_code, response.content) == (304, b"")


def test_head_request_ignores_ranges(api: Api, job: dict[str, str]) -> None:
    assert api.client.head(job["adversarial.png"], headers={"Range": "bytes=0-3"}).status_code == 200


def test_head_request_returns_the_same_headers_without_body(api: Api, job: dict[str, str]) -> None:
    for path in job.values():
        whole, head = api.client.get(path), api.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "content-type", "etag", "content-disposition"):
            assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    "name", ["nothing.png", "..%2f..%2fetc%2fpasswd", "%2e%2e", "a%00b", "é", "x" * 3000]
)
def test_unknown_or_hostile_artifact_name_is_404(api: Api, job: dict[str, str], name: str) -> None:
    folder = job["adversarial.png"].rpartition("/")[0]
    response = api.client.get(f"{folder}/{name}")
    assert response.status_code == 404
    assert response.json()["code"] in ("unknown_artifact", "not_found")
