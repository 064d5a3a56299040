"""Exported networks, imported again: the logits of onnxruntime, the gradients of the original."""

from __future__ import annotations

import copy
import math
import pickle
import random

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import Generator, Tensor, nn

from api_tests.support.onnx_networks import (
    NETWORKS,
    SIDE,
    build_network,
    build_onnx_model,
    export_onnx,
    linear_head,
)
from touchstone.models.loader import load_plain
from touchstone.models.onnx import build, network as network_module, read
from touchstone.models.onnx.builder import ImportedModel
from touchstone.models.onnx.graph import sort_nodes
from touchstone.models.onnx.reader import read_node
from touchstone.models.zoo import find_manifest


def images(rows: int, side: int = SIDE) -> Tensor:
    return torch.rand(rows, 3, side, side, generator=Generator().manual_seed(0))


def logits_and_gradient(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = net(x)
    (gradient,) = torch.autograd.grad((y * torch.linspace(-1, 1, y.shape[1])).sum(), x)
    return y.detach(), gradient


def run_onnxruntime(data: bytes, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: row.numpy()[None]})[0] for row in x]
    return torch.from_numpy(np.concatenate(rows))


def difference(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


def kinds(imported: ImportedModel) -> set[str]:
    return {node.kind for node in imported.module.nodes}


EXPORTS = [
    *(
        (name, opset, False)
        for name in ("resnet", "mobilenet", "convnext", "efficientnet")
        for opset in (11, 13, 17)
    ),
    *((name, opset, False) for name, opset in (("resnet", 7), ("mobilenet", 8), ("convnext", 9))),
    *((name, 20, False) for name in ("resnet", "vit")),
    *(("vit", opset, False) for opset in (14, 17)),
    *(("vit", opset, True) for opset in (18, 20, 23)),
    *((name, 18, True) for name in ("mobilenet", "convnext", "efficientnet")),
]


@pytest.mark.parametrize(("name", "opset", "dynamo"), EXPORTS)
def test_exported_network_keeps_its_logits_and_gradients(name: str, opset: int, dynamo: bool) -> None:
    net = build_network(name)
    data = export_onnx(net, opset=opset, dynamo=dynamo)
    imported = build(read(data))
    assert (imported.batch, imported.classes, imported.activation) == (None, 10, ())
    x = images(3)
    ours, reference = logits_and_gradient(imported.module, x), logits_and_gradient(net, x)
    assert difference(ours[0], run_onnxruntime(data, x)) < 1e-4
    assert difference(ours[0], reference[0]) < 1e-4
    assert difference(ours[1], reference[1]) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_pixel_that_is_not_finite_has_the_same_effect_as_in_the_original(name: str) -> None:
    net = build_network(name)
    module = build(read(export_onnx(net, opset=17))).module
    for value in (math.nan, math.inf, -math.inf):
        x = images(3)
        x[1, 2, 9, 9] = value
        y = net(x)
        torch.testing.assert_close(module(x), y, rtol=1e-3, atol=1e-3, equal_nan=True)
        assert bool(y.isnan().any()) or not math.isnan(value), "ReLU6 makes a number of infinity, not of NaN"


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_network_exported_for_one_image_answers_several(name: str) -> None:
    net = build_network(name)
    graph = read(export_onnx(net, opset=17, dynamic=False))
    assert graph.batch == 1
    assert graph.input.shape == (1, 3, SIDE, SIDE)
    imported = build(graph)
    assert imported.batch == 1
    for ours, reference in zip(
        logits_and_gradient(imported.module, images(3)), logits_and_gradient(net, images(3)), strict=True
    ):
        assert difference(ours, reference) < 1e-4


def test_network_with_a_falsely_dynamic_batch_is_run_one_by_one() -> None:
    nodes, weights = linear_head("one", 108)
    one = helper.make_node("Reshape", ["x", "shape"], ["one"])
    model = build_onnx_model(one, *nodes, weights={**weights, "shape": np.array([1, 108])})
    imported = build(read(model.SerializeToString()))
    assert imported.batch == 1
    assert torch.equal(imported.module(images(2, 6)[1:]), imported.module(images(2, 6))[1:])


def test_efficientnet_lite0_is_fused_and_keeps_its_logits_and_gradients() -> None:
    net = load_plain(find_manifest("imagenet-efficientnet-lite0"))
    data = export_onnx(net, opset=17, side=224)
    imported = build(read(data))
    assert imported.classes == 1000
    assert "fused.Trunk" in kinds(imported)
    assert not kinds(imported) & {"Conv", "Pad", "BatchNormalization", "Clip"}
    x = images(2, 224)
    (y, gradient), (reference, expected) = (logits_and_gradient(one, x) for one in (imported.module, net))
    assert difference(y, run_onnxruntime(data, x)) < 1e-4
    assert difference(y, reference) < 1e-4
    # Its clamps switch at differences smaller than rounding, so single pixels may differ by more than it.
    cosine = torch.cosine_similarity(gradient.flatten(1), expected.flatten(1))
    assert cosine.min() > 0.9999


@pytest.mark.parametrize(
    ("name", "opset", "present", "absent"),
    [
        ("resnet", 17, {"fused.Trunk", "fused.Clamp"}, {"BatchNormalization", "Relu"}),
        ("mobilenet", 13, {"fused.Trunk", "HardSwish"}, {"Clip", "HardSigmoid", "BatchNormalization"}),
        (
            "convnext",
            13,
            {"fused.LayerNorm", "fused.Gelu", "fused.Linear"},
            {"Erf", "ReduceMean", "Pow", "MatMul"},
        ),
        ("efficientnet", 17, {"fused.Silu"}, {"Pad", "BatchNormalization"}),
    ],
)
def test_common_patterns_are_fused(name: str, opset: int, present: set[str], absent: set[str]) -> None:
    found = kinds(build(read(export_onnx(build_network(name), opset=opset))))
    assert present <= found
    assert not absent & found


def test_program_cache_keeps_a_limited_number_of_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "MAX_PROGRAMS", 2)
    nodes, weights = linear_head("x", 108)
    module = build(read(build_onnx_model(*nodes, weights=weights).SerializeToString())).module
    first, second, third = (torch.zeros(rows, 3, 6, 6) for rows in (1, 2, 3))
    programs = [module.program(x) for x in (first, second, first, third)]
    assert len(module._programs) == 2
    assert module.program(first) is programs[0], "the one that was asked for the longest ago goes"


def test_shape_arithmetic_is_folded_before_the_network_runs() -> None:
    imported = build(read(export_onnx(build_network("vit"), opset=17)))
    program = imported.module.program(images(4))
    left = {step.node.kind for step in program.steps}
    assert "Shape" in kinds(imported)
    assert not left & {"Shape", "ConstantOfShape", "Where", "Equal", "Expand"}


class WithSoftmax(nn.Module):
    def __init__(self, softmax: nn.Module) -> None:
        super().__init__()
        self.net, self.softmax = build_network("mobilenet"), softmax

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(self.net(x))


@pytest.mark.parametrize("softmax", [nn.Softmax(1), nn.LogSoftmax(1)])
@pytest.mark.parametrize("opset", [11, 17])
def test_final_softmax_is_removed(softmax: nn.Module, opset: int) -> None:
    net = WithSoftmax(softmax).eval()
    graph = read(export_onnx(net, opset=opset))
    imported = build(graph)
    assert [step.function for step in imported.activation] in (["softmax"], ["log-softmax"])
    assert difference(imported.module(images(2)), net.net(images(2))) < 1e-4


def test_inner_softmax_is_kept() -> None:
    nodes, weights = linear_head("soft", 108)
    soft = helper.make_node("Softmax", ["x"], ["soft"], axis=1)
    graph = read(build_onnx_model(soft, *nodes, weights=weights).SerializeToString())
    imported = build(graph)
    assert imported.activation == ()
    assert "Softmax" in kinds(imported)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_network_whose_nodes_are_shuffled_is_read_in_its_order(name: str) -> None:
    data = export_onnx(build_network(name), opset=17)
    model = onnx.load_model_from_string(data)
    nodes = list(model.graph.node)
    model.graph.ClearField("node")
    model.graph.node.extend(random.Random(0).sample(nodes, len(nodes)))
    x = images(2)
    assert difference(build(read(model.SerializeToString())).module(x), run_onnxruntime(data, x)) < 1e-4


def test_order_of_nodes_is_kept_where_it_is_valid() -> None:
    model = onnx.load_model_from_string(export_onnx(build_network("vit"), opset=17))
    nodes = tuple(map(read_node, model.graph.node))
    names = {model.graph.input[0].name, *(tensor.name for tensor in model.graph.initializer)}
    assert sort_nodes(nodes, names) == nodes


def test_channels_last_input_is_accepted() -> None:
    nodes, weights = linear_head("first", 108)
    first = helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2])
    model = build_onnx_model(first, *nodes, weights=weights, shape=("n", 6, 6, 3))
    graph = read(model.SerializeToString())
    assert graph.image == (3, 6, 6)
    x = images(2, 6)
    expected = x.flatten(1) @ torch.from_numpy(weights["head"])
    assert difference(build(graph).module(x), expected) < 1e-5


def test_network_of_dynamic_size_is_built_for_a_given_size() -> None:
    nodes, weights = linear_head("pooled", 3)
    pool = helper.make_node("GlobalAveragePool", ["x"], ["pooled"])
    graph = read(
        build_onnx_model(pool, *nodes, weights=weights, shape=("n", 3, "h", "w")).SerializeToString()
    )
    module = build(graph, size=(8, 9)).module
    assert module(images(2, 12)).shape == (2, 5)


def test_imported_module_can_be_copied_pickled_and_converted() -> None:
    net = build_network("resnet")
    module = build(read(export_onnx(net, opset=17))).module
    x = images(2)
    expected = module(x)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert difference(module.double()(x.double()).float(), expected) < 1e-5


def test_logits_are_the_same_without_a_gradient() -> None:
    module = build(read(export_onnx(build_network("convnext"), opset=17))).module
    with torch.no_grad():
        y = module(images(2))
    assert torch.equal(y, module(images(2).requires_grad_()).detach())
