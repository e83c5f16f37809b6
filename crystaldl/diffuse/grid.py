"""Index coordinates of a `DiffuseVolume` and interpolation that minds its mask."""

from __future__ import annotations

from itertools import product

import numpy as np

__all__ = ["SNAP", "interpolate", "q_lengths", "steps", "to_index"]

#: a point this close to a grid node, in steps, is taken as the node
SNAP = 0.01


def steps(volume) -> np.ndarray:
    """(ndim,) step of each axis, in units of its basis vector."""
    return np.array([(axis[-1] - axis[0]) / (axis.size - 1) for axis in volume.axes])


def q_lengths(volume) -> np.ndarray:
    """|Q| of every pixel in Å⁻¹, 2π inside: |Σ x_i b_i + b_0| term by term, without an array of vectors."""
    reciprocal = volume.reciprocal_basis()
    vectors, start = volume.basis @ reciprocal, volume.origin @ reciprocal
    grids = np.meshgrid(*volume.axes, indexing="ij", sparse=True)
    square = np.full(volume.shape, start @ start)
    for i, x in enumerate(grids):
        square += x * (2 * (vectors[i] @ start) + (vectors[i] @ vectors[i]) * x)
        for j in range(i):
            square += (2 * (vectors[i] @ vectors[j])) * x * grids[j]
    return np.sqrt(np.maximum(square, 0.0, out=square), out=square)


def to_index(volume, hkl) -> tuple[np.ndarray, np.ndarray]:
    """Index coordinates of points in reciprocal space.

    Parameters
    ----------
    volume : DiffuseVolume
    hkl : (..., 3) ndarray

    Returns
    -------
    index : (..., ndim) ndarray
        0 is the first pixel, n-1 the last; not clipped.
    residual : (...) ndarray
        Distance from a plane in r.l.u. (the largest of the three indices); 0 for a volume.
    """
    relative = hkl - volume.origin
    coordinates = relative @ np.linalg.pinv(volume.basis)
    residual = np.abs(relative - coordinates @ volume.basis).max(axis=-1)
    start = np.array([axis[0] for axis in volume.axes])
    return (coordinates - start) / steps(volume), residual


def interpolate(volume, index, *, coverage: float = 0.5) -> tuple[np.ndarray, np.ndarray | None]:
    """Multilinear interpolation from the measured pixels around each point.

    The weights of pixels that were not measured (or lie outside) are shared among the others; a point whose measured
    neighbours carry less than ``coverage`` of the weight stays NaN.  A point within `SNAP` steps of a node takes that
    node alone.

    Parameters
    ----------
    volume : DiffuseVolume
    index : (..., ndim) ndarray
        Index coordinates, see `to_index`.

    Returns
    -------
    values : (...) ndarray
    sigma : (...) ndarray or None
        Propagated from independent pixels; NaN where one of them is unknown.  None when the volume has none.
    """
    shape, points = index.shape[:-1], index.reshape(-1, index.shape[-1])
    base = np.floor(points + SNAP)
    fraction = points - base
    fraction[fraction < SNAP] = 0.0
    base = base.astype(np.int64)
    size = np.array(volume.shape)
    data, measured = np.where(volume.mask, volume.data, 0.0).ravel(), volume.mask.ravel()
    variance = None if volume.sigma is None else np.square(volume.sigma).ravel()
    total, weight = np.zeros(len(points)), np.zeros(len(points))
    spread = None if variance is None else np.zeros(len(points))
    for corner in product((0, 1), repeat=points.shape[1]):
        part = np.prod(np.where(corner, fraction, 1.0 - fraction), axis=1)
        node = base + np.array(corner)
        inside = (part > 0) & ((node >= 0) & (node < size)).all(axis=1)
        flat = np.ravel_multi_index(tuple(np.where(inside[:, None], node, 0).T), volume.shape)
        part = np.where(inside & measured[flat], part, 0.0)
        total += part * data[flat]
        weight += part
        if spread is not None:
            spread += np.where(part > 0, np.square(part) * variance[flat], 0.0)
    enough = weight >= coverage - 1e-9
    norm = np.where(enough, weight, np.nan)
    sigma = None if spread is None else (np.sqrt(spread) / norm).reshape(shape)
    return (total / norm).reshape(shape), sigma
