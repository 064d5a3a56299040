"""Attacks that are crafted on other models: what they ask of whom, and that they get across."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import touchstone
from api_tests.support.linear_models import gray_images, linear_model
from touchstone import engine, evaluation
from touchstone.attacks.transfer import Transfer, _blur, _diversify
from touchstone.engine.noise import Noise
from touchstone.engine.norms import NORMS
from touchstone.engine.quantization import to_pixels
from touchstone.engine.threat import Case, Threat
from touchstone.errors import InvalidParameter, UnknownModel
from touchstone.evaluation.verdict import attack_image
from touchstone.methods.compatibility import resolve_parameters
from touchstone.models import zoo
from touchstone.models.store import ZOO

PLAIN = {"diversity": 0.0, "blur": 0.0}


@pytest.fixture
def images() -> Any:
    return touchstone.samples()[:40]


def test_transfer_queries_the_target_only_for_the_verdict() -> None:
    x = gray_images(5)
    target = touchstone.wrap(linear_model(classes=5), knowledge="black-box")
    surrogates = [touchstone.wrap(linear_model(classes=5, seed=seed)) for seed in (1, 2)]
    found = touchstone.attack(target, x, None, "transfer", eps=0.05, steps=7, surrogates=surrogates)
    assert (found.queries.backward, found.queries.surrogate) == (0, 5 * 7 * 2)
    assert found.queries.forward == 3 * 5  # the clean query, the query of the result, the verdict


def test_transfer_from_an_identical_model_equals_attacking_the_target() -> None:
    x = gray_images(20)
    target = touchstone.wrap(linear_model(classes=5))
    asked = {"eps": 0.02, "steps": 10}
    own = touchstone.attack(target, x, None, "mifgsm", early_stop=False, **asked)
    twin = [touchstone.wrap(linear_model(classes=5))]
    across = touchstone.attack(target, x, None, "transfer", surrogates=twin, **asked, **PLAIN)
    assert torch.equal(own.success, across.success)
    assert float(across.success.float().mean()) > 0


@pytest.mark.parametrize("targeted", [False, True])
def test_transfer_follows_the_margin_of_a_saturated_surrogate(*, targeted: bool) -> None:
    x, module, sure = gray_images(6), linear_model(classes=5), linear_model(classes=5)
    with torch.no_grad():
        sure[1].weight.mul_(1e4)
        sure[1].bias.mul_(1e4)
    label = module(x).argmax(1)
    goal = {"targets": (label + 1) % 5} if targeted else {}
    found = touchstone.attack(
        touchstone.wrap(module), x, label, "transfer", eps=0.1, surrogates=[touchstone.wrap(sure)], **goal
    )
    assert found.success.all()
    assert found.queries.surrogate <= 6 * Transfer().cost().backward


def test_surrogate_without_gradients_adds_no_diagnostics_of_the_target() -> None:
    class Deaf(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0, 0, 0, 0]]) + 0 * x.flatten(1)[:, :1]

    target = touchstone.wrap(linear_model(classes=5)).oracle
    pixels = to_pixels(gray_images(1)[0]).permute(1, 2, 0).numpy()
    plan = attack_image(
        Transfer(),
        pixels,
        target,
        label=None,
        target=None,
        seed=0,
        surrogates=[touchstone.wrap(Deaf()).oracle],
    )
    (verdict,), _ = evaluation.run_plans([plan], target)
    assert not verdict.success_float
    assert verdict.diagnostics == []


def test_transfer_succeeds_between_separately_trained_networks(images: Any) -> None:
    target = touchstone.load("fashion-mnist-cnn")
    surrogates = [touchstone.load("fashion-mnist-cnn-noise-0.25"), touchstone.load("fashion-mnist-cnn-linf")]
    blind = touchstone.attack(target, images, None, "transfer", eps=0.1, surrogates=surrogates)
    assert float(blind.success.float().mean()) > 0.6
    noise = (
        images + 0.1 * (torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).sign()
    )
    logits, moved = (target.oracle.answer([engine.Logits(x)])[0].logits for x in (images, noise.clamp(0, 1)))
    by_chance = (logits.argmax(1) != moved.argmax(1)).float().mean()
    assert float(blind.success.float().mean()) > 2 * float(by_chance)


def test_gradients_are_pulled_back_exactly_through_input_diversity() -> None:
    x = torch.rand(3, 2, 12, 10, dtype=torch.float64)
    goal = engine.Goal.of(torch.zeros(3, dtype=torch.long), targeted=False)
    case = Case(
        Threat(x, torch.ones(3), NORMS["linf"]), goal, Noise.from_seeds([(0, i) for i in range(3)], "t")
    )
    transformed, back = _diversify(case, x, 1.0, 0.6)
    weight = torch.rand_like(transformed)
    pulled = back(weight)
    # The map is linear: the pulled-back weight tells how the weighted sum changes with every pixel.
    assert float((pulled * x).sum()) == pytest.approx(float((weight * transformed).sum()), rel=1e-9)
    assert not torch.equal(transformed, x)


def test_blur_keeps_sums_and_spreads_a_point_as_a_gaussian() -> None:
    point = torch.zeros(1, 2, 31, 31)
    point[0, 0, 15, 15] = 1
    blurred = _blur(point, 2.0)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    assert float(blurred[0, 0, 15, 17] / blurred[0, 0, 15, 15]) == pytest.approx(2.718281828**-0.5, rel=1e-4)
    assert not blurred[0, 1].any()


@pytest.mark.parametrize(
    ("surrogate", "error"),
    [("nothing", UnknownModel), ("imagenet-efficientnet-lite0", InvalidParameter)],
)
def test_unknown_or_incompatible_surrogates_are_refused(surrogate: str, error: type[Exception]) -> None:
    asked = Transfer.parse({"surrogate": surrogate})
    with pytest.raises(error):
        resolve_parameters(asked, zoo.find_manifest("fashion-mnist-cnn"), ZOO)


def test_default_surrogates_are_the_other_models_with_the_same_classes() -> None:
    chosen = resolve_parameters(Transfer(), zoo.find_manifest("fashion-mnist-cnn"), ZOO)
    clothes = {name for name in zoo.manifests() if name.startswith("fashion-mnist-cnn-")}
    assert set(chosen.surrogate) == clothes
    with pytest.raises(InvalidParameter, match="no other model"):
        resolve_parameters(Transfer(), zoo.find_manifest("imagenet-efficientnet-lite0"), ZOO)


def test_surrogates_are_read_from_a_comma_separated_string() -> None:
    asked = Transfer.model_validate({"surrogate": "a, b"})
    assert asked.surrogate == ("a", "b")
    assert asked.cost().backward == 2 * 2 * asked.steps  # at worst two gradients of each
