"""Powder lines of a crystal: reflections and squared structure factors.

``F(hkl) = Σ_j o_j f_j(s²) exp(-B s²) exp(2πi h·x_j)`` over all atoms of the conventional cell, computed for one of each
Friedel pair; lines that share a d-spacing are summed. No symmetry is needed, so any setting of any group works.
One kernel in numba; about a hundred times faster than evaluating reflections one by one in Python.
"""
from __future__ import annotations

import numpy as np
from numba import njit

from .lattice import cell_matrix, metric_tensor
from .scattering import it92_table

#: lines closer than this in relative 1/d are one line (far below any instrument's resolution)
SAME_LINE = 2e-6


@njit(cache=True, fastmath=True, nogil=True)
def _phase_table(x, n):
    """cos and sin of 2π h x for h = 0…n: (n + 1, atoms) each."""
    c = np.empty((n + 1, x.size))
    s = np.empty((n + 1, x.size))
    for j in range(x.size):
        c1, s1 = np.cos(2 * np.pi * x[j]), np.sin(2 * np.pi * x[j])
        cr, sr = 1.0, 0.0
        for h in range(n + 1):
            c[h, j] = cr
            s[h, j] = sr
            cr, sr = cr * c1 - sr * s1, cr * s1 + sr * c1
    return c, s


@njit(cache=True, fastmath=True, nogil=True)
def _count(g, q2min, q2max, hm, km, lm):
    n = 0
    for h in range(hm + 1):
        for k in range(-km if h > 0 else 0, km + 1):
            for l in range(-lm if (h > 0 or k > 0) else 1, lm + 1):  # noqa: E741
                q2 = h * h * g[0, 0] + k * k * g[1, 1] + l * l * g[2, 2] + 2 * (h * k * g[0, 1] + h * l * g[0, 2] + k * l * g[1, 2])
                if q2min <= q2 <= q2max:
                    n += 1
    return n


@njit(cache=True, fastmath=True, nogil=True)
def _half_sphere(xyz, weight, start, coeff, z_term, biso, g, q2min, q2max, hm, km, lm):  # noqa: PLR0913
    """hkl, q² and |F|² of one of each Friedel pair; atoms sorted by species, ``start`` their first indices."""
    atoms, species = xyz.shape[0], coeff.shape[0]
    n = _count(g, q2min, q2max, hm, km, lm)
    hkl = np.empty((n, 3), np.int32)
    q2s = np.empty(n)
    f2 = np.empty(n)
    ch, sh = _phase_table(xyz[:, 0], hm)
    ck, sk = _phase_table(xyz[:, 1], km)
    cl, sl = _phase_table(xyz[:, 2], lm)
    pr, pi = np.empty(atoms), np.empty(atoms)
    i = 0
    for h in range(hm + 1):
        for k in range(-km if h > 0 else 0, km + 1):
            sign_k = 1.0 if k >= 0 else -1.0
            ak = abs(k)
            for j in range(atoms):
                b = sign_k * sk[ak, j]
                pr[j] = weight[j] * (ch[h, j] * ck[ak, j] - sh[h, j] * b)
                pi[j] = weight[j] * (sh[h, j] * ck[ak, j] + ch[h, j] * b)
            for l in range(-lm if (h > 0 or k > 0) else 1, lm + 1):  # noqa: E741
                q2 = h * h * g[0, 0] + k * k * g[1, 1] + l * l * g[2, 2] + 2 * (h * k * g[0, 1] + h * l * g[0, 2] + k * l * g[1, 2])
                if q2 < q2min or q2 > q2max:
                    continue
                sign_l = 1.0 if l >= 0 else -1.0
                al = abs(l)
                s2 = 0.25 * q2
                real, imag = 0.0, 0.0
                for m in range(species):
                    a, b = 0.0, 0.0
                    for j in range(start[m], start[m + 1]):
                        sj = sign_l * sl[al, j]
                        a += pr[j] * cl[al, j] - pi[j] * sj
                        b += pr[j] * sj + pi[j] * cl[al, j]
                    f = coeff[m, 8]
                    for t in range(4):
                        f += coeff[m, t] * np.exp(-coeff[m, 4 + t] * s2)
                    if z_term[m] > 0.0:        # tables in the form Z - 41.78214 s² Σ a exp(-b s²)
                        f = z_term[m] - 41.78214 * s2 * f
                    f *= np.exp(-biso[m] * s2)
                    real += f * a
                    imag += f * b
                hkl[i, 0], hkl[i, 1], hkl[i, 2] = h, k, l
                q2s[i] = q2
                f2[i] = real * real + imag * imag
                i += 1
    return hkl, q2s, f2


@njit(cache=True, nogil=True)
def _merge(order, q, intensity, tolerance):
    out_q = np.empty(q.size)
    out_i = np.empty(q.size)
    n = -1
    first = -1.0
    for t in order:
        if n < 0 or q[t] - first > tolerance * first:
            n += 1
            first = q[t]
            out_q[n] = q[t]
            out_i[n] = 0.0
        out_i[n] += intensity[t]
    return out_q[: n + 1], out_i[: n + 1]


def reflections(numbers, positions, cell, q_max, *, q_min=0.0, occupancy=None, b_iso=0.0, table=None):
    """Reflections with ``q_min <= 1/d <= q_max``, one of each Friedel pair, with |F|².

    Parameters
    ----------
    numbers : (n,) int
        Atomic numbers of all atoms of the cell.
    positions : (n, 3) float
        Fractional coordinates.
    cell : (6,) float
        Å and degrees.
    q_max, q_min : float
        Limits of 1/d in Å⁻¹.
    occupancy : (n,) float, optional
        Site occupancies, 1 by default.
    b_iso : float or (n,) float
        Isotropic displacement parameter B in Å² (equal for all atoms of one element: the mean is taken).
    table : callable, optional
        ``table(z) -> (9 coefficients, z_term)`` in place of International Tables C; ``z_term > 0`` marks the form
        ``Z - 41.78214 s² Σ a exp(-b s²)``.

    Returns
    -------
    hkl : (m, 3) int32
    q : (m,) float64, 1/d in Å⁻¹
    f2 : (m,) float64, |F|² in electrons²
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    z, start = np.unique(numbers[order], return_index=True)
    start = np.append(start, numbers.size).astype(np.int64)
    rows = [(it92_table()[k], 0.0) if table is None else table(int(k)) for k in z]
    coeff = np.ascontiguousarray([r[0] for r in rows], dtype=float)
    z_term = np.array([r[1] for r in rows], dtype=float)
    b = np.broadcast_to(np.asarray(b_iso, dtype=float), numbers.shape)[order]
    b = np.add.reduceat(b, start[:-1]) / np.diff(start)
    weight = np.ones(numbers.size) if occupancy is None else np.asarray(occupancy, dtype=float)[order]
    lengths = np.linalg.norm(cell_matrix(cell), axis=1)
    hm, km, lm = (np.floor(lengths * q_max + 1e-9)).astype(int)
    xyz = np.ascontiguousarray(np.asarray(positions, dtype=float)[order])
    g = np.linalg.inv(metric_tensor(cell))
    hkl, q2, f2 = _half_sphere(xyz, weight, start, coeff, z_term, b, g, q_min**2, q_max**2, hm, km, lm)
    return hkl, np.sqrt(q2), f2


def powder_lines(numbers, positions, cell, q_max, *, weight=None, **options):
    """Positions and intensities of powder lines: ``(q, m|F|²)``, ascending in q = 1/d (Å⁻¹).

    ``m|F|²`` is summed over every reflection at that d-spacing, both members of each Friedel pair counted. No
    Lorentz, polarisation or absorption factor is applied. ``weight(hkl, q)``, if given, multiplies each reflection
    (texture). Further options as in `reflections`.
    """
    hkl, q, f2 = reflections(numbers, positions, cell, q_max, **options)
    intensity = 2.0 * f2 if weight is None else 2.0 * f2 * weight(hkl, q)
    return _merge(np.argsort(q, kind="stable"), q, intensity, SAME_LINE)


def march_dollase(hkl, q, cell, axis, r: float) -> np.ndarray:
    """March-Dollase weight of each reflection for platelets or needles along the reciprocal vector ``axis``.

    ``W = (r² cos² α + sin² α / r)^(-3/2)``, α the angle between the reflection and the axis (Dollase 1986);
    ``r < 1`` for plates lying flat in reflection geometry, 1 for none. Averaged over equivalents by summation.
    """
    g = np.linalg.inv(metric_tensor(cell))
    axis = np.asarray(axis, dtype=float)
    cos2 = (hkl @ g @ axis) ** 2 / (q**2 * (axis @ g @ axis))
    return (r * r * cos2 + (1.0 - cos2) / r) ** -1.5


def lorentz_polarisation(two_theta, monochromator_two_theta: float | None = None) -> np.ndarray:
    """``(1 + A cos² 2θ) / (sin² θ cos θ)`` for powders, 2θ in degrees; ``A = cos² 2θ_m`` with a monochromator, else 1."""
    tt = np.radians(np.asarray(two_theta, dtype=float))
    a = 1.0 if monochromator_two_theta is None else np.cos(np.radians(monochromator_two_theta)) ** 2
    return (1.0 + a * np.cos(tt) ** 2) / (np.sin(tt / 2) ** 2 * np.cos(tt / 2))
