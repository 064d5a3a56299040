"""The record of minimal-norm attacks: what it keeps of two points."""

from __future__ import annotations

import torch

from touchstone.engine import NORMS, Case, Goal, Nearest, Noise, Threat


def build_case(count, eps=float("inf")):
    x0 = torch.full((count, 1, 1, 2), 0.5)
    goal = Goal.of(torch.zeros(count, dtype=torch.long), targeted=False)
    threat = Threat(x0, torch.full((count,), eps), NORMS["l2"])
    return Case(threat, goal, Noise.from_seeds([(0, row) for row in range(count)], "test"))


def nearest_of(case, moves, leads):
    """Points `moves` away along one value, where the other class leads by `leads`."""
    d = torch.tensor(moves).view(-1, 1, 1, 1) * torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    leads = torch.tensor(leads)
    return Nearest.from_logits(case, case.threat.x0 + d, torch.stack([torch.zeros_like(leads), leads], 1))


def test_nearest_success_is_kept_and_any_success_beats_a_failure():
    case = build_case(4)
    first = nearest_of(case, [0.3, 0.1, 0.2, 0.2], [1.0, 1.0, -1.0, 1.0])
    second = nearest_of(case, [0.2, 0.2, 0.4, 0.1], [1.0, 1.0, 1.0, -1.0])
    best = first.or_else(second)
    assert torch.allclose(best.distance, torch.tensor([0.2, 0.1, 0.4, 0.2]))
    assert best.to_found(case).met.all()


def test_failure_closest_to_success_is_kept_without_a_success():
    case = build_case(2)
    best = Nearest.initial(case.threat.x0).or_else(nearest_of(case, [0.1, 0.1], [-2.0, -1.0]))
    best = best.or_else(nearest_of(case, [0.3, 0.3], [-1.0, -2.0]))
    found = best.to_found(case)
    assert not found.met.any()
    assert torch.allclose(case.threat.distance(found.x), torch.tensor([0.3, 0.1]))


def test_subset_of_rows_can_be_merged_into_the_record():
    case = build_case(3)
    rows = torch.tensor([2, 0])
    best = nearest_of(case, [0.3, 0.3, 0.3], [1.0, 1.0, 1.0])
    best = best.put(rows, nearest_of(case[rows], [0.1, 0.4], [1.0, 1.0]))
    assert torch.allclose(best.distance, torch.tensor([0.3, 0.3, 0.1]))
    assert torch.allclose(case.threat.distance(best.x), best.distance)


def test_points_beyond_the_radius_are_projected_and_do_not_count():
    case = build_case(2, eps=0.25)
    found = nearest_of(case, [0.2, 0.4], [1.0, 1.0]).to_found(case)
    assert found.met.tolist() == [True, False]
    assert torch.allclose(case.threat.distance(found.x), torch.tensor([0.2, 0.25]))
