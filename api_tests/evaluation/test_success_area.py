"""The area under an attack's success rate, as a step function of the radius."""

from __future__ import annotations

import numpy as np
import pytest

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model


def area_by_radii(d: np.ndarray, fooled: np.ndarray, largest: float) -> float:
    """The same, summed over very many radii."""
    radii = (np.arange(200_000) + 0.5) / 200_000 * largest
    reached = np.sort(d[fooled])
    return float((np.searchsorted(reached, radii, side="right") / len(d)).mean())


def test_success_area_is_zero_without_success_and_one_at_distance_zero() -> None:
    assert touchstone.success_area([0.0] * 5, [False] * 5, 0.1) == 0
    assert touchstone.success_area([0.0] * 5, [True] * 5, 0.1) == 1


def test_success_area_is_the_mean_success_over_all_radii() -> None:
    draw = np.random.default_rng(0)
    d, fooled = draw.exponential(0.05, 300), draw.random(300) < 0.7
    assert touchstone.success_area(d, fooled, 0.1) == pytest.approx(area_by_radii(d, fooled, 0.1), abs=1e-5)


def test_distances_beyond_the_largest_radius_do_not_count() -> None:
    assert touchstone.success_area([0.05, 0.3, np.inf], [True, True, True], 0.1) == pytest.approx(0.5 / 3)


def test_minimal_norm_attack_reaches_the_exact_area_on_a_linear_model() -> None:
    module, x = linear_model(classes=5), gray_images(20)
    exact = exact_distances(module, x, "l2").numpy()
    found = touchstone.attack(touchstone.wrap(module), x, None, "ddn", quantize=False)
    best = touchstone.success_area(exact, [True] * 20, 0.2)
    ours = touchstone.success_area(found.distance, found.success, 0.2)
    assert 0.97 * best < ours <= best * (1 + 1e-6)


@pytest.mark.parametrize(
    ("d", "fooled", "largest"), [([], [], 1), ([1], [True, False], 1), ([1], [True], 0), ([[1]], [[True]], 1)]
)
def test_invalid_success_area_arguments_are_refused(d: object, fooled: object, largest: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        touchstone.success_area(d, fooled, largest)  # type: ignore[arg-type]
