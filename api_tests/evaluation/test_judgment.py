"""What counts as a success: an attack is not asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone import engine
from touchstone.errors import InvalidParameter
from touchstone.methods import find

EPS = 5 / 255


def lie(monkeypatch: pytest.MonkeyPatch, name: str, made: Tensor) -> None:
    """Have an attack return these images, all of them successes by its own account."""

    def run(_attack: object, case: engine.Case) -> engine.Plan:
        yield engine.Logits(case.threat.x0)
        return engine.Found(made, torch.ones_like(case.goal.targeted), torch.full_like(case.threat.eps, 2e30))

    monkeypatch.setattr(find(name), "run", run)


def adversarial(x: Tensor, module: nn.Module, size: float) -> Tensor:
    """Each image moved by `size` in L∞ in the direction that changes a linear model's answer soonest."""
    weight = module[1].weight  # type: ignore[index]
    label = module(x).argmax(1)
    towards = (weight[1 - label] - weight[label]).sign().view_as(x).detach()
    return (x + size * towards).clamp(0, 1)


@pytest.mark.parametrize("quantize", [True, False])
def test_success_of_an_attack_that_lies_is_what_its_images_are(
    monkeypatch: pytest.MonkeyPatch, *, quantize: bool
) -> None:
    module, x = linear_model(), gray_images(5)
    distance = exact_distances(module, x, "linf")
    assert torch.all(distance < EPS)
    made = adversarial(x, module, EPS)
    made[1] = adversarial(x, module, 2 * EPS)[1]  # fools the model from outside
    made[2] = x[2]  # changes nothing
    made[3, 0, 0, 0] = torch.nan
    made[4] = torch.inf
    lie(monkeypatch, "fgsm", made)
    found = touchstone.attack(touchstone.wrap(module), x, None, "fgsm", eps=EPS, quantize=quantize)
    outside = not quantize  # a file is brought inside by the rounding
    assert found.success.tolist() == [True, not outside, False, False, False]
    assert torch.equal(found.images[3:], x[3:])
    assert found.distance[2:].tolist() == [0, 0, 0]
    assert (float(found.distance[1]) > 1.9 * EPS) == outside


@pytest.mark.parametrize("quantize", [True, False])
def test_attack_without_a_radius_may_go_far_but_not_to_nan(
    monkeypatch: pytest.MonkeyPatch, *, quantize: bool
) -> None:
    module, x = linear_model(), gray_images(3)
    made = adversarial(x, module, 0.3)
    made[1] = torch.nan
    made[2] = x[2]
    lie(monkeypatch, "ddn", made)
    found = touchstone.attack(touchstone.wrap(module), x, None, "ddn", quantize=quantize)
    assert found.success.tolist() == [True, False, False]
    assert found.images.isfinite().all()
    assert found.distance[1:].tolist() == [0, 0]


def test_success_is_measured_in_the_norm_of_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = linear_model(), gray_images(1)
    made = adversarial(x, module, EPS)
    lie(monkeypatch, "fgsm", made)
    length = float((made - x).flatten().norm())
    for eps, allowed in ((0.99 * length, False), (1.01 * length, True)):
        asked: dict[str, Any] = {"norm": "l2", "eps": eps, "quantize": False}
        assert touchstone.attack(touchstone.wrap(module), x, None, "fgsm", **asked).success.item() == allowed


@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [
        ("pgd", "linf", 0.001), ("pgd", "linf", 1 / 510), ("pgd", "linf", 0.00392156), ("pgd", "l2", 0.002),
        ("apgd", "l1", 0.003), ("square", "linf", 0.001), ("nes", "l2", 0.003), ("fgsm", "linf", 0),
    ],
)  # fmt: skip
def test_radius_below_one_level_asks_nothing_and_says_so(name: str, norm: str, eps: float) -> None:
    model, x = touchstone.wrap(linear_model()), gray_images(3)
    asked: dict[str, Any] = {"norm": norm, "eps": eps}
    asked |= {"queries": 50} if "queries" in find(name).model_fields else {}
    found = touchstone.attack(model, x, None, name, **asked)
    assert found.diagnostics == ("below_one_level",)
    assert torch.equal(found.images, x)
    assert not found.success.any()
    assert (found.queries.forward, found.queries.backward) == (2 * 3, 0)
    floats = touchstone.attack(model, x, None, name, quantize=False, **asked)
    assert floats.diagnostics == ()
    assert floats.queries.forward > 2 * 3


@pytest.mark.parametrize(("eps", "levels"), [(1 / 255, 1), ("2/255", 2), (0.031, 7)])
def test_radius_between_levels_acts_as_the_level_below(eps: float | str, levels: int) -> None:
    found = touchstone.attack(touchstone.wrap(linear_model()), gray_images(4), None, "fgsm", eps=eps)
    assert found.diagnostics == ()
    assert torch.allclose(found.distance, torch.full_like(found.distance, levels / 255))


def test_only_images_whose_radius_is_below_one_level_are_left_out() -> None:
    model, x = touchstone.wrap(linear_model()), gray_images(3)
    found = touchstone.attack(model, x, None, "pgd", eps=[0.001, 0.05, 0.001])
    assert found.success.tolist() == [False, True, False]
    assert found.diagnostics == ("below_one_level",)


def test_target_that_is_the_label_is_refused() -> None:
    model = touchstone.wrap(linear_model(classes=4))
    with pytest.raises(InvalidParameter, match="image 1") as caught:
        touchstone.attack(model, gray_images(2), [0, 1], "pgd", targets=[3, 1])
    assert caught.value.field == "targets"


def test_target_that_the_model_predicts_already_is_met_without_a_change() -> None:
    module, x = linear_model(), gray_images(3)
    found = touchstone.attack(touchstone.wrap(module), x, None, "pgd", targets=module(x).argmax(1))
    assert found.success.all()
    assert torch.equal(found.images, x)
    assert (found.queries.forward, found.queries.backward) == (2 * 3, 0)
