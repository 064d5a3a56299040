"""Networks that answer at random on purpose: their means, whose noise a row gets, and who may have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

import touchstone
from api_tests.support.onnx_networks import build_onnx_model, linear_head
from api_tests.support.own_models import build_manifest
from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.engine.plans import average_gradients
from touchstone.engine.queries import Answer, Jacobian, PlanOf
from touchstone.errors import InvalidModel, InvalidParameter
from touchstone.evaluation.library import run_plans
from touchstone.methods import find
from touchstone.methods.compatibility import check_compatible
from touchstone.models.onnx import build, read
from touchstone.models.random_streams import keyed_rows
from touchstone.registration.examination import probe_model

ROWS = 3000
node = helper.make_node


def build_network(*nodes: onnx.NodeProto, opset: int = 18, **weights: Any) -> nn.Module:
    """Nodes from "x" to "noisy", and five logits that are linear in that."""
    head, more = linear_head("noisy", 108)
    model = build_onnx_model(*nodes, *head, weights={**weights, **more}, opset=opset)
    return build(read(model.SerializeToString()), randomized=True).module


def head(features: Tensor) -> Tensor:
    return features.flatten(1) @ torch.from_numpy(linear_head("x", 108)[1]["head"])


YES, HALF = np.array(True), np.array(0.25, dtype="f4")
ADDED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], Any]] = {
    "normal like": ([node("RandomNormalLike", ["x"], ["n"], mean=2.0, scale=3.0)], {}, lambda x: x + 2),
    "uniform like": ([node("RandomUniformLike", ["x"], ["n"], low=1.0, high=4.0)], {}, lambda x: x + 2.5),
    "bernoulli": ([node("Bernoulli", ["x"], ["n"])], {}, lambda x: 2 * x),
    "normal of one row": ([node("RandomNormal", [], ["n"], shape=[1, 3, 6, 6], mean=1.0)], {}, None),
    "uniform of one row": ([node("RandomUniform", [], ["n"], shape=[3, 6, 6])], {}, None),
}


@pytest.mark.parametrize("name", ADDED)
def test_mean_over_noise_is_that_of_the_distribution(name: str) -> None:
    nodes, weights, mean = ADDED[name]
    net = build_network(*nodes, node("Add", ["x", "n"], ["noisy"]), **weights)
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with keyed_rows((7, row) for row in range(ROWS)):
        answers = net(x.expand(ROWS, -1, -1, -1))
    if mean is None:
        assert torch.allclose(answers, answers[:1], atol=1e-4), "the file draws once for all rows"
        assert not torch.equal(net(x), net(x))
        return
    error = answers.std(0) / ROWS**0.5
    assert bool(((answers.mean(0) - head(mean(x))[0]).abs() < 5 * error).all())
    assert float(error.min()) > 0


@pytest.mark.parametrize("opset", [6, 18])
def test_dropout_in_training_mode_keeps_the_mean(opset: int) -> None:
    inputs = ["x", "ratio", "training"] if opset == 18 else ["x"]
    attributes = {} if opset == 18 else {"ratio": 0.25}
    weights = {"ratio": HALF, "training": YES} if opset == 18 else {}
    net = build_network(node("Dropout", inputs, ["noisy"], **attributes), opset=opset, **weights)
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    answers = net(x.expand(ROWS, -1, -1, -1))
    expected = (head(torch.eye(108).view(108, 3, 6, 6)) * x.flatten()[:, None]).square().sum(0) / 3
    assert answers.var(0) == pytest.approx(expected, rel=0.2)  # p / (1 - p) = 1/3
    assert bool(((answers.mean(0) - head(x)[0]).abs() < 5 * answers.std(0) / ROWS**0.5).all())


def noisy_square(scale: float = 0.5) -> onnx.ModelProto:
    """Five logits that are linear in the square of x + n."""
    nodes, weights = linear_head("square", 108)
    return build_onnx_model(
        node("RandomNormalLike", ["x"], ["n"], scale=scale),
        node("Add", ["x", "n"], ["noisy"]),
        node("Mul", ["noisy", "noisy"], ["square"]),
        *nodes,
        weights=weights,
    )


def test_noise_of_a_row_does_not_depend_on_its_neighbors() -> None:
    net = build(read(noisy_square().SerializeToString()), randomized=True).module
    x = torch.rand(5, 3, 6, 6)
    with keyed_rows((1, row) for row in range(5)):
        together = net(x)
    with keyed_rows([(1, 3), (1, 0)]):
        apart = torch.cat([net(x[3:4]), net(x[:1])])
    assert torch.allclose(together[[3, 0]], apart, atol=1e-5)
    with keyed_rows([(2, 3)]):
        assert not torch.allclose(net(x[3:4]), apart[:1], atol=1e-2)


def test_averaged_gradients_approach_that_of_the_mean() -> None:
    net = build(read(noisy_square().SerializeToString()), randomized=True).module
    oracle = TorchOracle(net, Preprocessing(None, None, None), torch.device("cpu"))
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    query = Jacobian(x, classes=torch.tensor([[1]]), label=torch.tensor([0]))

    def ask() -> PlanOf[Answer]:
        return (yield query)

    leaf = x.clone().requires_grad_()
    z = head(leaf.square() + 0.25)[0]
    [exact] = torch.autograd.grad(z[1] - z[0], leaf)
    errors = []
    for times in (1, 400):
        [[answer], [again]] = (
            run_plans([average_gradients(ask(), times)], oracle, [(3,)])[0] for _ in range(2)
        )
        assert torch.equal(answer.gradient, again.gradient), "the same seed, the same noise"
        errors.append(float((answer.gradient[:, 0] - exact).norm() / exact.norm()))
    assert errors[1] < 0.1 < errors[0]


FIELDS = {"classes": list("abcde"), "input": {"height": 6, "width": 6}}


def test_random_network_needs_the_flag_and_the_flag_a_random_network(tmp_path: Path) -> None:
    data = noisy_square().SerializeToString()
    with pytest.raises(InvalidModel, match="set randomized to true") as refused:
        probe_model(build_manifest(data, **FIELDS), data, lambda _: None)
    assert refused.value.field == "randomized"
    nodes, weights = linear_head("x", 108)
    plain = build_onnx_model(*nodes, weights=weights).SerializeToString()
    with pytest.raises(InvalidModel, match="no operator of the network draws"):
        probe_model(build_manifest(plain, randomized=True, **FIELDS), plain, lambda _: None)


def test_random_network_is_registered_and_attacked_with_averaged_gradients(tmp_path: Path) -> None:
    data = noisy_square(0.05).SerializeToString()
    manifest = build_manifest(data, randomized=True, **FIELDS)
    probe = probe_model(manifest, data, lambda _: None).probe
    assert not probe.deterministic
    assert probe.batch_invariant, "a row's noise is its own"
    assert probe.gradient_agrees
    (tmp_path / "n.onnx").write_bytes(data)
    fields = {"id": "n", "randomized": True, **FIELDS}
    model = touchstone.load(tmp_path / "n.onnx", manifest=fields, device="cpu")
    x = touchstone.samples()[:2, :, :6, :6].expand(-1, 3, -1, -1) * 0.2 + 0.4
    once, again = (
        touchstone.attack(model, x, norm="linf", eps="64/255", steps=10, eot=4, seed=5) for _ in range(2)
    )
    assert torch.equal(torch.as_tensor(once.images), torch.as_tensor(again.images))
    assert once.success.all()
    with pytest.raises(InvalidParameter, match="answers at random"):
        check_compatible(find("smoothing", "certificate").parse({}), manifest)
