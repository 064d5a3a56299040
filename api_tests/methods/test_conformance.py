"""Checks that every method of the catalogue must pass; a new one is tested by being there."""

from __future__ import annotations

import copy

import pytest
import torch

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.engine import NORMS
from touchstone.engine.search.rounding import MAX_ROUNDING_QUERIES
from touchstone.methods import FixedBudget, MinimalNorm, build_card, catalogue, find, total_cost

MIN_SUCCESS = {("fgsm", "l1"): 0.5, ("onepixel", "l0"): 0.3}
"""The share of targets within reach of attacks that change little."""
EPS = {"linf": 0.01, "l2": 0.1, "l1": 1.0, "l0": 2}
QUERIES = {"zoo": 4_000}
"""Those of attacks that do not get far with 400."""
CASES = [(name, norm) for name, method in catalogue("attack").items() for norm in method.info.norms]
pytestmark = pytest.mark.parametrize(("name", "norm"), CASES)


SURROGATE = touchstone.wrap(linear_model(classes=10))


def attack(model, x, labels, name, **asked):
    """Attack; where a method crafts on surrogates, one that is like the model."""
    surrogates = [SURROGATE] if "surrogate" in find(name).model_fields else []
    return touchstone.attack(model, x, labels, name, surrogates=surrogates, **asked)


def small_budget(name, norm):
    """The norm and, where a method has one, a small radius; few queries, where a method counts them."""
    fields = find(name).model_fields
    asked = {"norm": norm, "eps": EPS[norm], "queries": QUERIES.get(name, 400)}
    return {field: value for field, value in asked.items() if field in fields}


def few_steps(name):
    """Few steps and queries, where a method counts them."""
    asked = {"steps": 3, "inner_steps": 2, "queries": 60}
    return {field: value for field, value in asked.items() if field in find(name).model_fields}


def short_run(name, norm):
    """The small budget, and where a method counts steps, enough of them to get somewhere."""
    asked = {"steps": 15, "binary_search_steps": 3}
    short = {field: value for field, value in asked.items() if field in find(name).model_fields}
    return small_budget(name, norm) | short


@pytest.fixture(scope="module")
def module():
    return torch.nn.Sequential(linear_model(classes=10), torch.nn.Dropout(0.5)).train()


@pytest.fixture(scope="module")
def model(module):
    return touchstone.wrap(module, classes=[f"class {i}" for i in range(10)])


class BatchInvariantModel(torch.nn.Module):
    """The same function, with answers to a row that are equal bit for bit in any batch."""

    def __init__(self):
        super().__init__()
        layer = linear_model(classes=10)[1].double()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x):
        return ((x.flatten(1).double()[:, None] * self.weight).sum(2) + self.bias).float()


@pytest.fixture(scope="module")
def batch_invariant_model():
    return touchstone.wrap(BatchInvariantModel())


def test_perturbation_stays_in_ball_and_box_after_rounding(model, name, norm):
    x = torch.cat([gray_images(8), torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    asked = small_budget(name, norm)
    found = attack(model, x, None, name, **asked)
    d = NORMS[norm].size(found.images.double() - x.double())
    assert torch.allclose(d, found.distance, atol=1e-6)
    assert torch.all(found.distance <= asked.get("eps", torch.inf) * (1 + 1e-9))
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    assert torch.equal((found.images * 255).round() / 255, found.images)


def test_radius_of_zero_changes_nothing(model, name, norm):
    if not issubclass(find(name), FixedBudget):
        return
    x = gray_images(4)
    small = {**small_budget(name, norm), "eps": 0}
    for quantize in (True, False):
        found = attack(model, x, None, name, quantize=quantize, **small)
        assert torch.allclose(found.images, x, atol=1e-7)
        assert not found.success.any()
        assert torch.all(found.distance < 1e-6)


def test_same_seed_gives_the_same_images(model, name, norm):
    x = gray_images(4)
    runs = [attack(model, x, None, name, seed=s, quantize=False, **short_run(name, norm)) for s in (3, 3)]
    assert torch.equal(runs[0].images, runs[1].images)


def test_row_result_is_the_same_alone_and_in_a_batch(batch_invariant_model, name, norm):
    x = gray_images(6)
    seeds = list(range(10, 16))
    together = attack(batch_invariant_model, x, None, name, seed=seeds, **short_run(name, norm))
    for i in (0, 3, 5):
        alone = attack(
            batch_invariant_model, x[i : i + 1], None, name, seed=[seeds[i]], **short_run(name, norm)
        )
        assert torch.equal(alone.success, together.success[i : i + 1])
        assert torch.allclose(alone.images, together.images[i : i + 1], atol=1.5 / 255)
        assert float((alone.images != together.images[i : i + 1]).float().mean()) < 0.02


def test_resolved_defaults_give_the_same_result_as_explicit_parameters(batch_invariant_model, name, norm):
    asked = find(name).parse(small_budget(name, norm))
    decided = asked.resolve_defaults(10)
    explicit = asked.model_copy(update=decided).model_dump(mode="json")
    assert [field for field, value in explicit.items() if value is None] in ([], ["min_confidence"])
    assert find(name).parse(explicit).model_dump(mode="json") == explicit
    if decided:
        open_, closed = (
            attack(batch_invariant_model, gray_images(4), None, name, **one)
            for one in (small_budget(name, norm), explicit)
        )
        assert torch.equal(open_.success, closed.success)
        assert torch.allclose(open_.images, closed.images, atol=1.5 / 255)


def test_targeted_attack_reaches_its_target(model, module, name, norm):
    if not find(name).info.targeted:
        return
    x = gray_images(6)
    label = module.eval()(x).argmax(1)
    module.train()
    target = (label + 1) % 10
    wide = small_budget(name, norm)
    if "eps" in wide:
        wide["eps"] *= 20
    found = attack(model, x, None, name, targets=target, **wide)
    module.eval()
    assert found.success.float().mean() >= MIN_SUCCESS.get((name, norm), 1)
    assert torch.equal(module(found.images).argmax(1) == target, found.success)
    module.train()


def test_success_agrees_with_the_model_on_the_returned_images(model, module, name, norm):
    x = gray_images(16)
    label = module.eval()(x).argmax(1)
    found = attack(model, x, label, name, **small_budget(name, norm))
    assert torch.equal(module(found.images).argmax(1) != label, found.success)
    module.train()


def test_queried_images_stay_inside_the_box(name, norm):
    linear, ends = linear_model(classes=10), []

    class Watched(torch.nn.Module):
        def forward(self, x):
            ends.extend(map(float, x.detach().aminmax()))
            return linear(x)

    x = torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), gray_images(1).round()])
    attack(touchstone.wrap(Watched()), x, None, name, **{**small_budget(name, norm), **few_steps(name)})
    assert ends
    assert all(0 <= end <= 1 for end in ends)


def test_misclassified_images_are_returned_unchanged(model, module, name, norm):
    x = gray_images(4)
    wrong = (module.eval()(x).argmax(1) + 1) % 10
    module.train()
    found = attack(model, x, wrong, name, **small_budget(name, norm))
    assert found.success.all()
    assert torch.equal(found.images, x)
    assert not found.distance.any()


def test_declared_query_bound_holds(model, name, norm):
    method = find(name).parse(small_budget(name, norm))
    rounding = MAX_ROUNDING_QUERIES if isinstance(method, MinimalNorm) else 0
    for early_stop in (True, False) if isinstance(method, FixedBudget) else (None,):
        asked = small_budget(name, norm) | ({} if early_stop is None else {"early_stop": early_stop})
        found = attack(model, gray_images(1), None, name, **asked)
        cost = total_cost(find(name).parse(asked))
        assert found.queries.forward <= cost.forward + rounding + 2  # the clean look and the verdict
        assert found.queries.backward <= cost.backward


def test_declared_query_bound_holds_for_a_robust_image(name, norm):
    module, asked = linear_model(classes=10), {**small_budget(name, norm), **few_steps(name)}
    with torch.no_grad():
        module[1].bias[0] += 1e5
    found = attack(touchstone.wrap(module), gray_images(1), None, name, **asked)
    cost = total_cost(find(name).parse(asked))
    assert not found.success.any()
    assert found.queries.forward <= cost.forward + 2  # the clean look and the verdict
    assert found.queries.backward <= cost.backward


def test_eot_on_a_deterministic_model_only_costs_more_gradients(model, name, norm):
    if find(name).info.access != "gradients":
        assert "eot" not in find(name).model_fields
        return
    few = {"steps": 5} if "steps" in find(name).model_fields else {}
    x, asked = gray_images(1), small_budget(name, norm) | few
    once = attack(model, x, None, name, **asked)
    twice = attack(model, x, None, name, eot=2, **asked)
    assert twice.queries.backward == 2 * once.queries.backward
    assert torch.equal(twice.images, once.images)


def test_black_box_method_needs_no_gradient_and_keeps_its_budget(module, name, norm):
    if find(name).info.access == "gradients":
        return
    blind = touchstone.wrap(module, knowledge="black-box")
    asked = small_budget(name, norm)
    found = attack(blind, gray_images(3), None, name, **asked)
    assert found.queries.backward == 0
    if "queries" in asked:
        rounding = MAX_ROUNDING_QUERIES if issubclass(find(name), MinimalNorm) else 0
        assert found.queries.forward <= 3 * (asked["queries"] + rounding + 2)


def test_minimal_norm_method_finds_nearly_the_exact_distance(module, name, norm):
    method = find(name)
    if not issubclass(method, MinimalNorm) or method.info.access != "gradients" or norm == "l0":
        return
    x = gray_images(6)
    linear = module.eval()[0]
    exact = exact_distances(linear, x, norm)
    found = attack(touchstone.wrap(linear), x, None, name, norm=norm, quantize=False)
    module.train()
    assert found.success.all()
    assert torch.all(found.distance >= exact * (1 - 1e-4))
    assert float((found.distance / exact).median()) < 1.1


def test_attack_leaves_the_callers_model_images_and_random_state_unchanged(module, name, norm):
    x = gray_images(3)
    before, weights = x.clone(), copy.deepcopy(module.state_dict())
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    attack(touchstone.wrap(module), x, None, name, **small_budget(name, norm))
    assert torch.equal(torch.rand(3), expected), "the global random generator moved"
    assert module.training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert torch.equal(x, before)
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), weights.values(), strict=True))
    assert torch.is_grad_enabled()


def test_method_card_is_complete(name, norm):
    shown = build_card(find(name))
    assert norm in shown["norms"]
    assert len(shown["description"]) > 80
    assert shown["paper"]["url"].startswith("https://")
    fields = shown["schema"]["properties"]
    assert all(field.get("description") for field in fields.values())
    assert find(name).parse(shown["example"])
