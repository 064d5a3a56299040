"""Gradients of batch and instance norms for one image, in every layout in memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import touchstone
from touchstone.engine import Goal, Gradient, Margin
from touchstone.models.norm_gradients import correct_norm_gradients

LAYOUTS = tuple(itertools.permutations(range(4)))


def lay_out(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same tensor with its dimensions in this order in memory."""
    return x.permute(order).contiguous().permute([order.index(i) for i in range(4)])


def find_gradient(norm: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(norm(x), x, weights)[0]


@pytest.fixture(params=[nn.BatchNorm2d, nn.InstanceNorm2d])
def norm(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    norm: nn.Module = request.param(8, affine=True).eval()
    for values in norm.parameters():
        nn.init.normal_(values)
    return norm


@pytest.mark.parametrize("rows", [1, 2])
def test_gradient_does_not_depend_on_the_layout_in_memory(norm: nn.Module, rows: int) -> None:
    x, weights = torch.randn(rows, 8, 5, 6), torch.randn(rows, 8, 5, 6)
    right = find_gradient(norm.double(), x.double(), weights.double()).float()
    correct_norm_gradients(norm.float())
    for image, gradient in itertools.product(LAYOUTS, LAYOUTS):
        found = find_gradient(norm, lay_out(x, image), lay_out(weights, gradient))
        assert torch.allclose(found, right, atol=1e-4), (image, gradient)


class PixelsFirst(nn.Module):
    """A norm between what gives channels first in memory and what takes pixels first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x.contiguous()).permute(2, 3, 0, 1).contiguous()
        return self.head(pixels.sin()).softmax(3).mean((0, 1))


def test_wrapped_network_has_the_gradient_of_double_precision_for_one_image() -> None:
    torch.manual_seed(0)
    net, x = PixelsFirst().eval(), torch.rand(1, 3, 9, 9)
    loss = Margin(Goal.of(torch.tensor([0]), targeted=False))
    found = touchstone.wrap(net).oracle.answer([Gradient(x, loss)])[0].gradient
    exact = x.double().requires_grad_()
    [right] = torch.autograd.grad(loss(net.double()(exact.expand(2, -1, -1, -1)))[0], exact)
    assert torch.allclose(found, right.float(), rtol=1e-3, atol=1e-7)
