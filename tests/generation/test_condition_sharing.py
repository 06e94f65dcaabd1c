"""Plans of recompute steps: optimal against every possible plan, uniform, and the measured similarity."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from genres.generation.condition_sharing import (
    TOKENS_AT_ONCE,
    condition_similarity,
    linear_errors,
    optimal_linear_plan,
    optimal_plan,
    plan_cost,
    segment_costs,
    uniform_plan,
)


def table(num_steps: int, seed: int) -> np.ndarray:
    """Similarities of a random walk: neighbours are alike."""
    walk = np.random.default_rng(seed).normal(size=(num_steps, 6)).cumsum(0) + 3
    walk /= np.linalg.norm(walk, axis=1, keepdims=True)
    return walk @ walk.T


@pytest.mark.parametrize("num_steps", range(1, 10))
@pytest.mark.parametrize("seed", range(3))
def test_no_plan_is_better(num_steps, seed):
    similarity = table(num_steps, seed)
    for condition_steps in range(1, num_steps + 1):
        plans = [[0, *rest] for rest in combinations(range(1, num_steps), condition_steps - 1)]
        costs = [plan_cost(similarity, plan) for plan in plans]
        plan = optimal_plan(similarity, condition_steps)
        assert plan in plans
        assert plan_cost(similarity, plan) == pytest.approx(min(costs), abs=1e-12)


def test_cost_is_the_error_of_every_reuse():
    similarity = table(6, 0)
    expected = sum(1 - similarity[step, start] for start, step in [(0, 0), (0, 1), (2, 2), (2, 3), (2, 4), (5, 5)])
    assert plan_cost(similarity, [0, 2, 5]) == pytest.approx(expected)
    assert segment_costs(similarity)[4, 2] == pytest.approx(3 - similarity[2:5, 2].sum())


def walk(num_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (N, 6) of a random walk with inertia, and uneven times."""
    random = np.random.default_rng(seed)
    steps = random.normal(size=(num_steps, 6)).cumsum(0).cumsum(0) + 10
    return steps / np.linalg.norm(steps, axis=1, keepdims=True), random.uniform(0.1, 1, num_steps).cumsum()


def test_linear_errors_are_half_the_squared_distances():
    vectors, times = walk(7, 0)
    slope = (vectors[3] - vectors[1]) / (times[3] - times[1])
    continued = vectors[3] + (times[3:, None] - times[3]) * slope
    expected = ((continued - vectors[3:]) ** 2).sum(1) / 2
    assert linear_errors(vectors @ vectors.T, times, 3)[1] == pytest.approx(expected)


@pytest.mark.parametrize("num_steps", range(1, 9))
@pytest.mark.parametrize("seed", range(3))
def test_no_linear_plan_is_better(num_steps, seed):
    vectors, times = walk(num_steps, seed)
    similarity = vectors @ vectors.T

    def cost(plan: list[int]) -> float:
        total = 0.0
        for place, start in enumerate(plan):
            end = [*plan, num_steps][place + 1]
            errors = linear_errors(similarity, times, start)[plan[place - 1]] if place else 1 - similarity[0]
            total += errors[: end - start].sum()
        return total

    for condition_steps in range(1, num_steps + 1):
        plans = [[0, *rest] for rest in combinations(range(1, num_steps), condition_steps - 1)]
        plan = optimal_linear_plan(similarity, times, condition_steps)
        assert plan in plans
        assert cost(plan) == pytest.approx(min(map(cost, plans)), abs=1e-12)


def test_linear_plans_need_ascending_times():
    for times in ([0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 1.0]):
        with pytest.raises(ValueError, match="ascending times"):
            optimal_linear_plan(np.eye(4), times, 2)


def test_equal_plans_start_early():
    assert optimal_plan(np.ones((5, 5)), 3) == [0, 1, 2]


def test_optimal_is_never_worse_than_uniform():
    similarity = table(50, 1)
    for condition_steps in (50, 25, 17, 13, 10, 8, 1):
        best, uniform = optimal_plan(similarity, condition_steps), uniform_plan(50, condition_steps)
        assert len(best) == len(uniform) == condition_steps and best[0] == uniform[0] == 0
        assert plan_cost(similarity, best) <= plan_cost(similarity, uniform) + 1e-12


@pytest.mark.parametrize(("condition_steps", "interval"), [(50, 1), (25, 2), (17, 3), (10, 5), (5, 10), (1, 50)])
def test_uniform_is_every_nth_step(condition_steps, interval):
    assert uniform_plan(50, condition_steps) == list(range(0, 50, interval))


def test_uniform_gives_as_many_steps_as_asked():
    for num_steps in range(1, 30):
        for condition_steps in range(1, num_steps + 1):
            plan = uniform_plan(num_steps, condition_steps)
            assert len(set(plan)) == condition_steps and plan == sorted(plan) and plan[-1] < num_steps


def test_similarity_is_the_mean_cosine_of_tokens():
    torch.manual_seed(0)
    conditions = list(torch.randn(4, 3, TOKENS_AT_ONCE // 2, 8) + 0.5)
    similarity = condition_similarity(conditions)
    assert similarity.dtype == np.float64
    for i in range(4):
        for j in range(4):
            expected = F.cosine_similarity(conditions[i].double(), conditions[j].double(), dim=-1).mean().item()
            assert similarity[i, j] == pytest.approx(expected, abs=1e-6)


def test_wrong_requests_are_explained():
    for function in (lambda k: uniform_plan(10, k), lambda k: optimal_plan(table(10, 0), k)):
        for condition_steps in (0, 11):
            with pytest.raises(ValueError, match=f"1 to 10 of 10 steps, not at {condition_steps}"):
                function(condition_steps)
    with pytest.raises(ValueError, match="square"):
        optimal_plan(np.ones((2, 3)), 1)
    with pytest.raises(ValueError, match="not finite"):
        optimal_plan(np.full((2, 2), np.nan), 1)
