"""Frozen convolutions give what PyTorch's own layers give, on either way."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from touchstone.models.fused import onednn, segments
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


BAD = {"nan": math.nan, "infinity": math.inf, "minus infinity": -math.inf, "huge": -1e35}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_pixel_that_is_not_finite_has_the_same_effect_as_in_pytorch(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    net, x = trunk(), images(4, 3, 33, 33)
    expected_of_the_finite = net(x)
    x[2, 1, 16, 16] = value
    fast, gradient = logits_and_gradient(net, x)
    disable_onednn(monkeypatch)
    reference, expected = logits_and_gradient(net, x)
    torch.testing.assert_close(fast, reference, rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert bool(fast[2].isnan().any()) == (value != -1e35)
    torch.testing.assert_close(fast[[0, 1, 3]], expected_of_the_finite[[0, 1, 3]])


@pytest.mark.parametrize("scale", [1e9, 1e38, math.nan])
def test_overflow_between_layers_is_not_hidden(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    net, x = Trunk(*(Stage(conv(4, 4, 3, padding=1, ceiling=RELU)) for _ in range(6))), images(2, 4, 5, 5)
    for one in itertools.chain.from_iterable(net):
        one.weight.mul_(scale)
    fast = net(x)
    disable_onednn(monkeypatch)
    reference = net(x)
    assert bool(reference.isnan().any())
    torch.testing.assert_close(fast, reference, equal_nan=True)


def test_deep_trunk_is_split_where_its_bound_ends() -> None:
    deep = [Stage(conv(4, 4, 3, padding=1, ceiling=RELU)) for _ in range(60)]
    capped = [Stage(conv(4, 4, 3, padding=1, ceiling=RELU6)) for _ in range(60)]
    assert len(segments.pack(capped, (4, 5, 5))) == 1
    parts = segments.pack(deep, (4, 5, 5))
    assert 1 < len(parts) < 10
    assert all(part.bounded for part in parts)
    assert [stage for part in parts for stage in part.stages] == deep
