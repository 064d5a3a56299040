"""Hostile and mistaken requests: each gets the problem that says what was wrong, and none a 5xx."""

import zlib

import httpx2
import pytest

from api_tests.support.fake_service import Api, assert_problem, data_url, png, sample_manifest

BOUNDARY = "frontier"


def form(*parts: tuple[str, bytes], end: bool = True) -> tuple[bytes, dict[str, str]]:
    """A multipart body of parts, each the rest of a Content-Disposition and a content."""
    text = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode("latin-1")
        + content
        + b"\r\n"
        for head, content in parts
    )
    body = text + f"--{BOUNDARY}--\r\n".encode() if end else text
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


IMAGE = ('name="image"; filename="a.png"', png())
MODEL = ('name="model"', sample_manifest().id.encode())


def post(api: Api, body: bytes, headers: dict[str, str], path: str = "/v1/attacks/pgd") -> httpx2.Response:
    return api.client.post(path, content=body, headers=headers)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("eps", value)
            for value in ("NaN", "-1", "1e309", "8/0", "true", "[8]", "8", "", "1/-2", "0x1", "inf")
        ),
        *(
            ("steps", value)
            for value in ("0", "1000000000", "1.5", "-3", "NaN", "", "true", "1e3", "9" * 5000)
        ),
        *(("norm", value) for value in ("l3", "", "[]", "linf\0", "l" * 10_000)),
        *(("seed", value) for value in ("-1", str(2**64), "1.5", "x", "true")),
        *(("execution", value) for value in ("fast", "", "BATCHED")),
        *(("deadline", value) for value in ("0", "-1", "3601", "nan", "soon", "1e309")),
        *(("model", value) for value in ("", "x" * 10_000)),
        *(("early_stop", value) for value in ("maybe", "2")),
    ],
)
def test_invalid_form_value_is_422(api: Api, field: str, value: str) -> None:
    body = assert_problem(api.submit(wait=None, **{field: value}), 422, "invalid_parameter", field)
    assert field in body["detail"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("eps", value) for value in (True, [8], {}, None, 10**400, "8/0", "1e309")),
        *(("steps", value) for value in (True, 0, 1.5, 1e9, [], None, 10**30, "many")),
        *(("label", value) for value in (True, 1.5, [1], {"a": 1})),
        *(("target", value) for value in (False, [])),
        *(("seed", value) for value in (-1, 2**64, True, None)),
        *(("model", value) for value in (1, True, None, [], "")),
        *(("norm", value) for value in (True, None, 3, [])),
        *(("image", value) for value in (1, [], {}, True)),
    ],
)
def test_json_value_of_wrong_type_is_422(api: Api, field: str, value: object) -> None:
    body = {"image": data_url(png()), "model": sample_manifest().id, field: value}
    assert_problem(api.client.post("/v1/attacks/pgd", json=body), 422, "invalid_parameter", field)


@pytest.mark.parametrize(
    "value",
    [
        "-1",
        str(len(sample_manifest().classes)),
        "9" * 100,
        "no such class",
        "--5",
        "٣",
        "a\0b",
        "x" * 150,
        " ",
    ],
)
@pytest.mark.parametrize("field", ["label", "target"])
def test_unknown_class_is_422(api: Api, field: str, value: str) -> None:
    assert_problem(api.submit(wait=None, **{field: value}), 422, "unknown_label", field)


@pytest.mark.parametrize("field", ["label", "target"])
def test_empty_or_too_long_class_name_is_422(api: Api, field: str) -> None:
    for value in ("", "x" * 10_000):
        assert_problem(api.submit(wait=None, **{field: value}), 422, "invalid_parameter", field)


def test_target_equal_to_the_label_is_422(api: Api) -> None:
    assert_problem(api.submit(wait=None, label=1, target=1), 422, "invalid_parameter", "target")
    assert_problem(
        api.submit(wait=None, label=1, target=sample_manifest().classes[1]),
        422,
        "invalid_parameter",
        "target",
    )


@pytest.mark.parametrize("model", ["../x", "%2e%2e", "a\0b", "іmagenet", "x", "\r\n", "' OR 1", "*"])
def test_unknown_model_is_404(api: Api, model: str) -> None:
    body = assert_problem(api.submit(wait=None, model=model), 404, "unknown_model", "model")
    assert sample_manifest().id in body["detail"]


def test_top_beyond_what_can_be_named_is_422(api: Api) -> None:
    response = api.submit("/v1/predictions", wait=None, top="1001")
    refused = assert_problem(response, 422, "invalid_parameter", "top")
    assert "at most 1,000" in refused["detail"]


@pytest.mark.parametrize("top", ["0", "-1", "1.5", str(len(sample_manifest().classes) + 1), "x", "9" * 30])
def test_top_beyond_the_number_of_classes_is_422(api: Api, top: str) -> None:
    assert_problem(api.submit("/v1/predictions", wait=None, top=top), 422, "invalid_parameter", "top")


def test_unknown_field_is_422_and_suggests_the_nearest_field(api: Api) -> None:
    body = assert_problem(api.submit(wait=None, epsilon="8/255"), 422, "invalid_parameter", "epsilon")
    assert 'did you mean "eps"' in body["detail"]
    assert_problem(api.submit("/v1/predictions", wait=None, eps=1), 422, "invalid_parameter", "eps")
    assert_problem(api.submit("/v1/predictions", wait=None, target=1), 422, "invalid_parameter", "target")
    name = "\0" + "x" * 2000
    assert_problem(
        post(api, *form(IMAGE, MODEL, (f'name="{name}"', b"1"))), 422, "invalid_parameter", name[:60]
    )


def test_cost_above_the_limit_is_422(api: Api) -> None:
    body = assert_problem(api.submit(wait=None, steps=10_000, restarts=100), 422, "cost_too_high")
    assert body["cost"]["total"] > body["limit"] == api.settings.cost_limit


def test_memory_above_the_limit_is_422_and_says_what_would_fit(api: Api) -> None:
    large = png(1200, 1000)
    asked = {"image": large, "rivals": 900, "norm": "l1", "steps": 2}
    body = assert_problem(api.submit("/v1/attacks/apgdt", wait=None, **asked), 422, "cost_too_high")
    memory, fits = body["memory"], body["fits"]
    assert memory["bytes"] > memory["limit"] == api.settings.job_memory
    assert f"rivals={fits['rivals']} or an image of {fits['width']}x{fits['height']} pixels" in body["detail"]
    smaller = api.submit("/v1/attacks/apgdt", wait=None, **{**asked, "rivals": fits["rivals"]})
    assert smaller.status_code == 202, smaller.text


def test_missing_duplicate_or_too_many_form_parts_are_refused(api: Api) -> None:
    assert_problem(post(api, *form(MODEL)), 422, "invalid_parameter", "image")
    assert_problem(post(api, *form(IMAGE)), 422, "invalid_parameter", "model")
    assert_problem(post(api, *form(IMAGE, MODEL, IMAGE)), 422, "invalid_parameter", "image")
    assert_problem(post(api, *form(IMAGE, MODEL, MODEL)), 422, "invalid_parameter", "model")
    assert_problem(
        post(api, *form(IMAGE, MODEL, ('name="eps"; filename="e"', b"1"))), 422, "invalid_parameter", "eps"
    )
    assert_problem(post(api, *form(IMAGE, MODEL, *[('name="x"', b"")] * 1001)), 400, "invalid_body")
    assert_problem(
        post(api, *form(IMAGE, MODEL, *[('name="x"; filename="f"', b"")] * 1001)), 400, "invalid_body"
    )
    assert_problem(post(api, *form(IMAGE, ('name="model"', b"x" * 100_000))), 400, "invalid_body")


def test_form_without_closing_boundary_is_400(api: Api) -> None:
    body = assert_problem(post(api, *form(IMAGE, MODEL, MODEL, end=False)), 400, "invalid_body")
    assert "closing boundary" in body["detail"]


def test_malformed_forms_are_refused(api: Api) -> None:
    whole, headers = form(IMAGE, MODEL)
    broken = [
        (whole[: len(whole) // 2], headers),
        (form(IMAGE, MODEL, end=False)[0], headers),
        (b"", headers),
        (b"\0" * 100, headers),
        (whole, {"Content-Type": "multipart/form-data"}),
        (whole, {"Content-Type": "multipart/form-data; boundary="}),
        (whole, {"Content-Type": "multipart/form-data; boundary=" + "x" * 1000}),
        (whole.replace(b"form-data", b"nothing"), {"Content-Type": "multipart/form-data; boundary=other"}),
        (whole.replace(b'; name="model"', b""), headers),
        (form(("", b"x"))[0], headers),
    ]
    for body, kind in broken:
        response = post(api, body, kind)
        assert response.status_code in (400, 422), (body[:80], kind, response.text)
        assert response.headers["content-type"] == "application/problem+json"


def test_form_text_is_utf_8_whatever_the_charset_parameter_says(api: Api) -> None:
    for charset in ("punycode", "idna", "hex", "utf-16", "%00"):
        body, headers = form(IMAGE, MODEL)
        headers = {"Content-Type": headers["Content-Type"] + f"; charset={charset}"}
        assert post(api, body, headers).status_code == 202
        body, _ = form(IMAGE, ('name="model"', b"\xff\\x\x80"))
        assert_problem(post(api, body, headers), 400, "invalid_body")


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a\0b", "con", "x" * 2000, "<script>", "é", '"', "%2e%2e%2f", "..\\..\\x", ""],
)
def test_file_name_and_content_type_of_the_image_part_are_ignored(api: Api, name: str) -> None:
    quoted = name.replace('"', '\\"')
    text = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{quoted}"\r\n'
    body = text.encode() + b"Content-Type: text/html\r\n\r\n" + png() + b"\r\n" + form(MODEL)[0]
    assert post(api, body, form()[1]).status_code == 202


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"",
            b" ",
            b"{",
            b"nul",
            b"[]",
            b'"x"',
            b"1",
            b"null",
            b"{'a': 1}",
            b'{"a": 1,}',
            b"\xff\xfe{\0}\0",
        ),
        *(b'{"eps": NaN}', b'{"eps": Infinity}', b'{"eps": -Infinity}', b"[" * 100_000, b'{"a":' * 100_000),
        *(
            b'{"eps": ' + b"9" * 5000 + b"}",
            b'{"model": "\\ud800"}',
            b'{"\\udfff": 1}',
            b'{"a": [["\\uD9ff"]]}',
            b'{"a": "\xed\xa0\x80"}',
        ),
    ],
    ids=lambda text: text[:20].decode("latin-1"),
)
def test_json_body_that_is_no_valid_object_is_400(api: Api, text: bytes) -> None:
    assert_problem(post(api, text, {"Content-Type": "application/json"}), 400, "invalid_body")


@pytest.mark.parametrize("number", ["1e309", "-1e309", "-1", "1" + "0" * 4000])
def test_json_number_out_of_range_is_422(api: Api, number: str) -> None:
    text = f'{{"image": "{data_url(png())}", "model": "{sample_manifest().id}", "eps": {number}}}'
    kind = {"Content-Type": "application/json"}
    assert_problem(post(api, text.encode(), kind), 422, "invalid_parameter", "eps")


def test_duplicate_json_member_is_422(api: Api) -> None:
    text = b'{"model": "a", "model": "b"}'
    assert_problem(post(api, text, {"Content-Type": "application/json"}), 422, "invalid_parameter", "model")


@pytest.mark.parametrize(
    "image", ["data:image/png;base64,!!!", "data:image/png,abc", "x", "é", "data:", "a" * 101]
)
def test_image_that_is_not_base64_is_422(api: Api, image: str) -> None:
    body = {"image": image, "model": sample_manifest().id}
    assert_problem(api.client.post("/v1/attacks/pgd", json=body), 422, "invalid_image", "image")


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "", "image/png", "\xff", "application/xml", ";"],
)
def test_unsupported_content_type_is_415(api: Api, kind: str) -> None:
    response = api.client.post(
        "/v1/attacks/pgd", content=b"a=1", headers={b"Content-Type": kind.encode("latin-1")}
    )
    body = assert_problem(response, 415, "unsupported_media_type")
    assert "multipart/form-data" in body["detail"]


def test_compressed_body_is_415(api: Api) -> None:
    body, headers = form(IMAGE, MODEL)
    assert_problem(
        post(api, zlib.compress(body), {**headers, "Content-Encoding": "gzip"}), 415, "unsupported_media_type"
    )


@pytest.mark.parametrize(
    "job", ["x", "0" * 32, "%2E%2E", "%00", "A" * 32, "ж" * 30, "x" * 5000, "0" * 31 + ":", "*"]
)
def test_unknown_job_is_404(api: Api, job: str) -> None:
    for method, tail in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/rerun"),
        ("POST", "/continue"),
        ("GET", "/events"),
        ("GET", "/artifacts/original.png"),
    ):
        response = api.client.request(method, f"/v1/jobs/{job}{tail}")
        assert response.status_code in (404, 405)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] in ("unknown_job", "not_found", "method_not_allowed")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *(("limit=0", "limit"), ("limit=-1", "limit"), ("limit=201", "limit"), ("limit=x", "limit")),
        *(("status=done", "status"), ("kind=x", "kind"), ("method=" + "x" * 65, "method")),
    ],
)
def test_invalid_job_list_filter_is_422(api: Api, query: str, field: str) -> None:
    assert_problem(api.client.get(f"/v1/jobs?{query}"), 422, "invalid_parameter", field)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/jobs", "/v1/attacks", "/v1/certificates", "/v1/models"),
        *("/v1/webhooks", "/v1/webhooks/deliveries", "/v1/keys"),
    ],
)
@pytest.mark.parametrize("cursor", ["x", "é", "AAAA", "%00", "A" * 150, "0-0"])
def test_forged_cursor_is_422(api: Api, path: str, cursor: str) -> None:
    assert_problem(api.client.get(f"{path}?cursor={cursor}"), 422, "invalid_cursor", "cursor")


def test_cursor_of_another_list_is_422(api: Api) -> None:
    for _ in range(2):
        api.run_job()
    cursor = api.client.get("/v1/jobs?limit=1&method=pgd").json()["cursor"]
    assert_problem(api.client.get(f"/v1/jobs?limit=1&cursor={cursor}"), 422, "invalid_cursor", "cursor")


@pytest.mark.parametrize("name", ["nope", "PGD", "%00", "x" * 3000, "pgd%20"])
@pytest.mark.parametrize("kind", ["attacks", "certificates"])
def test_unknown_method_is_404(api: Api, kind: str, name: str) -> None:
    for method in ("GET", "POST"):
        assert_problem(api.client.request(method, f"/v1/{kind}/{name}"), 404, "unknown_method", "method")


def test_unknown_path_is_404_and_unknown_verb_is_405(api: Api) -> None:
    assert_problem(api.client.get("/v1/nothing"), 404, "not_found")
    for method in ("TRACE", "PUT", "PATCH", "BREW"):
        response = api.client.request(method, "/v1/attacks/pgd")
        assert_problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "GET, POST"


def test_service_still_works_after_bad_input(api: Api) -> None:
    assert api.run_job()["status"] == "succeeded"
