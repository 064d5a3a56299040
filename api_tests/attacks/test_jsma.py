"""JSMA: the pair it changes is the best of all pairs, and it needs no table of them."""

from __future__ import annotations

import pytest
import torch

import touchstone
from api_tests.support.linear_models import greyish, linear_model
from touchstone.attacks import jsma
from touchstone.attacks.jsma import TABLE, best_pairs
from touchstone.errors import InvalidParameter


def best_of_all(gain, fall):
    """The saliency of the best pair of one row, from the table of all pairs."""
    gains, falls = gain[:, None] + gain, fall[:, None] + fall
    score = torch.where((gains > 0) & (falls > 0), gains * falls, 0)
    return float(score.fill_diagonal_(0).max())


def score_of(pair, gain, fall):
    return float((gain[pair[0]] + gain[pair[1]]) * (fall[pair[0]] + fall[pair[1]]))


@pytest.mark.parametrize("likeness", [-1.0, -0.9, 0.0, 0.9, 1.0])
def test_the_pair_is_the_best_of_all_pairs(likeness):
    draw = torch.Generator().manual_seed(0)
    gain, other = torch.randn(2, 40, 30, generator=draw)
    gain = gain.round(decimals=1)  # with ties
    fall = likeness * gain + (1 - abs(likeness)) * other
    gain[:, ::5] = -torch.inf
    pairs, helps = best_pairs(gain, fall)
    for row in range(40):
        best = best_of_all(gain[row], fall[row])
        assert bool(helps[row]) == (best > 0)
        if best > 0:
            assert pairs[row, 0] != pairs[row, 1]
            assert score_of(pairs[row], gain[row], fall[row]) == pytest.approx(best, rel=1e-5)


def test_a_row_alone_has_the_pair_that_it_has_among_others():
    gain, fall = torch.randn(2, 8, 200, generator=torch.Generator().manual_seed(1))
    together, _ = best_pairs(gain, fall)
    for row in range(8):
        assert torch.equal(best_pairs(gain[row : row + 1], fall[row : row + 1])[0][0], together[row])


def test_tables_stay_small_even_if_no_value_can_be_left_out(monkeypatch):
    count, shapes = 5000, []
    scores = jsma._scores

    def watched(gain, fall, start, end):
        table = scores(gain, fall, start, end)
        shapes.append(table.numel())
        return table

    monkeypatch.setattr(jsma, "_scores", watched)
    gain = torch.arange(count).float()[None]
    fall = count - gain
    pairs, helps = best_pairs(gain, fall)
    assert helps.all()
    assert score_of(pairs[0], gain[0], fall[0]) == count**2
    assert len(shapes) > 1
    assert max(shapes) <= TABLE


def test_a_photograph_needs_few_pairs(monkeypatch):
    shapes = []
    scores = jsma._scores
    monkeypatch.setattr(jsma, "_scores", lambda *asked: shapes.append(asked[0].shape) or scores(*asked))
    gain, fall = torch.randn(2, 2, 3 * 224 * 224, generator=torch.Generator().manual_seed(2))
    assert best_pairs(gain, fall)[1].all()
    assert max(shape[1] for shape in shapes) < 200


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.25])
def test_the_target_is_reached_within_the_share_of_values(theta):
    module = linear_model(classes=4)
    x = greyish(16)
    target = (module(x).argmax(1) + 1) % 4
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "jsma", targets=target, theta=theta, gamma=0.3, quantize=False
    )
    assert found.success.all()
    assert torch.equal(module(found.images).argmax(1), target)
    assert torch.all(found.distance <= 0.3 * x[0].numel())
    d = found.images - x
    assert torch.all(d * theta >= 0)


def test_the_share_of_values_bounds_the_search():
    module = linear_model(classes=4)
    with torch.no_grad():
        module[1].bias[2] += 1000
    x = greyish(4)
    found = touchstone.attack(touchstone.wrap(module), x, None, "jsma", gamma=0.1, quantize=False)
    assert not found.success.any()
    assert found.queries.backward == 4 * 2 * int(0.1 * 192 / 2)
    assert torch.all(found.distance <= 0.1 * 192)


def test_a_constant_model_is_not_fooled_and_asked_once():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0, 0.0]]) + 0 * x.flatten(1).sum(1, keepdim=True)

    found = touchstone.attack(touchstone.wrap(Constant()), greyish(2), None, "jsma", quantize=False)
    assert not found.success.any()
    assert torch.equal(found.images, greyish(2))
    assert found.queries.backward == 2 * 2


def test_a_change_of_nothing_is_refused():
    with pytest.raises(InvalidParameter, match="changes nothing"):
        touchstone.attack(touchstone.wrap(linear_model()), greyish(1), None, "jsma", theta=0)
