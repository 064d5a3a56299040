"""Exported networks, imported again: the logits of onnxruntime, the gradients of the original."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import Generator, Tensor, nn

from api_tests.support.onnx_networks import SIDE, export, file_of, head, network
from touchstone.models.loader import load_plain
from touchstone.models.onnx import build, final_softmax, read
from touchstone.models.onnx import network as network_module
from touchstone.models.onnx.builder import Imported
from touchstone.models.zoo import manifest


def images(rows: int, side: int = SIDE) -> Tensor:
    return torch.rand(rows, 3, side, side, generator=Generator().manual_seed(0))


def logits_and_gradient(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = net(x)
    (gradient,) = torch.autograd.grad((y * torch.linspace(-1, 1, y.shape[1])).sum(), x)
    return y.detach(), gradient


def onnxruntimes(data: bytes, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: row.numpy()[None]})[0] for row in x]
    return torch.from_numpy(np.concatenate(rows))


def difference(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


def kinds(imported: Imported) -> set[str]:
    return {node.kind for node in imported.module.nodes}


WAYS = [
    *(
        (name, opset, False)
        for name in ("resnet", "mobilenet", "convnext", "efficientnet")
        for opset in (11, 13, 17)
    ),
    *((name, 20, False) for name in ("resnet", "vit")),
    *(("vit", opset, False) for opset in (14, 17)),
    *(("vit", opset, True) for opset in (18, 20, 23)),
    *((name, 18, True) for name in ("mobilenet", "convnext", "efficientnet")),
]


@pytest.mark.parametrize(("name", "opset", "dynamo"), WAYS)
def test_an_exported_network_answers_and_differentiates_as_before(
    name: str, opset: int, dynamo: bool
) -> None:
    net = network(name)
    data = export(net, opset=opset, dynamo=dynamo)
    imported = build(read(data))
    assert (imported.batch, imported.classes, imported.softmax_removed) == (None, 10, False)
    x = images(3)
    ours, reference = logits_and_gradient(imported.module, x), logits_and_gradient(net, x)
    assert difference(ours[0], onnxruntimes(data, x)) < 1e-4
    assert difference(ours[0], reference[0]) < 1e-4
    assert difference(ours[1], reference[1]) < 1e-4


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_network_for_one_image_answers_several_one_by_one(name: str) -> None:
    net = network(name)
    graph = read(export(net, opset=17, dynamic=False))
    assert graph.batch == 1
    assert graph.input.shape == (1, 3, SIDE, SIDE)
    imported = build(graph)
    assert imported.batch == 1
    for ours, reference in zip(
        logits_and_gradient(imported.module, images(3)), logits_and_gradient(net, images(3)), strict=True
    ):
        assert difference(ours, reference) < 1e-4


def test_a_batch_that_is_open_in_name_only_is_found_out() -> None:
    nodes, weights = head("one", 108)
    one = helper.make_node("Reshape", ["x", "shape"], ["one"])
    model = file_of(one, *nodes, weights={**weights, "shape": np.array([1, 108])})
    imported = build(read(model.SerializeToString()))
    assert imported.batch == 1
    assert torch.equal(imported.module(images(2, 6)[1:]), imported.module(images(2, 6))[1:])


def test_lite0_becomes_one_trunk_and_answers_as_before() -> None:
    net = load_plain(manifest("imagenet-efficientnet-lite0"))
    data = export(net, opset=17, side=224)
    imported = build(read(data))
    assert imported.classes == 1000
    assert "fused.Trunk" in kinds(imported)
    assert not kinds(imported) & {"Conv", "Pad", "BatchNormalization", "Clip"}
    x = images(2, 224)
    (y, gradient), (reference, expected) = (logits_and_gradient(one, x) for one in (imported.module, net))
    assert difference(y, onnxruntimes(data, x)) < 1e-4
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
    found = kinds(build(read(export(network(name), opset=opset))))
    assert present <= found
    assert not absent & found


def test_programs_are_kept_for_so_many_shapes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "MOST_PROGRAMS", 2)
    nodes, weights = head("x", 108)
    module = build(read(file_of(*nodes, weights=weights).SerializeToString())).module
    first, second, third = (torch.zeros(rows, 3, 6, 6) for rows in (1, 2, 3))
    programs = [module.program(x) for x in (first, second, first, third)]
    assert len(module._programs) == 2
    assert module.program(first) is programs[0], "the one that was asked for the longest ago goes"


def test_shape_arithmetic_is_done_before_the_network_runs() -> None:
    imported = build(read(export(network("vit"), opset=17)))
    program = imported.module.program(images(4))
    left = {step.node.kind for step in program.steps}
    assert "Shape" in kinds(imported)
    assert not left & {"Shape", "ConstantOfShape", "Where", "Equal", "Expand"}


class WithSoftmax(nn.Module):
    def __init__(self, softmax: nn.Module) -> None:
        super().__init__()
        self.net, self.softmax = network("mobilenet"), softmax

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(self.net(x))


@pytest.mark.parametrize("softmax", [nn.Softmax(1), nn.LogSoftmax(1)])
@pytest.mark.parametrize("opset", [11, 17])
def test_a_final_softmax_is_removed(softmax: nn.Module, opset: int) -> None:
    net = WithSoftmax(softmax).eval()
    graph = read(export(net, opset=opset))
    assert final_softmax(graph) is not None
    imported = build(graph)
    assert imported.softmax_removed
    assert difference(imported.module(images(2)), net.net(images(2))) < 1e-4


def test_a_softmax_inside_stays() -> None:
    nodes, weights = head("soft", 108)
    soft = helper.make_node("Softmax", ["x"], ["soft"], axis=1)
    graph = read(file_of(soft, *nodes, weights=weights).SerializeToString())
    assert final_softmax(graph) is None
    assert "Softmax" in kinds(build(graph))


def test_channels_may_come_last() -> None:
    nodes, weights = head("first", 108)
    first = helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2])
    model = file_of(first, *nodes, weights=weights, shape=("n", 6, 6, 3))
    graph = read(model.SerializeToString())
    assert graph.image == (3, 6, 6)
    x = images(2, 6)
    expected = x.flatten(1) @ torch.from_numpy(weights["head"])
    assert difference(build(graph).module(x), expected) < 1e-5


def test_an_open_size_must_be_said() -> None:
    nodes, weights = head("pooled", 3)
    pool = helper.make_node("GlobalAveragePool", ["x"], ["pooled"])
    graph = read(file_of(pool, *nodes, weights=weights, shape=("n", 3, "h", "w")).SerializeToString())
    module = build(graph, size=(8, 9)).module
    assert module(images(2, 12)).shape == (2, 5)


def test_the_module_copies_pickles_and_changes_its_type() -> None:
    net = network("resnet")
    module = build(read(export(net, opset=17))).module
    x = images(2)
    expected = module(x)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert difference(module.double()(x.double()).float(), expected) < 1e-5


def test_without_a_gradient_the_answers_are_the_same() -> None:
    module = build(read(export(network("convnext"), opset=17))).module
    with torch.no_grad():
        y = module(images(2))
    assert torch.equal(y, module(images(2).requires_grad_()).detach())
