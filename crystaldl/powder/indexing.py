"""Which lattices explain the lines: a likelihood search over cells of all systems but triclinic.

For a trial cell every observed line is compared with the nearest predicted one. Its log-likelihood ratio against chance,

    ``ln( ε + (1 - ε) N(Q_obs - Q_calc; σ_Q) / ρ(Q) )``,    ``Q = 1/d²``,

is large for a close hit among few predicted lines, small for a hit that a dense cell cannot miss, and ``ln ε`` for a line
that the cell cannot explain. ``ρ = 2π V √Q / (m c)`` is the density of predicted lines, with the cell volume V, the
multiplicity m of the Laue class and the centring factor c: large cells, low symmetry and free parameters pay. Trial cells
come from assigning low indices to two, three or four low-angle lines. Compare the figures of merit of de Wolff (1968) and
Smith & Snyder (1979), which weight all lines alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from .prepare import REFERENCE_WAVELENGTH
from .trial_indices import CODES_O, PAIRS_H, PAIRS_T, THIRDS_C, THIRDS_P, ZONES_M

#: Bravais lattices searched, in the order of the scores
LATTICES = ("cP", "cI", "cF", "tP", "tI", "hP", "hR", "oP", "oC", "oI", "oF", "mP", "mC")
# system of each: cubic, tetragonal, hexagonal axes, orthorhombic, monoclinic
_SYSTEM = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4])
_CENTRING = np.array([0, 1, 2, 0, 1, 0, 4, 0, 3, 1, 2, 0, 3])  # P, I, F, C, R
_DIVISOR = np.array([48, 96, 192, 16, 32, 24, 72, 8, 16, 16, 32, 4, 8], float)  # Laue multiplicity × centring factor
EPSILON = 0.06
MARGIN = 10.0  # lattices this far below the best need no exact score
LOWEST = 1 / 30.0**2  # no axis beyond 30 Å
MAX_VOLUME = 6000.0  # Å³
_SQRT_TWO_PI = 2.5066282746


@njit(cache=True, nogil=True)
def _allowed(h, k, l, centring):
    if centring == 0:
        return True
    if centring == 1:
        return (h + k + l) % 2 == 0
    if centring == 2:
        return (h + k) % 2 == 0 and (k + l) % 2 == 0
    if centring == 3:
        return (h + k) % 2 == 0
    # obverse and reverse: their lines coincide in a powder
    return (-h + k + l) % 3 == 0 or (h - k + l) % 3 == 0


@njit(cache=True, nogil=True)
def _nearest(q, cell, system, centring):
    """Distance in Q from the line q to the nearest line the lattice allows, and its indices; cell is (A, B, C, D)."""
    a, b, c, d = cell[0], cell[1], cell[2], cell[3]
    best = 1e9
    bh, bk, bl = 0, 0, 0
    reach = 1.06 * q
    h = 0
    while True:
        # smallest Q with this h (minimised over l for monoclinic cells)
        if h * h * (a - 0.25 * d * d / c) > reach:
            break
        k = 0
        while True:
            if system <= 2 and k > h:
                break
            if system == 2:
                base = (h * h + h * k + k * k) * a
            else:
                base = h * h * a + k * k * b
            if (base - 0.25 * h * h * d * d / c) > reach:
                break
            # base + l² c + h l d = q
            half = 0.5 * h * d / c
            root = np.sqrt(max((q - base) / c + half * half, 0.0))
            for side in range(2):
                if side == 1 and (d == 0.0 or h == 0):
                    break
                centre = root - half if side == 0 else -root - half
                low = int(np.floor(centre))
                for l in range(low, low + 2):
                    if (system < 4 and l < 0) or (system == 0 and l > k) or (h == 0 and k == 0 and l == 0):
                        continue
                    if not _allowed(h, k, l, centring):
                        continue
                    e = abs(base + l * l * c + h * l * d - q)
                    if e < best:
                        best, bh, bk, bl = e, h, k, l
                if centring > 0:
                    # the nearest l may be extinct: look one further on both sides
                    for l in (low - 1, low + 2):
                        if (system < 4 and l < 0) or (system == 0 and l > k) or (h == 0 and k == 0 and l == 0):
                            continue
                        if _allowed(h, k, l, centring):
                            e = abs(base + l * l * c + h * l * d - q)
                            if e < best:
                                best, bh, bk, bl = e, h, k, l
            k += 1
        h += 1
    return best, bh, bk, bl


@njit(cache=True, nogil=True)
def _volume(cell, system):
    if system == 2:
        return (4.0 / (3.0 * cell[0])) * np.sqrt(0.75) / np.sqrt(cell[2])
    return 1.0 / np.sqrt(max(cell[1] * (cell[0] * cell[2] - 0.25 * cell[3] ** 2), 1e-12))


@njit(cache=True, nogil=True)
def _score(lines, cell, row, bar):
    """Summed log-likelihood ratio of the lines for lattice ``row``; -1e9 as soon as ``bar`` is out of reach.

    ``lines`` (n, 4): Q, σ_Q, weight, and the weighted gain of a perfect hit for unit density, in falling weight.
    """
    system, centring = _SYSTEM[row], _CENTRING[row]
    per = _volume(cell, system) / _DIVISOR[row]
    shift = np.log(2.0 * np.pi * per)
    left = 0.0
    n = lines.shape[0]
    for i in range(n):
        left += lines[i, 3] - lines[i, 2] * shift
    if left < bar:
        return -1e9
    total = 0.0
    for i in range(n):
        q, sigma, weight = lines[i, 0], lines[i, 1], lines[i, 2]
        x = _nearest(q, cell, system, centring)[0] / sigma
        hit = 0.0
        if x < 6.0:
            hit = np.exp(-0.5 * x * x) / (_SQRT_TWO_PI * sigma * 2.0 * np.pi * per * np.sqrt(q))
        total += weight * np.log(EPSILON + (1.0 - EPSILON) * hit)
        left -= lines[i, 3] - weight * shift
        if total + left + 0.2 < bar:
            return -1e9
    return total


@njit(cache=True, nogil=True)
def _refine(lines, slope, cell, system, centring, rounds):
    """Cell and zero shift (degrees) by robust least squares on the lines as indexed; free parameters of the system."""
    n = lines.shape[0]
    free = 2 if system == 0 else (3 if system < 3 else (4 if system == 3 else 5))
    zero = 0.0
    cell = cell.copy()
    for turn in range(rounds):
        x = np.zeros((n + 1, free))
        y = np.zeros(n + 1)
        for i in range(n):
            q = lines[i, 0] - zero * slope[i]
            e, h, k, l = _nearest(q, cell, system, centring)
            u = e / lines[i, 1]
            w = np.sqrt(lines[i, 2]) / lines[i, 1] / (1.0 + (u / (2.0 - 0.4 * turn)) ** 4)
            if system == 0:
                x[i, 0] = h * h + k * k + l * l
            elif system == 1:
                x[i, 0], x[i, 1] = h * h + k * k, l * l
            elif system == 2:
                x[i, 0], x[i, 1] = h * h + h * k + k * k, l * l
            else:
                x[i, 0], x[i, 1], x[i, 2] = h * h, k * k, l * l
                if system == 4:
                    x[i, 3] = h * l
            x[i, free - 1] = slope[i]
            x[i] *= w
            y[i] = lines[i, 0] * w
        # the zero shift is known to be small: 0 ± 0.06°
        x[n, free - 1] = 1.0 / 0.06
        normal = x.T @ x
        for a in range(free):
            normal[a, a] *= 1.0 + 1e-9
            normal[a, a] += 1e-12
        p = np.linalg.solve(normal, x.T @ y)
        zero = p[free - 1]
        if system == 0:
            cell[0], cell[1], cell[2] = p[0], p[0], p[0]
        elif system < 3:
            cell[0], cell[1], cell[2] = p[0], p[0], p[1]
        else:
            cell[0], cell[1], cell[2] = p[0], p[1], p[2]
            if system == 4:
                cell[3] = p[3]
        if cell[0] <= 1e-4 or cell[1] <= 1e-4 or cell[2] <= 1e-4 or cell[0] * cell[2] <= 0.26 * cell[3] ** 2:
            return cell, 9.0
    return cell, zero


@njit(cache=True, nogil=True)
def _polish(lines, slope, best, cells, sharp):
    """Refine the best cell of every lattice with a zero shift; scores with positions ``sharp`` times as exact."""
    out = np.full(best.size, -1e3)
    zeros = np.zeros(best.size)
    refined = cells.copy()
    for row in range(best.size):
        if best[row] < -500.0:
            continue
        cell, zero = _refine(lines, slope, cells[row], _SYSTEM[row], _CENTRING[row], 4)
        fine = lines.copy()
        if abs(zero) < 0.2:
            fine[:, 0] -= zero * slope
        else:
            cell = cells[row]
        fine[:, 1] *= sharp
        fine[:, 3] -= fine[:, 2] * np.log(sharp)
        out[row], zeros[row] = _score(fine, cell, row, -1e6), zero
        refined[row] = cell
    return out, refined, zeros


@njit(cache=True, nogil=True)
def _keep(lines, cell, first, last, best, cells, top):
    """Score one cell as lattices ``first`` to ``last - 1`` and remember the best of each; returns the best score of all."""
    if cell[0] <= 0 or cell[1] <= 0 or cell[2] <= 0 or cell[0] * cell[2] <= 0.26 * cell[3] ** 2:
        return top
    if _volume(cell, _SYSTEM[first]) > MAX_VOLUME:
        return top
    for row in range(first, last):
        v = _score(lines, cell, row, max(best[row], top - MARGIN))
        if v > best[row]:
            best[row] = v
            cells[row] = cell
            top = max(top, v)
    return top


@njit(cache=True, nogil=True)
def _search_cubic(lines, base, best, cells, top):
    for i in range(base.size):
        for number in range(1, 41):
            a = base[i] / number
            if a < LOWEST:
                break
            top = _keep(lines, np.array([a, a, a, 0.0]), 0, 3, best, cells, top)
    return top


@njit(cache=True, nogil=True)
def _search_uniaxial(lines, base, pairs, first, last, best, cells, top):
    """Tetragonal or hexagonal cells from two lines."""
    for i in range(base.size):
        for j in range(i):
            for t in range(pairs.shape[0]):
                p1, l1, p2, l2 = pairs[t, 0], pairs[t, 1], pairs[t, 2], pairs[t, 3]
                det = p1 * l2 - p2 * l1
                a = (base[i] * l2 - base[j] * l1) / det
                c = (p1 * base[j] - p2 * base[i]) / det
                if LOWEST < a < 0.35 and LOWEST < c < 0.35:
                    top = _keep(lines, np.array([a, a, c, 0.0]), first, last, best, cells, top)
    return top


@njit(cache=True, nogil=True)
def _search_orthorhombic(lines, base, codes, best, cells, top):
    """Cells from three lines."""
    cell = np.zeros(4)
    for t in range(codes.shape[0]):
        m = codes[t]
        for i in range(base.size):
            for j in range(i):
                for k in range(j):
                    cell[0] = m[0] * base[i] + m[1] * base[j] + m[2] * base[k]
                    cell[1] = m[3] * base[i] + m[4] * base[j] + m[5] * base[k]
                    cell[2] = m[6] * base[i] + m[7] * base[j] + m[8] * base[k]
                    if min(cell[0], cell[1], cell[2]) > LOWEST and max(cell[0], cell[1], cell[2]) < 0.3:
                        top = _keep(lines, cell.copy(), 7, 11, best, cells, top)
    return top


@njit(cache=True, nogil=True)
def _search_monoclinic(lines, base, zones, thirds, row, best, cells, top):
    """A zone (A, C, D) from three lines h0l, then B from a fourth.

    The h0l lines of a C cell have even h only: its zone is found in h/2.
    """
    half = 0.5 if _CENTRING[row] == 3 else 1.0
    cell = np.zeros(4)
    n = base.size
    for t in range(zones.shape[0]):
        m = zones[t]
        for i in range(n):
            for j in range(i):
                for k in range(j):
                    a = m[0] * base[i] + m[1] * base[j] + m[2] * base[k]
                    c = m[3] * base[i] + m[4] * base[j] + m[5] * base[k]
                    d = m[6] * base[i] + m[7] * base[j] + m[8] * base[k]
                    # |cos β*| < 0.52: cells beyond have a less oblique description
                    if min(half * half * a, c) < LOWEST or max(a, c) > 0.4 or d * d > 1.1 * a * c:
                        continue
                    for f in range(n):
                        if f in (i, j, k):
                            continue
                        for u in range(thirds.shape[0]):
                            h, kk, l = thirds[u, 0], thirds[u, 1], thirds[u, 2]
                            b = (base[f] - h * h * a - l * l * c - h * l * d) / (kk * kk)
                            if LOWEST < b < 0.3:
                                cell[0], cell[1], cell[2], cell[3] = half * half * a, b, c, half * d
                                top = _keep(lines, cell.copy(), row, row + 1, best, cells, top)
    return top


# ------------------------------------------------------------------------------------------ for users of this module


@dataclass(frozen=True)
class LatticeScores:
    """Best log-likelihood ratio of each Bravais lattice but triclinic, and its cell.

    Attributes
    ----------
    score : (13,) float, in the order of LATTICES; a lattice more than MARGIN below the best has the best less MARGIN
    cell : (13, 4) float, (A, B, C, D) in Å⁻² with ``1/d² = h²A + k²B + l²C + hlD``; on hexagonal axes
        ``(h² + hk + k²)A + l²C``
    zero : (13,) float, zero shift in degrees (observed minus true 2θ for Cu)
    lines : int, lines compared
    weight : float, their summed weight
    """

    score: np.ndarray
    cell: np.ndarray
    zero: np.ndarray
    lines: int
    weight: float


def _reliability(ln_q, ln_height, ln_significance) -> np.ndarray:
    """Probability-like weight that a peak is a line of its own: sure against noise, not the foot of a strong line."""
    real = 1.0 / (1.0 + np.exp(-5.0 * (ln_significance - np.log(4.5))))
    near = np.abs(ln_q[:, None] - ln_q[None]) < 0.010
    overshadowed = np.where(near, ln_height[None] - ln_height[:, None], -np.inf).max(1) > np.log(15.0)
    return np.where(overshadowed, 0.15, 1.0) * real


def lattice_scores(
    peaks: np.ndarray,
    *,
    sigma_two_theta: float = 0.035,
    lines: int = 24,
    base: int = 8,
    base_monoclinic: int = 7,
) -> LatticeScores:
    """Score every Bravais lattice but triclinic on a peak list.

    Parameters
    ----------
    peaks : (n, ≥3) array
        ln(1/d in Å⁻¹), ln of the height relative to the strongest, ln of height over noise, as
        `crystaldl.powder.prepare.find_peaks` gives them.
    sigma_two_theta : float
        Uncertainty of positions in degrees for Cu Kα1, zero shift included.
    lines, base, base_monoclinic : int
        Lines compared, and low-angle lines from which trial cells are made.
    """
    ln_q, ln_height, ln_significance = (np.asarray(peaks, float)[:, k] for k in range(3))
    best, cells = np.full(len(LATTICES), -1e3), np.zeros((len(LATTICES), 4))
    if len(ln_q) < 3:
        return LatticeScores(np.zeros(len(LATTICES)), cells, np.zeros(len(LATTICES)), len(ln_q), 0.0)
    real = _reliability(ln_q, ln_height, ln_significance)
    # strong, sure lines at low angles decide
    keep = np.argsort(-(ln_height + 2.0 * np.log(np.clip(real, 1e-6, 1)) - 1.2 * (ln_q - ln_q.min())))[:lines]
    q = np.exp(2.0 * ln_q[keep])
    weight = real[keep] * np.clip(1.0 + 0.25 * ln_height[keep], 0.3, 1.0)
    two_theta = 2 * np.arcsin(np.clip(np.sqrt(q) * REFERENCE_WAVELENGTH / 2, 0, 0.999))
    sigma = np.radians(sigma_two_theta) * 2.0 * np.sin(two_theta) / REFERENCE_WAVELENGTH**2
    perfect = weight * np.log(1.0 / (_SQRT_TWO_PI * sigma * np.sqrt(q)))
    order = np.argsort(-weight)
    table = np.ascontiguousarray(np.stack([q, sigma, weight, perfect], 1)[order])
    low_lines = np.sort(q)[:base]
    top = _search_cubic(table, low_lines, best, cells, -1e3)
    top = _search_uniaxial(table, low_lines, PAIRS_T, 3, 5, best, cells, top)
    top = _search_uniaxial(table, low_lines, PAIRS_H, 5, 7, best, cells, top)
    top = _search_orthorhombic(table, low_lines, CODES_O, best, cells, top)
    for row, thirds in ((11, THIRDS_P), (12, THIRDS_C)):
        top = _search_monoclinic(table, low_lines[:base_monoclinic], ZONES_M, thirds, row, best, cells, top)
    slope = np.radians(1.0) * 2.0 * np.sin(two_theta[order]) / REFERENCE_WAVELENGTH**2
    best, cells, zero = _polish(table, slope, best, cells, 0.6)
    return LatticeScores(np.maximum(best, best.max() - MARGIN), cells, zero, len(keep), float(weight.sum()))


__all__ = ["LATTICES", "LatticeScores", "lattice_scores"]
