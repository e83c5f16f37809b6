"""Powder lines of a crystal: reflections and squared structure factors.

``F(hkl) = Σ_j o_j f_j(s²) exp(-B s²) exp(2πi h·x_j)`` over all atoms of the conventional cell, computed for one of each
Friedel pair; lines that share a d-spacing are summed. No symmetry is needed, so any setting of any group works.
Compiled by numba; more than a hundred times faster than pymatgen (`tests/benchmarks/test_powder_speed.py`).
"""
from __future__ import annotations

import numpy as np
from numba import njit

from .lattice import cell_matrix, metric_tensor
from .scattering import MAX_Z, it92_table

#: lines closer than this in relative 1/d are one line (far below any instrument's resolution)
SAME_LINE = 2e-6
_NO_TERM = np.zeros(MAX_Z + 1)


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
    """How many reflections of the half sphere lie within the limits."""
    n = 0
    for h in range(hm + 1):
        for k in range(-km if h > 0 else 0, km + 1):
            plane = h * h * g[0, 0] + k * k * g[1, 1] + 2 * h * k * g[0, 1]
            slope = 2 * (h * g[0, 2] + k * g[1, 2])
            for l in range(-lm if (h > 0 or k > 0) else 1, lm + 1):
                q2 = plane + l * (slope + l * g[2, 2])
                if q2min <= q2 <= q2max:
                    n += 1
    return n


@njit(cache=True, fastmath=True, nogil=True)
def _geometric_sums(xyz, weight, start, g, q2min, q2max, hm, km, lm):
    """hkl and q² of one of each Friedel pair, and the sums of ``o_j exp(2πi h·x_j)`` over the atoms of each species.

    Atoms are sorted by species, ``start`` their first indices. The reflections hkl and hk-l share their products.
    """
    atoms, species = xyz.shape[0], start.size - 1
    n = _count(g, q2min, q2max, hm, km, lm)
    hkl = np.empty((n, 3), np.int32)
    q2s = np.empty(n)
    sums = np.empty((n, species, 2))
    ch, sh = _phase_table(xyz[:, 0], hm)
    ck, sk = _phase_table(xyz[:, 1], km)
    cl, sl = _phase_table(xyz[:, 2], lm)
    pr, pi = np.empty(atoms), np.empty(atoms)
    i = 0
    for h in range(hm + 1):
        for k in range(-km if h > 0 else 0, km + 1):
            plane = h * h * g[0, 0] + k * k * g[1, 1] + 2 * h * k * g[0, 1]
            slope = 2 * (h * g[0, 2] + k * g[1, 2])
            sign_k = 1.0 if k >= 0 else -1.0
            ak = abs(k)
            ready = False
            for l in range(0 if (h > 0 or k > 0) else 1, lm + 1):
                up, down = plane + l * (slope + l * g[2, 2]), plane + l * (-slope + l * g[2, 2])
                use_up = q2min <= up <= q2max
                use_down = l > 0 and (h > 0 or k > 0) and q2min <= down <= q2max
                if not (use_up or use_down):
                    continue
                if not ready:
                    ready = True
                    for j in range(atoms):
                        b = sign_k * sk[ak, j]
                        pr[j] = weight[j] * (ch[h, j] * ck[ak, j] - sh[h, j] * b)
                        pi[j] = weight[j] * (sh[h, j] * ck[ak, j] + ch[h, j] * b)
                both = i + 1 if use_up else i
                for m in range(species):
                    rc, rs, ic, is_ = 0.0, 0.0, 0.0, 0.0
                    for j in range(start[m], start[m + 1]):
                        rc += pr[j] * cl[l, j]
                        rs += pr[j] * sl[l, j]
                        ic += pi[j] * cl[l, j]
                        is_ += pi[j] * sl[l, j]
                    if use_up:
                        sums[i, m, 0], sums[i, m, 1] = rc - is_, ic + rs
                    if use_down:
                        sums[both, m, 0], sums[both, m, 1] = rc + is_, ic - rs
                if use_up:
                    hkl[i, 0], hkl[i, 1], hkl[i, 2] = h, k, l
                    q2s[i] = up
                    i += 1
                if use_down:
                    hkl[i, 0], hkl[i, 1], hkl[i, 2] = h, k, -l
                    q2s[i] = down
                    i += 1
    return hkl, q2s, sums


@njit(cache=True, fastmath=True, nogil=True)
def _intensities(order, q2s, sums, coeff, z_term, biso):
    """|F|² of each reflection; form factors are evaluated once where neighbours in ``order`` have the same q²."""
    species = coeff.shape[0]
    f2 = np.empty(q2s.size)
    f = np.empty(species)
    last = -1.0
    for i in order:
        q2 = q2s[i]
        if abs(q2 - last) > 1e-13 * q2:
            last = q2
            s2 = 0.25 * q2
            for m in range(species):
                v = coeff[m, 8]
                for t in range(4):
                    v += coeff[m, t] * np.exp(-coeff[m, 4 + t] * s2)
                if z_term[m] > 0.0:  # tables in the form Z - 41.78214 s² Σ a exp(-b s²)
                    v = z_term[m] - 41.78214 * s2 * v
                if biso[m] != 0.0:
                    v *= np.exp(-biso[m] * s2)
                f[m] = v
        real, imag = 0.0, 0.0
        for m in range(species):
            real += f[m] * sums[i, m, 0]
            imag += f[m] * sums[i, m, 1]
        f2[i] = real * real + imag * imag
    return f2


@njit(cache=True, nogil=True)
def _ascending(values):
    """Stable argsort of positive numbers that spread evenly: counting sort into as many bins, then insertion."""
    n = values.size
    order = np.empty(n, np.int64)
    scale = n / (values.max() * (1 + 1e-9)) if n else 0.0
    first = np.zeros(n + 1, np.int64)
    for i in range(n):
        first[int(values[i] * scale) + 1] += 1
    for i in range(n):
        first[i + 1] += first[i]
    for i in range(n):
        b = int(values[i] * scale)
        order[first[b]] = i
        first[b] += 1
    for i in range(1, n):
        at, j = order[i], i
        while j > 0 and values[order[j - 1]] > values[at]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = at
    return order


@njit(cache=True, nogil=True)
def _compute(numbers, positions, weight, b_iso, matrix, q_min, q_max, table, z_term):
    """Sort the atoms by species, sum, and weigh with form factors: hkl, q², |F|² and the order of ascending q²."""
    atoms = np.argsort(numbers, kind="mergesort")
    n = atoms.size
    xyz, w = np.empty((n, 3)), np.empty(n)
    start = np.empty(n + 1, np.int64)
    z = np.empty(n, np.int64)
    b = np.zeros(n)
    species = 0
    for i in range(n):
        j = atoms[i]
        if i == 0 or numbers[j] != z[species - 1]:
            z[species] = numbers[j]
            start[species] = i
            species += 1
        xyz[i, 0], xyz[i, 1], xyz[i, 2] = positions[j, 0], positions[j, 1], positions[j, 2]
        w[i] = weight[j]
        b[species - 1] += b_iso[j]
    start[species] = n
    b = b[:species] / np.diff(start[:species + 1])
    m = matrix
    metric = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            metric[i, j] = m[i, 0] * m[j, 0] + m[i, 1] * m[j, 1] + m[i, 2] * m[j, 2]
    g = np.linalg.inv(metric)
    hm, km, lm = [int(np.floor(np.sqrt(metric[i, i]) * q_max + 1e-9)) for i in range(3)]
    hkl, q2, sums = _geometric_sums(xyz, w, start[:species + 1], g, q_min**2, q_max**2, hm, km, lm)
    order = _ascending(q2)
    f2 = _intensities(order, q2, sums, table[z[:species]], z_term[z[:species]], b)
    return hkl, q2, f2, order


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
    hkl, q2, f2, _ = _reflections(numbers, positions, cell, q_max, q_min, occupancy, b_iso, table)
    return hkl, np.sqrt(q2), f2


def _reflections(numbers, positions, cell, q_max, q_min, occupancy, b_iso, table):
    """As `reflections`, with q² in place of q, and the order of ascending q²."""
    numbers = np.asarray(numbers, dtype=np.int64)
    if table is None:
        coeff, z_term = it92_table(), _NO_TERM
    else:
        coeff, z_term = np.zeros((MAX_Z + 1, 9)), np.zeros(MAX_Z + 1)
        for z in np.unique(numbers):
            coeff[z], z_term[z] = table(int(z))
    b = np.broadcast_to(np.asarray(b_iso, dtype=float), numbers.shape)
    weight = np.ones(numbers.size) if occupancy is None else np.asarray(occupancy, dtype=float)
    positions, limits = np.asarray(positions, dtype=float), (float(q_min), float(q_max))
    return _compute(numbers, positions, weight, b, cell_matrix(cell), *limits, coeff, z_term)


def powder_lines(numbers, positions, cell, q_max, *, weight=None, q_min=0.0, occupancy=None, b_iso=0.0, table=None):
    """Positions and intensities of powder lines: ``(q, m|F|²)``, ascending in q = 1/d (Å⁻¹).

    ``m|F|²`` is summed over every reflection at that d-spacing, both members of each Friedel pair counted. No
    Lorentz, polarisation or absorption factor is applied. ``weight(hkl, q)``, if given, multiplies each reflection
    (texture). Further options as in `reflections`.
    """
    hkl, q2, f2, order = _reflections(numbers, positions, cell, q_max, q_min, occupancy, b_iso, table)
    q = np.sqrt(q2)
    intensity = 2.0 * f2 if weight is None else 2.0 * f2 * weight(hkl, q)
    return _merge(order, q, intensity, SAME_LINE)


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
