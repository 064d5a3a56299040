from __future__ import annotations

import warnings

import pytest
import torch

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.errors import Failure, GradientRefused, InvalidParameter, NonFiniteOutput

EPS = {"linf": 0.008, "l2": 0.08, "l1": 0.8}
ATTACKS = ["fgsm", "pgd"]


@pytest.mark.parametrize("norm", sorted(EPS))
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_succeeds_exactly_where_the_radius_exceeds_the_distance(norm, targeted):
    module = linear_model()
    x = gray_images(64)
    y = module(x).argmax(1)
    distance = exact_distances(module, x, norm)
    for factor in (0.97, 1.03):
        goal = {"targets": 1 - y} if targeted else {}
        found = touchstone.attack(
            touchstone.wrap(module), x, y, "pgd", norm=norm, eps=(factor * distance).tolist(), steps=60,
            quantize=False, **goal,
        )  # fmt: skip
        assert found.success.all() if factor > 1 else not found.success.any()
        assert torch.all(found.distance <= factor * distance + 1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_succeeds_exactly_when_radius_exceeds_distance_on_two_classes(norm):
    module = linear_model()
    x = gray_images(64)
    distance = exact_distances(module, x, norm)
    for factor in (0.999, 1.001):
        found = touchstone.attack(
            touchstone.wrap(module),
            x,
            None,
            "fgsm",
            norm=norm,
            eps=(factor * distance).tolist(),
            quantize=False,
        )
        assert found.success.all() if factor > 1 else not found.success.any()


@pytest.mark.parametrize("norm", sorted(EPS))
@pytest.mark.parametrize("attack", ATTACKS)
def test_quantized_images_are_8_bit_and_inside_ball_and_box(attack, norm):
    found = touchstone.attack(
        touchstone.wrap(linear_model()), gray_images(32), None, attack, norm=norm, eps=EPS[norm]
    )
    levels = found.images * 255
    assert torch.equal(levels, levels.round())
    assert torch.all(found.distance <= EPS[norm] * (1 + 1e-9))
    assert found.images.min() >= 0
    assert found.images.max() <= 1


def test_fgsm_changes_values_by_zero_or_two_levels_at_radius_2_255():
    found = touchstone.attack(touchstone.wrap(linear_model()), gray_images(4), None, "fgsm", eps="2/255")
    steps = ((found.images - gray_images(4)) * 255).round()
    assert set(steps.unique().tolist()) <= {-2.0, 0.0, 2.0}
    assert torch.all(found.distance <= 2 / 255)


class SmoothNetwork(torch.nn.Module):
    """A small smooth network on which no tool is privileged."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.Tanh(),
            torch.nn.Flatten(),
            torch.nn.Linear(8 * 64, 10),
        )

    def forward(self, x):
        return 4 * self.net(x)


@pytest.fixture(scope="module")
def plain():
    return SmoothNetwork().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def import_peer(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("norm", "theirs"), [("linf", "LinfFastGradientAttack"), ("l2", "L2FastGradientAttack")]
)
def test_fgsm_equals_foolbox(plain, images, norm, theirs):
    foolbox = import_peer("foolbox")
    y = plain(images).argmax(1)
    eps = {"linf": 0.03, "l2": 0.5}[norm]
    fmodel = foolbox.PyTorchModel(plain, bounds=(0, 1), device="cpu")
    raw, _, _ = getattr(foolbox.attacks, theirs)(random_start=False)(fmodel, images, y, epsilons=eps)
    found = touchstone.attack(touchstone.wrap(plain), images, y, "fgsm", norm=norm, eps=eps, quantize=False)
    assert float((found.images - raw).abs().max()) <= 1e-6


@pytest.mark.peer
@pytest.mark.parametrize("eps", [0.005, 0.01, 0.02])
def test_pgd_success_is_at_least_that_of_foolbox_and_torchattacks(plain, images, eps):
    foolbox, torchattacks = import_peer("foolbox"), import_peer("torchattacks")
    y = plain(images).argmax(1)
    steps, size = 20, 2.5 * eps / 20
    fmodel = foolbox.PyTorchModel(plain, bounds=(0, 1), device="cpu")
    _, _, theirs = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=size)(fmodel, images, y, epsilons=eps)
    other = torchattacks.PGD(plain, eps=eps, alpha=size, steps=steps)(images, y)
    ours = touchstone.attack(touchstone.wrap(plain), images, y, "pgd", eps=eps, steps=steps, quantize=False)
    assert ours.success.sum() >= theirs.sum()
    assert ours.success.sum() >= (plain(other).argmax(1) != y).sum()


def test_pgd_returns_the_first_success_even_if_later_steps_lose_it():
    class Bump(torch.nn.Module):
        """Class 1 only in a thin shell around the start: many small steps pass through it."""

        def forward(self, x):
            far = (x - 0.5).flatten(1).sum(1)
            inside = ((far > 0.04) & (far < 0.3)).float()
            return torch.stack([5 - far * 0, 10 * inside + far * 4], 1)

    x = torch.full((1, 1, 8, 8), 127.5 / 255 - 0.5 / 255)
    found = touchstone.attack(
        touchstone.wrap(Bump()), x, [0], "pgd", eps=0.1, steps=20, step_size=0.002, random_start=False,
        early_stop=False,
    )  # fmt: skip
    assert found.success.all()
    assert found.queries.backward == 20


def test_fgsm_falls_back_to_the_margin_when_cross_entropy_saturates():
    module = linear_model()
    with torch.no_grad():
        module[1].weight.mul_(1e4)
        module[1].bias.mul_(1e4)
    x = gray_images(16)
    eps = (1.05 * exact_distances(module, x, "linf")).tolist()
    found = touchstone.attack(touchstone.wrap(module), x, None, "fgsm", eps=eps, quantize=False)
    assert found.success.all()


def test_restarts_run_only_where_earlier_attempts_failed():
    module = linear_model()
    x = gray_images(8)
    distance = exact_distances(module, x, "linf")
    easy = torch.arange(8) < 6
    eps = torch.where(easy, 2 * distance, 0.2 * distance).tolist()
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "pgd", eps=eps, steps=10, restarts=3, quantize=False
    )
    assert torch.equal(found.success, easy)
    assert found.queries.backward <= 6 * 10 + 2 * 30
    assert found.queries.backward >= 2 * 30


@pytest.mark.parametrize("norm", sorted(EPS))
def test_random_start_depends_on_the_seed(norm):
    def start(**options):
        small = {"norm": norm, "eps": EPS[norm], "steps": 1, "step_size": 0, "early_stop": False}
        return touchstone.attack(
            touchstone.wrap(linear_model()), gray_images(4), None, "pgd", quantize=False, **small, **options
        ).images

    assert torch.equal(start(seed=3), start(seed=3))
    assert not torch.equal(start(seed=3), start(seed=4))
    assert torch.equal(start(seed=3, random_start=False), start(seed=4, random_start=False))


def test_without_early_stop_every_step_of_every_restart_is_run():
    found = touchstone.attack(
        touchstone.wrap(linear_model()),
        gray_images(4),
        None,
        "pgd",
        eps=0.1,
        steps=5,
        restarts=3,
        early_stop=False,
    )
    assert found.success.all()
    assert found.queries.backward == 4 * 15


def test_pgd_is_refused_on_a_black_box_model():
    with pytest.raises(GradientRefused):
        touchstone.attack(
            touchstone.wrap(linear_model(), knowledge="black-box"), gray_images(2), None, "pgd", eps=0.1
        )


def test_nan_logits_raise_non_finite_output():
    module = linear_model()
    with torch.no_grad():
        module[1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteOutput):
        touchstone.attack(touchstone.wrap(module), gray_images(2), None, "fgsm", eps=0.1)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"eps": 8}, "eps"), ({"eps": -1}, "eps"), ({"eps": "8/0"}, "eps"), ({"eps": float("nan")}, "eps"),
        ({"eps": True}, "eps"), ({"eps": "1e309"}, "eps"), ({"steps": 0}, "steps"), ({"steps": 1.5}, "steps"),
        ({"steps": 10**9}, "steps"), ({"norm": "l7"}, "norm"), ({"norm": "l0"}, "norm"),
        ({"colour": 1}, "colour"),
    ],
)  # fmt: skip
def test_invalid_parameter_error_names_the_field(parameters, field):
    with pytest.raises(InvalidParameter) as caught:
        touchstone.attack(touchstone.wrap(linear_model()), gray_images(1), None, "pgd", **parameters)
    assert caught.value.field == field


def test_radius_above_one_error_suggests_dividing_by_255():
    with pytest.raises(InvalidParameter, match="did you mean 8/255"):
        touchstone.attack(touchstone.wrap(linear_model()), gray_images(1), None, "pgd", eps=8)


@pytest.mark.parametrize("spelling", ["Linf", "inf", "L∞", "LINF", "L2", "2", 2])
def test_norm_names_are_accepted_in_the_usual_spellings(spelling):
    assert touchstone.attack(
        touchstone.wrap(linear_model()), gray_images(1), None, "fgsm", norm=spelling, eps=0.01
    )


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 3, 8), torch.full((1, 3, 8, 8), 2.0), torch.zeros(0, 3, 8, 8)]
)
def test_images_outside_the_box_or_of_another_shape_are_refused(bad):
    with pytest.raises(Failure, match="images"):
        touchstone.attack(touchstone.wrap(linear_model()), bad, None, "pgd", eps=0.1)
