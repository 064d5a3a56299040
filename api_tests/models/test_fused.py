"""Frozen convolutions give what PyTorch's own layers give, on either way."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from touchstone.models.fused import onednn
from touchstone.models.fused.stages import RELU, RELU6, FrozenConv, Stage, fold_batch_norm
from touchstone.models.fused.trunk import Trunk


def conv(
    outputs: int,
    inputs: int,
    k: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    ceiling: float | None = None,
) -> FrozenConv:
    noise = Generator().manual_seed(outputs + 10 * inputs + 100 * k)
    weight = torch.randn(outputs, inputs // groups, k, k, generator=noise) / (k * (inputs // groups) ** 0.5)
    bias = torch.randn(outputs, generator=noise)
    return FrozenConv(weight, bias, stride=stride, padding=padding, groups=groups, ceiling=ceiling)


def trunk() -> Trunk:
    """Every kind of convolution: full, strided, grouped, depthwise, pointwise; clamped or not; a skip."""
    return Trunk(
        Stage(conv(8, 3, 3, stride=2, ceiling=RELU)),
        Stage(
            conv(16, 8, 1, ceiling=RELU6),
            conv(16, 16, 5, padding=2, groups=16, ceiling=RELU6),
            conv(8, 16, 1),
            skip=True,
        ),
        Stage(
            conv(8, 8, 4, stride=2, padding=1, groups=8, ceiling=RELU6), conv(12, 8, 3, padding=1, groups=2)
        ),
        Stage(conv(6, 12, 3, stride=3, padding=2, groups=3, ceiling=RELU)),
    )


def disable_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "is_supported", lambda _: False)


def logits_and_gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), x)
    return y.detach(), gradient


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width", "rows"), [(33, 33, 1), (30, 41, 3)])
def test_onednn_convolutions_match_pytorch(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, rows: int
) -> None:
    net, x = trunk(), images(rows, 3, height, width)
    assert onednn.is_supported(x)
    fast = logits_and_gradient(net, x)
    disable_onednn(monkeypatch)
    for ours, reference in zip(fast, logits_and_gradient(net, x), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_outputs_are_the_same_without_a_gradient() -> None:
    net, x = trunk(), images(2, 3, 33, 33)
    with torch.no_grad():
        y = net(x)
    assert torch.equal(y, logits_and_gradient(net, x)[0])
    assert not net(x).requires_grad


def test_two_backward_passes_over_one_forward_overwrite_nothing() -> None:
    net, x = trunk(), images(2, 3, 33, 33).requires_grad_()
    y = net(x)
    onto = torch.ones_like(y)
    first, second = (torch.autograd.grad(y, x, onto, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(onto, torch.ones_like(y))


def test_changed_or_converted_weights_take_effect() -> None:
    net, x = trunk(), images(1, 3, 33, 33)
    before = net(x)
    exact = copy.deepcopy(net).double()(x.double())
    torch.testing.assert_close(before, exact.float(), rtol=1e-4, atol=1e-5)
    for one in itertools.chain.from_iterable(net):
        one.weight.mul_(2)
    assert not torch.allclose(net.float()(x), before)


def test_folded_batch_norm_gives_the_same_output() -> None:
    x = images(2, 4, 9, 9)
    for bias in (True, False):
        layer, norm = nn.Conv2d(4, 6, 3, stride=2, bias=bias), nn.BatchNorm2d(6)
        norm(layer(images(64, 4, 9, 9)))  # moves the running statistics away from 0 and 1
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.eval()
        weight, shift = fold_batch_norm(layer, norm)
        torch.testing.assert_close(functional.conv2d(x, weight, shift, stride=2), norm(layer(x)))


def test_batch_norm_without_running_statistics_cannot_be_folded() -> None:
    with pytest.raises(ValueError, match="depends on the batch"):
        fold_batch_norm(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False))


def test_skip_past_a_clamp_is_refused() -> None:
    with pytest.raises(ValueError, match="last convolution"):
        Stage(conv(3, 3, 1, ceiling=RELU), skip=True)
