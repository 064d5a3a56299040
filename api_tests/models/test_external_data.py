"""Weights in a second file: joined as onnx reads them, and refused where a number is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from api_tests.support.external_data import DATA, change_entries, write_external
from api_tests.support.own_models import linear_onnx, onnx_file
from touchstone.errors import InvalidModel, ModelTooLarge
from touchstone.models.external_data import find_locations, join
from touchstone.models.onnx.tensors import DTYPES


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A graph, and its weights."""
    path = write_external(tmp_path_factory.mktemp("two"))
    return path.read_bytes(), (path.parent / DATA).read_bytes()


def joined(graph: bytes, data: bytes, limit: int = 2**20) -> bytes:
    found = join(graph, {DATA: data}, limit=limit)
    content = b"".join(found.chunks())
    assert len(content) == found.size
    return content


def test_joined_file_is_the_model_that_onnx_loads_from_both(tmp_path: Path) -> None:
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.arange(2, dtype="f4"), "c")
    )
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["z"]),
        constant,
        helper.make_node("Add", ["z", "c"], ["y"]),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((192, 2)).astype("f4")}
    plain = onnx_file(nodes, weights, "y")
    path = write_external(tmp_path, plain, convert_attribute=True)
    graph = path.read_bytes()
    assert find_locations(graph) == (DATA,)
    content = joined(graph, (tmp_path / DATA).read_bytes())
    found, right = onnx.load_model_from_string(content), onnx.load(path)
    assert find_locations(content) == ()
    for one, other in zip(found.graph.initializer, right.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))
    [value] = [node.attribute[0].t for node in found.graph.node if node.op_type == "Constant"]
    assert numpy_helper.to_array(value).tolist() == [0, 1]
    onnx.checker.check_model(found)


def test_file_with_its_weights_inside_stays_as_it_is() -> None:
    data = linear_onnx()
    assert find_locations(data) == ()
    assert b"".join(join(data, {}).chunks()) == data


def test_weights_in_several_files_are_joined(tmp_path: Path) -> None:
    path = write_external(tmp_path, all_tensors_to_one_file=False)
    names = find_locations(path.read_bytes())
    assert len(names) == 2
    found = join(path.read_bytes(), {name: (tmp_path / name).read_bytes() for name in names})
    right = onnx.load(path).graph.initializer
    for one, other in zip(
        onnx.load_model_from_string(b"".join(found.chunks())).graph.initializer, right, strict=True
    ):
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


def test_missing_length_is_what_the_shape_needs(files: tuple[bytes, bytes]) -> None:
    assert joined(change_entries(files[0], length=""), files[1]) == joined(*files)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "99999"}, "lies at bytes 99,999 to 101,535 of 'm.onnx.data', which has"),
        ({"offset": "1544"}, "cut short, or another file"),
        ({"offset": "-1"}, "states '-1' as its offset"),
        ({"offset": "1e3"}, "must be a number of bytes"),
        ({"offset": "9" * 30}, "must be a number of bytes"),
        ({"length": "1535"}, "has 1,535 bytes; its type and shape need 1,536"),
        ({"length": "0"}, "need 1,536"),
        ({"length": "-8"}, "states '-8' as its length"),
        ({"location": "../m.onnx.data"}, "beside the .onnx file"),
        ({"location": "/etc/passwd"}, "beside the .onnx file"),
        ({"location": "a/../../b"}, "beside the .onnx file"),
        ({"location": "m.onnx.data\0"}, "beside the .onnx file"),
        ({"location": ""}, "beside the .onnx file"),
        ({"location": "other.bin"}, "in another file, 'other.bin', and what was sent is named 'm.onnx.data'"),
    ],
)
def test_hostile_location_offset_or_length_is_refused(
    files: tuple[bytes, bytes], entries: dict[str, str], words: str
) -> None:
    with pytest.raises(InvalidModel, match=words.replace(".", r"\.")) as refused:
        joined(change_entries(files[0], **entries), files[1])
    assert refused.value.field == "data"


def test_missing_file_is_named_with_the_remedy(files: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidModel, match=r"'m\.onnx\.data'.*external_data=False"):
        join(files[0], {})


def test_file_that_no_weight_is_in_is_refused(files: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidModel, match="no weight of the network is in 'extra'"):
        join(files[0], {DATA: files[1], "extra": b""})


@pytest.mark.parametrize("shape", [[-1, 2], [2**62, 2**62], [1] * 100_000])
def test_impossible_shape_of_a_weight_is_refused(files: tuple[bytes, bytes], shape: list[int]) -> None:
    model = onnx.load_model_from_string(files[0])
    model.graph.initializer[0].dims[:] = shape
    with pytest.raises(InvalidModel):
        joined(model.SerializeToString(), files[1])


def test_weight_both_inside_and_outside_is_refused(files: tuple[bytes, bytes]) -> None:
    model = onnx.load_model_from_string(files[0])
    model.graph.initializer[0].raw_data = bytes(1536)
    with pytest.raises(InvalidModel, match="in this file and in another"):
        joined(model.SerializeToString(), files[1])


def test_many_weights_of_the_same_bytes_do_not_exceed_the_limit(files: tuple[bytes, bytes]) -> None:
    model = onnx.load_model_from_string(files[0])
    for i in range(1000):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"w{i}"
    with pytest.raises(ModelTooLarge, match="at most 1,048,576"):
        joined(model.SerializeToString(), files[1])


def test_truncated_or_changed_file_raises_nothing_but_invalid_model(files: tuple[bytes, bytes]) -> None:
    graph, draw = files[0], np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(graph)
        changed[draw.integers(len(changed))] = draw.integers(256)
        for content in (bytes(changed), graph[: draw.integers(len(graph))]):
            try:
                joined(content, files[1])
            except (InvalidModel, ModelTooLarge):
                continue


def test_every_supported_type_of_number_has_its_size() -> None:
    for number, dtype in DTYPES.items():
        tensor = numpy_helper.from_array(np.zeros(3, dtype), "w")
        assert tensor.data_type == number
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=DATA)
        graph = helper.make_graph([], "g", [], [], [tensor])
        content = helper.make_model(graph).SerializeToString()
        weight = onnx.load_model_from_string(joined(content, bytes(3 * dtype.itemsize))).graph.initializer[0]
        assert numpy_helper.to_array(weight).tolist() == [0, 0, 0]
        with pytest.raises(InvalidModel, match="cut short"):
            joined(content, bytes(3 * dtype.itemsize - 1))
