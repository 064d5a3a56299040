"""The strongest of what was paid for: every step without early stopping, or a confidence to be reached."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from api_tests.support.network_ends import FIELDS, export_with_end, run_onnx
from touchstone.engine import Goal
from touchstone.errors import InvalidParameter
from touchstone.methods import FixedBudget, catalogue

ATTACKS = [
    (name, norm)
    for name, method in catalogue("attack").items()
    if issubclass(method, FixedBudget) and name not in ("transfer", "fgsm")
    for norm in method.info.norms[:2]
]
FEW: dict[str, dict[str, int]] = {
    "autoattack": {"steps": 12, "queries": 100}, "square": {"queries": 600}, "nes": {"queries": 2_000},
    "apgd": {"steps": 20}, "apgdt": {"steps": 20}, "pgd": {"steps": 20},
    "bim": {}, "mifgsm": {}, "nifgsm": {},
}  # fmt: skip
STEPS_OVER = {"linf": 6, "l2": 4}


def log_odds(module: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    """Of the wrong class, of two."""
    logits = module(x).detach()
    return (logits.gather(1, 1 - label[:, None]) - logits.gather(1, label[:, None]))[:, 0]


def scenario(norm: str) -> tuple[nn.Module, Tensor, Tensor, list[float], Tensor]:
    """A linear model of two classes, images, labels, radii of a few distances, and the largest log-odds that
    these allow: the margin falls linearly with the distance, by as much as it is over the exact distance.
    """
    module, x = linear_model(), gray_images(4)
    label, distance = module(x).argmax(1), exact_distances(linear_model(), x, norm)
    missing = -log_odds(module, x, label)
    return module, x, label, (STEPS_OVER[norm] * distance).tolist(), (STEPS_OVER[norm] - 1) * missing


@pytest.mark.parametrize(("name", "norm"), ATTACKS)
def test_without_early_stop_the_most_confident_success_is_returned(name: str, norm: str) -> None:
    module, x, label, eps, largest = scenario(norm)
    asked: dict[str, Any] = {"norm": norm, "eps": eps, **FEW[name]}
    model = touchstone.wrap(module)
    first = touchstone.attack(model, x, label, name, quantize=False, **asked)
    best = touchstone.attack(model, x, label, name, quantize=False, early_stop=False, **asked)
    assert best.success.all()
    reached = log_odds(module, best.images, label) / largest
    assert torch.all(reached <= 1 + 1e-3)
    assert torch.all(reached > (0.2 if name in ("square", "nes") else 0.9))
    assert torch.all(log_odds(module, first.images, label) <= log_odds(module, best.images, label) + 1e-3)
    assert first.queries.forward < best.queries.forward


@pytest.mark.parametrize(("name", "norm"), ATTACKS)
def test_min_confidence_is_reached_and_no_more_is_paid(name: str, norm: str) -> None:
    module, x, label, eps, largest = scenario(norm)
    asked: dict[str, Any] = {"norm": norm, "eps": eps, **FEW[name]}
    model, wanted = touchstone.wrap(module), float(torch.sigmoid(0.3 * largest.min()))
    found = touchstone.attack(model, x, label, name, quantize=False, min_confidence=wanted, seed=4, **asked)
    assert torch.all(torch.sigmoid(log_odds(module, found.images, label)) >= wanted - 1e-6)
    everything = touchstone.attack(model, x, label, name, quantize=False, early_stop=False, seed=4, **asked)
    assert found.queries.forward < everything.queries.forward


@pytest.mark.parametrize("restarts", [1, 3])
def test_confidence_is_that_of_the_file_and_unreachable_ones_leave_the_strongest(restarts: int) -> None:
    model, x = touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:12]
    asked: dict[str, Any] = {"eps": "6/255", "steps": 10, "restarts": restarts}
    first = touchstone.attack(model, x, None, "pgd", **asked)
    wanted = touchstone.attack(model, x, None, "pgd", min_confidence=0.8, **asked)
    strongest = touchstone.attack(model, x, None, "pgd", early_stop=False, **asked)
    goal = Goal.of(predict(model, x).argmax(1), targeted=False)
    confidence = [goal.log_odds(predict(model, one.images)).sigmoid() for one in (first, wanted, strongest)]
    fooled = first.success
    assert 0 < fooled.sum() < len(fooled)
    assert torch.equal(wanted.success, fooled)
    assert torch.all(strongest.success >= fooled)
    reached, possible = confidence[1][fooled] >= 0.8, confidence[2][fooled] >= 0.8
    assert torch.equal(reached, possible)
    assert reached.any()
    assert not reached.all()
    if restarts == 1:  # else the noise of later attempts differs
        assert torch.allclose(confidence[1][fooled][~reached], confidence[2][fooled][~reached])


def predict(model: touchstone.Model, x: Tensor) -> Tensor:
    logits: Tensor = model.oracle.module(model.oracle.preprocessing.apply_to_files(x)).detach()
    return logits


@pytest.mark.peer
def test_pgd_without_early_stop_is_as_confident_as_torchattacks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchattacks = pytest.importorskip("torchattacks")
    model, x = touchstone.load("fashion-mnist-cnn-linf"), touchstone.samples()[:40]

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = model.oracle.module(model.oracle.preprocessing.apply(x))
            return logits

    label = predict(model, x).argmax(1)
    torch.manual_seed(0)
    theirs = torchattacks.PGD(Whole().eval(), eps=0.1, alpha=0.01, steps=40)(x, label)
    ours = touchstone.attack(
        model, x, label, "pgd", eps=0.1, step_size=0.01, steps=40, early_stop=False, quantize=False
    )
    goal = Goal.of(label, targeted=False)
    confident = [goal.log_odds(predict(model, one)).sigmoid().mean() for one in (ours.images, theirs)]
    assert confident[0] >= confident[1]


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, float("nan"), "much", True])
def test_confidence_outside_of_0_and_1_is_refused(value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        touchstone.attack(touchstone.wrap(linear_model()), gray_images(1), None, "pgd", min_confidence=value)
    assert caught.value.field == "min_confidence"


def test_log_odds_are_those_of_the_softmax_and_do_not_saturate() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 60.0], [3.0, 1.0, 1.0]])
    likely = torch.softmax(logits.double(), 1)
    untargeted = Goal.of(torch.zeros(3, dtype=torch.long), targeted=False).log_odds(logits)
    targeted = Goal.of(torch.ones(3, dtype=torch.long), targeted=True).log_odds(logits)
    assert torch.allclose(targeted.sigmoid().double(), likely[:, 1], atol=1e-6)
    assert torch.allclose(untargeted.sigmoid().double(), likely[:, 1:].amax(1), atol=1e-6)
    assert torch.isclose(untargeted[1], torch.tensor(60.0) - torch.tensor(2.0).log())


def test_min_confidence_is_that_which_the_network_answers(tmp_path: Path) -> None:
    """With a sigmoid at its end, a network's confidences do not add up to one."""
    (tmp_path / "net.onnx").write_bytes(data := export_with_end(lambda z: torch.sigmoid(0.3 * z)))
    model = touchstone.load(tmp_path / "net.onnx", manifest=FIELDS, device="cpu")
    x = touchstone.samples()[:3]
    label = torch.from_numpy(run_onnx(data, x)).argmax(1)
    for wanted in (0.6, 0.8):
        found = touchstone.attack(model, x, label, "pgd", eps=0.2, min_confidence=wanted)
        shown = torch.from_numpy(run_onnx(data, found.images)).scatter(1, label[:, None], 0).amax(1)
        assert torch.all(shown >= wanted - 1e-4)
        assert torch.all(shown < wanted + 0.25)
