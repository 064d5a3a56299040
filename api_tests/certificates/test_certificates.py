"""Certificates against classifiers whose truth is known."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal

import touchstone
from api_tests.support.linear_models import greyish, linear_model
from touchstone.engine import RULES, Batcher, Counts, Noisy, Stopping, Stream, Subject, Task, counted
from touchstone.errors import BatchDependent, Canceled, DeadlineExceeded, InvalidParameter
from touchstone.evaluation import run_here


class Constant(torch.nn.Module):
    def forward(self, x):
        return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3)


class Toss(torch.nn.Module):
    """Two classes, either with probability one half under symmetric noise around mid-grey."""

    def forward(self, x):
        s = (x - 0.5).flatten(1).sum(1)
        return torch.stack([s, -s], 1)


def true_radius(module, x):
    """Of a linear model with two classes: the distance to the hyperplane."""
    weight = (module[1].weight[0] - module[1].weight[1]).double()
    z = module.double()(x.double())
    module.float()
    return ((z[:, 0] - z[:, 1]).abs() / weight.norm()).detach()


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_radius_of_a_linear_model_is_never_exceeded_and_nearly_reached(rule):
    module = linear_model(shape=(1, 8, 8))
    x = greyish(40, shape=(1, 8, 8))
    truth = true_radius(module, x)
    cert = touchstone.certify(touchstone.wrap(module), x, "smoothing", sigma=0.25, n=3000, rule=rule)
    assert torch.all(cert.radius <= truth)
    assert torch.equal(cert.label, module(x).argmax(1)) or cert.abstained.any()
    within_reach = (truth > 0.05) & (truth < 0.4)
    assert torch.all(cert.radius[within_reach] > truth[within_reach] - 0.045)


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("target", [None, 0.1])
def test_false_certificates_stay_within_alpha(rule, target):
    """2,000 runs of votes whose probability is exactly known, at the radius where the answer changes."""
    alpha, sigma, runs, n = 0.01, 0.25, 2_000, 1_000
    p = float(normal.cdf(0.1 / sigma))  # the true radius is 0.1
    stop = Stopping(RULES[rule], n, alpha, sigma, target)
    draw = np.random.default_rng(3)
    false = 0
    for _ in range(runs):
        sums = np.cumsum(draw.random(n) < p)
        for at in stop.rule.looks(n):
            reason = stop.reason(int(sums[at - 1]), at)
            if reason:
                break
        lower = stop.lower(int(sums[at - 1]), at)
        false += lower > p if target is None else reason == "certified"
    assert false / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


def test_a_constant_classifier_has_the_largest_radius_there_is():
    x = greyish(1, shape=(1, 8, 8))
    cert = touchstone.certify(touchstone.wrap(Constant()), x, "smoothing", sigma=0.5, n=2000, rule="fixed")
    assert float(cert.radius) == pytest.approx(0.5 * normal.ppf(0.001 ** (1 / 2000)), rel=1e-6)
    assert int(cert.label) == 1
    assert int(cert.n_used) == 2000


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_coin_toss_abstains(rule):
    x = torch.full((30, 1, 8, 8), 0.5)
    cert = touchstone.certify(touchstone.wrap(Toss()), x, "smoothing", sigma=0.25, n=500, rule=rule)
    assert cert.abstained.sum() >= 29
    assert torch.all(cert.radius[cert.abstained] == 0)


def test_a_target_needs_far_fewer_samples():
    x = greyish(4, shape=(1, 8, 8))
    cert = touchstone.certify(
        touchstone.wrap(Constant()), x, "smoothing", sigma=0.25, n=100_000, target_radius=0.25
    )
    assert torch.all(cert.radius >= 0.25)
    assert torch.all(cert.n_used <= 300)


def test_radius_falls_as_alpha_falls():
    x = greyish(1, shape=(1, 8, 8))
    radii = [
        float(
            touchstone.certify(
                touchstone.wrap(Constant()), x, "smoothing", n=500, alpha=a, rule="fixed"
            ).radius
        )
        for a in (0.1, 0.01, 0.001)
    ]
    assert radii == sorted(radii, reverse=True)


def counts_of(oracle, image, n, *, seed=0, others=(), prior=None, rule="e_process"):
    stop = Stopping(RULES[rule], n, 0.001, 0.25)
    plan = counted(Subject(image, seed, prior), noise=Stream("gaussian", 0.25, seed), pilot=100, stop=stop)
    return run_here([plan, *others], oracle)[0][0]


@pytest.fixture(scope="module")
def cnn():
    return touchstone.load("fashion-mnist-cnn").oracle


@pytest.fixture(scope="module")
def shirt():
    from touchstone.training.datasets import fashion_mnist_sample  # noqa: PLC0415 - needed here alone

    return torch.from_numpy(fashion_mnist_sample().images[6:7].copy())[:, None] / 255


def test_counts_do_not_depend_on_who_else_is_served(cnn, shirt):
    alone = counts_of(cnn, shirt, 700)
    stop = Stopping(RULES["fixed"], 900, 0.01, 0.5)
    other = counted(Subject(1 - shirt, 9), noise=Stream("gaussian", 0.5, 9), pilot=64, stop=stop)
    among = counts_of(cnn, shirt, 700, others=[other])
    assert np.array_equal(alone.votes, among.votes)


def test_votes_are_the_same_to_the_bit_wherever_a_row_stands(cnn, shirt):
    stream = Stream("gaussian", 0.25, 5)
    whole = cnn.answer([Noisy(shirt, stream, range(200))])[0].logits
    for start, stop in [(0, 1), (3, 67), (64, 128), (190, 200)]:
        part = cnn.answer([Noisy(1 - shirt, stream, range(start)), Noisy(shirt, stream, range(start, stop))])
        assert torch.equal(part[1].logits, whole[start:stop])


def test_resuming_equals_one_run(cnn, shirt):
    whole = counts_of(cnn, shirt, 1000)
    first = counts_of(cnn, shirt, 400)
    resumed = counts_of(cnn, shirt, 1000, prior=Counts.of(first.record()), seed=77)
    assert np.array_equal(whole.votes, resumed.votes)
    assert (resumed.label, resumed.n, resumed.pooled, resumed.seed) == (whole.label, 1000, 400, 0)


def test_pilot_and_count_share_no_sample():
    stream = Stream("gaussian", 1.0, 0)
    like = torch.zeros(1, 1, 4, 4)
    assert not torch.equal(stream.draw(like, range(1)), stream.draw(like, range(2**63, 2**63 + 1)))
    assert torch.equal(stream.draw(like, range(5))[3:], stream.draw(like, range(3, 5)))


def test_noise_has_the_distribution_it_claims():
    from scipy.stats import kstest, laplace  # noqa: PLC0415 - needed here alone

    like = torch.zeros(1, 1, 20, 20)
    gaussian = Stream("gaussian", 0.5, 1).draw(like, range(50)).numpy().ravel()
    assert kstest(gaussian / 0.5, normal.cdf).pvalue > 1e-4
    drawn = Stream("laplace", 0.5, 1).draw(like, range(50)).numpy().ravel()
    assert kstest(drawn / 0.5, laplace.cdf).pvalue > 1e-4


def test_a_model_that_depends_on_its_batch_is_refused():
    class Batchy(torch.nn.Module):
        def forward(self, x):
            s = x.flatten(1).sum(1)
            return torch.stack([s - s.mean(), s.mean() - s], 1)

    with pytest.raises(BatchDependent):
        touchstone.certify(touchstone.wrap(Batchy()), greyish(1), "smoothing", n=200)


@pytest.mark.parametrize("error", [Canceled("stop"), DeadlineExceeded("late")])
def test_what_was_shown_before_a_cancel_or_deadline_stays(error):
    oracle = touchstone.wrap(Constant()).oracle
    ended = []
    plan = counted(
        Subject(torch.full((1, 1, 8, 8), 0.5), 0),
        noise=Stream("gaussian", 0.25, 0),
        pilot=50,
        stop=Stopping(RULES["group_sequential"], 100_000, 0.001, 0.25),
    )
    task = Task(plan, oracle, done=lambda result, failure: ended.append((result, failure)))
    batcher = Batcher()
    batcher.add(task)
    while task.queries.forward < 1_200:
        batcher.step()
    if isinstance(error, Canceled):
        task.canceled = True
    else:
        task.deadline = 0
    batcher.step()
    [(counts, failure)] = ended
    assert failure is None
    assert (counts.stopped, counts.n) == (error.code, 1_000)
    method = touchstone.methods.find("smoothing").parse({"n": 100_000})
    assert method.result(counts)["radius"] == pytest.approx(
        0.25 * normal.ppf((0.001 / 7) ** (1 / 1_000)), rel=1e-6
    )


def test_memory_does_not_grow_with_n():
    model = touchstone.wrap(Constant())
    x = torch.full((1, 1, 32, 32), 0.5)
    peaks = []
    for n in (5_000, 20_000):
        tracemalloc.start()
        touchstone.certify(model, x, "smoothing", n=n, rule="fixed")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 2**20


@pytest.mark.parametrize(("noise", "norm"), [("gaussian", "l2"), ("laplace", "l1")])
def test_pixeldp_never_exceeds_the_truth_of_a_linear_model(noise, norm):
    from api_tests.support.linear_models import distances  # noqa: PLC0415 - needed here alone

    module = linear_model(shape=(1, 8, 8))
    x = greyish(30, shape=(1, 8, 8))
    cert = touchstone.certify(touchstone.wrap(module), x, "pixeldp", noise=noise, sigma=0.1, n=1000)
    assert torch.all(cert.radius <= distances(module, x, norm))
    assert (cert.radius > 0).any()


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"sigma": 0}, "sigma"), ({"sigma": -1}, "sigma"), ({"sigma": "nan"}, "sigma"),
        ({"alpha": 0}, "alpha"), ({"alpha": 0.5}, "alpha"), ({"n": 0}, "n"), ({"n": 10**9}, "n"),
        ({"n0": 0}, "n0"), ({"rule": "naive"}, "rule"),
        ({"target_radius": 0}, "target_radius"), ({"tolerance": -1}, "tolerance"),
    ],
)  # fmt: skip
def test_bad_parameters_name_their_field(parameters, field):
    with pytest.raises(InvalidParameter) as caught:
        touchstone.certify(touchstone.wrap(Constant()), greyish(1), "smoothing", **parameters)
    assert caught.value.field == field
