"""Certificates against classifiers whose truth is known."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal

import touchstone
from api_tests.support.linear_models import gray_images, linear_model
from touchstone.engine import (
    STOPPING_RULES,
    Batcher,
    CertificateCase,
    Counts,
    NoisyLogits,
    SampleNoise,
    StoppingCriterion,
    Task,
    count_votes,
)
from touchstone.engine.noise_streams import FORMER_SAMPLE_STREAM
from touchstone.errors import BatchDependent, DeadlineExceeded, InvalidParameter, JobCanceled
from touchstone.evaluation import run_plans


class ConstantModel(torch.nn.Module):
    def forward(self, x):
        return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3)


class CoinToss(torch.nn.Module):
    """Two classes, either with probability one half under symmetric noise around mid-gray."""

    def forward(self, x):
        s = (x - 0.5).flatten(1).sum(1)
        return torch.stack([s, -s], 1)


def true_radius(module, x):
    """Of a linear model with two classes: the distance to the hyperplane."""
    weight = (module[1].weight[0] - module[1].weight[1]).double()
    z = module.double()(x.double())
    module.float()
    return ((z[:, 0] - z[:, 1]).abs() / weight.norm()).detach()


def certify_each(module, x, method, **parameters):
    """Radii, classes and abstentions. One image at a time draws noise for a whole pass at once."""
    model = touchstone.wrap(module)
    certified = [touchstone.certify(model, one[None], method, **parameters) for one in x]
    return [torch.cat([getattr(one, name) for one in certified]) for name in ("radius", "label", "abstained")]


@pytest.mark.parametrize("rule", sorted(STOPPING_RULES))
def test_smoothing_radius_never_exceeds_but_nearly_reaches_the_true_radius(rule):
    module = linear_model(shape=(1, 8, 8))
    x = gray_images(40, shape=(1, 8, 8))
    truth = true_radius(module, x)
    radius, label, abstained = certify_each(module, x, "smoothing", sigma=0.25, n=3000, rule=rule)
    assert torch.all(radius <= truth)
    assert torch.equal(label, module(x).argmax(1)) or abstained.any()
    within_reach = (truth > 0.05) & (truth < 0.4)
    assert torch.all(radius[within_reach] > truth[within_reach] - 0.045)


@pytest.mark.parametrize("rule", sorted(STOPPING_RULES))
@pytest.mark.parametrize("target", [None, 0.1])
def test_false_certificate_rate_stays_within_alpha(rule, target):
    """2,000 runs of votes whose probability is exactly known, at the radius where the answer changes."""
    alpha, sigma, runs, n = 0.01, 0.25, 2_000, 1_000
    p = float(normal.cdf(0.1 / sigma))  # the true radius is 0.1
    stop = StoppingCriterion(STOPPING_RULES[rule], n, alpha, sigma, target)
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


def test_constant_classifier_gets_the_largest_possible_radius():
    x = gray_images(1, shape=(1, 8, 8))
    cert = touchstone.certify(
        touchstone.wrap(ConstantModel()), x, "smoothing", sigma=0.5, n=2000, rule="fixed"
    )
    assert float(cert.radius) == pytest.approx(0.5 * normal.ppf(0.001 ** (1 / 2000)), rel=1e-6)
    assert int(cert.label) == 1
    assert int(cert.n_used) == 2000


@pytest.mark.parametrize("rule", sorted(STOPPING_RULES))
def test_coin_toss_classifier_abstains(rule):
    x = torch.full((30, 1, 8, 8), 0.5)
    radius, _, abstained = certify_each(CoinToss(), x, "smoothing", sigma=0.25, n=500, rule=rule)
    assert abstained.sum() >= 29
    assert torch.all(radius[abstained] == 0)


def test_target_radius_needs_far_fewer_samples():
    x = gray_images(4, shape=(1, 8, 8))
    cert = touchstone.certify(
        touchstone.wrap(ConstantModel()), x, "smoothing", sigma=0.25, n=100_000, target_radius=0.25
    )
    assert torch.all(cert.radius >= 0.25)
    assert torch.all(cert.n_used <= 300)


def test_radius_falls_as_alpha_falls():
    x = gray_images(1, shape=(1, 8, 8))
    radii = [
        float(
            touchstone.certify(
                touchstone.wrap(ConstantModel()), x, "smoothing", n=500, alpha=a, rule="fixed"
            ).radius
        )
        for a in (0.1, 0.01, 0.001)
    ]
    assert radii == sorted(radii, reverse=True)


def run_count(oracle, image, n, *, seed=0, others=(), prior=None, rule="e_process"):
    stop = StoppingCriterion(STOPPING_RULES[rule], n, 0.001, 0.25)
    plan = count_votes(
        CertificateCase(image, seed, prior), noise=SampleNoise("gaussian", 0.25, seed), pilot=100, stop=stop
    )
    return run_plans([plan, *others], oracle)[0][0]


@pytest.fixture(scope="module")
def cnn():
    return touchstone.load("fashion-mnist-cnn").oracle


@pytest.fixture(scope="module")
def shirt():
    from touchstone.training.datasets import fashion_mnist_sample  # noqa: PLC0415 - needed here alone

    return torch.from_numpy(fashion_mnist_sample().images[6:7].copy())[:, None] / 255


def test_votes_do_not_depend_on_other_certificates_in_the_batch(cnn, shirt):
    alone = run_count(cnn, shirt, 700)
    stop = StoppingCriterion(STOPPING_RULES["fixed"], 900, 0.01, 0.5)
    other = count_votes(
        CertificateCase(1 - shirt, 9), noise=SampleNoise("gaussian", 0.5, 9), pilot=64, stop=stop
    )
    among = run_count(cnn, shirt, 700, others=[other])
    assert np.array_equal(alone.votes, among.votes)


def test_noisy_logits_are_bitwise_equal_at_any_batch_position(cnn, shirt):
    stream = SampleNoise("gaussian", 0.25, 5)
    whole = cnn.answer([NoisyLogits(shirt, stream, range(200))])[0].logits
    for start, stop in [(0, 1), (3, 67), (64, 128), (190, 200)]:
        part = cnn.answer(
            [NoisyLogits(1 - shirt, stream, range(start)), NoisyLogits(shirt, stream, range(start, stop))]
        )
        assert torch.equal(part[1].logits, whole[start:stop])


def test_resumed_count_equals_one_long_run(cnn, shirt):
    whole = run_count(cnn, shirt, 1000)
    first = run_count(cnn, shirt, 400)
    resumed = run_count(cnn, shirt, 1000, prior=Counts.from_record(first.to_record()), seed=77)
    assert np.array_equal(whole.votes, resumed.votes)
    assert (resumed.label, resumed.n, resumed.pooled, resumed.seed) == (whole.label, 1000, 400, 0)


def test_count_of_another_stream_is_not_continued(cnn, shirt):
    first = run_count(cnn, shirt, 400)
    older = {name: value for name, value in first.to_record().items() if name != "stream"}
    assert Counts.from_record(first.to_record()).stream == SampleNoise.name
    assert Counts.from_record(older).stream == FORMER_SAMPLE_STREAM
    anew = run_count(cnn, shirt, 500, prior=Counts.from_record(older), seed=77)
    assert (anew.n, anew.pooled, anew.seed, anew.stream) == (500, 0, 77, SampleNoise.name)


def test_pilot_and_main_count_share_no_sample():
    stream = SampleNoise("gaussian", 1.0, 0)
    like = torch.zeros(1, 1, 4, 4)
    assert not torch.equal(stream.draw(like, range(1)), stream.draw(like, range(2**63, 2**63 + 1)))
    assert torch.equal(stream.draw(like, range(5))[3:], stream.draw(like, range(3, 5)))


def test_noise_streams_have_the_claimed_distribution():
    from scipy.stats import kstest, laplace  # noqa: PLC0415 - needed here alone

    like = torch.zeros(1, 1, 20, 20)
    gaussian = SampleNoise("gaussian", 0.5, 1).draw(like, range(50)).numpy().ravel()
    assert kstest(gaussian / 0.5, normal.cdf).pvalue > 1e-4
    drawn = SampleNoise("laplace", 0.5, 1).draw(like, range(50)).numpy().ravel()
    assert kstest(drawn / 0.5, laplace.cdf).pvalue > 1e-4


def test_batch_dependent_model_is_refused():
    class Batchy(torch.nn.Module):
        def forward(self, x):
            s = x.flatten(1).sum(1)
            return torch.stack([s - s.mean(), s.mean() - s], 1)

    with pytest.raises(BatchDependent):
        touchstone.certify(touchstone.wrap(Batchy()), gray_images(1), "smoothing", n=200)


@pytest.mark.parametrize("error", [JobCanceled("stop"), DeadlineExceeded("late")])
def test_cancel_or_deadline_keeps_what_was_proved_before(error):
    oracle = touchstone.wrap(ConstantModel()).oracle
    ended = []
    plan = count_votes(
        CertificateCase(torch.full((1, 1, 8, 8), 0.5), 0),
        noise=SampleNoise("gaussian", 0.25, 0),
        pilot=50,
        stop=StoppingCriterion(STOPPING_RULES["group_sequential"], 100_000, 0.001, 0.25),
    )
    task = Task(plan, oracle, on_done=lambda result, failure: ended.append((result, failure)))
    batcher = Batcher()
    batcher.add(task)
    while task.queries.forward < 1_200:
        batcher.step()
    if isinstance(error, JobCanceled):
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


def test_memory_use_does_not_grow_with_the_sample_count():
    model = touchstone.wrap(ConstantModel())
    x = torch.full((1, 1, 32, 32), 0.5)
    peaks = []
    for n in (5_000, 20_000):
        tracemalloc.start()
        touchstone.certify(model, x, "smoothing", n=n, rule="fixed")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 2**20


@pytest.mark.parametrize(("noise", "norm"), [("gaussian", "l2"), ("laplace", "l1")])
def test_pixeldp_radius_never_exceeds_the_true_distance_of_a_linear_model(noise, norm):
    from api_tests.support.linear_models import exact_distances  # noqa: PLC0415 - needed here alone

    module = linear_model(shape=(1, 8, 8))
    x = gray_images(30, shape=(1, 8, 8))
    radius, _, _ = certify_each(module, x, "pixeldp", noise=noise, sigma=0.1, n=1000)
    assert torch.all(radius <= exact_distances(module, x, norm))
    assert (radius > 0).any()


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"sigma": 0}, "sigma"), ({"sigma": -1}, "sigma"), ({"sigma": "nan"}, "sigma"),
        ({"alpha": 0}, "alpha"), ({"alpha": 0.5}, "alpha"), ({"n": 0}, "n"), ({"n": 10**9}, "n"),
        ({"n0": 0}, "n0"), ({"rule": "naive"}, "rule"),
        ({"target_radius": 0}, "target_radius"), ({"tolerance": -1}, "tolerance"),
    ],
)  # fmt: skip
def test_invalid_parameter_error_names_the_field(parameters, field):
    with pytest.raises(InvalidParameter) as caught:
        touchstone.certify(touchstone.wrap(ConstantModel()), gray_images(1), "smoothing", **parameters)
    assert caught.value.field == field
