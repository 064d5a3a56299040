"""Networks whose logits or gradients are not finite everywhere: no attack may take NaN for an answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import touchstone
from touchstone.engine import NORMS, CrossEntropy, Goal, Margin
from touchstone.errors import NonFiniteOutput
from touchstone.methods import catalogue, find

EPS = {"linf": 0.1, "l2": 0.5, "l1": 2.0, "l0": 3}
SHAPE = (1, 6, 6)
CASES = [(name, norm) for name, method in catalogue("attack").items() for norm in method.info.norms]


class Linear(nn.Module):
    """Three classes, of features that a subclass makes of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(3, 36, generator=draw))
            self.layer.bias.copy_(-self.layer.weight @ self.features(images()[:1])[0])
            self.layer.bias[0] += 0.3

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.features(x))


class NanGradientAtBlack(Linear):
    """The gradient of x·√x/√x is 0/0 at black, where the logits are finite all the same."""

    def features(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.where(flat > 0, flat.sqrt(), 0 * flat)


class InfiniteGradientAtBlack(Linear):
    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1).sqrt()


class NoGradient(Linear):
    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1).detach() + 0 * x.flatten(1)


class Saturated(Linear):
    """Logits that end in steps: their gradient vanishes nearly everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(1e4 * super().forward(x))


class NanBeside(Linear):
    """Finite logits at the originals, NaN wherever the first pixel is a little brighter."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        beside = (x.flatten(1)[:, :1] - images()[0, 0, 0, 0]) > 0.001
        return logits.masked_fill(beside, torch.nan)


class InfiniteBeside(NanBeside):
    """Plus infinity for class 1 there: no prediction, though the largest."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        infinite = torch.tensor([0.0, torch.inf, 0.0])
        return torch.where(logits.isnan(), infinite, logits)


def images() -> Tensor:
    """Two images of the same first pixel, one of them with black ones."""
    x = torch.randint(60, 200, (2, *SHAPE), generator=torch.Generator().manual_seed(1)) / 255
    x[0, :, 2:4] = 0
    x[:, 0, 0, 0] = 100 / 255
    return x


NETWORKS = [NanGradientAtBlack, InfiniteGradientAtBlack, NoGradient, Saturated, NanBeside, InfiniteBeside]
NON_FINITE_GRADIENT = {NanGradientAtBlack, InfiniteGradientAtBlack, NanBeside, InfiniteBeside}
MODES = [*((network, True) for network in NETWORKS), (NanGradientAtBlack, False), (NanBeside, False)]


def small(name: str, norm: str) -> dict[str, object]:
    asked = {"norm": norm, "eps": EPS[norm], "queries": 80, "steps": 4, "inner_steps": 2}
    asked |= {"binary_search_steps": 2, "population": 20, "smallest": 0.2, "largest_const": 1e-4, "rivals": 2}
    return {field: value for field, value in asked.items() if field in find(name).model_fields}


def signs_of(name: str, network: type[Linear]) -> tuple[set[str], set[str]]:
    """The diagnostics that an attack must show on a network, and those that it may."""
    must, may = set(), set()
    if issubclass(network, NanBeside):
        may |= {"non_finite_logits"}
    if find(name).info.access == "gradients":
        may |= {"non_finite_gradient"} if network in NON_FINITE_GRADIENT else set()
        may |= {"zero_gradient"} if network in (Saturated, NanBeside, InfiniteBeside) else set()
        must |= {"zero_gradient"} if network is NoGradient else set()
        if network is NanGradientAtBlack and name != "cw-linf":  # whose points are never quite black
            must |= {"non_finite_gradient"}
    return must, may | must


@pytest.mark.parametrize(("network", "quantize"), MODES)
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_attack_takes_no_non_finite_answer_for_a_success_and_returns_finite_images(
    name: str, norm: str, network: type[Linear], quantize: bool
) -> None:
    module, x, asked = network(), images(), small(name, norm)
    surrogates = [touchstone.wrap(network())] if "surrogate" in find(name).model_fields else []
    found = touchstone.attack(
        touchstone.wrap(module), x, None, name, surrogates=surrogates, quantize=quantize, **asked
    )
    d = NORMS[norm].size(found.images.double() - x.double())
    assert found.images.isfinite().all()
    assert torch.allclose(d, found.distance, atol=1e-6)
    assert torch.all(d <= asked.get("eps", torch.inf) * (1 + 1e-4) + 1e-5)
    logits, clean = module(found.images), module(x).argmax(1)
    assert logits.isfinite().all()
    if quantize:
        assert torch.equal(logits.argmax(1) != clean, found.success)
    else:  # a success may lie on the very boundary
        margin = logits.gather(1, clean[:, None])[:, 0] - logits.scatter(1, clean[:, None], -torch.inf).amax(
            1
        )
        assert torch.all(margin[found.success] < 1e-3)
    must, may = signs_of(name, network)
    assert must <= set(found.diagnostics) <= may


def test_point_without_logits_gets_no_vote_of_any_goal_and_the_lowest_loss() -> None:
    logits = torch.tensor([[torch.nan, 0, 0], [0, torch.inf, 0], [0, -torch.inf, 1], [0, 1, 2]])
    for targeted in (False, True):
        goal = Goal.of(torch.full((4,), 2 if targeted else 0), targeted=targeted)
        assert goal.is_met(logits).tolist() == [False, False, False, True]
        for loss in (CrossEntropy(goal), Margin(goal)):
            assert loss(logits).isfinite().tolist() == [False, False, False, True]
            assert torch.all(loss(logits)[:3] == -torch.inf)


def test_noisy_copy_without_logits_votes_for_no_class_and_the_error_names_the_noise() -> None:
    with pytest.raises(NonFiniteOutput, match=r"noisy copies .* \[0,1\]"):
        touchstone.certify(touchstone.wrap(InfiniteGradientAtBlack()), images()[:1], sigma=0.5, n0=20, n=100)


def test_clean_image_without_logits_is_an_error_and_not_a_result() -> None:
    x = images()
    x[1, 0, 0, 0] = 1
    with pytest.raises(NonFiniteOutput, match="for the image"):
        touchstone.attack(touchstone.wrap(NanBeside()), x, None, "fgsm", eps=0.1)
