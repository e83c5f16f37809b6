"""The direct beam along a scan, and the phase of each pattern's lattice: where lattices have their origin.

Patterns are numbered along the scan (index = rx · Ry + ry). Disks lie in flat arrays sorted by pattern; those of pattern
p are ``offsets[p]:offsets[p + 1]``. Vectors are (qx, qy), axis 0 and axis 1 of the detector, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...errors import DataError

_FLOOR = 1e-6  # px: no scatter is taken to be smaller


@dataclass(frozen=True, eq=False)
class DirectBeam:
    """The direct beam along the scan.

    Attributes
    ----------
    measured : (P, 2), where a disk was found there, NaN elsewhere, px
    smooth : (P, 2), polynomial in the scan position fitted to them (descan), px
    scatter : (2,), robust standard deviation of measured - smooth, px
    """

    measured: np.ndarray
    smooth: np.ndarray
    scatter: np.ndarray


def find_direct_beam(offsets, positions, intensity, scan_shape, order: int = 1) -> DirectBeam:
    """Find the direct beam of every pattern: the brightest disks fix a smooth origin, the disk nearest to it is taken.

    Parameters
    ----------
    offsets : (P + 1,) int
    positions : (N, 2), px
    intensity : (N,)
    scan_shape : (Rx, Ry)
    order : {1, 2}
        Of the polynomial in the scan position (descan); a robust (Tukey) fit.
    """
    n_patterns = offsets.size - 1
    pattern = np.repeat(np.arange(n_patterns), np.diff(offsets))
    if pattern.size == 0:
        raise DataError("bragg holds no disks at all; expected some in most patterns.")
    terms = _polynomial(scan_shape, order)
    segments = _Segments(offsets, positions, pattern)
    strength = np.nan_to_num(intensity, nan=0.0)
    share = strength / np.maximum(segments.highest(strength), 1e-300)
    best, most = None, -1.0
    for smooth, scatter in _starts(segments, share, terms):
        beam, taken = _followed(segments, smooth, scatter, terms)
        # the direct beam is the strongest disk of most patterns, and strong in the others
        score = share[taken].sum() / segments.filled.size
        if score > most:
            best, most = beam, score
    return best


class _Segments:
    """The disks of each pattern that has any."""

    def __init__(self, offsets, positions, pattern):
        self.positions, self.pattern, self.n_patterns = positions, pattern, offsets.size - 1
        self.filled = np.flatnonzero(np.diff(offsets))
        self.starts, self.counts = offsets[self.filled], np.diff(offsets)[self.filled]

    def lowest(self, values) -> np.ndarray:
        """Row of the lowest value of each pattern."""
        low = np.repeat(np.minimum.reduceat(values, self.starts), self.counts)
        return np.minimum.reduceat(np.where(values == low, np.arange(values.size), values.size), self.starts)

    def highest(self, values) -> np.ndarray:
        """(N,) the highest value of each disk's pattern."""
        return np.repeat(np.maximum.reduceat(values, self.starts), self.counts)


def _starts(segments: _Segments, share, terms):
    """Where the direct beam may be: a polynomial through the brightest disks, and two places that are bright most often."""
    brightest = segments.lowest(-share)
    yield _robust_polynomial(terms, segments.filled, segments.positions[brightest])
    for weight in (share == 1, share**2):
        place = _densest(segments.positions, weight)
        yield np.broadcast_to(place, (segments.n_patterns, 2)), np.full(2, np.inf)


def _densest(positions, weight) -> np.ndarray:
    """The densest place of weighted positions, px."""
    low = positions.min(0) - 12
    place = np.rint((positions - low) / 2).astype(int)
    size = place.max(0) + 7
    density = np.bincount(place[:, 0] * size[1] + place[:, 1], weight, size[0] * size[1]).reshape(size)
    density = ndimage.gaussian_filter(density, 1.5, mode="constant")
    return 2.0 * np.array(np.unravel_index(np.argmax(density), size)) + low


def _followed(segments: _Segments, smooth, scatter, terms) -> tuple[DirectBeam, np.ndarray]:
    """The disks nearest to a smooth origin, the smooth origin through them, and so on; and the rows of the disks."""
    positions, filled = segments.positions, segments.filled
    measured, taken = np.full((segments.n_patterns, 2), np.nan), np.zeros(0, dtype=int)
    for step in range(6):
        distance = np.hypot(*(positions - smooth[segments.pattern]).T)
        nearest = segments.lowest(distance)
        closest = distance[nearest]
        distance[nearest] = np.inf
        second = np.minimum.reduceat(distance, segments.starts)[segments.counts > 1]
        # half-way to the next disk at most; once the scatter is known, within it
        reach = 0.45 * np.median(second) if second.size else np.inf
        near = closest <= max(min(reach, 6 * np.hypot(*scatter) if step else reach), 1.0)
        if near.sum() < 0.2 * filled.size or (near.sum() == taken.size and (nearest[near] == taken).all()):
            break
        taken = nearest[near]
        measured[:] = np.nan
        measured[filled[near]] = positions[taken]
        smooth, scatter = _robust_polynomial(terms, filled[near], positions[taken])
    return DirectBeam(measured, np.array(smooth), scatter), taken


def _polynomial(scan_shape, order: int) -> np.ndarray:
    """(P, terms) of a polynomial in scan coordinates from -1 to 1."""
    x, y = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in scan_shape)
    x, y = (v.ravel() for v in np.meshgrid(x, y, indexing="ij"))
    columns = [np.ones_like(x), x, y] if order == 1 else [np.ones_like(x), x, y, x * x, x * y, y * y]
    return np.stack(columns, axis=1)


def _robust_polynomial(terms, where, values) -> tuple[np.ndarray, np.ndarray]:
    """Tukey fit of (n, 2) values at the patterns ``where``: the polynomial at every pattern, and the robust scatter."""
    if where.size < 3 * terms.shape[1]:
        terms = terms[:, :1]  # too few for a slope
    design = terms[where]
    coefficients = np.zeros((terms.shape[1], 2))
    coefficients[0] = np.median(values, axis=0)
    scale = np.full(2, np.nan)
    for step in range(30):
        residual = values - design @ coefficients
        scale = 1.4826 * np.median(np.abs(residual), axis=0) + _FLOOR
        r2 = ((residual / scale) ** 2).sum(1)
        weight = 1 / np.sqrt(1 + r2) if step < 10 else np.clip(1 - r2 / 36, 0, 1) ** 2
        weighted = design * weight[:, None]
        new = np.linalg.lstsq(weighted.T @ design, weighted.T @ values, rcond=None)[0]
        done = np.abs(new - coefficients).max() < 1e-7 and step > 10
        coefficients = new
        if done:
            break
    return terms @ coefficients, scale


def lattice_phase(offsets, positions, origin, basis) -> np.ndarray:
    """(P, 2) origins moved by less than half a lattice vector onto the lattice on which the disks of the pattern lie."""
    n_patterns = offsets.size - 1
    pattern = np.repeat(np.arange(n_patterns), np.diff(offsets))
    fraction = (positions - origin[pattern]) @ np.linalg.inv(basis)
    inner = np.abs(fraction).max(1) < 2.5  # strain blurs the phase of outer disks
    move = np.zeros((n_patterns, 2))
    for axis in range(2):
        phase = 2 * np.pi * fraction[inner, axis]
        cosine = np.bincount(pattern[inner], np.cos(phase), n_patterns)
        sine = np.bincount(pattern[inner], np.sin(phase), n_patterns)
        count = np.maximum(np.bincount(pattern[inner], minlength=n_patterns), 1)
        clear = np.hypot(cosine, sine) > 0.5 * count
        move[:, axis] = np.where(clear, np.arctan2(sine, cosine) / (2 * np.pi), 0.0)
    return origin + move @ basis
