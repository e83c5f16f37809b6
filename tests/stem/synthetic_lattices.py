"""Bragg vectors of known strained lattices, without any pattern: what the strain tests share."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from scipy.special import ndtr

from crystaldl.stem.bragg import DiskTable, to_bragg_vectors

G = np.array([[14.0, 1.0], [3.0, 17.0]])  # px, not orthogonal


@dataclass
class Lattices:
    shape: tuple
    offsets: np.ndarray
    q: np.ndarray
    sigma: np.ndarray
    intensity: np.ndarray
    deformation: np.ndarray  # (P, 2, 2), real space: r' = F r
    vectors: np.ndarray  # (P, 2, 2), rows g1 and g2 in truth
    origin: np.ndarray  # (P, 2)
    false: np.ndarray  # (N,) bool


def deformation(e_xx=0.0, e_yy=0.0, e_xy=0.0, rotation=0.0):
    """F = R U with U = 1 + e and R a rotation from x to y (radians)."""
    e_xx, e_yy, e_xy, w = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (e_xx, e_yy, e_xy, rotation)))
    stretch = np.stack([np.stack([1 + e_xx, e_xy], -1), np.stack([e_xy, 1 + e_yy], -1)], -2)
    turn = np.stack([np.stack([np.cos(w), -np.sin(w)], -1), np.stack([np.sin(w), np.cos(w)], -1)], -2)
    return turn @ stretch


def lattices(f, shape, *, basis=G, noise=0.0, missing=0.0, false=0.0, descan=3.0, radius=3.4, seed=0, origin=(127.3, 125.1)):
    """Disks at every position of a scan: ``f`` (P, 2, 2) are deformations in real space."""
    rng = np.random.default_rng(seed)
    n_patterns = shape[0] * shape[1]
    f = np.broadcast_to(f, (n_patterns, 2, 2))
    reach = range(-6, 7)
    hk = np.array([(h, k) for h in reach for k in reach if np.hypot(*(np.array([h, k]) @ basis)) < radius * 16])
    reciprocal = np.linalg.inv(f).transpose(0, 2, 1)  # g' = F^-T g
    vectors = np.einsum("pij,nj->pni", reciprocal, hk @ basis)
    x, y = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    beam = np.array(origin) + descan * np.stack([x.ravel(), y.ravel()], 1)
    q = vectors + beam[:, None]
    sigma = noise * np.exp(rng.normal(0, 0.5, q.shape))
    q = q + sigma * rng.normal(size=q.shape)
    size = np.hypot(*(hk @ basis).T)
    intensity = 50 * np.exp(-size / 20) * np.exp(rng.normal(0, 0.7, q.shape[:2]))
    direct = (hk == 0).all(1)
    intensity[:, direct] = 2000.0
    wrong = (rng.random(q.shape[:2]) < false) & ~direct
    q = np.where(wrong[..., None], rng.uniform(70, 186, q.shape), q)
    keep = rng.random(q.shape[:2]) >= missing
    offsets = np.concatenate([[0], np.cumsum(keep.sum(1))])
    truth = np.einsum("pij,mj->pmi", reciprocal, basis)
    return Lattices(tuple(shape), offsets, q[keep], sigma[keep], intensity[keep], f, truth, beam, wrong[keep])


def bragg_vectors(model: Lattices, *, sigma=True, pattern_shape=(256, 256), calibration=None, **changes):
    """The disks as ``py4DSTEM.BraggVectors`` with their uncertainties beside them."""
    return to_bragg_vectors(disk_table(model, sigma=sigma, pattern_shape=pattern_shape, **changes), calibration)


def disk_table(model: Lattices, *, sigma=True, pattern_shape=(256, 256), **changes) -> DiskTable:
    n = len(model.q)
    columns = {
        "pattern": np.repeat(np.arange(model.offsets.size - 1), np.diff(model.offsets)), "positions": model.q,
        "sigma": model.sigma if sigma else np.full((n, 2), np.nan), "intensity": model.intensity,
        "confidence": np.where(model.false, 0.3, 0.95), "fitted": model.intensity,
    }  # fmt: skip
    return DiskTable.from_disks(
        SimpleNamespace(**(columns | changes)), scan_shape=model.shape, pattern_shape=pattern_shape,
        searched=np.ones(model.shape, dtype=bool), provenance={"method": "synthetic"},
    )  # fmt: skip


def patterns(model: Lattices, size=(96, 96), radius=4.0, counts=300.0, background=3.0, seed=0):
    """Counts (Rx, Ry, Qx, Qy): an even soft disk at every position, on a flat background."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(size)
    out = np.full((model.offsets.size - 1, *size), background)
    for p in range(len(out)):
        rows = slice(model.offsets[p], model.offsets[p + 1])
        for centre, strength in zip(model.q[rows], model.intensity[rows], strict=True):
            distance = np.hypot(y - centre[0], x - centre[1])
            out[p] += counts * min(strength / 50, 4.0) * ndtr((radius - distance) / 0.5)
    return rng.poisson(out).reshape(*model.shape, *size).astype(np.uint16)


def disk(size=(96, 96), radius=4.0, centre=None):
    """The probe of `patterns`."""
    y, x = np.indices(size)
    centre = (size[0] // 2, size[1] // 2) if centre is None else centre
    return ndtr((radius - np.hypot(y - centre[0], x - centre[1])) / 0.5)
