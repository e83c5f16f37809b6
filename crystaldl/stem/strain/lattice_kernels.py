"""Compiled kernels of the lattice fit: indexing and robust weighted least squares, one pattern after the other.

Kept in one file: numba's cache of a kernel does not notice changes of kernels in other files.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Of two-dimensional residuals r = |(dx/σx, dy/σy)|: Huber's corner, and where Tukey's weight reaches zero
HUBER = 2.0
TUKEY = 5.12
MEDIAN_CHI2 = 1.3862943611198906  # median of χ² with two degrees of freedom
LOSS = 1.05  # variance of the robust estimate over that of least squares, for normal errors
PRIOR_DISKS = 10.0  # how many degrees of freedom the stated σ are worth against a single pattern's own scatter
REACH = np.array([1, 2, 4, 8, 100000])  # largest |h|, |k| of each pass of indexing
ENOUGH = 0.8  # share of the disks on the lattice that ends the search
SETTLED = 1e-6  # px: a smaller change is the last one
_ITERATIONS = 30


@njit(cache=True, nogil=True)
def _index(q, lattice, reach, tolerance2, hk, used):
    """Nearest lattice node of each disk; ``lattice`` has the rows origin, g1, g2.  Returns how many are on a node."""
    a, b = lattice[1, 0], lattice[1, 1]
    c, d = lattice[2, 0], lattice[2, 1]
    det = a * d - b * c
    count = 0
    for i in range(q.shape[0]):
        x, y = q[i, 0] - lattice[0, 0], q[i, 1] - lattice[0, 1]
        h = np.rint((x * d - y * c) / det)
        k = np.rint((y * a - x * b) / det)
        dx, dy = x - h * a - k * c, y - h * b - k * d
        used[i] = dx * dx + dy * dy <= tolerance2 and abs(h) <= reach and abs(k) <= reach
        hk[i, 0], hk[i, 1] = int(h), int(k)
        count += used[i]
    return count


@njit(cache=True, nogil=True)
def _invert(s):
    """Inverse of a symmetric 3 × 3 matrix; all zero if it is singular."""
    out = np.zeros((3, 3))
    c00 = s[1, 1] * s[2, 2] - s[1, 2] * s[1, 2]
    c01 = s[0, 2] * s[1, 2] - s[0, 1] * s[2, 2]
    c02 = s[0, 1] * s[1, 2] - s[0, 2] * s[1, 1]
    det = s[0, 0] * c00 + s[0, 1] * c01 + s[0, 2] * c02
    if det <= 1e-10 * s[0, 0] * s[1, 1] * s[2, 2]:
        return out
    out[0, 0] = c00 / det
    out[0, 1] = out[1, 0] = c01 / det
    out[0, 2] = out[2, 0] = c02 / det
    out[1, 1] = (s[0, 0] * s[2, 2] - s[0, 2] * s[0, 2]) / det
    out[1, 2] = out[2, 1] = (s[0, 1] * s[0, 2] - s[0, 0] * s[1, 2]) / det
    out[2, 2] = (s[0, 0] * s[1, 1] - s[0, 1] * s[0, 1]) / det
    return out


@njit(cache=True, nogil=True)
def _normal(hk, inverse_variance, weight, prior):
    """Σ w m mᵀ with m = (1, h, k), plus the prior's weight on the origin."""
    s = np.zeros((3, 3))
    s[0, 0] = prior
    for i in range(hk.shape[0]):
        w = weight[i] * inverse_variance[i]
        if w > 0:
            h, k = hk[i, 0], hk[i, 1]
            s[0, 0] += w
            s[0, 1] += w * h
            s[0, 2] += w * k
            s[1, 1] += w * h * h
            s[1, 2] += w * h * k
            s[2, 2] += w * k * k
    s[1, 0], s[2, 0], s[2, 1] = s[0, 1], s[0, 2], s[1, 2]
    return s


@njit(cache=True, nogil=True)
def _solve(q, hk, inverse_variance, weight, origin, prior):
    """Weighted least squares: (3, 2) with the rows origin, g1, g2; NaN where the disks do not fix a lattice."""
    lattice = np.empty((3, 2))
    for axis in range(2):
        inverse = _invert(_normal(hk, inverse_variance[:, axis], weight, prior[axis]))
        if inverse[2, 2] <= 0:
            lattice[0, 0] = np.nan
            return lattice
        # about the expected origin, so that large detector coordinates cost no digits
        right = np.zeros(3)
        for i in range(q.shape[0]):
            w = weight[i] * inverse_variance[i, axis]
            if w > 0:
                value = w * (q[i, axis] - origin[axis])
                right[0] += value
                right[1] += value * hk[i, 0]
                right[2] += value * hk[i, 1]
        for j in range(3):
            lattice[j, axis] = inverse[j, 0] * right[0] + inverse[j, 1] * right[1] + inverse[j, 2] * right[2]
        lattice[0, axis] += origin[axis]
    return lattice


@njit(cache=True, nogil=True)
def _squares(q, hk, inverse_variance, used, lattice, out):
    """Squared residuals in units of σ of the used disks, -1 for the others."""
    for i in range(q.shape[0]):
        out[i] = -1.0
        if used[i]:
            h, k = hk[i, 0], hk[i, 1]
            dx = q[i, 0] - lattice[0, 0] - h * lattice[1, 0] - k * lattice[2, 0]
            dy = q[i, 1] - lattice[0, 1] - h * lattice[1, 1] - k * lattice[2, 1]
            out[i] = dx * dx * inverse_variance[i, 0] + dy * dy * inverse_variance[i, 1]


@njit(cache=True, nogil=True)
def _reweighted(q, hk, inverse_variance, importance, used, lattice, origin, prior, scale2):
    """Iterated reweighting: Huber's weights for ``scale2`` = 0, else Tukey's.  Returns the lattice and the weights."""
    n = q.shape[0]
    squares, weight, scaled = np.empty(n), np.empty(n), np.empty(n)
    for _ in range(_ITERATIONS):
        _squares(q, hk, inverse_variance, used, lattice, squares)
        for i in range(n):
            if squares[i] < 0:
                weight[i] = 0.0
            elif scale2 == 0:
                weight[i] = 1.0 if squares[i] <= HUBER * HUBER else HUBER / np.sqrt(squares[i])
            else:
                u = 1.0 - squares[i] / (scale2 * TUKEY * TUKEY)
                weight[i] = u * u if u > 0 else 0.0
            scaled[i] = weight[i] * importance[i]
        new = _solve(q, hk, inverse_variance, scaled, origin, prior)
        if np.isnan(new[0, 0]):
            return new, weight
        change = 0.0
        for j in range(3):
            change = max(change, abs(new[j, 0] - lattice[j, 0]), abs(new[j, 1] - lattice[j, 1]))
        lattice = new
        if change < SETTLED:
            break
    return lattice, weight


@njit(cache=True, nogil=True)
def _near(lattice, start, limit):
    """Whether each basis vector lies within the limit of its start, relative to its length."""
    if np.isnan(lattice[0, 0]):
        return False
    for j in range(2):
        change = (lattice[j + 1, 0] - start[j, 0]) ** 2 + (lattice[j + 1, 1] - start[j, 1]) ** 2
        if change > limit * limit * (start[j, 0] ** 2 + start[j, 1] ** 2):
            return False
    return True


@njit(cache=True, nogil=True)
def _fit(q, hk, inverse_variance, importance, used, lattice, origin, prior, robust):
    """One fit with the indices as they are.  Returns the lattice and the weights."""
    if not robust:
        weight = np.zeros(q.shape[0])
        for i in range(q.shape[0]):
            weight[i] = 1.0 if used[i] else 0.0
        return _solve(q, hk, inverse_variance, weight * importance, origin, prior), weight
    lattice, weight = _reweighted(q, hk, inverse_variance, importance, used, lattice, origin, prior, 0.0)
    if np.isnan(lattice[0, 0]):
        return lattice, weight
    squares = np.empty(q.shape[0])
    _squares(q, hk, inverse_variance, used, lattice, squares)
    squares.sort()
    first = 0
    while squares[first] < 0:
        first += 1
    n = squares.size - first
    # a pattern that scatters more than its σ say gets a wider scale, so that Tukey's weight does not discard it all
    scale2 = max(1.0, squares[first + n // 2] * n / (MEDIAN_CHI2 * max(n - 3, 1)))
    return _reweighted(q, hk, inverse_variance, importance, used, lattice, origin, prior, scale2)


@njit(cache=True, nogil=True)
def _uncertainty(hk, inverse_variance, importance, weight, squares, prior, robust, covariance):
    """Fill the (2, 3, 3) covariance of (origin, g1, g2) along each axis, by the stated σ of the disks that count.

    Returns its scale by their scatter.
    """
    inside = np.zeros(weight.size)
    n, chi2 = 0, 0.0
    for i in range(squares.size):
        if weight[i] > 0:
            inside[i] = 1.0
            n += 1
            chi2 += squares[i]
    for axis in range(2):
        inverse = _invert(_normal(hk, inverse_variance[:, axis], inside * importance, prior[axis]))
        spread = _normal(hk, inverse_variance[:, axis], inside * importance * importance, prior[axis])
        for i in range(3):
            for j in range(3):
                total = 0.0
                for k in range(3):
                    for m in range(3):
                        total += inverse[i, k] * spread[k, m] * inverse[m, j]
                covariance[axis, i, j] = total
    return (PRIOR_DISKS + chi2) / (PRIOR_DISKS + max(2 * n - 6, 0)) * (LOSS if robust else 1.0)


@njit(cache=True, nogil=True)
def _search(q, inverse_variance, importance, origin, prior, start, settings, first, hk, current):
    """Index and fit from the inside out, beginning with pass ``first``; fills the last two arguments.

    Returns the weights; all zero where there is no fit.
    """
    tolerance2, least, limit, robust = settings[0] ** 2, settings[1], settings[2], settings[3] > 0
    n = q.shape[0]
    used = np.zeros(n, dtype=np.bool_)
    weight = np.zeros(n)
    for axis in range(2):
        current[0, axis] = origin[axis]
        current[1, axis], current[2, axis] = start[0, axis], start[1, axis]
    good = False
    last = REACH.size
    for step in range(first, last + 1):
        # strain moves outer disks by more than the tolerance before the lattice is known
        count = _index(q, current, REACH[min(step, last - 1)], tolerance2, hk, used)
        good = False
        if count >= least:
            fitted, weight = _fit(q, hk, inverse_variance, importance, used, current, origin, prior, robust)
            good = _near(fitted, start, limit)
            if good:
                for j in range(3):
                    current[j, 0], current[j, 1] = fitted[j, 0], fitted[j, 1]
    inside = 0
    for i in range(n):
        inside += weight[i] > 0
    return weight if good and inside >= least else np.zeros(n)


@njit(cache=True, nogil=True)
def _fit_pattern(q, precision, origin, prior, start, settings, lattice, covariance, hk, weight):
    """Index and fit one pattern into the last four arguments; see `fit_all`.  Returns the scale of the covariance.

    ``precision``: inverse variances and importance.
    """
    inverse_variance, importance = precision
    n = q.shape[0]
    best = 0.0
    current = np.empty((3, 2))
    indices = np.zeros_like(hk)
    # false disks among the few innermost can lead astray: where many disks are left over, begin with more of them
    for first in (0, 2):
        if best >= ENOUGH * n:
            break
        found = _search(q, inverse_variance, importance, origin, prior, start, settings, first, indices, current)
        total = 0.0
        for i in range(n):
            total += found[i]
        if total > best:
            best = total
            for i in range(n):
                weight[i] = found[i]
                hk[i, 0], hk[i, 1] = indices[i, 0], indices[i, 1]
            for j in range(3):
                lattice[j, 0], lattice[j, 1] = current[j, 0], current[j, 1]
    if best <= settings[4] * n:
        for i in range(n):
            weight[i] = 0.0
        for j in range(3):
            lattice[j, 0] = lattice[j, 1] = np.nan
        return np.nan
    squares = np.empty(n)
    used = np.ones(n, dtype=np.bool_)
    _squares(q, hk, inverse_variance, used, lattice, squares)
    return _uncertainty(hk, inverse_variance, importance, weight, squares, prior, settings[3] > 0, covariance)


@njit(cache=True, nogil=True)
def fit_all(offsets, q, inverse_variance, importance, origin, prior, start, settings):
    """Index and fit every pattern.

    Parameters
    ----------
    offsets : (P + 1,) int, disks of pattern p are rows offsets[p] to offsets[p + 1]
    q, inverse_variance : (N, 2), px and px⁻²
    importance : (N,), factor of the weight of each disk beside its inverse variance
    origin : (P, 2), where the direct beam is expected, px
    prior : (2,), the weight of that expectation, px⁻²
    start : (2, 2), rows g1 and g2, px
    settings : (tolerance px, smallest number of disks, largest relative change of the basis, robust 0 or 1, smallest share
        of the disks)

    Returns
    -------
    (P, 3, 2) lattices (rows origin, g1, g2; NaN: no fit), (P, 2, 3, 3) covariance of (origin, g1, g2) along each axis by
    the stated σ, (P,) its scale by the scatter, (N, 2) indices, (N,) weights
    """
    n_patterns, n = offsets.size - 1, q.shape[0]
    lattice = np.full((n_patterns, 3, 2), np.nan)
    covariance = np.full((n_patterns, 2, 3, 3), np.nan)
    scale2 = np.empty(n_patterns)
    hk = np.zeros((n, 2), dtype=np.int32)
    weight = np.zeros(n)
    for p in range(n_patterns):
        a, b = offsets[p], offsets[p + 1]
        scale2[p] = _fit_pattern(
            q[a:b], (inverse_variance[a:b], importance[a:b]), origin[p], prior, start, settings,
            lattice[p], covariance[p], hk[a:b], weight[a:b],
        )  # fmt: skip
    return lattice, covariance, scale2, hk, weight
