"""Plans around plans: what they let through, and what they answer instead."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.engine import (
    NORMS,
    CrossEntropy,
    CustomLoss,
    Goal,
    Gradient,
    Jacobian,
    Logits,
    average_gradients,
    restrict,
)
from touchstone.engine.diagnosis import Diagnosis
from touchstone.engine.noise import Noise
from touchstone.engine.plans import diagnose, rewrite_queries
from touchstone.engine.queries import Found
from touchstone.engine.search.rounding import round_to_success
from touchstone.engine.threat import Case, Threat
from touchstone.errors import GradientRefused, JobCanceled
from touchstone.evaluation import run_plans
from touchstone.evaluation.verdict import logits_of


@pytest.fixture
def model():
    return touchstone.wrap(linear_model(classes=5))


def query_gradient(x, times=1):
    loss = CrossEntropy(Goal.of(torch.zeros(len(x), dtype=torch.long), targeted=False))
    answers = []
    for _ in range(times):
        answers.append((yield Gradient(x, loss)))
    return answers[-1]


def test_restricted_plan_is_refused_gradients(model):
    with pytest.raises(GradientRefused):
        run_plans([restrict(query_gradient(gray_images(2)), "scores")], model.oracle)


def test_decision_based_plan_sees_only_the_predicted_class(model):
    x = gray_images(4)
    (scores, hidden), _ = run_plans(
        [logits_of(x, as_files=False), restrict(logits_of(x, as_files=False), "decisions")], model.oracle
    )
    assert torch.equal(hidden.argmax(1), scores.argmax(1))
    assert set(hidden.unique().tolist()) == {0.0, 1.0}


def test_plan_cannot_exceed_its_query_budget(model):
    assert run_plans([restrict(logits_of(gray_images(4), as_files=False), "scores", 4)], model.oracle)
    with pytest.raises(RuntimeError, match="budget of queries"):
        run_plans([restrict(logits_of(gray_images(4), as_files=False), "scores", 3)], model.oracle)


def test_cancellation_reaches_an_inner_plan_through_a_query_rewrite():
    def inner():
        try:
            yield Logits(torch.zeros(1))
        except JobCanceled:
            return "the best so far"

    outer = rewrite_queries(inner(), lambda question: (yield question))
    next(outer)
    with pytest.raises(StopIteration) as end:
        outer.throw(JobCanceled("now"))
    assert end.value.value == "the best so far"


class RandomlyScaledModel(nn.Module):
    """A linear model whose logits are scaled by another random factor in each pass."""

    def __init__(self):
        super().__init__()
        self.linear = linear_model(classes=5)
        self.draw = torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.linear(x) * (1 + torch.rand(1, generator=self.draw) - 0.5)


def test_eot_gradient_approximates_the_mean_gradient():
    x = gray_images(1)
    shaky = touchstone.wrap(RandomlyScaledModel())
    loss = CustomLoss(first_logit, torch.zeros(1))

    def plan():
        return (yield Gradient(x, loss)).grad

    (mean,), counted = run_plans([average_gradients(plan(), 400)], shaky.oracle)
    weight = shaky.oracle.module.linear[1].weight[0]
    assert torch.allclose(mean.flatten(), weight, atol=0.03 * float(weight.abs().max()))
    assert counted.backward == 400


def first_logit(logits, _row):
    return logits[:, 0]


def weighted_logit(logits, weight):
    return logits[:, 0] * weight


def test_plans_sharing_a_loss_function_get_their_own_gradients_row_by_row(model):
    x = gray_images(3)

    def plan(weight):
        return (yield Gradient(x, CustomLoss(weighted_logit, weight))).grad

    weights = [torch.tensor([1.0, 2, 3]), torch.tensor([5.0, 5, 5])]
    together, _ = run_plans([plan(weight) for weight in weights], model.oracle)
    base = model.oracle.module[1].weight[0].view(1, 3, 8, 8)
    for grads, weight in zip(together, weights, strict=True):
        assert torch.allclose(grads, base * weight.view(-1, 1, 1, 1), rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "fashion-mnist-cnn"])
def test_jacobian_holds_the_gradient_of_each_class_margin(name, model):
    if name != "linear":
        model, x = touchstone.load(name), touchstone.samples()[:3]
    else:
        x = gray_images(3)
    classes, label = torch.tensor([[0, 1, 4], [2, 2, 0], [4, 3, 1]]), torch.tensor([3, 4, 0])

    def jacobian():
        return (yield Jacobian(x, classes, label))

    def one(column):
        return (yield Gradient(x, CustomLoss(class_margin, classes[:, column], label)))

    (whole, *columns), counted = run_plans([jacobian(), *(one(i) for i in range(3))], model.oracle)
    assert whole.grad.shape == (3, 3, *x.shape[1:])
    for i, column in enumerate(columns):
        assert torch.allclose(whole.grad[:, i], column.grad, atol=1e-5 * float(column.grad.abs().max()))
    assert (counted.forward, counted.backward) == (3 + 9, 9 + 9)


def class_margin(logits, classes, label):
    return (logits.gather(1, classes[:, None]) - logits.gather(1, label[:, None]))[:, 0]


def test_rounding_finds_a_nearby_misclassified_8_bit_image():
    module = linear_model(classes=5)
    x = gray_images(8)
    model = touchstone.wrap(module)
    label = module(x).argmax(1)
    goal = Goal.of(label, targeted=False)
    threat = Threat(x, torch.full((8,), torch.inf), NORMS["l2"])
    case = Case(threat, goal, Noise.from_seeds([(0, i) for i in range(8)], "t"))
    exact = exact_distances(module, x, "l2").float()
    second = module(x).scatter(1, label[:, None], -torch.inf).argmax(1)
    weight = module[1].weight
    direction = weight[second] - weight[label]
    step = (exact * 1.001 / direction.norm(dim=1))[:, None] * direction
    found = Found((x.flatten(1) + step).view_as(x), torch.ones(8, dtype=torch.bool))
    (files,), _ = run_plans([round_to_success(case, found)], model.oracle)
    assert torch.equal((files * 255).round() / 255, files)
    assert torch.all(module(files).argmax(1) != label)
    reached = threat.distance(files)
    assert float((reached / exact).median()) < 2.5  # a level of 1/255 is coarse beside such distances


def test_zero_gradients_are_diagnosed():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.softmax(1e4 * x.flatten(1)[:, :5].round(), 1)

    diagnosis = Diagnosis()
    run_plans([diagnose(query_gradient(gray_images(2)), diagnosis)], touchstone.wrap(Flat()).oracle)
    assert diagnosis.codes() == ["zero_gradient"]
    diagnosis = Diagnosis()
    run_plans(
        [diagnose(query_gradient(gray_images(2)), diagnosis)], touchstone.wrap(linear_model(classes=5)).oracle
    )
    assert diagnosis.codes() == []
