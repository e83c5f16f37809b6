"""Compiled kernels of the profile fit: columns of the design, normal equations, model.

Every line lives in a short window of the axis, so that a fit of 150 overlapping lines takes milliseconds.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def columns(start, step, points, first, second, ratio, width, eta, reach):
    """Profiles of area 1 (Kα1) of every line in its window, and their derivatives.

    Parameters
    ----------
    start, step, points : the axis in degrees
    first, second : (n,) positions of Kα1 and Kα2; ``ratio`` their intensity ratio
    width : (n,) full width at half maximum; ``eta`` the Lorentz fraction
    reach : how many widths the window extends beyond the lines

    Returns
    -------
    value, by_position, by_width, by_eta : (n, length) each; offset (n,) first point of each window; size (n,)
    """
    n = first.size
    offset, size = np.zeros(n, np.int64), np.zeros(n, np.int64)
    longest = 1
    for i in range(n):
        low = int(np.floor((first[i] - reach * width[i] - start) / step))
        high = int(np.ceil(((second[i] if ratio > 0 else first[i]) + reach * width[i] - start) / step)) + 1
        low, high = max(low, 0), min(high, points)
        offset[i], size[i] = low, max(high - low, 0)
        longest = max(longest, size[i])
    value, by_position = np.zeros((n, longest)), np.zeros((n, longest))
    by_width, by_eta = np.zeros((n, longest)), np.zeros((n, longest))
    ln2 = np.log(2.0)
    for i in range(n):
        w = width[i]
        peak_g, peak_l = 2.0 * np.sqrt(ln2 / np.pi) / w, 2.0 / (np.pi * w)
        for part in range(2 if ratio > 0 else 1):
            centre, share = (first[i], 1.0) if part == 0 else (second[i], ratio)
            for j in range(size[i]):
                u = (start + (offset[i] + j) * step - centre) / w
                g = peak_g * np.exp(-4.0 * ln2 * u * u)
                lor = 1.0 / (1.0 + 4.0 * u * u)
                low = peak_l * lor
                value[i, j] += share * ((1.0 - eta) * g + eta * low)
                slope_g, slope_l = g * 8.0 * ln2 * u / w, low * lor * 8.0 * u / w
                by_position[i, j] += share * ((1.0 - eta) * slope_g + eta * slope_l)
                by_width[i, j] += share * ((1.0 - eta) * (slope_g * u - g / w) + eta * (slope_l * u - low / w))
                by_eta[i, j] += share * (low - g)
    return value, by_position, by_width, by_eta, offset, size


@njit(cache=True, nogil=True)
def add_up(table, factor, offset, size, points):
    """``Σ_i factor_i table_i`` on the axis, (points,)."""
    out = np.zeros(points)
    for i in range(factor.size):
        for j in range(size[i]):
            out[offset[i] + j] += factor[i] * table[i, j]
    return out


@njit(cache=True, nogil=True)
def normal_equations(value, offset, size, dense, weight, y):
    """Normal matrix (n + k, n + k) and right side (n + k,) of ``y ≈ Σ I_i value_i + dense @ p`` with weights."""
    n, (points, k) = offset.size, dense.shape
    matrix, right = np.zeros((n + k, n + k)), np.zeros(n + k)
    for i in range(n):
        for j in range(size[i]):
            at = offset[i] + j
            v = value[i, j] * weight[at]
            right[i] += v * y[at]
            for c in range(k):
                matrix[i, n + c] += v * dense[at, c]
        for other in range(i, n):
            low = max(offset[i], offset[other])
            high = min(offset[i] + size[i], offset[other] + size[other])
            total = 0.0
            for at in range(low, high):
                total += value[i, at - offset[i]] * value[other, at - offset[other]] * weight[at]
            matrix[i, other] = total
            matrix[other, i] = total
        for c in range(k):
            matrix[n + c, i] = matrix[i, n + c]
    for c in range(k):
        for d in range(c, k):
            total = 0.0
            for at in range(points):
                total += dense[at, c] * dense[at, d] * weight[at]
            matrix[n + c, n + d] = total
            matrix[n + d, n + c] = total
        total = 0.0
        for at in range(points):
            total += dense[at, c] * y[at] * weight[at]
        right[n + c] = total
    return matrix, right
