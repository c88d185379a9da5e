"""Pareto fronts: the points to which no other is preferable in every respect."""

import math


def front(points):
    """Indices of the points [(x, y), ...] that no other dominates, larger being better in both; by growing x.

    A point dominates another where it is at least as good in both and better in one. So of points with equal x only
    those of the largest y remain, and points that are equal in both stay or go together, in their order. Negate a
    coordinate of which less is better.
    """
    if any(math.isnan(value) for point in points for value in point):
        raise ValueError("a Pareto front needs numbers; a coordinate is not a number")
    found, best_y, best_x = [], -math.inf, None
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], -i)):
        x, y = points[index]
        if y > best_y or (not found and y == best_y) or (y == best_y and x == best_x):
            found.append(index)
            best_x, best_y = x, y
    return found[::-1]
