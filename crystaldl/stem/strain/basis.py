"""A basis of the two-dimensional lattice on which the disks of a scan lie."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ...errors import DataError

_CANDIDATES = 40
_PEAKS = 200
_INNER = 60  # peaks whose differences are candidates
_NEARLY = 0.92
_SHORTEST = 3.0  # px: two disks closer than this are one


def choose_basis(vectors, weight=None) -> np.ndarray:
    """The reduced basis of the two-dimensional lattice on which most vectors lie.

    Vectors are pooled into peaks. Candidate bases are pairs of the most frequent differences between peaks; the winner
    is the coarsest that explains nearly the most peaks beyond what a lattice so dense explains by chance. Missing and
    false disks cost little.

    Parameters
    ----------
    vectors : (N, 2)
        Disk positions relative to the direct beam, of one or many patterns, px.
    weight : (N,), optional

    Returns
    -------
    (2, 2) rows g1 and g2, px: g1 is a shortest vector, with g1x ≥ 0; the angle from g1 to g2 lies in [60°, 120°].

    Raises
    ------
    DataError
        No lattice explains the vectors.
    """
    vectors = np.asarray(vectors, dtype=float)
    weight = np.ones(len(vectors)) if weight is None else np.asarray(weight, dtype=float)
    peaks, height = _pooled(vectors, weight)
    if len(peaks) < 3:
        raise DataError(
            f"bragg shows {len(peaks)} distinct disks besides the direct beam; expected at least 3 to find a lattice, "
            "or pass basis=(g1, g2)."
        )
    share = np.sqrt(height / height.max())
    candidates = _differences(peaks, share)
    first, second = np.triu_indices(len(candidates), 1)
    pairs = np.stack([candidates[first], candidates[second]], axis=1)
    area = np.abs(np.linalg.det(pairs))
    lengths = np.linalg.norm(pairs, axis=2)
    wide = area > 0.2 * lengths.prod(1)
    pairs, area = pairs[wide], area[wide]
    if len(pairs) == 0:
        raise DataError("bragg shows a single row of disks; expected two directions, or pass basis=(g1, g2).")
    off, tolerance = _distance_to(pairs, peaks)
    chance = np.minimum(np.pi * tolerance**2 / area[:, None], 1.0)
    explained = ((off <= tolerance) - chance) @ share
    explained[area < 8 * _SHORTEST] = -np.inf
    # a finer lattice always explains some more false disks: the coarsest that explains nearly as much
    good = explained >= _NEARLY * explained.max()
    coarse = good & (area > 0.9 * area[good].max())
    best = int(np.argmax(np.where(coarse, explained, -np.inf)))
    if not explained[best] > 0.4 * share.sum():
        raise DataError(
            "bragg fits no single lattice (fewer than half of the disks lie on the best one); expected one crystal in "
            "the scan, or pass basis=(g1, g2)."
        )
    return _reduced(_refined(pairs[best], peaks, share))


def _pooled(vectors, weight) -> tuple[np.ndarray, np.ndarray]:
    """Peaks of the density of vectors, the direct beam left out: (M, 2) positions and (M,) heights, highest first."""
    low = np.floor(vectors.min(0)) - 6
    size = (np.ceil(vectors.max(0)) + 6 - low).astype(int) + 1
    place = np.rint(vectors - low).astype(int)
    density = np.bincount(place[:, 0] * size[1] + place[:, 1], weight, size[0] * size[1]).reshape(size)
    density = ndimage.gaussian_filter(density, 1.5, mode="constant")
    top = (density == ndimage.maximum_filter(density, size=7)) & (density > 0.02 * density.max())
    where = np.argwhere(top)
    where = where[np.argsort(-density[top])][: _PEAKS + 1]
    height = density[tuple(where.T)]
    centre = where + low
    square = ((vectors[:, None] - centre[None]) ** 2).sum(2) if len(vectors) < 20_000 else None
    if square is None:
        chosen = np.random.default_rng(0).choice(len(vectors), 20_000, replace=False)
        vectors, weight = vectors[chosen], weight[chosen]
        square = ((vectors[:, None] - centre[None]) ** 2).sum(2)
    near = np.exp(-square / 8) * weight[:, None]
    total = near.sum(0)
    centre = np.where(total[:, None] > 0, near.T @ vectors / np.maximum(total, 1e-300)[:, None], centre)
    away = np.hypot(*centre.T) > _SHORTEST
    return centre[away], height[away]


def _differences(peaks, share) -> np.ndarray:
    """The most frequent vectors between peaks and from the origin to peaks, one of each pair ±v."""
    inner = np.argsort(np.hypot(*peaks.T))[:_INNER]
    nodes = np.vstack([np.zeros((1, 2)), peaks[inner]])
    value = np.concatenate([[1.0], share[inner]])
    i, j = np.triu_indices(len(nodes), 1)
    vectors, votes = nodes[j] - nodes[i], value[i] * value[j]
    vectors = np.where((vectors[:, :1] < 0) | ((vectors[:, :1] == 0) & (vectors[:, 1:] < 0)), -vectors, vectors)
    keep = np.hypot(*vectors.T) > _SHORTEST
    vectors, votes = vectors[keep], votes[keep]
    same = np.exp(-((vectors[:, None] - vectors[None]) ** 2).sum(2) / 2)
    support = same @ votes
    out: list[int] = []
    for index in np.argsort(-support):
        if all(np.hypot(*(vectors[index] - vectors[k])) > 2 for k in out):
            out.append(int(index))
        if len(out) == _CANDIDATES:
            break
    return (same[out] * votes) @ vectors / support[out, None]


def _distance_to(pairs, peaks) -> tuple[np.ndarray, np.ndarray]:
    """(K, M) distance of each peak to each lattice, and the distance allowed, px."""
    fraction = peaks @ np.linalg.inv(pairs)
    off = np.linalg.norm((fraction - np.rint(fraction)) @ pairs, axis=2)
    tolerance = np.maximum(1.0, 0.025 * np.hypot(*peaks.T))
    return off, np.broadcast_to(tolerance, off.shape)


def _refined(pair, peaks, share) -> np.ndarray:
    for _ in range(4):
        off, tolerance = _distance_to(pair[None], peaks)
        on = off[0] <= tolerance[0]
        indices = np.rint(peaks[on] @ np.linalg.inv(pair))
        weight = share[on, None] / tolerance[0][on, None]
        pair = np.linalg.lstsq(indices * weight, peaks[on] * weight, rcond=None)[0]
    return pair


def _reduced(pair) -> np.ndarray:
    """Lagrange-Gauss reduction, then a standard choice of signs."""
    a, b = pair
    while True:
        if a @ a > b @ b * (1 + 1e-9):
            a, b = b, a
        step = np.rint(a @ b / (a @ a))
        if step == 0:
            break
        b = b - step * a
    if abs(b[0]) > abs(a[0]) and b @ b < 1.02 * (a @ a):
        a, b = b, a  # of two (almost) equally short vectors the one along x
    a = -a if a[0] < -1e-9 or (abs(a[0]) <= 1e-9 and a[1] < 0) else a
    b = -b if a[0] * b[1] - a[1] * b[0] < 0 else b
    return np.stack([a, b])
