"""The record of minimal-norm attacks: what it keeps of two points."""

from __future__ import annotations

import torch

from touchstone.engine import NORMS, Case, Goal, Nearest, Noise, Threat


def case_of(count, eps=float("inf")):
    x0 = torch.full((count, 1, 1, 2), 0.5)
    goal = Goal.of(torch.zeros(count, dtype=torch.long), targeted=False)
    threat = Threat(x0, torch.full((count,), eps), NORMS["l2"])
    return Case(threat, goal, Noise.of([(0, row) for row in range(count)], "test"))


def judged(case, moves, leads):
    """Points `moves` away along one value, where the other class leads by `leads`."""
    d = torch.tensor(moves).view(-1, 1, 1, 1) * torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    leads = torch.tensor(leads)
    return Nearest.judged(case, case.threat.x0 + d, torch.stack([torch.zeros_like(leads), leads], 1))


def test_the_nearest_success_stays_and_any_success_beats_a_failure():
    case = case_of(4)
    first = judged(case, [0.3, 0.1, 0.2, 0.2], [1.0, 1.0, -1.0, 1.0])
    second = judged(case, [0.2, 0.2, 0.4, 0.1], [1.0, 1.0, 1.0, -1.0])
    best = first.or_else(second)
    assert torch.allclose(best.distance, torch.tensor([0.2, 0.1, 0.4, 0.2]))
    assert best.found(case).met.all()


def test_without_success_the_point_closest_to_it_stays():
    case = case_of(2)
    best = Nearest.none(case.threat.x0).or_else(judged(case, [0.1, 0.1], [-2.0, -1.0]))
    best = best.or_else(judged(case, [0.3, 0.3], [-1.0, -2.0]))
    found = best.found(case)
    assert not found.met.any()
    assert torch.allclose(case.threat.size(found.x), torch.tensor([0.3, 0.1]))


def test_some_rows_can_be_put_into_the_record_of_all():
    case = case_of(3)
    rows = torch.tensor([2, 0])
    best = judged(case, [0.3, 0.3, 0.3], [1.0, 1.0, 1.0])
    best = best.put(rows, judged(case[rows], [0.1, 0.4], [1.0, 1.0]))
    assert torch.allclose(best.distance, torch.tensor([0.3, 0.3, 0.1]))
    assert torch.allclose(case.threat.size(best.x), best.distance)


def test_within_a_radius_what_lies_beyond_is_brought_back_and_does_not_count():
    case = case_of(2, eps=0.25)
    found = judged(case, [0.2, 0.4], [1.0, 1.0]).found(case)
    assert found.met.tolist() == [True, False]
    assert torch.allclose(case.threat.size(found.x), torch.tensor([0.2, 0.25]))
