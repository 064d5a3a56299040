"""JSMA: the pair it changes is the best of all pairs, and it needs no table of them."""

from __future__ import annotations

import pytest
import torch

import touchstone
from api_tests.support.linear_models import gray_images, linear_model
from touchstone.attacks import jsma
from touchstone.attacks.jsma import MAX_PAIRS, best_pairs
from touchstone.errors import InvalidParameter


def best_saliency(gain, fall):
    """The saliency of the best pair of one row, from the table of all pairs."""
    gains, falls = gain[:, None] + gain, fall[:, None] + fall
    score = torch.where((gains > 0) & (falls > 0), gains * falls, 0)
    return float(score.fill_diagonal_(0).max())


def pair_saliency(pair, gain, fall):
    return float((gain[pair[0]] + gain[pair[1]]) * (fall[pair[0]] + fall[pair[1]]))


@pytest.mark.parametrize("likeness", [-1.0, -0.9, 0.0, 0.9, 1.0])
def test_chosen_pair_is_the_best_of_all_pairs(likeness):
    draw = torch.Generator().manual_seed(0)
    gain, other = torch.randn(2, 40, 30, generator=draw)
    gain = gain.round(decimals=1)  # with ties
    fall = likeness * gain + (1 - abs(likeness)) * other
    gain[:, ::5] = -torch.inf
    pairs, helps = best_pairs(gain, fall)
    for row in range(40):
        best = best_saliency(gain[row], fall[row])
        assert bool(helps[row]) == (best > 0)
        if best > 0:
            assert pairs[row, 0] != pairs[row, 1]
            assert pair_saliency(pairs[row], gain[row], fall[row]) == pytest.approx(best, rel=1e-5)


def test_best_pair_of_a_row_is_the_same_alone_and_in_a_batch():
    gain, fall = torch.randn(2, 8, 200, generator=torch.Generator().manual_seed(1))
    together, _ = best_pairs(gain, fall)
    for row in range(8):
        assert torch.equal(best_pairs(gain[row : row + 1], fall[row : row + 1])[0][0], together[row])


def test_pair_tables_stay_small_when_no_value_can_be_left_out(monkeypatch):
    count, shapes = 5000, []
    scores = jsma._saliency

    def watched(gain, fall, start, end):
        table = scores(gain, fall, start, end)
        shapes.append(table.numel())
        return table

    monkeypatch.setattr(jsma, "_saliency", watched)
    gain = torch.arange(count).float()[None]
    fall = count - gain
    pairs, helps = best_pairs(gain, fall)
    assert helps.all()
    assert pair_saliency(pairs[0], gain[0], fall[0]) == count**2
    assert len(shapes) > 1
    assert max(shapes) <= MAX_PAIRS


def test_pair_search_considers_under_200_values_of_a_photo(monkeypatch):
    shapes = []
    scores = jsma._saliency
    monkeypatch.setattr(jsma, "_saliency", lambda *asked: shapes.append(asked[0].shape) or scores(*asked))
    gain, fall = torch.randn(2, 2, 3 * 224 * 224, generator=torch.Generator().manual_seed(2))
    assert best_pairs(gain, fall)[1].all()
    assert max(shape[1] for shape in shapes) < 200


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.25])
def test_jsma_reaches_the_target_changing_at_most_gamma_of_the_values(theta):
    module = linear_model(classes=4)
    x = gray_images(16)
    target = (module(x).argmax(1) + 1) % 4
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "jsma", targets=target, theta=theta, gamma=0.3, quantize=False
    )
    assert found.success.all()
    assert torch.equal(module(found.images).argmax(1), target)
    assert torch.all(found.distance <= 0.3 * x[0].numel())
    d = found.images - x
    assert torch.all(d * theta >= 0)


def test_jsma_gives_up_after_changing_gamma_of_the_values():
    module = linear_model(classes=4)
    with torch.no_grad():
        module[1].bias[2] += 1000
    x = gray_images(4)
    found = touchstone.attack(touchstone.wrap(module), x, None, "jsma", gamma=0.1, quantize=False)
    assert not found.success.any()
    assert found.queries.backward == 4 * 2 * int(0.1 * 192 / 2)
    assert torch.all(found.distance <= 0.1 * 192)


def test_jsma_queries_a_constant_model_once_and_keeps_the_image():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0, 0.0]]) + 0 * x.flatten(1).sum(1, keepdim=True)

    found = touchstone.attack(touchstone.wrap(Constant()), gray_images(2), None, "jsma", quantize=False)
    assert not found.success.any()
    assert torch.equal(found.images, gray_images(2))
    assert found.queries.backward == 2 * 2


def test_jsma_refuses_a_theta_of_zero():
    with pytest.raises(InvalidParameter, match="changes nothing"):
        touchstone.attack(touchstone.wrap(linear_model()), gray_images(1), None, "jsma", theta=0)


def opposed(count):
    """Gains and falls of which no value surpasses another in both."""
    gain = torch.linspace(1, 0, count)[None]
    return gain, 1 - gain


@pytest.mark.parametrize("count", [jsma.MAX_CANDIDATES + 1, 3 * 512 * 512])
def test_pair_search_over_values_that_are_exactly_opposed_is_bounded(monkeypatch, count):
    tables, scores = [], jsma._saliency
    monkeypatch.setattr(
        jsma, "_saliency", lambda *asked: tables.append(scores(*asked).numel()) or scores(*asked)
    )
    gain, fall = opposed(count)
    pairs, helps = best_pairs(gain, fall)
    assert helps.all()
    assert pairs[0, 0] != pairs[0, 1]
    assert pair_saliency(pairs[0], gain[0], fall[0]) == pytest.approx(1, rel=1e-3)  # the best there is
    assert sum(tables) <= 2 * jsma.MAX_CANDIDATES**2


def test_narrowed_search_of_uneven_values_comes_near_the_best_pair(monkeypatch):
    draw = torch.Generator().manual_seed(5)
    gain = torch.rand(1, 3000, generator=draw).sort(1, descending=True).values ** 3
    fall = (torch.rand(1, 3000, generator=draw).sort(1).values) ** 2
    exact, _ = best_pairs(gain, fall)
    best = pair_saliency(exact[0], gain[0], fall[0])
    monkeypatch.setattr(jsma, "MAX_CANDIDATES", 500)
    monkeypatch.setattr(jsma, "COARSE", 100)
    near, _ = best_pairs(gain, fall)
    assert near[0, 0] != near[0, 1]
    assert pair_saliency(near[0], gain[0], fall[0]) >= 0.98 * best


@pytest.mark.parametrize("likeness", [-1.0, -0.5, 0.0, 0.9])
def test_values_are_left_out_before_sorting_without_a_change_of_the_pair(monkeypatch, likeness):
    draw = torch.Generator().manual_seed(7)
    for _ in range(20):
        gain, other = torch.randn(2, 1, 300, generator=draw).round(decimals=1)
        fall = likeness * gain + (1 - abs(likeness)) * other
        gain[:, ::7] = -torch.inf
        sorted_all = best_pairs(gain, fall)
        with monkeypatch.context() as patch:
            patch.setattr(jsma, "MANY_VALUES", 100)
            left_out = best_pairs(gain, fall)
        assert all(map(torch.equal, left_out, sorted_all))
