"""Unit cells, metric tensors and Bragg's law.

Conventions: a cell is ``(a, b, c, alpha, beta, gamma)`` in Å and degrees; lattice vectors are the *rows* of a cell
matrix; ``q = 1/d`` (without 2π) is written ``inverse_d``; scattering angles 2θ are in degrees.
"""
from __future__ import annotations

import math

import numpy as np


def cell_matrix(cell) -> np.ndarray:
    """Cartesian lattice vectors as rows, ``a`` along x and ``b`` in the xy plane.

    Parameters
    ----------
    cell : (6,) array_like
        ``a, b, c`` in Å and ``alpha, beta, gamma`` in degrees.

    Returns
    -------
    (3, 3) ndarray, Å
    """
    # math, not numpy: this is called once a crystal, millions of times
    a, b, c, alpha, beta, gamma = np.asarray(cell, dtype=float).tolist()
    ca, cb, cg = (math.cos(math.radians(angle)) for angle in (alpha, beta, gamma))
    sg = math.sin(math.radians(gamma))
    cy = (ca - cb * cg) / sg
    cz2 = 1.0 - cb**2 - cy**2
    if cz2 <= 0:
        raise ValueError(f"cell has the angles {alpha:g}, {beta:g}, {gamma:g}°, which close no cell; expected a positive volume.")
    return np.array([[a, 0.0, 0.0], [b * cg, b * sg, 0.0], [c * cb, c * cy, c * math.sqrt(cz2)]])


def metric_tensor(cell) -> np.ndarray:
    """Direct metric tensor ``G_ij = a_i · a_j``, (3, 3), Å²."""
    m = cell_matrix(cell)
    return m @ m.T


def cell_from_metric(metric: np.ndarray) -> np.ndarray:
    """Cell parameters ``(a, b, c, alpha, beta, gamma)`` of a direct metric tensor (Å², degrees)."""
    lengths = np.sqrt(np.diag(metric))
    cos = [metric[1, 2] / (lengths[1] * lengths[2]), metric[0, 2] / (lengths[0] * lengths[2]),
           metric[0, 1] / (lengths[0] * lengths[1])]
    return np.concatenate([lengths, np.degrees(np.arccos(np.clip(cos, -1.0, 1.0)))])


def cell_volume(cell) -> float:
    """Volume of the unit cell, Å³."""
    return float(abs(np.linalg.det(cell_matrix(cell))))


def inverse_d(hkl, cell) -> np.ndarray:
    """1/d in Å⁻¹ of reflections ``hkl`` (n, 3): ``sqrt(h · G* · h)`` with the reciprocal metric ``G* = G⁻¹``."""
    hkl = np.atleast_2d(np.asarray(hkl, dtype=float))
    return np.sqrt(np.einsum("ni,ij,nj->n", hkl, np.linalg.inv(metric_tensor(cell)), hkl))


def two_theta_from_inverse_d(q, wavelength: float):
    """Scattering angle in degrees from ``q = 1/d`` (Å⁻¹) by Bragg's law, ``λ = 2 d sin θ``; NaN beyond 180°."""
    s = np.asarray(q, dtype=float) * (0.5 * wavelength)
    with np.errstate(invalid="ignore"):
        return np.degrees(2.0 * np.arcsin(np.where(s <= 1.0, s, np.nan)))


def inverse_d_from_two_theta(two_theta, wavelength: float):
    """``1/d = 2 sin θ / λ`` in Å⁻¹ from 2θ in degrees and the wavelength in Å."""
    return 2.0 * np.sin(np.radians(np.asarray(two_theta, dtype=float) / 2.0)) / wavelength
