"""Gradients at kinks, ties and bounds: those of the PyTorch module that was exported."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from onnx import helper
from torch import Generator, Tensor, nn
from torch.nn import functional

from api_tests.support.onnx_networks import build_onnx_model, linear_head
from touchstone.models.onnx import build, read

VALUES = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0, -6.0, 0.25, 2.0, 7.0, -7.0])
ROW = torch.tensor([0.0, 1.0, 0.5, -1.0])
ZERO = torch.zeros(())


def kinks() -> Tensor:
    """Features at which activations bend, many of them equal; some rows and channels are black or white."""
    x = VALUES[torch.randint(0, len(VALUES), (2, 3, 4, 4), generator=Generator().manual_seed(0))]
    x[0, :, 0], x[0, :, 1], x[1, 0] = 0, 1, 0
    return x


class WithHead(nn.Module):
    def __init__(self, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).flatten(1)
        return y @ torch.linspace(-1, 1, 5 * y.shape[1]).sin().view(-1, 5)


def export(net: nn.Module, x: Tensor) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns that it is deprecated
        torch.onnx.export(net, (x,), file, dynamo=False, opset_version=17)
    return file.getvalue()


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad((net(x) * torch.tensor([1.0, -2.0, 3.0, 0.5, -1.0])).sum(), x)[0]


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        one.__name__: one
        for one in (
            *(functional.relu, functional.relu6, functional.hardswish, functional.hardsigmoid),
            *(functional.elu, functional.celu, functional.selu, functional.leaky_relu, functional.softplus),
            *(functional.softsign, functional.gelu, functional.mish, functional.hardshrink),
            *(functional.softshrink, functional.glu, functional.normalize, torch.abs, torch.sign),
        )
    },
    "prelu": lambda x: functional.prelu(x, torch.tensor([0.25, 0.5, 0.1])),
    "clip to pixels": lambda x: x.clamp(0, 1),
    "clip around zero": lambda x: x.clamp(-1, 1),
    "clip from below": lambda x: x.clamp(min=0),
    "clip from above": lambda x: x.clamp(max=1),
    "maximum with a bound": lambda x: torch.maximum(x, ZERO),
    "maximum of equals": lambda x: torch.maximum(x, x.flip(-1)),
    "maximum of three": lambda x: torch.maximum(torch.maximum(x, x.flip(1)), x.flip(2)),
    "minimum": lambda x: torch.minimum(x, ROW),
    "where": lambda x: torch.where(x >= 0, x, 2 * x),
    "where with a dead root": lambda x: torch.where(x > 0, x, torch.sqrt(x)),
    "square": torch.square,
    "powers of zero": lambda x: x.abs() ** torch.tensor([2.0, 0.0, 1.0, 3.0]),
    "zeroth power": lambda x: x**0 + x,
    "quotient": lambda x: x / (x.abs() + 1),
    "remainder": lambda x: torch.remainder(x, 2.0) + torch.fmod(x, 2.0),
    "rounding": lambda x: x - torch.floor(x) + torch.round(x) * x,
    "sqrt": lambda x: torch.sqrt(x.abs()),
    "l2 norm": lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "l2 norm of a row": lambda x: x.norm(dim=-1),
    "l1 norm": lambda x: torch.linalg.vector_norm(x, ord=1, dim=1),
    "l3 norm": lambda x: torch.linalg.vector_norm(x, ord=3, dim=1),
    "largest norm": lambda x: torch.linalg.vector_norm(x, ord=math.inf, dim=1),
    "distances": lambda x: torch.cdist(x.flatten(2), torch.zeros(1, 2, 16)),
    "deviation": lambda x: x.std(1),
    "extremes": lambda x: torch.cat([x.amax((1, 2)), x.amin((1, 2))]).view(2, -1),
    "product": lambda x: x.prod(1),
    "log of a sum of masked powers": lambda x: torch.where(x > 0.3, x, torch.tensor(-math.inf)).logsumexp(
        (1, 2)
    ),
    "masked softmax": lambda x: torch.where(x > 0.3, x, torch.tensor(-math.inf)).flatten(1).softmax(1),
    "largest of windows": lambda x: functional.max_pool2d(x, 3, 1, 1),
    "largest of uneven windows": lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True),
    "largest of all": lambda x: functional.adaptive_max_pool2d(x, 1),
    "cumulative sum": lambda x: x.cumsum(1).abs(),
    "bilinear": lambda x: functional.interpolate(x, scale_factor=2.0, mode="bilinear").relu(),
    "mirrored margin": lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect").abs(),
}


@pytest.mark.parametrize("name", FEATURES)
def test_gradient_at_a_kink_is_that_of_the_exported_module(name: str) -> None:
    x, net = kinks(), WithHead(FEATURES[name])
    expected = gradient(net, x)
    chosen = expected.isfinite()  # where PyTorch has none, no more is asked
    assert bool(chosen.any())
    ours = gradient(build(read(export(net, x))).module, x)
    torch.testing.assert_close(ours[chosen], expected[chosen], rtol=1e-4, atol=1e-4)


def test_network_of_norms_has_pytorch_gradients_on_black_pixels() -> None:
    class Norms(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.linalg.vector_norm(x, dim=1, keepdim=True))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Norms(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).requires_grad_(False)
    x = kinks()
    expected = gradient(net, x)
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(gradient(build(read(export(net, x))).module, x), expected)


ROOTS: list[tuple[str, dict[str, Any], int]] = [
    ("LpNormalization", {"axis": 1}, 48),
    ("LpNormalization", {"axis": 1, "p": 1}, 48),
    ("LpPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, 12),
    ("GlobalLpPool", {"p": 3}, 3),
    ("MeanVarianceNormalization", {"axes": [2, 3]}, 48),
]


@pytest.mark.parametrize(("operator", "attributes", "count"), ROOTS)
def test_norm_that_pytorch_does_not_export_has_a_gradient_on_black(
    operator: str, attributes: dict[str, Any], count: int
) -> None:
    nodes, weights = linear_head("features", count)
    node = helper.make_node(operator, ["x"], ["features"], **attributes)
    model = build_onnx_model(node, *nodes, weights=weights, shape=("n", 3, 4, 4))
    module = build(read(model.SerializeToString())).module
    assert bool(gradient(module, torch.zeros(2, 3, 4, 4)).isfinite().all())
