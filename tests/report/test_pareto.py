"""Pareto fronts against the definition, on random points with ties and duplicates."""

import math
import random

import pytest

from g16net.report import pareto

pytestmark = pytest.mark.once


def by_definition(points):
    def dominates(a, b):
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    return {i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)}


def test_equals_the_definition():
    for seed in range(200):
        draw = random.Random(seed)
        grid = draw.choice([2, 3, 10, 10**6])  # few values: many ties and duplicates
        points = [(draw.randrange(grid), draw.randrange(grid) / 7) for _ in range(draw.randrange(40))]
        found = pareto.front(points)
        assert set(found) == by_definition(points) and len(set(found)) == len(found), points
        xs, ys = [points[i][0] for i in found], [points[i][1] for i in found]
        assert xs == sorted(xs) and ys == sorted(ys, reverse=True), points


@pytest.mark.parametrize(
    "points, expected",
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 1), (1, 1)], [0, 1]),
        ([(1, 1), (1, 2)], [1]),
        ([(1, 1), (2, 1)], [1]),
        ([(2, 1), (1, 2), (1, 1), (2, 1)], [1, 0, 3]),
        ([(-math.inf, -math.inf)], [0]),
        ([(math.inf, 0), (0, math.inf), (1, 1)], [1, 2, 0]),
    ],
)
def test_ties_and_duplicates(points, expected):
    assert pareto.front(points) == expected


def test_not_a_number():
    with pytest.raises(ValueError, match="not a number"):
        pareto.front([(0, math.nan)])
