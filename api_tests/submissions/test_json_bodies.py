"""JSON bodies that would be dear to parse: they are counted first, and refused with a clear problem."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from starlette.exceptions import HTTPException

from api_tests.support.fake_service import Api, assert_problem, sample_manifest
from api_tests.support.model_registration import manifest, send_registration
from service.submissions import bodies
from touchstone.errors import InvalidParameter
from touchstone.json_limits import MAX_DEPTH, JsonLimitError, JsonLimits
from touchstone.registration.class_names import MAX_BYTES
from touchstone.registration.request import MAX_MEMBERS, Registration

TEXT = st.text(st.sampled_from('["\\]{},:ü'), max_size=6)
JSON = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)


def count(value: Any) -> tuple[int, int, int]:
    """Lists and objects, values by commas and containers, and depth."""
    if not isinstance(value, list | dict):
        return 0, 0, 0
    inner = [count(one) for one in (value.values() if isinstance(value, dict) else value)]
    containers = 1 + sum(one[0] for one in inner)
    values = 1 + max(0, len(inner) - 1) + sum(one[1] for one in inner)
    return containers, values, 1 + max((one[2] for one in inner), default=0)


def is_allowed(text: bytes, containers: int, values: int) -> bool:
    try:
        JsonLimits(containers, values).check(text)
    except JsonLimitError:
        return False
    return True


@hypothesis_settings(max_examples=200)
@given(value=JSON, ascii_only=st.booleans())
def test_limits_count_what_a_parser_would_make(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    containers, values, _ = count(value)
    assert is_allowed(text, containers, values)
    assert not containers or not is_allowed(text, containers - 1, values)
    assert not values or not is_allowed(text, containers, values - 1)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"\\"]}":'])
def test_depth_is_limited(opening: bytes) -> None:
    per_turn = opening.count(b"[") + opening.count(b"{")
    assert is_allowed(opening * (MAX_DEPTH // per_turn), 10**6, 10**6)
    assert not is_allowed(opening * (MAX_DEPTH // per_turn + 1), 10**6, 10**6)
    assert is_allowed(b"[" + b"[],[[]]," * 1000 + b"0]", 10**6, 10**6), "beside each other"


DEAR = {
    "empty lists": b'{"image": [' + b"[]," * 500_000 + b"0]}",
    "empty objects": b'{"image": [' + b"{}," * 500_000 + b"0]}",
    "numbers": b'{"image": [' + b"0," * 500_000 + b"0]}",
    "members": b'{"image": {' + b'"":0,' * 300_000 + b'"":0}}',
    "nested lists": b'{"image": ' + b"[" * 800 + b"]" * 800 + b"}",
    "nested objects": b'{"image": ' + b'{"a":' * 800 + b"0" + b"}" * 800 + b"}",
}


@pytest.mark.parametrize("kind", DEAR)
def test_dear_body_is_refused_before_it_is_parsed(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(HTTPException, match="holds too much") as refused:
            bodies.json_fields(DEAR[kind])
        assert refused.value.status_code == 400
        assert tracemalloc.get_traced_memory()[1] < 8 * len(DEAR[kind]) + 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "path", ["/v1/attacks/pgd", "/v1/predictions", "/v1/jobs/cancel", "/v2/models/{}/infer"]
)
def test_dear_body_is_a_400_on_every_route(api: Api, path: str) -> None:
    body = b'{"jobs": [' + b"[]," * 300_000 + b"0]}"
    headers = {"Content-Type": "application/json"}
    answer = api.client.post(path.format(sample_manifest().id), content=body, headers=headers)
    assert "at most" in assert_problem(answer, 400, "invalid_body")["detail"]


@pytest.mark.parametrize(
    "text", [rb'{"a": "\ud83d\ude00"}', rb'{"a": "\\ud83d"}', rb'{"a": "\\\\ud83d \ud83d\ude00"}']
)
def test_escaped_characters_beyond_the_first_plane_are_read(text: bytes) -> None:
    assert bodies.json_fields(text) == json.loads(text)


@pytest.mark.parametrize(
    "text", [rb'{"a": "\ud83d"}', rb'{"\ude00": 1}', rb'{"a": "\ud83d\ud83d\ude00"}', rb'{"a": "\\\ud83d"}']
)
def test_half_a_surrogate_pair_is_refused(text: bytes) -> None:
    with pytest.raises(HTTPException, match="in pairs"):
        bodies.json_fields(text)


@pytest.mark.parametrize("where", ["manifest", "input", "remote", "oip"])
def test_thousands_of_unknown_members_are_refused_as_one_error(where: str) -> None:
    many: dict[str, Any] = {f"x{number}": 0 for number in range(MAX_MEMBERS + 1)}
    fields = {"manifest": many, "input": {"input": many}, "remote": {"remote": many}}
    fields["oip"] = {"remote": {"oip": many}}
    with pytest.raises(InvalidParameter, match="members") as refused:
        Registration.parse({"id": "net", **fields[where]})
    assert refused.value.field == where
    assert "errors" not in refused.value.extra


def test_invalid_class_names_are_refused_at_the_first() -> None:
    with pytest.raises(InvalidParameter, match=r"classes\.1") as refused:
        Registration.parse(
            {"id": "net", "classes": ["cat", *[""] * 1000], "input": {"height": 8, "width": 8}}
        )
    assert len(refused.value.extra["errors"]) < 5


def test_class_names_are_limited_by_their_bytes_together(api: Api) -> None:
    names = ["ü" * 99 + f"{number:06}" for number in range(MAX_BYTES // 204 + 1)]
    assert sum(map(len, names)) < MAX_BYTES
    answer = send_registration(api, "wordy", classes=names)
    assert "bytes of names together" in assert_problem(answer, 422, "invalid_parameter", "classes")["detail"]


def test_names_of_imagenet_21k_are_few_enough() -> None:
    names = [f"a kind of creature, Genus species {number}" for number in range(21_841)]
    registration = Registration.parse(manifest("big", classes=names))
    assert len(registration.names) == 21_841
