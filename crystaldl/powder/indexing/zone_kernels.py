"""Compiled kernels of the lattice search: planes of the reciprocal lattice that hold a third of the lines.

Kept apart from `search_kernels`, whose scores they do not need: numba's cache of a kernel does not notice changes of kernels
in other files.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .search_kernels import LOWEST, SQRT_TWO_PI

__all__ = ["find_rectangles", "find_zones"]


@njit(cache=True, nogil=True)
def _reduce_zone(a, c, d):
    """Gauss reduction of ``h²A + hlD + l²C``: 0 ≤ D ≤ A ≤ C, the same lattice of lines."""
    for _ in range(20):
        if a > c:
            a, c = c, a
        n = np.round(d / (2.0 * a))
        if n == 0.0:
            break
        c, d = c - n * d + n * n * a, d - 2.0 * n * a
    return a, c, abs(d)


@njit(cache=True, nogil=True)
def _zone_score(lines, a, c, d):
    """Log-likelihood ratio that a third of the lines belong to the zone; lines as in `_score`."""
    density = 0.5 * np.pi / np.sqrt(a * c - 0.25 * d * d)
    total = 0.0
    for i in range(lines.shape[0]):
        q, sigma = lines[i, 0], lines[i, 1]
        best = 1e9
        h = 0
        while h * h * (a - 0.25 * d * d / c) <= 1.06 * q:
            half = 0.5 * h * d / c
            root = np.sqrt(max((q - h * h * a) / c + half * half, 0.0))
            for centre in (root - half, -root - half):
                low = np.floor(centre)
                for l in (low, low + 1.0):
                    if h > 0 or l != 0.0:
                        best = min(best, abs(h * h * a + l * l * c + h * l * d - q))
            h += 1
        x = best / sigma
        hit = np.exp(-0.5 * x * x) / (SQRT_TWO_PI * sigma * density) if x < 6.0 else 0.0
        total += lines[i, 2] * np.log(0.67 + 0.33 * hit)
    return total


@njit(cache=True, nogil=True)
def _remember(zone, score, zones, scores):
    """Put a zone into the list of the best ones, sorted by falling score, unless a near copy is there already."""
    count = scores.size
    if score <= scores[count - 1]:
        return
    for r in range(count):
        same = True
        for k in range(zone.size):
            same = same and abs(zones[r, k] - zone[k]) < 0.004 * max(zone[k], zone[0])
        if same:
            return
    r = count - 1
    while r > 0 and scores[r - 1] < score:
        scores[r], zones[r] = scores[r - 1], zones[r - 1]
        r -= 1
    scores[r] = score
    zones[r] = zone


@njit(cache=True, nogil=True)
def find_zones(lines, base, codes, count):
    """The ``count`` best reduced zones (A, C, D) made from three lines each, best first; unused rows are zero."""
    zones, scores = np.zeros((count, 3)), np.full(count, -1e9)
    n = base.size
    for t in range(codes.shape[0]):
        m = codes[t]
        for i in range(n):
            for j in range(i):
                for k in range(j):
                    a = m[0] * base[i] + m[1] * base[j] + m[2] * base[k]
                    c = m[3] * base[i] + m[4] * base[j] + m[5] * base[k]
                    d = m[6] * base[i] + m[7] * base[j] + m[8] * base[k]
                    if a < LOWEST or c < LOWEST or d * d > 3.2 * a * c:
                        continue
                    a, c, d = _reduce_zone(a, c, d)
                    if a < LOWEST or c > 0.6:
                        continue
                    _remember(np.array([a, c, d]), _zone_score(lines, a, c, d), zones, scores)
    return zones


@njit(cache=True, nogil=True)
def _rectangle_score(lines, a, b, centred):
    """Log-likelihood ratio that a third of the lines belong to a zone ``h²A + k²B``; ``centred``: h + k even."""
    step = 2.0 if centred else 1.0
    density = 0.25 * np.pi / np.sqrt(a * b) / step
    total = 0.0
    for i in range(lines.shape[0]):
        q, sigma = lines[i, 0], lines[i, 1]
        best = 1e9
        h = 0
        while h * h * a <= 1.06 * q:
            root = np.sqrt(max(q - h * h * a, 0.0) / b)
            first = float(h % 2) if centred else 0.0
            low = first + step * np.floor((root - first) / step)
            for k in (low, low + step):
                if k >= 0.0 and (h > 0 or k > 0.0):
                    best = min(best, abs(h * h * a + k * k * b - q))
            h += 1
        x = best / sigma
        hit = np.exp(-0.5 * x * x) / (SQRT_TWO_PI * sigma * density) if x < 6.0 else 0.0
        total += lines[i, 2] * np.log(0.67 + 0.33 * hit)
    return total


@njit(cache=True, nogil=True)
def find_rectangles(lines, base, pairs, centred, count):
    """The ``count`` best rectangular zones (A, B), A ≤ B, made from two lines each, best first; unused rows are zero."""
    zones, scores = np.zeros((count, 2)), np.full(count, -1e9)
    for i in range(base.size):
        for j in range(i):
            for t in range(pairs.shape[0]):
                det = pairs[t, 0] * pairs[t, 3] - pairs[t, 2] * pairs[t, 1]
                a = (base[i] * pairs[t, 3] - base[j] * pairs[t, 1]) / det
                b = (pairs[t, 0] * base[j] - pairs[t, 2] * base[i]) / det
                if a > b:
                    a, b = b, a
                if a < LOWEST or b > 0.3:
                    continue
                _remember(np.array([a, b]), _rectangle_score(lines, a, b, centred), zones, scores)
    return zones
