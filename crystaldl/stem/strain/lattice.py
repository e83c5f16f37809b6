"""Lattices of diffraction patterns: a robust fit at every scan position.

Patterns are numbered along the scan (index = rx · Ry + ry). Disks lie in flat arrays sorted by pattern; those of pattern
p are ``offsets[p]:offsets[p + 1]``. Vectors are (qx, qy), axis 0 and axis 1 of the detector, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .lattice_kernels import fit_all

SAMPLE = 1500  # patterns that decide the excess scatter
MEDIAN_CHI2 = 0.454936  # median of χ² with one degree of freedom
_FLOOR = 1e-6  # px: no σ is taken to be smaller
IMPORTANCE = 0.75  # exponent of `_importance`: not all of σ is multiple scattering
LEAST_DISKS, LEAST_PATTERNS = 8, 10  # that tell whether disks move together
# Share of the common shift that a reference from the same scan takes up: all of it where the thickness is even, little along a
# wedge. Between the two, errors of both stay within one and a half times what their sigma says.
COMMON = 0.5


@dataclass(frozen=True, kw_only=True)
class FitLimits:
    """What counts as a fit.

    Attributes
    ----------
    tolerance : float, largest distance of a disk from its lattice node, as a fraction of the shortest lattice vector
    min_disks : int, positions with fewer disks on the lattice get no fit
    min_share : float, nor do those of whose disks a smaller share lies on it
    max_change : float, nor those where g1 or g2 differs from the start by more than this fraction
    """

    tolerance: float = 0.25
    min_disks: int = 5
    min_share: float = 0.4
    max_change: float = 0.2


@dataclass(frozen=True, eq=False)
class LatticeFit:
    """A lattice at each of P scan positions.

    Attributes
    ----------
    origin : (P, 2), px; NaN without a fit, as in all that follow
    vectors : (P, 2, 2), rows g1 and g2, px
    covariance : (P, 4, 4), of (g1x, g1y, g2x, g2y), px²
    n_disks : (P,) int, disks that count
    residual : (P,), root mean square distance of those disks from the fitted lattice, px
    hk : (N, 2) int, indices of each disk, relative to the origin
    weight : (N,), robust weight of each disk from 0 (no part of the lattice) to 1
    excess : float, scatter beyond the stated σ of the disks, px
    shift : float, standard deviation over the scan of the shift that all disks of a pattern have away from its origin, px
        (its root mean square if ``absolute``)
    """

    origin: np.ndarray
    vectors: np.ndarray
    covariance: np.ndarray
    n_disks: np.ndarray
    residual: np.ndarray
    hk: np.ndarray
    weight: np.ndarray
    excess: float
    shift: float = 0.0


def fit_lattices(
    offsets, positions, sigma, origin, basis, *, prior=(0.0, 0.0), limits: FitLimits | None = None, robust=True, absolute=True,
) -> LatticeFit:  # fmt: skip
    """Fit origin, g1 and g2 of every pattern by robust weighted least squares.

    Weights are 1/(σ² + s²) times the disk's `_importance`, with σ of each disk along each axis and s, one number for the scan,
    what the disks scatter beyond σ (dynamical contrast is no counting noise; s is 0 where σ explains all). Robust weights are
    Huber's, then Tukey's. Disks are indexed from the centre outwards as the lattice becomes known. The covariance is scaled by the
    scatter of the pattern itself, to the extent that it has disks enough to tell. Multiple scattering fills the sides of all
    disks that face the direct beam alike, which moves them outwards or inwards together and lengthens or shortens the
    lattice: how far, for the scan as a whole, is seen from shifts that no lattice explains, and enters the covariance. Where
    lattices are compared with one another, not ``absolute``, half of what is common to all patterns does not count: the
    thickness of a specimen is much the same everywhere, and so is its shift.

    Parameters
    ----------
    offsets : (P + 1,) int
    positions, sigma : (N, 2), px; NaN sigma: not known
    origin : (P, 2), where each lattice is expected to have its origin, px
    basis : (2, 2), rows g1 and g2 to start from, px
    prior : (2,)
        Weight of the expected origin along each axis, px⁻²; 0 leaves the origin free.
    limits : FitLimits, optional
    robust : bool
    absolute : bool
    """
    basis = np.ascontiguousarray(basis, dtype=float)
    shortest = min(np.linalg.norm(v) for v in (*basis, basis[0] + basis[1], basis[0] - basis[1]))
    limits = FitLimits() if limits is None else limits
    settings = np.array([
        limits.tolerance * shortest, limits.min_disks, limits.max_change, float(bool(robust)), limits.min_share,
    ], dtype=float)  # fmt: skip
    positions, prior = np.ascontiguousarray(positions, dtype=float), np.asarray(prior, dtype=float)
    origin = np.ascontiguousarray(origin, dtype=float)
    variance = np.square(np.nan_to_num(np.asarray(sigma, dtype=float), nan=0.0))
    importance = _importance(variance)
    excess = _excess(offsets, positions, variance, importance, (origin, prior, basis, settings))
    inverse = 1 / np.maximum(variance + excess**2, _FLOOR**2)
    lattice, covariance, scale2, hk, weight = fit_all(offsets, positions, inverse, importance, origin, prior, basis, settings)
    pattern = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    counted = (weight > 0) & np.isfinite(lattice[pattern, 0, 0])
    off = _residuals(positions, hk, lattice[pattern])
    n = np.bincount(pattern[counted], minlength=offsets.size - 1)
    squares = np.bincount(pattern[counted], (off[counted] ** 2).sum(1), offsets.size - 1)
    good = np.isfinite(lattice[:, 0, 0])
    residual = np.where(good, np.sqrt(squares / np.maximum(n, 1)), np.nan)
    total = _basis_covariance(covariance, scale2)
    shift, response = _radial_shift(pattern, positions, hk, inverse * (importance * weight)[:, None], lattice, prior, absolute)
    if shift > 0:
        total = total + shift**2 * response[:, :, None] * response[:, None, :]
    return LatticeFit(lattice[:, 0], lattice[:, 1:], total, n, residual, hk, weight, excess, shift)


def _importance(variance) -> np.ndarray:
    """Factors (N,) of the weights 1/σ² of disks with variances (N, 2): 1 for the median disk, less for uncertain ones.

    A disk is uncertain where multiple scattering leaves a side of it dark, and is then seen shifted towards the other side, by
    a share of its uncertainty. Near a zone axis that is inwards for all disks of a pattern: errors that do not average out
    among the disks, and grow with their σ. Certain disks show hardly any of it and therefore count for more.
    """
    total = variance.mean(1)
    known = total[total > 0]
    return (2 / (1 + total / np.median(known))) ** IMPORTANCE if known.size else np.ones(len(total))


def _residuals(positions, hk, lattice) -> np.ndarray:
    return positions - lattice[:, 0] - hk[:, :1] * lattice[:, 1] - hk[:, 1:] * lattice[:, 2]


def _basis_covariance(covariance, scale2) -> np.ndarray:
    """(P, 4, 4) of (g1x, g1y, g2x, g2y): the two axes are independent."""
    out = np.zeros((len(covariance), 4, 4))
    for axis in range(2):
        out[:, axis::2, axis::2] = covariance[:, axis, 1:, 1:]
    return out * scale2[:, None, None]


def _radial_shift(pattern, positions, hk, weight, lattice, prior, absolute) -> tuple[float, np.ndarray]:
    """Standard deviation, px, of the shift of all disks of a pattern away from its origin, and what 1 px of it does.

    A shift common to all disks goes half into the lattice; the other half is left in the residuals, inner disks out and outer
    ones in, and tells its size.

    Parameters
    ----------
    weight : (N, 2), of each disk along each axis, px⁻²
    absolute : bool, about 0, or about half of what is common to the scan

    Returns
    -------
    float
    (P, 4), response of (g1x, g1y, g2x, g2y); NaN where there is no lattice
    """
    count = len(lattice)
    response = np.full((count, 4), np.nan)
    good = np.isfinite(lattice[:, 0, 0])
    rows = np.flatnonzero((weight > 0).all(1) & good[pattern])
    if rows.size == 0:
        return 0.0, response
    pattern, hk, weight = pattern[rows], hk[rows], weight[rows]
    g = hk[:, :1] * lattice[pattern, 1] + hk[:, 1:] * lattice[pattern, 2]
    length = np.hypot(g[:, 0], g[:, 1])[:, None]
    outwards = np.where(length > 0, g / np.maximum(length, 1e-12), 0.0)
    residual = _residuals(positions[rows], hk, lattice[pattern])
    design = np.column_stack([np.ones(len(hk)), hk])
    known, seen = np.zeros(count), np.zeros(count)
    for axis in range(2):
        w = weight[:, axis, None] * design
        normal = _sums(pattern, w[:, :, None] * design[:, None, :], count)
        normal[:, 0, 0] += prior[axis]
        solved = np.zeros((count, 3))
        right = _sums(pattern, w * outwards[:, axis, None], count)
        solved[good] = (np.linalg.pinv(normal[good], hermitian=True) @ right[good, :, None])[:, :, 0]
        response[np.ix_(good, [axis, axis + 2])] = solved[good, 1:]
        left = outwards[:, axis] - (design * solved[pattern]).sum(1)  # what the lattice does not take up
        known += np.bincount(pattern, weight[:, axis] * left**2, count)
        seen += np.bincount(pattern, weight[:, axis] * left * residual[:, axis], count)
    tells = good & (known > 1e-9) & (np.bincount(pattern, minlength=count) >= LEAST_DISKS)
    if tells.sum() < LEAST_PATTERNS:
        return 0.0, response
    measured = seen[tells] / known[tells]
    common = 0.0 if absolute else COMMON * np.median(measured)
    return _excess_of((measured - common) ** 2, 1 / known[tells]), response


def _sums(pattern, values, count) -> np.ndarray:
    """Sum of values (N, …) by pattern, (count, …)."""
    flat = values.reshape(len(values), -1)
    out = np.stack([np.bincount(pattern, column, count) for column in flat.T], axis=1)
    return out.reshape(count, *values.shape[1:])


def _excess(offsets, positions, variance, importance, rest) -> float:
    """Standard deviation, px, that must be added to the disks' σ to explain how they scatter about their lattices."""
    origin, prior, basis, settings = rest
    counts = np.diff(offsets)
    enough = np.flatnonzero(counts >= max(settings[1], 4))
    if enough.size == 0:
        return 0.0
    if enough.size > SAMPLE:
        enough = np.sort(np.random.default_rng(0).choice(enough, SAMPLE, replace=False))
    rows = np.concatenate([np.arange(offsets[p], offsets[p + 1]) for p in enough])
    few = np.concatenate([[0], np.cumsum(counts[enough])])
    q, v, count_for, o = positions[rows], variance[rows], importance[rows], origin[enough]
    pattern = np.repeat(np.arange(enough.size), counts[enough])
    excess = 0.2
    for _ in range(6):
        inverse = 1 / np.maximum(v + excess**2, _FLOOR**2)
        lattice, covariance, _, hk, weight = fit_all(few, q, inverse, count_for, o, prior, basis, settings)
        counted = np.flatnonzero((weight > 0) & np.isfinite(lattice[pattern, 0, 0]))
        if counted.size == 0:
            return 0.0
        square = _residuals(q[counted], hk[counted], lattice[pattern[counted]]) ** 2
        design = np.column_stack([np.ones(counted.size), hk[counted]])
        free = [
            1 - inverse[counted, a] * np.einsum("ni,nij,nj->n", design, covariance[pattern[counted], a], design)
            for a in range(2)
        ]
        free = np.stack(free, axis=1)
        tell = free > 0.05  # a disk that the fit must pass through tells nothing
        if not tell.any():
            return 0.0
        new = _excess_of(square[tell] / free[tell], v[counted][tell])
        done = abs(new - excess) < 0.02 * excess + _FLOOR
        excess = new
        if done:
            break
    return excess


def _excess_of(square, variance) -> float:
    """s with median(square / (variance + s²)) equal to that of χ² with one degree of freedom; 0 if σ explains all."""

    def ratio(s):
        return np.median(square / (variance + s * s))

    if variance.min() > 0 and ratio(0.0) <= MEDIAN_CHI2:
        return 0.0
    low, high = _FLOOR, 10 * np.sqrt(square.max()) + 2 * _FLOOR
    if ratio(low) <= MEDIAN_CHI2:
        return low if variance.min() == 0 else 0.0
    for _ in range(50):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if ratio(middle) > MEDIAN_CHI2 else (low, middle)
    return float(high)
